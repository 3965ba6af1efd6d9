"""Propose the values of a competition from measured losses. Pure."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from template.constants import BLOCK_S

# `epsilon` is about 3.5 standard errors of a confirmed loss: see docs/incentives.md.
_SQUARED_ERRORS = 12
# Without a good dataset `minb` is so many times `epsilon` below `bench`, as in this subnet's own competition.
_ASSUMED_STEPS = 40
# The rest of a round is for downloads and for records that are evaluated again.
_SHARE_OF_ROUND = 0.8


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How losses vary, in nats.

    mean: of the datasets' means. seed_sd: standard deviation between seeds, within a dataset. sample_sd: between
    datasets, without what the seeds explain. seed_error: relative standard error of seed_sd.
    """

    mean: float
    seed_sd: float
    sample_sd: float
    seed_error: float


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Values of a competition file. is_assumed: minb and maxb follow from epsilon alone."""

    bench: float
    minb: float
    maxb: float
    epsilon: float
    sd: float
    evaluations: int
    hold: int
    slots: int
    is_assumed: bool


def measure_spread(datasets: Sequence[Sequence[float]]) -> Spread:
    """Return the spread of losses by dataset and seed: at least two datasets with equally many seeds, two or more."""
    runs = len(datasets[0])
    within = _seed_variance(datasets)
    means = [statistics.fmean(losses) for losses in datasets]
    between = statistics.variance(means) - within / runs
    return Spread(
        mean=statistics.fmean(means),
        seed_sd=math.sqrt(within),
        sample_sd=math.sqrt(max(0.0, between)),
        seed_error=1 / math.sqrt(2 * len(datasets) * (runs - 1)),
    )


def propose_values(
    spread: Spread, good: Sequence[Sequence[float]], *, evaluations: int, blocks_per_epoch: int, seconds: float
) -> Proposal:
    """Propose values.

    spread: of datasets of random rows. good: losses of better datasets, if there are any. seconds: of one evaluation on
    the slowest validator. slots are 0 if that is longer than a round.
    """
    sd = _round_up(max(spread.seed_sd, math.sqrt(_seed_variance(good)) if good else 0.0))
    epsilon = _round_up(sd * math.sqrt(_SQUARED_ERRORS / evaluations))
    # Nobody is paid for the luckiest of many random samples.
    bench = round(spread.mean - 2 * spread.sample_sd, 3)
    gap = bench - min((statistics.fmean(losses) for losses in good), default=bench)
    reach = 2 * gap if gap > epsilon else _ASSUMED_STEPS * epsilon
    return Proposal(
        bench=bench,
        minb=round(bench - reach, 3),
        maxb=round(bench + reach, 3),
        epsilon=epsilon,
        sd=sd,
        evaluations=evaluations,
        hold=evaluations * 8 // 3,
        slots=int(_SHARE_OF_ROUND * blocks_per_epoch * BLOCK_S / seconds),
        is_assumed=gap <= epsilon,
    )


def _seed_variance(datasets: Sequence[Sequence[float]]) -> float:
    return statistics.fmean(statistics.variance(losses) for losses in datasets)


def _round_up(value: float) -> float:
    """Round up to two digits."""
    if value <= 0.0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.6g}")
