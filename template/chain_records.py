"""Frozen records of what is read from the chain, and of calls to it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Neuron:
    """A registered hotkey. last_update_block: of its last weights or registration."""

    uid: int
    hotkey: str
    registration_block: int
    last_update_block: int


@dataclass(frozen=True, kw_only=True)
class ChainCommitment:
    """One hotkey's commitment on chain, in one of five states.

    Plain: `text` is its one Raw field as UTF-8, and `block` is where it was last set.
    Timelocked: no text; drand round `reveal_round` reveals it, and `block` is the commit block.
    Revealed: `is_revealed`, and `text` is decrypted. `block` is the reveal block: the chain drops the commit block.
    Announcement: of a validator, which names the repo with its round files in `rounds_repo`. No text, so no entry.
    Unreadable (several fields, not UTF-8, a failed reveal): neither text nor round.
    """

    hotkey: str
    block: int
    text: str | None
    reveal_round: int | None = None
    is_revealed: bool = False
    rounds_repo: str | None = None


@dataclass(frozen=True, kw_only=True)
class ChainSnapshot:
    """The subnet at one block, as far as a round needs it.

    neurons: all, by uid. commitments: also of unregistered hotkeys. owner_uid: None when the subnet owner's hotkey has
    no uid.
    """

    netuid: int
    block: int
    block_hash: str
    neurons: tuple[Neuron, ...]
    commitments: tuple[ChainCommitment, ...]
    owner_hotkey: str
    owner_uid: int | None

    @property
    def by_hotkey(self) -> Mapping[str, Neuron]:
        """Registered neurons by hotkey."""
        return {neuron.hotkey: neuron for neuron in self.neurons}


@dataclass(frozen=True, kw_only=True)
class ChainView(ChainSnapshot):
    """The chain's state at its newest block, as far as a tick needs it.

    timestamp: of the block, in POSIX seconds. blocks_until_epoch: until the subnet's next epoch. activity_cutoff:
    blocks for which weights keep a validator active, 0 if unknown. weights_version: least version key that the chain
    accepts. registered_block: of the subnet; another one means another subnet.
    """

    timestamp: float
    tempo: int
    blocks_until_epoch: int
    weights_rate_limit: int
    activity_cutoff: int
    weights_version: int
    registered_block: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of a signed call. block: includes it, None if not accepted."""

    is_accepted: bool
    error: str | None = None
    message: str = ""
    block: int | None = None


@dataclass(frozen=True, kw_only=True)
class WeightOutcome(Outcome):
    """Outcome of a weight submission, revealed at drand round `reveal_round`."""

    is_revealed_later: bool = False
    reveal_round: int | None = None


@dataclass(frozen=True, kw_only=True)
class OwnNeuron:
    """This validator on its subnet, as far as its health needs it.

    uid: None while the hotkey is not registered. last_update_block, activity_cutoff: the chain counts it as inactive
    that many blocks after its last weights. error, message: why the chain would not count its weights now, None if it
    would.
    """

    netuid: int
    hotkey: str
    uid: int | None
    last_update_block: int
    activity_cutoff: int
    error: str | None = None
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class PreparedWeights:
    """Weights by uid as the chain gets them: u16, the largest 65535.

    block: at which the era of their call begins. rejection: set if the chain would reject or drop them; nothing is sent
    then.
    """

    sent: Mapping[int, int]
    block: int
    rejection: WeightOutcome | None = None


@dataclass(frozen=True, kw_only=True)
class PublishOutcome(Outcome):
    """Outcome of a commitment. retry_after_blocks: until space is free again."""

    retry_after_blocks: int | None = None
