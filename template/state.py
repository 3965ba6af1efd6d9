"""Frozen records of the validator's own state, as the store keeps them and the rules read them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    was ever seen at, which a re-commit does not move. open_block: the earliest at which everybody could read it: later
    than first_block for one that was sealed. missing_block: the last at which its file was looked for in vain, 0 for
    never.
    """

    hotkey: str
    entry: str
    first_block: int
    block: int
    open_block: int
    missing_block: int = 0

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
class RoundEntry:
    """One registered hotkey's commitment as the block of a round showed it.

    block and rank_block: as in `template.rules.leaderboard.Entrant`. lucky_num: the seed of its score, and seed_block
    the block
    whose hash gave it; both None for an entry that is not to be scored, seed_block also for a seed that was drawn.
    """

    key: SubmissionKey
    uid: int
    block: int
    rank_block: int
    registration_block: int
    lucky_num: int | None = None
    seed_block: int | None = None


@dataclass(frozen=True, kw_only=True)
class Round:
    """One validator epoch: a snapshot of the subnet at start_block, worked on until end_block.

    entries: everybody who stood in the competition at start_block, by uid, which is all that the round's weights are
    made of. queue: whose turn it is, in order, a part of the entries. lucky_num: the seed drawn for the round; with
    seeds from the chain, that of start_block. opened_block: the newest block when the round was fixed, start_block or
    later. lucky_num_from and seed_period: see `template.validator.config.LuckyNumFrom`. All is fixed before the first
    training, so that a restart goes on with the same. id 0: not stored.
    """

    start_block: int
    start_block_hash: str
    opened_block: int
    end_block: int
    lucky_num: int
    entries: tuple[RoundEntry, ...]
    queue: tuple[SubmissionKey, ...]
    lucky_num_from: str = "random"
    seed_period: int | None = None
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
    """Weights {uid: share} decided at `block`; outcome is None while it is not known what became of them.

    shares: the same by hotkey, which is what can be given again when uids have changed hands; registrations: the block
    at which each of those hotkeys had registered when it earned its share. is_repeat: they are an
    earlier round's, given again so that this hotkey does not count as inactive.
    """

    id: int
    block: int
    weights: Mapping[int, float]
    shares: Mapping[str, float]
    created_at: float
    outcome: WeightOutcome | None
    finished_at: float | None
    registrations: Mapping[str, int] = field(default_factory=dict)
    is_repeat: bool = False


@dataclass(frozen=True, kw_only=True)
class Running:
    """A score under way. device: where. started_at: POSIX seconds. memory_bytes: of the device, None when unknown.

    done of total tokens of `stage` ("load", "train" or "evaluate").
    """

    key: SubmissionKey
    device: str
    started_at: float
    stage: str = "load"
    done: int = 0
    total: int = 0
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Gauges:
    """What a validator looks like from outside, at one moment. Counts are of submissions unless said.

    now: POSIX seconds. block, block_time: the newest view's number and POSIX time; their distance from `now` is the
    lag. doing: in words. weights_block: from here on the round's weights are due; weights_set_block: the last ones that
    the chain took; both None when not known. tokens_per_s: training speed of the last score, None before the first.
    """

    now: float
    block: int
    block_time: float
    doing: str
    round_id: int | None
    queue: int
    unscored: int
    running: tuple[Running, ...] = ()
    weights_block: int | None = None
    weights_set_block: int | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """A round that closed: its inputs, its table, and what became of its weights.

    seconds: by hotkey, what the score took, for those scored in this round. round_file: path of the signed file of its
    receipts, None when there is none.
    """

    round: Round
    standings: tuple[Standing, ...]
    intents: tuple[WeightIntent, ...]
    seconds: Mapping[str, float]
    round_file: str | None = None
