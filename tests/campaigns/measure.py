"""A figure beside what is asked of it, as the benchmarks and the load runs print it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One figure. wanted: the most that it may be, or the least when `is_least`; None when nothing is asked of it."""

    what: str
    measured: float
    unit: str
    wanted: float | None = None
    is_least: bool = False

    @property
    def is_met(self) -> bool:
        """True when it is as wanted."""
        if self.wanted is None:
            return True
        return self.measured >= self.wanted if self.is_least else self.measured <= self.wanted

    def __str__(self) -> str:
        wanted = "" if self.wanted is None else f"{'at least' if self.is_least else 'at most'} {self.wanted:g}"
        verdict = "" if self.wanted is None else "met" if self.is_met else "NOT MET"
        return f"{self.what:<64} {self.measured:>10.3f} {self.unit:<6} {wanted:<14} {verdict}".rstrip()
