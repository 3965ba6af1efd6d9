"""What the benchmark of the score says: medians, ratios, checks and goals, from what its child processes measured."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scripts.bench.job import Load, Outcome

OURS, REFERENCE = "ours", "reference"
_GOALS = {"float32": 6.0, "bfloat16": 4.0}
_CUDA_THROUGHPUT, _CUDA_MIB = 5.0, 12_000
_LONG_ROW = 200
_NOISE_STDS = 3.0

Key = tuple[str, str]
"""A runner and its dtype."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One runner in one dtype: medians over the repeats, of means over a child's submissions. loss: of the first."""

    submissions: int
    load_s: float
    train_s: float
    eval_s: float
    total_s: float
    peak_mib: float
    train_tokens_per_s: float
    eval_tokens_per_s: float
    train_gflops: float
    eval_gflops: float
    train_share: float
    eval_share: float
    loss: float
    steps: float


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times less one of ours takes than the reference: medians over the repeats, each run beside the other."""

    ours: str
    reference: str
    load: float
    train: float
    eval: float
    total: float
    total_least: float
    total_most: float
    peak: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A check or a goal, as a sentence, and whether it holds."""

    text: str
    holds: bool


def summarize(
    outcomes: Mapping[Key, Sequence[Outcome]], load: Load, ceilings: Mapping[str, float]
) -> dict[Key, Figures]:
    """The figures of every runner. ceilings: GFLOP/s by dtype."""
    return {key: _figures(repeats, load, ceilings[key[1]]) for key, repeats in outcomes.items()}


def _figures(repeats: Sequence[Outcome], load: Load, ceiling: float) -> Figures:
    train_s, eval_s = _middle(repeats, "train_s"), _middle(repeats, "eval_s")
    train_gflops, eval_gflops = load.train_flops / train_s / 1e9, load.eval_flops / eval_s / 1e9
    return Figures(
        submissions=len(repeats[0].scores),
        load_s=_middle(repeats, "load_s"),
        train_s=train_s,
        eval_s=eval_s,
        total_s=_middle(repeats, "total_s"),
        peak_mib=statistics.median(outcome.peak_mib for outcome in repeats),
        train_tokens_per_s=load.train_tokens / train_s,
        eval_tokens_per_s=load.eval_tokens / eval_s,
        train_gflops=train_gflops,
        eval_gflops=eval_gflops,
        train_share=train_gflops / ceiling,
        eval_share=eval_gflops / ceiling,
        loss=repeats[0].scores[0].loss,
        steps=_middle(repeats, "steps"),
    )


def _mean(outcome: Outcome, field: str) -> float:
    return statistics.fmean(getattr(score, field) for score in outcome.scores)


def _middle(repeats: Sequence[Outcome], field: str) -> float:
    return float(statistics.median(_mean(outcome, field) for outcome in repeats))


def compare(outcomes: Mapping[Key, Sequence[Outcome]]) -> list[Ratio]:
    """Every one of ours against every one of the reference's."""
    return [
        _ratio(ours, reference, outcomes[OURS, ours], outcomes[REFERENCE, reference])
        for ours in _dtypes(outcomes, OURS)
        for reference in _dtypes(outcomes, REFERENCE)
    ]


def _dtypes(found: Mapping[Key, object], runner: str) -> list[str]:
    return [dtype for name, dtype in found if name == runner]


def _ratio(ours: str, reference: str, ours_ran: Sequence[Outcome], reference_ran: Sequence[Outcome]) -> Ratio:
    def each(read: Callable[[Outcome], float]) -> list[float]:
        return [read(slow) / read(fast) for fast, slow in zip(ours_ran, reference_ran, strict=True)]

    def middle(field: str) -> float:
        return float(statistics.median(each(lambda outcome: _mean(outcome, field))))

    totals = each(lambda outcome: _mean(outcome, "total_s"))
    return Ratio(
        ours=ours,
        reference=reference,
        load=middle("load_s"),
        train=middle("train_s"),
        eval=middle("eval_s"),
        total=statistics.median(totals),
        total_least=min(totals),
        total_most=max(totals),
        peak=statistics.median(each(lambda outcome: outcome.peak_mib)),
    )


def check(outcomes: Mapping[Key, Sequence[Outcome]], noise: Sequence[float]) -> list[Verdict]:
    """Do both runners compute the same: equal optimizer steps, and losses apart by no more than their seeds are.

    noise: losses of ours on the first dataset under different seeds; fewer than two measure nothing. Each runner draws
    for itself, so the mean difference over n datasets has sqrt(2 / n) times the standard deviation of one loss.
    """
    steps = {score.steps for repeats in outcomes.values() for outcome in repeats for score in outcome.scores}
    told = ", ".join(map(str, sorted(steps)))
    verdicts = [Verdict(text=f"optimizer steps of every submission: {told}", holds=len(steps) == 1)]
    if len(noise) < 2:
        return verdicts
    std = statistics.stdev(noise)
    for dtype in _dtypes(outcomes, OURS):
        if (REFERENCE, dtype) in outcomes:
            ours, reference = (outcomes[runner, dtype][0].scores for runner in (OURS, REFERENCE))
            common = list(zip(ours, reference, strict=False))
            gap = abs(statistics.fmean(one.loss - other.loss for one, other in common))
            bound = _NOISE_STDS * std * math.sqrt(2 / len(common))
            text = f"losses in {dtype}: {gap:.5f} apart, {_NOISE_STDS:g} std by {len(noise)} seeds are {bound:.5f}"
            verdicts.append(Verdict(text=text, holds=gap <= bound))
    return verdicts


def judge(
    figures: Mapping[Key, Figures], ratios: Sequence[Ratio], load: Load, *, best: str, device: str
) -> list[Verdict]:
    """The goals that this run can speak of. best: the dtype in which ours comes on this machine."""
    verdicts = []
    for ratio in ratios:
        against = f"ours ({ratio.ours}) against reference {ratio.reference}"
        if load.submissions > 1 and ratio.ours == best and device == "cpu":
            wanted = _GOALS[ratio.reference]
            text = f"queue of {load.submissions}, {against}: {ratio.total:.1f} times (wanted {wanted:g})"
            verdicts.append(Verdict(text=text, holds=ratio.total >= wanted))
        if ratio.ours == best and device != "cpu":
            text = f"throughput on CUDA, {against}: {ratio.total:.1f} times (wanted {_CUDA_THROUGHPUT:g})"
            verdicts.append(Verdict(text=text, holds=ratio.total >= _CUDA_THROUGHPUT))
        if ratio.ours == ratio.reference:
            text = f"peak memory, {against}: {1 / ratio.peak:.2f} of it (wanted at most 1)"
            verdicts.append(Verdict(text=text, holds=ratio.peak >= 1))
    found = figures.get((OURS, best))
    if found and load.shortest_row >= _LONG_ROW:
        for stage, share in (("training", found.train_share), ("evaluation", found.eval_share)):
            text = f"{stage} on rows of {load.shortest_row} tokens and more, ours ({best}): {share:.2f} of the ceiling"
            verdicts.append(Verdict(text=f"{text} (wanted 0.5)", holds=share >= 0.5))
    if found and device != "cpu":
        text = f"GPU memory, ours ({best}): {found.peak_mib:,.0f} MiB (wanted at most {_CUDA_MIB:,})"
        verdicts.append(Verdict(text=text, holds=found.peak_mib <= _CUDA_MIB))
    return verdicts


def format_report(
    figures: Mapping[Key, Figures], ratios: Sequence[Ratio], checks: Sequence[Verdict], goals: Sequence[Verdict]
) -> str:
    """The table and, below it, ratios, checks and goals."""
    lines = ["", _HEAD, *(_line(*key, found) for key, found in figures.items())]
    if ratios:
        heads = "".join(f"{head:>7}" for head in ("load", "train", "eval", "peak", "total"))
        lines += ["", f"{'times less than the reference takes':37}{heads}  of total"]
    for ratio in ratios:
        who = f"ours {ratio.ours} : reference {ratio.reference}"
        values = "".join(f"{value:7.2f}" for value in (ratio.load, ratio.train, ratio.eval, ratio.peak, ratio.total))
        lines.append(f"{who:37}{values}  {ratio.total_least:.2f}-{ratio.total_most:.2f}")
    lines += ["", *(f"check: {verdict.text}: {'agree' if verdict.holds else 'DISAGREE'}" for verdict in checks)]
    lines += [f"goal: {verdict.text}: {'met' if verdict.holds else 'not met'}" for verdict in goals]
    return "\n".join(lines)


_HEAD = (
    f"{'':19}{'seconds for one dataset':>31}{'peak':>8}{'training':>19}{'evaluation':>24}\n"
    f"{'runner':10}{'dtype':9}{'load':>7}{'train':>8}{'eval':>8}{'total':>8}{'MiB':>8}"
    f"{'tok/s':>9}{'GFLOP/s':>10}{'ceil':>5}{'tok/s':>9}{'GFLOP/s':>10}{'ceil':>5}{'loss':>9}"
)


def _line(runner: str, dtype: str, found: Figures) -> str:
    return (
        f"{runner:10}{dtype:9}{found.load_s:7.2f}{found.train_s:8.2f}{found.eval_s:8.2f}{found.total_s:8.2f}"
        f"{found.peak_mib:8,.0f}{found.train_tokens_per_s:9,.0f}{found.train_gflops:10,.1f}{found.train_share:5.0%}"
        f"{found.eval_tokens_per_s:9,.0f}{found.eval_gflops:10,.1f}{found.eval_share:5.0%}{found.loss:9.5f}"
    )
