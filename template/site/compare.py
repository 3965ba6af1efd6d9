"""Compare what two validators recorded about the same rounds. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from template.site.archive import History
from template.site.extract import Extract, Row


@dataclass(frozen=True)
class Pair:
    """A hotkey's lines of both validators, None where one has none."""

    hotkey: str
    ours: Row | None
    theirs: Row | None

    @property
    def loss_gap(self) -> float | None:
        """Their loss minus ours."""
        if self.ours is None or self.theirs is None or self.ours.loss is None or self.theirs.loss is None:
            return None
        return self.theirs.loss - self.ours.loss

    @property
    def weight_gap(self) -> float:
        """Their weight minus ours."""
        return (self.theirs.weight if self.theirs else 0.0) - (self.ours.weight if self.ours else 0.0)

    @property
    def has_other_verdict(self) -> bool:
        return (self.ours and self.ours.verdict) != (self.theirs and self.theirs.verdict)

    @property
    def differs(self) -> bool:
        return bool(self.has_other_verdict or self.loss_gap or self.weight_gap)


@dataclass(frozen=True)
class RoundComparison:
    """One round of both."""

    ours: Extract
    theirs: Extract
    pairs: Sequence[Pair]

    @property
    def other_verdicts(self) -> int:
        return sum(pair.has_other_verdict for pair in self.pairs)

    @property
    def differing(self) -> Sequence[Pair]:
        """The pairs that differ, the largest difference in weight first."""
        pairs = [pair for pair in self.pairs if pair.differs]
        return sorted(pairs, key=lambda pair: (-abs(pair.weight_gap), -abs(pair.loss_gap or 0.0), pair.hotkey))

    @property
    def largest_loss_gap(self) -> float:
        return max((abs(pair.loss_gap or 0.0) for pair in self.pairs), default=0.0)

    @property
    def largest_weight_gap(self) -> float:
        return max((abs(pair.weight_gap) for pair in self.pairs), default=0.0)


def compare_histories(ours: History, theirs: History) -> list[RoundComparison]:
    """Compare the rounds that both have, newest first."""
    others = {(extract.netuid, extract.start_block): extract for extract in theirs.rounds}
    return [
        _compare(extract, others[(extract.netuid, extract.start_block)])
        for extract in reversed(ours.rounds)
        if (extract.netuid, extract.start_block) in others
    ]


def _compare(ours: Extract, theirs: Extract) -> RoundComparison:
    own = {row.hotkey: row for row in ours.rows}
    other = {row.hotkey: row for row in theirs.rows}
    hotkeys = dict.fromkeys([*own, *other])
    return RoundComparison(ours, theirs, [Pair(hotkey, own.get(hotkey), other.get(hotkey)) for hotkey in hotkeys])
