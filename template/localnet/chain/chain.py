"""Administration of a local chain: what root, the subnet owner and the passage of time do on a real one."""

from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from template.chain.client import bt
from template.errors import ConfigError
from template.localnet.chain import pallets
from template.localnet.chain.ledger import Ledger, State
from template.localnet.chain.pallets import Registered
from template.localnet.chain.scale_codec import encode_string
from template.localnet.chain.substrate import NETWORK_PREFIX

_VALIDATOR_STAKE = 10_000 * pallets.RAO_PER_TAO


class ChainFault(StrEnum):
    """How calls go wrong. LOSE_ANSWER is for writes: the call lands, and the connection drops before it says so."""

    HANG = "hang"
    DISCONNECT = "disconnect"
    ERROR = "error"
    LOSE_ANSWER = "lose_answer"


class LocalChain:
    """A local chain as its administrator sees it. Changes go into the next block, like any other.

    With a block time of 0 every change makes its own block, and `advance` makes more; so a test is in charge of time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ledger = Ledger(path)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        netuid: int,
        owner_hotkey: str,
        owner_coldkey: str | None = None,
        block_time_s: float = 0.0,
        tempo: int = 360,
        weights_rate_limit: int = 100,
        commit_reveal: bool = False,
    ) -> "LocalChain":
        """A new chain with one subnet and no neurons: the owner's hotkey has a uid only once it is registered.

        block_time_s: see `set_block_time`. tempo: blocks per epoch. Raises: ConfigError when `path` exists or a value
        makes no sense.
        """
        if netuid not in range(1, pallets.U16_MAX + 1):
            raise ConfigError(f"netuid must be 1 to {pallets.U16_MAX}, not {netuid}")
        _check_block_time(block_time_s)
        Ledger.create(path, netuid=netuid, block_time_s=0.0).close()
        chain = cls(path)
        with chain._ledger.write() as state:
            state.put("SubnetOwnerHotkey", "", owner_hotkey)
            state.put("SubnetOwner", "", owner_coldkey or owner_hotkey)
            state.put("Epochs", "", {"last_block": state.block, "index": 0})
            _set_checked(state, "Tempo", tempo)
            _set_checked(state, "WeightsSetRateLimit", weights_rate_limit)
            _set_checked(state, "CommitRevealWeightsEnabled", commit_reveal)
        if block_time_s:
            chain.set_block_time(block_time_s)
        return chain

    @property
    def network(self) -> str:
        """What to give as --subtensor.network."""
        return f"{NETWORK_PREFIX}{self.path}"

    @property
    def netuid(self) -> int:
        return int(self._ledger.netuid)

    def close(self) -> None:
        self._ledger.close()

    def __enter__(self) -> "LocalChain":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def block(self) -> int:
        """Number of the newest block."""
        return self._ledger.head()

    def advance(self, blocks: int = 1) -> int:
        """Makes blocks and returns the newest. Raises: ValueError unless the block time is 0."""
        return self._ledger.advance(blocks)

    def set_finality_lag(self, blocks: int) -> None:
        """Has blocks count as final only when they are so many below the newest; 0, the default: at once.

        Source: mainnet's voters vote for no block less than two below the best one they know,
        VotingRulesBuilder::default() of sc-consensus-grandpa, which subtensor's node/src/service.rs uses.
        """
        self._ledger.set_finality_lag(blocks)

    def reorganise(self, blocks: int) -> int:
        """Takes the newest blocks back, with all that happened in them, and returns the newest one left.

        Raises: ValueError for more blocks than are not final yet, or when blocks come by the clock.
        """
        return self._ledger.reorganise(blocks)

    def set_block_time(self, block_time_s: float) -> None:
        """Changes the pace from the next block on: seconds per block, or 0 to make blocks by hand."""
        _check_block_time(block_time_s)
        self._ledger.set_block_time(block_time_s)

    def register(self, hotkey: str, coldkey: str | None = None, *, is_validator: bool = False) -> int:
        """Registers a hotkey and returns its uid: the next one, or, when all are taken, that of the oldest neuron.

        A validator has a permit and stake enough to set weights. Raises: ValueError when the hotkey has a uid already.
        """
        with self._ledger.write() as state:
            rows = pallets.neurons(state)
            if any(row.hotkey == hotkey for row in rows):
                raise ValueError(f"{hotkey} is registered already")
            owner = state.get("SubnetOwnerHotkey")
            uid = len(rows)
            if uid >= pallets.parameter(state, "MaxAllowedUids"):
                uid = min((row for row in rows if row.hotkey != owner), key=lambda row: row.registered_at).uid
            _occupy(state, uid, hotkey, coldkey, is_validator)
            return uid

    def deregister(self, hotkey: str, *, replacement: str | None = None, is_validator: bool = False) -> int:
        """Gives a hotkey's uid to another, by default a stranger's, and returns it: no uid is ever empty on chain.

        Raises: ValueError when the hotkey has no uid, or is the subnet owner's, which the chain never replaces.
        """
        with self._ledger.write() as state:
            row = pallets.find(state, hotkey)
            if row is None or hotkey == state.get("SubnetOwnerHotkey"):
                raise ValueError(f"{hotkey} has no uid that could be taken from it")
            _occupy(state, row.uid, replacement or _stranger(), None, is_validator)
            return row.uid

    def set_hyperparameter(self, name: str, value: int | bool) -> None:
        """Sets a hyperparameter by the name of its storage item, such as "Tempo". Raises: ConfigError."""
        with self._ledger.write() as state:
            _set_checked(state, name, value)

    def reveal(self, hotkey: str, text: str) -> None:
        """Opens a hotkey's sealed commitment to `text` in the next block, as only the drand beacon can on a real chain.

        Raises: ValueError when the hotkey has no sealed commitment.
        """
        with self._ledger.write() as state:
            pallets.reveal(state, hotkey, encode_string(text))

    def weights(self, hotkey: str) -> dict[int, int] | None:
        """The weights a hotkey last set in the open, uid to u16 with the largest 65535; None when it set none."""
        state = self._ledger.at()
        row = pallets.find(state, hotkey)
        pairs = None if row is None else state.get("Weights", str(row.uid))
        return None if pairs is None else {uid: weight for uid, weight in pairs if weight}

    def weight_commits(self, hotkey: str) -> list[tuple[int, bytes, int]]:
        """The timelocked weights a hotkey committed, oldest first: (block, ciphertext, drand round that opens it)."""
        commits = [entry for _, epoch in self._ledger.at().entries("TimelockedWeightCommits") for entry in epoch]
        mine = [(block, bytes.fromhex(data[2:]), reveal) for who, block, data, reveal in commits if who == hotkey]
        return sorted(mine)

    def set_fault(self, kind: Literal["connect", "read", "write"], fault: ChainFault, *, calls: int = 1) -> None:
        """Makes the next `calls` calls of a kind go wrong, whichever process makes them; 0 ends the fault."""
        self._ledger.set_fault(kind, fault.value, calls)


def _stranger() -> str:
    keypair = bt.sp_core.Keypair
    return str(keypair.create_from_mnemonic(keypair.generate_mnemonic(12)).ss58_address)


def _occupy(state: State, uid: int, hotkey: str, coldkey: str | None, is_validator: bool) -> None:
    row = Registered(
        uid=uid,
        hotkey=hotkey,
        coldkey=coldkey or hotkey,
        registered_at=state.block,
        last_update=state.block,
        has_permit=is_validator,
        stake=_VALIDATOR_STAKE if is_validator else 0,
    )
    pallets.occupy(state, row)


def _set_checked(state: State, name: str, value: Any) -> None:
    default = pallets.HYPERPARAMETERS.get(name)
    if default is None:
        raise ConfigError(f"hyperparameter must be one of {', '.join(pallets.HYPERPARAMETERS)}, not {name!r}")
    if type(value) is not type(default) or value < 0:
        raise ConfigError(f"hyperparameter {name} must be like {default!r}, not {value!r}")
    pallets.set_parameter(state, name, value)


def _check_block_time(block_time_s: float) -> None:
    if not 0 <= block_time_s < float("inf"):
        raise ConfigError(f"block_time_s must be 0 or more seconds, not {block_time_s}")
