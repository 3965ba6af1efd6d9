"""What a loss is worth and how scores share out, written out once more for the books of a soak run."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

_LEAST_SHARE = 1e-6


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
        """1 below minb, bheight at bench, 0 from maxb on."""
        if loss < self.minb:
            return 1.0
        if loss <= self.bench:
            height = math.pow((self.bench - loss) / (self.bench - self.minb), self.pow)
            return self.bheight + (1 - self.bheight) * height
        if loss <= self.maxb:
            return self.bheight - self.bheight * math.pow((loss - self.bench) / (self.maxb - self.bench), self.pow)
        return 0.0


def shares_of(scores: Mapping[str, float]) -> dict[str, float]:
    """Each score's part of the sum of all, the smallest ones left out."""
    total = sum(scores.values())
    kept = {who: score for who, score in scores.items() if score > 0 and score / total >= _LEAST_SHARE}
    total = sum(kept.values())
    return {who: score / total for who, score in kept.items()}


def is_close(found: Mapping[Any, float], expected: Mapping[Any, float]) -> bool:
    """True when both give the same to the same, but for rounding."""
    return found.keys() == expected.keys() and all(abs(found[who] - expected[who]) < 1e-9 for who in expected)
