"""Decide which of two datasets has the lower loss, from runs with equal seeds.

A loss varies with its seed. Under one seed both runs share the initial adapter and the dropout, so the differences per
seed are tested, by Student's t for paired samples.
"""

import bisect
import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

CONFIDENCE = 0.95

# A difference that needs more seeds than this to show is too small to matter.
MAX_SEEDS = 1000


class Finding(StrEnum):
    """Result of a comparison; a lower loss is better."""

    A_IS_BETTER = "A is better"
    B_IS_BETTER = "B is better"
    UNDECIDED = "undecided"
    IDENTICAL = "identical"


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """B's losses minus A's, seed by seed, in nats per target token.

    interval: of the mean, at `CONFIDENCE`. seeds_needed: how many seeds in all would decide, with this mean and spread;
    None if decided or more than `MAX_SEEDS`.
    """

    differences: tuple[float, ...]
    mean: float
    standard_error: float
    interval: tuple[float, float]
    finding: Finding
    seeds_needed: int | None


def compare_paired(losses_a: Sequence[float], losses_b: Sequence[float]) -> PairedComparison:
    """Compare two series of at least two losses with the same seeds."""
    differences = tuple(b - a for a, b in zip(losses_a, losses_b, strict=True))
    if len(differences) < 2:
        raise ValueError("a comparison needs at least two pairs of losses")
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    standard_error = spread / math.sqrt(len(differences))
    margin = t_quantile(len(differences) - 1) * standard_error
    if not any(differences):
        finding = Finding.IDENTICAL
    elif abs(mean) <= margin:
        finding = Finding.UNDECIDED
    else:
        finding = Finding.A_IS_BETTER if mean > 0 else Finding.B_IS_BETTER
    needed = _seeds_needed(mean, spread, len(differences)) if finding is Finding.UNDECIDED else None
    return PairedComparison(
        differences=differences,
        mean=mean,
        standard_error=standard_error,
        interval=(mean - margin, mean + margin),
        finding=finding,
        seeds_needed=needed,
    )


def _seeds_needed(mean: float, spread: float, seeds: int) -> int | None:
    """Return the least count above `seeds` whose interval excludes 0."""
    counts = range(seeds + 1, MAX_SEEDS + 1)
    index = bisect.bisect_left(
        counts, True, key=lambda count: t_quantile(count - 1) * spread / math.sqrt(count) < abs(mean)
    )
    return counts[index] if index < len(counts) else None


@functools.cache
def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Return t with P(|T| <= t) = confidence for Student's T of so many degrees."""
    high = 1.0
    while _t_probability(high, freedom) < confidence:
        high *= 2
    low = 0.0
    while low < (middle := (low + high) / 2) < high:
        if _t_probability(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return high


def _t_probability(t: float, freedom: int) -> float:
    """Return P(|T| <= t) for t >= 0.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 (odd degrees of freedom) and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = freedom % 2
    term = cosine if is_odd else 1.0
    total = term if freedom > 1 else 0.0
    for index in range(2 + is_odd, freedom - 1, 2):
        term *= cosine**2 * (index - 1) / index
        total += term
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total
