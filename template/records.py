"""Frozen records that travel between the rooms.

Block numbers are the chain's:
    block               of a view: where it was read; of a commitment: where it was last set or revealed
    commit_block        where a hotkey set its commitment, readable or timelocked
    reveal_block        from which everyone can read it: the commit block, or where the chain decrypted it
    registration_block  where the hotkey got its uid; commitments up to it do not count
    aligned block       multiple of a round's length; the chain's state at these blocks alone counts
    first_block         first aligned block at which a commitment stood, without a gap since
    last_block          last aligned block at which it stood
    missing_block       last aligned block in whose round its file was missing
    public_block        first aligned block at which all could read its rows; decides who copied whom
    rank_block          decides who is paid first: aligned block from which a dataset counts
    seed_block          aligned block whose hash gives the seed of an evaluation
    start_block         snapshot of a round: an aligned block
    opened_block        newest block when the round was recorded: start_block or later
    end_block           first block after the round
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from template.chain_records import OwnNeuron, WeightOutcome
from template.competition import CommitmentRecord
from template.errors import Reason, SubmissionError

# Key of an evaluation's environment that names the device it ran on. It cannot change a loss, so comparisons skip it.
LOCATION = "where"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Tokens of the stage `train` or `evaluate` that an evaluation has done."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """One evaluation and everything that determined its loss.

    loss: mean over evaluation rows of the row's mean cross-entropy, in nats per target token; always finite.
    step_losses: per optimizer step, the group's summed cross-entropy over its number of target tokens.
    model_revision: Hub commit, None for a local folder. model_digest: of the folder, None for the Hub.
    eval_skipped_rows: rows without a target, which count nowhere.
    environment: library versions, device, dtype, threads, all else that can change a loss, and LOCATION.
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


class SubmissionKey(NamedTuple):
    """A hotkey and the text it committed, `namespace:competition_id:commit`."""

    hotkey: str
    commitment: str


class ContentKey(NamedTuple):
    """A hotkey and the digest of its dataset's counted rows.

    digest: see `template.data.rows.content_digest`.
    """

    hotkey: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Stand:
    """Consecutive aligned blocks at which a hotkey had one commitment.

    reveal_block: later than the commit block if it was sealed. missing_block: 0 unless its file came late.
    """

    key: SubmissionKey
    first_block: int
    last_block: int
    commit_block: int
    reveal_block: int
    registration_block: int
    missing_block: int = 0


@dataclass(frozen=True, kw_only=True)
class Absence:
    """Consecutive rounds in which the lookup of a dataset's file found it missing.

    first_block, last_block: of the first and the last of them. rounds: their number.
    """

    first_block: int
    last_block: int
    rounds: int = 1


class Rank(NamedTuple):
    """The sort key that decides which dataset is earlier.

    tie_break: a hash that no miner can choose.
    """

    block: int
    commit_block: int
    tie_break: bytes


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """A dataset that entered the ledger; its rank is final.

    public: rank by which duplicates are decided, None for `rank`.
    """

    rank: Rank
    registration_block: int
    row_keys: tuple[bytes, ...]
    public: Rank | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A downloaded dataset that passed its checks.

    row_keys: deduplication keys of the counted rows.
    """

    digest: str
    row_keys: tuple[bytes, ...]


@dataclass(frozen=True)
class EvalConfig:
    """A competition, hyperparameters and model: losses compare only within one."""

    id: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The final rejection of a submission."""

    reason: Reason
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """The recorded loss of an evaluation.

    seconds: of training and evaluation. receipt: JSON. receipt_digest: `Receipt.digest`.
    """

    loss: float
    seconds: float
    receipt: str
    receipt_digest: str


@dataclass(frozen=True)
class RetryState:
    """Failures that were not the miner's. next_at: POSIX time of the next retry."""

    remote_failures: int = 0
    host_failures: int = 0
    next_at: float = 0.0
    last_error: str = ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A registered hotkey's commitment at one block, with a record or a rejection."""

    key: SubmissionKey
    uid: int
    reveal_block: int
    commit_block: int
    registration_block: int
    record: CommitmentRecord | None
    rejection: SubmissionError | None = field(compare=False)

    @property
    def accepted_record(self) -> CommitmentRecord:
        """The record of an accepted entry. Raises: the rejection of another."""
        if self.record is None:
            raise self.rejection or ValueError("an entry has a record or a rejection")
        return self.record


@dataclass(frozen=True, kw_only=True)
class RoundEvaluation:
    """A planned evaluation of a round.

    number: counts the dataset's evaluations from 1. seed_block: None unless the seed is from the chain.
    """

    key: SubmissionKey
    digest: str
    number: int
    lucky_num: int
    seed_block: int | None

    @property
    def content(self) -> ContentKey:
        """The dataset that is evaluated."""
        return ContentKey(self.key.hotkey, self.digest)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One validator epoch: a snapshot at start_block, worked on until end_block.

    Recorded before its first evaluation, so that a restart continues with the same.
    entries: all of the snapshot, by uid. queue: entries to download and check, in order. evaluations: None until the
    downloads are done. lucky_num_from: source of the seeds. id: 0 before it is recorded.
    """

    start_block: int
    start_block_hash: str
    opened_block: int
    end_block: int
    entries: tuple[Entry, ...]
    queue: tuple[SubmissionKey, ...]
    lucky_num_from: str = "chain"
    evaluations: tuple[RoundEvaluation, ...] | None = None
    id: int = 0

    @property
    def is_past(self) -> bool:
        """Whether the round was over when it opened.

        Such rounds follow when this validator is new or was stopped.
        """
        return self.opened_block >= self.end_block

    @cached_property
    def by_key(self) -> Mapping[SubmissionKey, Entry]:
        """Entries by submission."""
        return {entry.key: entry for entry in self.entries}


@dataclass(frozen=True, kw_only=True)
class LeaderboardRow:
    """One entry of a round's leaderboard.

    weight: its hotkey's share of the round's weights.
    A rejected entry has a reason, an evaluated one a loss, and a waiting one neither. loss: as it is paid, from the
    mean and the spread of its runs; see `template.rules.ledger`. score: of the loss. credit: of all records of the
    hotkey, now; 0 while it is not paid.
    """

    key: SubmissionKey
    uid: int
    reason: Reason | None
    message: str
    loss: float | None
    score: float
    weight: float
    digest: str | None = None
    mean: float | None = None
    spread: float | None = None
    runs: int = 0
    credit: float = 0.0

    @property
    def hotkey(self) -> str:
        """The miner."""
        return self.key.hotkey


@dataclass(frozen=True, kw_only=True)
class LedgerLine:
    """A confirmed dataset in the ledger, as it was when the round's weights were made.

    frontier: best loss of the records before it. credit: 0 unless it is a record itself; not halved by its age.
    is_absent: its file is missing for more than a day, so the credit is not paid.
    """

    hotkey: str
    digest: str
    rank_block: int
    commit_block: int
    registration_block: int
    runs: int
    mean: float
    spread: float | None
    loss: float
    frontier: float
    credit: float
    is_absent: bool = False


class Leaderboard(NamedTuple):
    """A round's leaderboard, and the ledger that its weights follow from."""

    rows: Sequence[LeaderboardRow]
    ledger: Sequence[LedgerLine]


@dataclass(frozen=True, kw_only=True)
class WeightIntent:
    """Weights by uid, decided at `block`, from which on their call is valid. outcome: None while pending.

    shares: the same by hotkey, for submitting them again after uids changed hands. registrations: registration block
    of each of those hotkeys when it earned its share. is_repeat: an earlier round's, submitted to stay active. sent:
    the same in u16, as the chain gets them; zeros only fill up to min_allowed_weights. Empty if nothing was sent.
    start_block: of the round in which they were submitted.
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
    sent: Mapping[int, int] = field(default_factory=dict)
    start_block: int = 0


@dataclass(frozen=True, kw_only=True)
class RunningEvaluation:
    """An evaluation in progress. stage: "load", "train" or "evaluate".

    started_at: POSIX seconds. memory_bytes: of the device, None if unknown.
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
    """A validator's state at one moment, for `status` and the tracker.

    now, block_time: POSIX seconds; block_time: of the newest view. doing: the current work in words. queue:
    evaluations left. unscored: datasets to download. weights_block: the round's weights are due from here on.
    weights_set_block: of the last accepted weights. tokens_per_s: training speed of the last evaluation. warnings: of
    optional folders that take no files. burned: share of the last accepted weights that goes to the subnet owner's uid.
    neuron: None if this validator sets no weights.
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
    warnings: tuple[str, ...] = ()
    burned: float | None = None
    neuron: OwnNeuron | None = None


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """A closed round. results: of its evaluations that are done."""

    round: Round
    leaderboard: tuple[LeaderboardRow, ...]
    ledger: tuple[LedgerLine, ...]
    intents: tuple[WeightIntent, ...]
    results: Mapping[RoundEvaluation, EvaluationResult]
    round_file: str | None = None
