"""The report of `scripts/compute_loss.py`, as text and as JSON. Pure."""

import dataclasses
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from template.competition import Competition, Incentives
from template.console import BAD, GOOD, OPEN, make_grid, make_table
from template.miner.committed import CommittedDataset
from template.miner.compare import CONFIDENCE, MAX_SEEDS, Finding, PairedComparison
from template.records import ContentKey, Rank, TrainResult
from template.rules.evaluations import PER_ROUND
from template.rules.ledger import Content, Estimate, estimate_loss, is_hopeless
from template.rules.scoring import score_of
from template.terminal import format_duration


def summarize(
    results: Sequence[TrainResult],
    competition: Competition,
    incentives: Incentives,
    committed: CommittedDataset | None = None,
) -> dict[str, Any]:
    """Return the values of --json. loss: as it is paid."""
    losses, first = [result.loss for result in results], results[0]
    estimate = estimate_loss(losses, incentives.sd)
    missing = max(0, incentives.evaluations - estimate.runs)
    on_chain = None
    if committed is not None:
        on_chain = {
            **committed.key._asdict(),
            "digest": committed.digest,
            "rank_block": committed.rank_block,
            "seed_blocks": committed.seed_blocks,
            "known": committed.seed_count,
            "has_history": committed.has_history,
        }
    return {
        **dataclasses.asdict(estimate),
        "losses": losses,
        "lucky_nums": [result.lucky_num for result in results],
        "score": score_of(estimate.loss, competition),
        "bench": competition.bench,
        "missing_runs": missing,
        "missing_seconds": missing * _mean_seconds(results),
        "is_dropped": _last_run(losses, competition, incentives, is_order_known=committed is not None) is not None,
        "on_chain": on_chain,
        "competition": competition.to_dict(),
        "incentives": dataclasses.asdict(incentives),
        "train_sha256": first.train_sha256,
        "eval_sha256": first.eval_sha256,
        "model": f"{first.model_id}@{first.model_revision or first.model_digest}",
        "hyperparameters_digest": first.hyperparameters_digest,
        "environment": dict(first.environment),
        "seconds": [result.train_seconds + result.eval_seconds for result in results],
    }


def describe(
    results: Sequence[TrainResult],
    competition: Competition,
    incentives: Incentives,
    committed: CommittedDataset | None = None,
) -> str:
    """Format the result for a person."""
    runs = [f"loss {result.loss!r} lucky_num {result.lucky_num}" for result in results] if len(results) > 1 else []
    lines = _make_lines(results, competition, incentives, committed)
    return "\n".join([*runs, *(f"{label:<8} {text}" for label, text, _ in lines)])


def loss_tables(
    results: Sequence[TrainResult],
    competition: Competition,
    incentives: Incentives,
    committed: CommittedDataset | None = None,
) -> Iterator[RenderableType]:
    """Yield what a terminal shows of the result. A loss below the benchmark is green."""
    if len(results) > 1:
        table = make_table("lucky_num", "loss", numbers=("lucky_num", "loss"))
        for result in results:
            table.add_row(str(result.lucky_num), repr(result.loss))
        yield from (table, "")
    yield make_grid(_make_lines(results, competition, incentives, committed), indent=0)


def _make_lines(
    results: Sequence[TrainResult],
    competition: Competition,
    incentives: Incentives,
    committed: CommittedDataset | None,
) -> list[tuple[str, str, str]]:
    """Return label, text and style of each line."""
    estimate, first = estimate_loss([result.loss for result in results], incentives.sd), results[0]
    gap = competition.bench - estimate.loss
    style = GOOD if gap > 0 else BAD
    if estimate.spread is None:
        lines = [("loss", repr(estimate.loss), style), ("seed", str(first.lucky_num), "")]
    else:
        paid = f"as it is paid: mean + 2 max(0, spread - {incentives.sd:g}) / sqrt(runs)"
        lines = [
            ("mean", repr(estimate.mean), ""),
            ("spread", f"{estimate.spread:.6f} (standard deviation over {estimate.runs} seeds)", ""),
            ("loss", f"{estimate.loss!r} {paid}", style),
        ]
    last_run = _last_run(
        [result.loss for result in results], competition, incentives, is_order_known=committed is not None
    )
    better = "better" if gap >= 0 else "worse"
    lines += [
        ("score", f"{score_of(estimate.loss, competition):.6f} of 1", ""),
        ("bench", f"{competition.bench}: this is {abs(gap):.6f} {better}", ""),
        ("runs", _describe_runs(estimate, results, incentives, last_run), "" if last_run is None else OPEN),
        ("rows", f"{first.train_rows} trained on, {first.eval_rows} evaluated on", ""),
    ]
    return lines if committed is None else [*lines, *_describe_committed(committed, incentives)]


def _describe_runs(
    estimate: Estimate, results: Sequence[TrainResult], incentives: Incentives, last_run: int | None
) -> str:
    done, wanted = f"{estimate.runs} of {incentives.evaluations}", incentives.evaluations
    if last_run is not None:
        where = "here" if last_run == estimate.runs else f"after {last_run}"
        return f"{done}: validators stop {where}, since more runs are unlikely to make it worth a credit"
    if estimate.runs >= wanted:
        return f"{done}: enough to be confirmed"
    seconds = _mean_seconds(results)
    missing = wanted - estimate.runs
    return (
        f"{done}: {missing} more to be confirmed, about {format_duration(missing * seconds)} on this machine"
        f" ({seconds:.1f} s a run)"
    )


def _describe_committed(committed: CommittedDataset, incentives: Incentives) -> list[tuple[str, str, str]]:
    since = "" if committed.has_history else " or later: earlier commitments could not be read"
    first, last, runs = committed.seed_blocks[0], committed.seed_blocks[-1], len(committed.seeds)
    lines = [
        ("on chain", f"{committed.key.commitment} of {committed.key.hotkey}", ""),
        ("rank", f"block {committed.rank_block}{since}", ""),
        ("seeds", f"of evaluations 1 to {runs}, from blocks {first} to {last}", ""),
    ]
    if committed.seed_count < incentives.evaluations:
        lines.append(("", f"those after {committed.seed_count} are not known yet: two more with each round", ""))
    return lines


def _mean_seconds(results: Sequence[TrainResult]) -> float:
    return statistics.fmean(result.train_seconds + result.eval_seconds for result in results)


def _last_run(
    losses: Sequence[float], competition: Competition, incentives: Incentives, *, is_order_known: bool
) -> int | None:
    """Return the run after which validators stop evaluating, None without one.

    Assumes that no earlier record is better than the benchmark.
    is_order_known: whether these are the validators' own runs. They decide after the first, then after two more.
    """
    first = 1 if is_order_known else len(losses)
    for runs in range(first, min(len(losses), incentives.evaluations - 1) + 1, PER_ROUND):
        done = tuple(losses[:runs])
        content = Content(key=ContentKey("", ""), rank=Rank(0, 0, b""), registration_block=0, losses=done)
        if is_hopeless(content, [], competition, incentives):
            return runs
    return None


def describe_paired(
    paired: PairedComparison, results: tuple[list[TrainResult], list[TrainResult]], paths: Sequence[Path]
) -> str:
    """Format the comparison for a person."""
    lines = [f"A  {paths[0]}", f"B  {paths[1]}", "", f"{'lucky_num':>10}  {'A':>12}  {'B':>12}  {'B - A':>12}"]
    for a, b in zip(*results, strict=True):
        lines.append(f"{a.lucky_num:>10}  {a.loss:>12.6f}  {b.loss:>12.6f}  {b.loss - a.loss:>+12.6f}")
    means = [statistics.fmean(result.loss for result in side) for side in results]
    lines += [f"{'mean':>10}  {means[0]:>12.6f}  {means[1]:>12.6f}  {paired.mean:>+12.6f}", ""]
    low, high = paired.interval
    lines.append(f"difference  {paired.mean:+.6f} (standard error {paired.standard_error:.6f})")
    lines.append(f"interval    {low:+.6f} to {high:+.6f} ({CONFIDENCE:.0%}, Student's t over {len(results[0])} seeds)")
    return "\n".join([*lines, conclude(paired)])


def paired_tables(
    paired: PairedComparison, results: tuple[list[TrainResult], list[TrainResult]], paths: Sequence[Path]
) -> Iterator[RenderableType]:
    """Yield what a terminal shows of the comparison. The lower loss is green."""
    yield make_grid([("A", str(paths[0]), ""), ("B", str(paths[1]), "")], indent=0)
    columns = ("lucky_num", "A", "B", "B - A")
    table = make_table(*columns, numbers=columns)
    means = [statistics.fmean(result.loss for result in side) for side in results]
    pairs = [(str(a.lucky_num), a.loss, b.loss) for a, b in zip(*results, strict=True)]
    for name, a, b in [*pairs, ("mean", means[0], means[1])]:
        styles = (GOOD if a < b else "", GOOD if b < a else "")
        cells = (Text(f"{loss:.6f}", style) for loss, style in zip((a, b), styles, strict=True))
        table.add_row(name, *cells, f"{b - a:+.6f}", end_section=name == pairs[-1][0])
    low, high = paired.interval
    yield from ("", table, "")
    yield make_grid(
        [
            ("difference", f"{paired.mean:+.6f} (standard error {paired.standard_error:.6f})", ""),
            ("interval", f"{low:+.6f} to {high:+.6f} ({CONFIDENCE:.0%}, Student's t over {len(pairs)} seeds)", ""),
        ],
        indent=0,
    )
    yield Text(conclude(paired), style="bold")


def conclude(paired: PairedComparison) -> str:
    """Format the finding in one line."""
    seeds = len(paired.differences)
    if paired.finding is Finding.IDENTICAL:
        return "IDENTICAL under every seed"
    if paired.finding is not Finding.UNDECIDED:
        return f"{paired.finding.upper()} by {abs(paired.mean):.6f}"
    if paired.seeds_needed is None:
        return f"UNDECIDED: at this spread even {MAX_SEEDS} seeds would not be enough"
    return f"UNDECIDED: at this spread about {paired.seeds_needed - seeds} more seeds would be enough"


def describe_paired_json(
    paired: PairedComparison, results: tuple[list[TrainResult], list[TrainResult]], paths: Sequence[Path]
) -> str:
    """Format the comparison as JSON."""
    sides = [
        {"path": str(path), "train_sha256": side[0].train_sha256, "losses": [result.loss for result in side]}
        for path, side in zip(paths, results, strict=True)
    ]
    content = {"a": sides[0], "b": sides[1], "lucky_nums": [result.lucky_num for result in results[0]]}
    return json.dumps({**content, "confidence": CONFIDENCE, **dataclasses.asdict(paired)})
