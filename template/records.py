"""Frozen records that travel between the layers. No behaviour beyond small derived facts."""

from collections.abc import Mapping
from dataclasses import dataclass


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
