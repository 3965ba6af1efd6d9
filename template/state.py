"""Frozen records of the validator's own state, as the store keeps them and the rules read them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from template.errors import Reason
from template.records import WeightOutcome


class SubmissionKey(NamedTuple):
    """Identity of a submission: who committed, and the text committed, `namespace:competition_id:commit`."""

    hotkey: str
    entry: str


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A commitment as seen on chain.

    block: where the chain last saw it set; a re-commit of the same text moves it. first_block: the earliest block it
    was ever seen at, which a re-commit does not move.
    """

    hotkey: str
    entry: str
    first_block: int
    block: int

    @property
    def key(self) -> SubmissionKey:
        return SubmissionKey(self.hotkey, self.entry)


@dataclass(frozen=True)
class Contest:
    """One choice of competition, hyperparameters and model: losses under different contests are never compared."""

    id: int
    digest: str

    @staticmethod
    def make_digest(competition_digest: str, hyperparameters_digest: str, model: str) -> str:
        """sha256 in hex over the three that make a contest; `model` names the weights exactly."""
        return hashlib.sha256(f"{competition_digest}\n{hyperparameters_digest}\n{model}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found of one submission: a refusal with its reason, or a finite loss; exactly one of the two.

    receipt is the signed receipt's JSON beside a loss; it is not read back with the verdict. seconds: time to score.
    """

    reason: Reason | None = None
    message: str = ""
    loss: float | None = None
    seconds: float | None = None
    receipt: str | None = None


@dataclass(frozen=True)
class Attempt:
    """Tries on a submission that ended without a verdict, none of which is the miner's fault.

    next_at: POSIX time before which it is not tried again.
    """

    remote_failures: int = 0
    host_failures: int = 0
    next_at: float = 0.0
    last_error: str = ""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One validator epoch: blocks [start_block, end_block), the seed of its scores, and the submissions to work on.

    Fixed before the first training, so that a restart goes on with the same seed and the same set. id 0: not stored.
    """

    start_block: int
    start_block_hash: str
    end_block: int
    lucky_num: int
    entries: tuple[SubmissionKey, ...]
    id: int = 0


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One line of a round's table. weight is the share of this hotkey in the weights, 0 for none.

    A line has a reason when it is refused, a loss when it was scored, and neither while it waits for its turn.
    """

    key: SubmissionKey
    uid: int
    reason: Reason | None
    message: str
    loss: float | None
    score: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class WeightIntent:
    """Weights {uid: share} decided at `block`; outcome is None while it is not known what became of them."""

    id: int
    block: int
    weights: Mapping[int, float]
    created_at: float
    outcome: WeightOutcome | None
    finished_at: float | None
