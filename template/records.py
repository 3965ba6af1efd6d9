"""Frozen records that travel between the rooms. No behaviour beyond small derived facts.

Block numbers, all of the subnet's chain:
    block               where the newest view was read, or where a commitment was last set
    commit_block        where a hotkey set its commitment, readable or timelocked
    reveal_block        from where on everybody can read it: its commit block, or where the chain decrypted it
    first_block         the earliest commit block of this text; setting it again does not move it
    missing_block       the last at which its file was missing
    rank_block          decides who is earlier: first_block, or the block after missing_block when that is later
    registration_block  where the hotkey got its uid; what it committed up to there does not count
    seed_block          whose hash gives the seed of an evaluation
    start_block         the snapshot of a round
    opened_block        the newest one when the round was fixed, start_block or later
    end_block           the first one after the round
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from template.competition import CommitmentRecord
from template.errors import Reason, SubmissionError

# Key of an evaluation's environment that names the device it ran on. It cannot change a loss, so comparisons skip it.
LOCATION = "where"


@dataclass(frozen=True, kw_only=True)
class Neuron:
    """One registered hotkey of the subnet, as of the block of the view that holds it."""

    uid: int
    hotkey: str
    registration_block: int
    last_update_block: int
    """Block of this neuron's last weight setting, or of its registration when it set none since."""


@dataclass(frozen=True, kw_only=True)
class ChainCommitment:
    """What one hotkey's commitment holds on chain, in one of four states.

    Plain: `text` is the UTF-8 of its one Raw field, and `block` is where it was last set, which a re-commit moves.
    Sealed: no text yet, and `reveal_round` is the round of the drand beacon that opens it; `block` is the commit's.
    Revealed: `is_revealed`, and `text` is what the chain decrypted; `block` is the reveal's, since the chain drops
    the commit's with the commitment. Unreadable (several fields, not UTF-8, a failed reveal): neither text nor round.
    """

    hotkey: str
    block: int
    text: str | None
    reveal_round: int | None = None
    is_revealed: bool = False


@dataclass(frozen=True, kw_only=True)
class ChainView:
    """Everything a tick needs of the chain, read at one pinned block in a constant number of calls.

    `timestamp` is the block's own, in POSIX seconds. `neurons` is ordered by uid and holds every uid. `commitments`
    includes hotkeys that are no longer registered. `owner_uid` is None when the subnet owner's hotkey holds no uid at
    this block. `blocks_until_epoch` counts from `block` to the subnet's next epoch as the chain schedules it.
    `activity_cutoff` is the blocks after its last weights for which a validator counts as active, 0 when the chain does
    not say; `weights_version` the least version key with which the chain takes weights.
    """

    netuid: int
    block: int
    block_hash: str
    timestamp: float
    tempo: int
    blocks_until_epoch: int
    weights_rate_limit: int
    activity_cutoff: int
    weights_version: int
    neurons: tuple[Neuron, ...]
    commitments: tuple[ChainCommitment, ...]
    owner_hotkey: str
    owner_uid: int | None

    @property
    def by_hotkey(self) -> Mapping[str, Neuron]:
        """Registered neurons by hotkey."""
        return {neuron.hotkey: neuron for neuron in self.neurons}


@dataclass(frozen=True, kw_only=True)
class WeightOutcome:
    """What became of one weight submission: `is_accepted` and, when not, the chain's error and sentence.

    block: the chain block it was included in, None when it was not. is_revealed_later is True when the subnet
    runs commit-reveal, so the weights take effect at `reveal_round` of the drand beacon.
    """

    is_accepted: bool
    error: str | None = None
    message: str = ""
    block: int | None = None
    is_revealed_later: bool = False
    reveal_round: int | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a score is: `done` of `total` tokens of the stage `train` or `evaluate`."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """One score and everything that determined it.

    loss: mean over evaluation rows of the row's mean cross-entropy, in nats per target token; always finite.
    step_losses: per optimizer step, the group's summed cross-entropy over its number of target tokens.
    model_revision is the Hub commit, None for a local folder; model_digest is the folder's digest, None for the Hub.
    train_rows are the rows trained on; eval_skipped_rows of the evaluation set had no target and count in nothing.
    environment: library versions, device, dtype and threads, whatever else can move the number on equal inputs; beside
    them `where`, the executor and the device that it ran on, once an executor knows, which moves nothing.
    """

    loss: float
    benchmark_loss: float
    lucky_num: int
    model_id: str
    model_revision: str | None
    model_digest: str | None
    hyperparameters: Mapping[str, int | float]
    hyperparameters_digest: str
    train_sha256: str
    train_rows: int
    train_tokens: int
    eval_sha256: str
    eval_rows: int
    eval_skipped_rows: int
    eval_tokens: int
    step_losses: tuple[float, ...]
    environment: Mapping[str, str]
    load_seconds: float
    train_seconds: float
    eval_seconds: float


@dataclass(frozen=True, kw_only=True)
class PublishOutcome:
    """What became of one commitment: `is_accepted` and, when not, the chain's error and sentence.

    block: the block it was included in, None when it was not. retry_after_blocks: blocks until the chain takes
    another commitment of this hotkey, known when its space for the epoch is used up, else None.
    """

    is_accepted: bool
    error: str | None = None
    message: str = ""
    block: int | None = None
    retry_after_blocks: int | None = None


class SubmissionKey(NamedTuple):
    """Identity of a submission: the hotkey and the text that it committed, `namespace:competition_id:commit`."""

    hotkey: str
    commitment: str


@dataclass(frozen=True)
class Submission:
    """A commitment as recorded from the chain. missing_block: 0 unless its file was missing."""

    key: SubmissionKey
    first_block: int
    block: int
    reveal_block: int
    missing_block: int = 0


@dataclass(frozen=True)
class EvalConfig:
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
class RetryState:
    """Tries on a submission that ended without a verdict, none of which is the miner's fault.

    next_at: POSIX time before which it is not tried again.
    """

    remote_failures: int = 0
    host_failures: int = 0
    next_at: float = 0.0
    last_error: str = ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One registered hotkey's commitment as of one block: exactly one of record and rejection.

    reveal_block and rank_block count from the hotkey's present registration. lucky_num: the seed of its evaluation,
    None for an entry that is not to be evaluated. seed_block: the source of a seed from the chain.
    """

    key: SubmissionKey
    uid: int
    reveal_block: int
    rank_block: int
    registration_block: int
    record: CommitmentRecord | None
    rejection: SubmissionError | None = field(compare=False)
    lucky_num: int | None = None
    seed_block: int | None = None

    @property
    def accepted_record(self) -> CommitmentRecord:
        """The record of an accepted entry. Raises: SubmissionError, the rejection of another."""
        if self.record is None:
            raise self.rejection or ValueError("an entry has a record or a rejection")
        return self.record


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
    entries: tuple[Entry, ...]
    queue: tuple[SubmissionKey, ...]
    lucky_num_from: str = "random"
    seed_period: int | None = None
    id: int = 0

    @cached_property
    def by_key(self) -> Mapping[SubmissionKey, Entry]:
        """Entries by submission."""
        return {entry.key: entry for entry in self.entries}


@dataclass(frozen=True, kw_only=True)
class LeaderboardRow:
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
class RunningEvaluation:
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
class Metrics:
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
    running: tuple[RunningEvaluation, ...] = ()
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
    leaderboard: tuple[LeaderboardRow, ...]
    intents: tuple[WeightIntent, ...]
    seconds: Mapping[str, float]
    round_file: str | None = None
