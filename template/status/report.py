"""Print a validator's status for its operator, or convert it to JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from template.console import BAD, OPEN, make_table, verdict_style
from template.constants import BLOCK_S
from template.records import (
    Entry,
    LeaderboardRow,
    LedgerLine,
    Metrics,
    RetryState,
    Round,
    RunningEvaluation,
    SubmissionKey,
    WeightIntent,
)
from template.status.health import HealthLimits, failed_starts, find_problems
from template.status.status import FOLDERS, STATE_FILE, Status, normalize_error
from template.terminal import describe_verdict, escape, escape_cell, format_duration

_MAX_CAUSES = 10
_NUMBERS = ("runs", "mean", "spread", "loss", "score", "credit", "weight")
_MAX_CHARS = 600
_STYLES = {"PROBLEM": BAD, "warning": OPEN}

Lines = Iterator[tuple[str, str]]
"""Label and text of each line."""


def print_status(status: Status, console: Console, *, max_rows: int | None = 20) -> None:
    """Print everything; at most `max_rows` rows of the leaderboard, None for all."""
    for lines in (
        _health_lines(status),
        _activity_lines(status),
        _weights_lines(status),
        _failure_lines(status),
        _disk_lines(status),
    ):
        grid, last_label = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2)), ""
        for label, text in lines:
            style = _STYLES.get(label, "")
            grid.add_row(f"{'' if label == last_label else label:<10}", Text(escape(text)[:_MAX_CHARS], style=style))
            last_label = label
        console.print(grid, "")
    newest, current = status.newest, status.current
    if newest is None:
        console.print("no round yet")
    elif current is None or newest.id != current.id:
        console.print(f"round {newest.id} has no leaderboard yet, {len(newest.entries)} entries\n")
    if current is not None:
        _print_round(status, current, console, max_rows)


def _print_round(status: Status, current: Round, console: Console, max_rows: int | None) -> None:
    rows = status.standings[:max_rows]
    table = make_table("hotkey", "uid", "dataset", "verdict", *_NUMBERS, numbers=_NUMBERS)
    for row in rows:
        table.add_row(
            _short(row.key.hotkey),
            str(row.uid),
            escape_cell(row.key.commitment.split(":", 1)[0], 40),
            _styled_verdict(row, status.ledger),
            str(row.runs),
            *("-" if loss is None else f"{loss:.6f}" for loss in (row.mean, row.spread, row.loss)),
            *(f"{value:.4f}" for value in (row.score, row.credit, row.weight)),
        )
    blocks = f"blocks {current.start_block} to {current.end_block}"
    console.print(f"round {current.id}, {blocks}\n")
    console.print(table)
    if len(status.standings) > len(rows):
        console.print(f"... and {len(status.standings) - len(rows)} more, --all shows them")
    console.print()
    for row in rows:
        if row.message:
            console.print(f"{_short(row.key.hotkey)}: {escape(row.message)}", soft_wrap=True)
    console.print(_ledger_line(status.ledger), soft_wrap=True)
    console.print(f"weights: {escape(_round_weights(status))}", soft_wrap=True)


def _styled_verdict(row: LeaderboardRow, ledger: Sequence[LedgerLine]) -> Text:
    verdict = describe_verdict(row, ledger)
    return Text(verdict, style=verdict_style(verdict))


def _ledger_line(ledger: Sequence[LedgerLine]) -> str:
    records = [line for line in ledger if line.credit > 0.0]
    if not records:
        return f"ledger: {len(ledger)} confirmed datasets, no record yet"
    best = min(records, key=lambda line: line.loss)
    return (
        f"ledger: {len(ledger)} confirmed datasets, {len(records)} records; the best loss is {best.loss:.6f}, of"
        f" {_short(best.hotkey)}"
    )


def _health_lines(status: Status) -> Lines:
    yield from (("PROBLEM", str(problem)) for problem in find_problems(status, HealthLimits()))
    if status.activity is not None:
        yield from (("warning", warning) for warning in status.activity.warnings)


def _activity_lines(status: Status) -> Lines:
    activity = status.activity
    starts = len(failed_starts(status))
    failed = f"; {starts} starts in a row failed" if starts else ""
    yield "validator", ("not running" if status.holder is None else f"running, process {status.holder}") + failed
    if status.model is not None:
        yield "model", f"{status.model}, eval config {(status.contest_digest or '')[:12]}"
    if activity is None:
        yield "activity", "no report yet"
        return
    yield "activity", f"{activity.doing}, {format_duration(status.now - activity.now)} ago"
    delay_s = max(activity.now - activity.block_time, 0.0)
    yield "chain", f"block {activity.block}, read {format_duration(delay_s)} after it was made"
    yield "round", _open_round(status, activity)
    for run in activity.running:
        done = f" {run.done / run.total:.0%}" if run.total else ""
        memory = "" if run.memory_bytes is None else f", {run.memory_bytes / 2**30:.1f} GiB of memory"
        age = format_duration(max(activity.now - run.started_at, 0.0))
        yield "evaluating", f"{run.key.hotkey} on {run.device}: {run.stage}{done} after {age}{memory}"
    if activity.tokens_per_s is not None:
        yield "speed", f"{activity.tokens_per_s:,.0f} tokens/s in the last training"


def _open_round(status: Status, activity: Metrics) -> str:
    newest = status.newest
    if newest is None or newest.id != activity.round_id:
        return "none open"
    left = newest.end_block - activity.block
    end = f"{left} blocks left ({_minutes(left)})" if left > 0 else "about to close"
    planned = "not planned yet" if newest.evaluations is None else f"{activity.queue} of {len(newest.evaluations)} left"
    return (
        f"{newest.id}, blocks {newest.start_block} to {newest.end_block}, {end}; evaluations: {planned}; "
        f"datasets to download: {activity.unscored}"
    )


def _weights_lines(status: Status) -> Lines:
    block = status.activity.block if status.activity else None
    accepted, refused = status.accepted, status.refused
    if accepted is None or accepted.outcome is None:
        yield "weights", "none accepted yet"
    else:
        outcome = accepted.outcome
        targets = "last weights resubmitted" if accepted.is_repeat else _targets(status, accepted)
        reveal = f", revealed at drand round {outcome.reveal_round}" if outcome.reveal_round else ""
        yield "weights", f"accepted at {_block_age(outcome.block or accepted.block, block)}: {targets}{reveal}"
    yield "weights", _due_weights(status, block)
    last = status.recent[-1] if status.recent else None
    if last is not None and last.outcome is None:
        yield "weights", f"submitted at {_block_age(last.block, block)}, outcome unknown"
    if refused is not None and refused.outcome is not None:
        kind = "resubmission, " if refused.is_repeat else ""
        error = f"{refused.outcome.error}: {refused.outcome.message}"
        yield "weights", f"last rejected at {_block_age(refused.block, block)}: {kind}{error}"


def _targets(status: Status, accepted: WeightIntent) -> str:
    """Name what the weights are for: hotkeys, or the subnet owner, whose share is burned."""
    burned = status.activity.burned if status.activity else None
    if burned == 1.0:
        return "all burned, to the subnet owner's uid, because no dataset has a live credit"
    return f"{len(accepted.shares)} hotkeys" + (f", {burned:.0%} burned" if burned else "")


def _due_weights(status: Status, block: int | None) -> str:
    due, planned = status.due_block, status.weights_block
    if due is not None and block is not None and due <= block:
        return f"due since block {due}, {block - due} blocks ago"
    if planned is None or block is None:
        return "due in the next round"
    if status.is_set:
        return "set for this round, due in the next one"
    left = planned - block
    return f"due at block {planned}, in {max(left, 0)} blocks ({_minutes(left)}), or when all evaluations are done"


def _failure_lines(status: Status) -> Lines:
    counts = ", ".join(f"{count} {reason}" for reason, count in status.rejections.items()) or "none"
    yield "rejected", counts + ("" if status.current is None else f" in round {status.current.id}")
    causes: dict[str, list[float]] = {}
    for key, attempt in status.pending.items():
        causes.setdefault(normalize_error(key, attempt), []).append(attempt.next_at)
    by_count = sorted(causes.items(), key=lambda item: -len(item[1]))
    yield from _shortened(
        "pending",
        [
            f"{len(times)} {cause}; retry in {format_duration(max(min(times) - status.now, 0))}"
            for cause, times in by_count
        ],
    )
    suspended = [
        f"{key.hotkey} {key.commitment.split(':', 1)[0]}, for {format_duration(attempt.next_at - status.now)}: "
        f"{attempt.last_error}"
        for key, attempt in status.suspended.items()
    ]
    yield from _shortened("suspended", suspended)


def _shortened(label: str, lines: Sequence[str]) -> Lines:
    yield from ((label, line) for line in lines[:_MAX_CAUSES] or ["none"])
    if len(lines) > _MAX_CAUSES:
        yield label, f"and {len(lines) - _MAX_CAUSES} more"


def _disk_lines(status: Status) -> Lines:
    sizes = {**status.disk, "total": sum(status.disk.values()), "free": status.free_bytes}
    paths = {**FOLDERS, "state": STATE_FILE, "other": "logs, everything else", "total": status.state_dir}
    for name, size in sizes.items():
        yield "disk", f"{size / 1e6:>12,.1f} MB  {name:<10}  {paths.get(name, 'on the volume of the state')}"


def _round_weights(status: Status) -> str:
    if not status.intents:
        return "none submitted in this round"
    last, outcome = status.intents[-1], status.intents[-1].outcome
    kind = " (resubmission)" if last.is_repeat else ""
    if outcome is None:
        return f"decided at block {last.block}, outcome unknown{kind}"
    if outcome.is_accepted:
        is_burned = status.accepted == last and status.activity is not None and status.activity.burned == 1.0
        return f"on chain since block {outcome.block or last.block}{kind}{', all burned' if is_burned else ''}"
    return f"rejected at block {last.block}{kind}: {outcome.error}: {outcome.message}"


def _block_age(number: int, block: int | None) -> str:
    return f"block {number}" if block is None else f"block {number} ({max(block - number, 0)} blocks ago)"


def _minutes(blocks: int) -> str:
    return f"about {max(blocks, 0) * BLOCK_S / 60:.0f} min"


def _short(hotkey: str) -> str:
    return f"{hotkey[:6]}..{hotkey[-4:]}"


def to_json(status: Status) -> dict[str, object]:
    """Convert to JSON values. The keys are a public format: keep them."""
    activity, current = status.activity, status.current
    return {
        "alive": {"process": status.holder, "age_seconds": None if activity is None else status.now - activity.now},
        "activity": None
        if activity is None
        else {**asdict(activity), "running": [_keyed(run.key, run) for run in activity.running]},
        "model": status.model,
        "contest": status.contest_digest,
        "round": None
        if current is None
        else {**asdict(replace(current, entries=())), "entries": [_entry_json(entry) for entry in current.entries]},
        "standings": [_keyed(row.key, row) for row in status.standings],
        "ledger": [asdict(line) for line in status.ledger],
        "intents": [asdict(intent) for intent in status.intents],
        "weights": {
            "accepted": None if status.accepted is None else asdict(status.accepted),
            "refused": None if status.refused is None else asdict(status.refused),
            "due_block": status.due_block,
        },
        "failures": {
            "refused": status.rejections,
            "pending": [_keyed(key, attempt) for key, attempt in status.pending.items()],
            "parked": [_keyed(key, attempt) for key, attempt in status.suspended.items()],
        },
        "disk": {**status.disk, "free": status.free_bytes},
        "problems": [asdict(problem) for problem in find_problems(status, HealthLimits())],
        "runs": [asdict(run) for run in status.runs],
    }


def _entry_json(entry: Entry) -> dict[str, object]:
    return {
        "key": entry.key,
        "uid": entry.uid,
        "block": entry.reveal_block,
        "commit_block": entry.commit_block,
        "registration_block": entry.registration_block,
    }


def _keyed(key: SubmissionKey, record: LeaderboardRow | RunningEvaluation | RetryState) -> dict[str, object]:
    return {**asdict(record), "key": {"hotkey": key.hotkey, "entry": key.commitment}}
