"""Where a validator stands, for its operator, in words and as JSON. Pure."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from template.constants import BLOCK_S
from template.records import LeaderboardRow, Metrics, RetryState, Round, RunningEvaluation, SubmissionKey, WeightIntent
from template.terminal import escape, escape_cell, format_table
from template.validator.status import Status, count_refusals, format_duration, normalize_error

_SHOWN = 10
_NAME_WIDTH = 10
# Columns beside the names, and the most of one line's text.
_WIDTH = 108
_MAX_CHARS = 600


Section = list[tuple[str, list[str]]]
"""Names, each with its lines."""


_HEADER = ("hotkey", "uid", "dataset", "verdict", "loss", "score", "weight")


def describe(status: Status, *, rows: int | None = 20) -> str:
    """All of it for a person; at most so many rows of the table, None for all."""
    parts = [_describe_doing(status), _describe_weights(status), _describe_failures(status), _describe_disk(status)]
    blocks = ["\n".join(_label(name, lines) for name, lines in part) for part in parts]
    if status.newest is None:
        blocks.append("no round was opened yet")
    elif status.current is None or status.newest.id != status.current.id:
        blocks.append(f"round {status.newest.id} has no table yet: {_count(len(status.newest.entries), 'submission')}")
    if status.current is not None:
        blocks.append(describe_round(status.current, status.standings, status.intents, rows=rows))
    return "\n\n".join(blocks)


def _label(name: str, lines: Sequence[str]) -> str:
    told = [part for line in lines for part in textwrap.wrap(escape(line)[:_MAX_CHARS], _WIDTH, subsequent_indent="  ")]
    names = [name, *[""] * (len(told) - 1)]
    return "\n".join(f"{one:<{_NAME_WIDTH}}  {line}" for one, line in zip(names, told, strict=True))


def _describe_doing(status: Status) -> Section:
    seen = "no process is seen to hold the state" if status.holder is None else f"runs, process {status.holder}"
    section = [("validator", [seen])]
    if status.model is not None:
        section.append(("model", [f"{status.model}, contest {(status.contest_digest or '')[:12]}"]))
    activity = status.activity
    if activity is None:
        return [*section, ("doing", ["it has not said yet"])]
    lag_s = max(activity.now - activity.block_time, 0.0)
    section += [
        ("doing", [f"{activity.doing}; said {format_duration(status.now - activity.now)} ago"]),
        ("chain", [f"block {activity.block}, {format_duration(lag_s)} old when it was read"]),
        ("round", [_describe_turns(status, activity)]),
    ]
    if activity.running:
        section.append(("scores", [_describe_score(one, activity.now) for one in activity.running]))
    if activity.tokens_per_s is not None:
        section.append(("speed", [f"{activity.tokens_per_s:,.0f} tokens/s in training, the last score"]))
    return section


def _describe_turns(status: Status, activity: Metrics) -> str:
    newest = status.newest
    if activity.round_id is None or newest is None or newest.id != activity.round_id:
        return "none is open"
    left = newest.end_block - activity.block
    end = f"{left} blocks left ({_minutes(left)})" if left > 0 else "to be closed"
    return (
        f"{newest.id}, blocks {newest.start_block} to {newest.end_block}, {end};"
        f" {activity.queue} of {len(newest.queue)} in the queue without a verdict, {activity.unscored} in all"
    )


def _describe_score(one: RunningEvaluation, now: float) -> str:
    done = f" {one.done / one.total:.0%}" if one.total else ""
    memory = "" if one.memory_bytes is None else f", {one.memory_bytes / 2**30:.1f} GiB of its memory"
    age = format_duration(max(now - one.started_at, 0.0))
    return f"{one.key.hotkey} on {one.device}: {one.stage}{done} after {age}{memory}"


def _describe_weights(status: Status) -> Section:
    block = status.activity.block if status.activity else None
    lines = []
    accepted = status.accepted
    if accepted is None or accepted.outcome is None:
        lines.append("the chain took none yet")
    else:
        at = accepted.outcome.block or accepted.block
        what = (
            "an earlier round's, given again" if accepted.is_repeat else f"to {_count(len(accepted.shares), 'hotkey')}"
        )
        reveal = f", revealed at drand round {accepted.outcome.reveal_round}" if accepted.outcome.reveal_round else ""
        lines.append(f"taken at block {at}{_blocks_ago(at, block)}: {what}{reveal}")
    lines.append(_describe_due(status, block))
    last = status.recent[-1] if status.recent else None
    if last is not None and last.outcome is None:
        lines.append(f"submitted at block {last.block}{_blocks_ago(last.block, block)}, outcome not known yet")
    refused = status.refused
    if refused is not None and refused.outcome is not None:
        what = "an earlier round's, " if refused.is_repeat else ""
        why = f"{refused.outcome.error}: {refused.outcome.message}"
        lines.append(f"last refusal at block {refused.block}{_blocks_ago(refused.block, block)}: {what}{why}")
    return [("weights", lines)]


def _describe_due(status: Status, block: int | None) -> str:
    due = status.due_block
    if due is not None and block is not None and due <= block:
        return f"due since block {due}, {block - due} blocks ago"
    at = status.weights_block
    if at is None or block is None:
        return "next due in the next round"
    if status.is_set:
        return "set for this round; next due in the next one"
    return f"next due at block {at}, in {max(at - block, 0)} blocks ({_minutes(at - block)}), or when the work is done"


def _blocks_ago(at: int, block: int | None) -> str:
    return "" if block is None else f" ({max(block - at, 0)} blocks ago)"


def _describe_failures(status: Status) -> Section:
    refused = count_refusals(status)
    table = "" if status.current is None else f" in the table of round {status.current.id}"
    counts = ", ".join(f"{count} {reason}" for reason, count in refused.items()) or "none"
    causes: dict[str, list[float]] = {}
    for key, one in status.pending().items():
        causes.setdefault(normalize_error(key, one), []).append(one.next_at)
    commonest = sorted(causes.items(), key=lambda item: -len(item[1]))
    pending = [f"{len(times)} {cause}; {_when(min(times), status.now)}" for cause, times in commonest]
    parked = [
        f"{key.hotkey} {key.commitment.split(':', 1)[0]}, for {format_duration(one.next_at - status.now)} more:"
        f" {one.last_error}"
        for key, one in status.parked().items()
    ]
    return [
        ("refused", [f"{counts}{table}"]),
        ("pending", shorten(pending, _SHOWN) or ["none"]),
        ("parked", shorten(parked, _SHOWN) or ["none"]),
    ]


def _when(at: float, now: float) -> str:
    return "to be tried again now" if at <= now else f"to be tried again in {format_duration(at - now)}"


def _describe_disk(status: Status) -> Section:
    total = sum(one.bytes for one in status.disk)
    rows = [(one.name, one.path, one.bytes) for one in status.disk] + [("total", status.state_dir, total)]
    rows.append(("free", "on the volume of the state", status.free_bytes))
    sizes = [f"{size / 1e6:,.1f} MB" for _, _, size in rows]
    width = max(map(len, sizes))
    cells = [(size.rjust(width), name, path) for size, (name, path, _) in zip(sizes, rows, strict=True)]
    return [("disk", format_table(cells))]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _minutes(blocks: int) -> str:
    return f"about {max(blocks, 0) * BLOCK_S / 60:.0f} min"


def to_json(status: Status) -> dict[str, object]:
    """All of it for a program, nothing left out."""
    activity = status.activity
    return {
        "alive": {
            "process": status.holder,
            "age_seconds": None if activity is None else status.now - activity.now,
        },
        "activity": None if activity is None else _activity_to_json(activity),
        "model": status.model,
        "contest": status.contest_digest,
        "round": None if status.current is None else asdict(status.current),
        "standings": [{**asdict(line), "key": line.key._asdict()} for line in status.standings],
        "intents": [asdict(one) for one in status.intents],
        "weights": {
            "accepted": None if status.accepted is None else asdict(status.accepted),
            "refused": None if status.refused is None else asdict(status.refused),
            "due_block": status.due_block,
        },
        "failures": {
            "refused": count_refusals(status),
            "pending": [_attempt_to_json(*item) for item in status.pending().items()],
            "parked": [_attempt_to_json(*item) for item in status.parked().items()],
        },
        "disk": {**{one.name: one.bytes for one in status.disk}, "free": status.free_bytes},
    }


def _activity_to_json(activity: Metrics) -> dict[str, object]:
    return {**asdict(activity), "running": [{**asdict(one), "key": one.key._asdict()} for one in activity.running]}


def _attempt_to_json(key: SubmissionKey, attempt: RetryState) -> dict[str, object]:
    return {"key": key._asdict(), **asdict(attempt)}


def describe_round(
    current: Round, standings: Sequence[LeaderboardRow], intents: Sequence[WeightIntent], *, rows: int | None = None
) -> str:
    """The round's table, at most so many rows of it, why some do not count, and what became of the weights.

    `verdict` is why a submission does not count, or that it was scored, or that it still waits.
    """
    shown = standings[:rows]
    table = format_table([_HEADER, *map(_format_line, shown)], has_header=True)
    if len(standings) > len(shown):
        table.append(f"... and {len(standings) - len(shown)} more, --all shows them")
    notes = [f"{_short(line.key.hotkey)}: {escape(line.message)}" for line in shown if line.reason is not None]
    title = f"round {current.id}, blocks {current.start_block} to {current.end_block}, lucky_num {current.lucky_num}"
    return "\n".join([title, "", *table, "", *notes, _describe_round_weights(intents)])


def shorten(lines: Sequence[str], most: int) -> list[str]:
    """The first lines, and how many more there are."""
    more = len(lines) - most
    return [*lines[:most], f"and {more} more"] if more > 0 else list(lines)


def _format_line(line: LeaderboardRow) -> tuple[str, ...]:
    """One row of the table: text for every column of the header."""
    scored = "scored" if line.loss is not None else "waiting"
    return (
        _short(line.key.hotkey),
        str(line.uid),
        escape_cell(line.key.commitment.split(":", 1)[0], 40),
        str(line.reason) if line.reason is not None else scored,
        "-" if line.loss is None else f"{line.loss:.6f}",
        f"{line.score:.4f}",
        f"{line.weight:.4f}",
    )


def _describe_round_weights(intents: Sequence[WeightIntent]) -> str:
    """What became of the round's weights, in a sentence."""
    if not intents:
        return "weights: none submitted in this round"
    last = intents[-1]
    whose = " (an earlier round's, given again)" if last.is_repeat else ""
    if last.outcome is None:
        return f"weights: decided at block {last.block}, outcome not known yet{whose}"
    if last.outcome.is_accepted:
        return f"weights: on chain since block {last.outcome.block or last.block}{whose}"
    why = escape(f"{last.outcome.error}: {last.outcome.message}")
    return f"weights: refused at block {last.block}{whose}: {why}"


def _short(hotkey: str) -> str:
    """The two ends of an address, enough to tell hotkeys apart in a table."""
    return f"{hotkey[:6]}..{hotkey[-4:]}"
