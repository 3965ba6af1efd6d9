"""Scores and shares, written again for the reference model."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

_MIN_SHARE = 1e-6


class Curve(NamedTuple):
    """The competition, as the run wrote it."""

    id: str
    rows: int
    bench: float
    minb: float
    maxb: float
    bheight: float
    pow: float

    def score(self, loss: float) -> float:
        """Return 1 below minb, bheight at bench, 0 from maxb on."""
        if loss < self.minb:
            return 1.0
        if loss <= self.bench:
            height = math.pow((self.bench - loss) / (self.bench - self.minb), self.pow)
            return self.bheight + (1 - self.bheight) * height
        if loss <= self.maxb:
            return self.bheight - self.bheight * math.pow((loss - self.bench) / (self.maxb - self.bench), self.pow)
        return 0.0


def shares_of(scores: Mapping[str, float]) -> dict[str, float]:
    """Return each score's part of the sum, without the smallest ones."""
    total = sum(scores.values())
    large = {name: score for name, score in scores.items() if score > 0 and score / total >= _MIN_SHARE}
    total = sum(large.values())
    return {name: score / total for name, score in large.items()}


def is_close(actual: Mapping[Any, float], expected: Mapping[Any, float]) -> bool:
    """Return whether both agree but for rounding."""
    return actual.keys() == expected.keys() and all(abs(actual[key] - expected[key]) < 1e-9 for key in expected)
