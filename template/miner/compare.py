"""Which of two datasets is better, from their losses under the same seeds. Pure.

A loss moves with its seed. Under one seed both datasets meet the same adapter and the same dropout stream, so what is
judged is the difference, seed by seed, by Student's t for paired samples.
"""

import bisect
import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

CONFIDENCE = 0.95

# More seeds than this are not worth naming: the difference is too small to matter to anybody.
MAX_SEEDS = 1000


class Finding(StrEnum):
    """What the losses say. Lower is better."""

    A_IS_BETTER = "A is better"
    B_IS_BETTER = "B is better"
    UNDECIDED = "undecided"
    IDENTICAL = "identical"


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Two series of losses held against each other; differences are B's loss minus A's, in nats per target token.

    interval: of the mean difference, at `CONFIDENCE`. seeds_needed: about how many seeds in all would decide it, were
    mean and spread to stay as they are; None when it is decided, and when more than `MAX_SEEDS` would be needed.
    """

    differences: tuple[float, ...]
    mean: float
    standard_error: float
    interval: tuple[float, float]
    finding: Finding
    seeds_needed: int | None


def compare_paired(losses_a: Sequence[float], losses_b: Sequence[float]) -> PairedComparison:
    """The comparison of two series in the order of the same seeds. Raises: ValueError for fewer than two pairs."""
    differences = tuple(b - a for a, b in zip(losses_a, losses_b, strict=True))
    if len(differences) < 2:
        raise ValueError("one pair of losses says nothing of the spread")
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    standard_error = spread / math.sqrt(len(differences))
    margin = t_quantile(len(differences) - 1) * standard_error
    finding = _judge(mean, margin, is_identical=not any(differences))
    needed = _seeds_needed(mean, spread, len(differences)) if finding is Finding.UNDECIDED else None
    return PairedComparison(
        differences=differences,
        mean=mean,
        standard_error=standard_error,
        interval=(mean - margin, mean + margin),
        finding=finding,
        seeds_needed=needed,
    )


def _judge(mean: float, margin: float, *, is_identical: bool) -> Finding:
    if is_identical:
        return Finding.IDENTICAL
    if abs(mean) <= margin:
        return Finding.UNDECIDED
    return Finding.A_IS_BETTER if mean > 0 else Finding.B_IS_BETTER


def _seeds_needed(mean: float, spread: float, seeds: int) -> int | None:
    """The least number of seeds, above those there are, whose interval leaves out 0; it shrinks with every seed."""
    candidates = range(seeds + 1, MAX_SEEDS + 1)
    at = bisect.bisect_left(
        candidates, True, key=lambda count: t_quantile(count - 1) * spread / math.sqrt(count) < abs(mean)
    )
    return candidates[at] if at < len(candidates) else None


@functools.cache
def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| <= t) = confidence for Student's T with a positive whole number of degrees of freedom."""
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
    """P(|T| <= t) for t >= 0.

    A finite series in the cosine of atan(t / sqrt(freedom)), one for odd and one for even degrees of freedom.
    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = freedom % 2
    term = cosine if is_odd else 1.0
    total = term if freedom > 1 else 0.0
    for at in range(2 + is_odd, freedom - 1, 2):
        term *= cosine**2 * (at - 1) / at
        total += term
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total
