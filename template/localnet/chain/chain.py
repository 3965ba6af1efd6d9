"""Administration of a local chain: root, subnet owner and drand beacon."""

from pathlib import Path
from typing import Any

from template.chain.client import bt
from template.errors import ConfigError
from template.localnet.chain import pallets
from template.localnet.chain.ledger import Ledger, State, check_block_time
from template.localnet.chain.scale_codec import encode_string

_VALIDATOR_STAKE = 10_000 * pallets.RAO_PER_TAO


class LocalChain(Ledger):
    """A local chain with an administrator's calls; changes go into the next block."""

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
        commit_reveal: bool = True,
    ) -> "LocalChain":
        """Write a chain with one subnet and no neurons, not even the owner's.

        Raises: ConfigError when `path` exists or a value is out of range.
        """
        if netuid not in range(1, pallets.U16_MAX + 1):
            raise ConfigError(f"netuid must be 1 to {pallets.U16_MAX}, not {netuid}")
        check_block_time(block_time_s)
        chain = cls.create_file(path, netuid=netuid, block_time_s=0.0)
        try:
            with chain.write() as state:
                state.put("SubnetOwnerHotkey", "", owner_hotkey)
                state.put("SubnetOwner", "", owner_coldkey or owner_hotkey)
                state.put("Epochs", "", {"last_block": state.block, "index": 0})
                _set_checked(state, "Tempo", tempo)
                _set_checked(state, "WeightsSetRateLimit", weights_rate_limit)
                _set_checked(state, "CommitRevealWeightsEnabled", commit_reveal)
            if block_time_s:
                chain.set_block_time(block_time_s)
        except ConfigError:
            chain.close()
            raise
        return chain

    def register(self, hotkey: str, coldkey: str | None = None, *, is_validator: bool = False) -> int:
        """Register a hotkey; return the next uid or, in a full subnet, the oldest.

        A validator gets a permit and stake enough to set weights. Raises: ValueError for a registered hotkey.
        """
        with self.write() as state:
            rows = pallets.neurons(state)
            if any(row.hotkey == hotkey for row in rows):
                raise ValueError(f"{hotkey} is registered already")
            owner = state.get("SubnetOwnerHotkey")
            uid = len(rows)
            if uid >= pallets.parameter(state, "MaxAllowedUids"):
                uid = min((row for row in rows if row.hotkey != owner), key=lambda row: row.registered_at).uid
            _replace_neuron(state, uid, hotkey, coldkey, is_validator)
            return uid

    def deregister(self, hotkey: str, *, replacement: str | None = None, is_validator: bool = False) -> int:
        """Give a hotkey's uid to another hotkey, a new one by default; return the uid.

        Raises: ValueError for a hotkey without a uid, and for the subnet owner's, which the chain never replaces.
        """
        with self.write() as state:
            row = pallets.find(state, hotkey)
            if row is None or hotkey == state.get("SubnetOwnerHotkey"):
                raise ValueError(f"{hotkey} has no uid that another hotkey can take")
            _replace_neuron(state, row.uid, replacement or _make_hotkey(), None, is_validator)
            return row.uid

    def set_permit(self, hotkey: str, *, has_permit: bool) -> None:
        """Grant or withdraw a hotkey's validator_permit, as an epoch does.

        Raises: ValueError without a uid.
        """
        with self.write() as state:
            pallets.set_permit(state, hotkey, has_permit=has_permit)

    def set_hyperparameter(self, name: str, value: int | bool) -> None:
        """Set a hyperparameter by its storage item, such as "Tempo". Raises: ConfigError."""
        with self.write() as state:
            _set_checked(state, name, value)

    def upgrade_runtime(self) -> None:
        """Raise the runtime's version in the next block, with other numbers of types in its metadata."""
        with self.write() as state:
            state.put("RuntimeUpgrades", "", runtime_upgrades(state) + 1)

    def downgrade_runtime(self) -> None:
        """Lower the runtime's version in the next block, below the first one: it lacks SubnetEpochConsensus."""
        with self.write() as state:
            state.put("RuntimeUpgrades", "", min(runtime_upgrades(state), 0) - 1)

    def use_nonce(self, account: str) -> None:
        """Count a nonce up in the next block, as another writer's call with the same key does."""
        with self.write() as state:
            state.put("Nonce", account, state.get("Nonce", account, 0) + 1)

    def reveal(self, hotkey: str, text: str) -> None:
        """Reveal a hotkey's timelocked commitment as `text`. Raises: ValueError."""
        with self.write() as state:
            pallets.reveal(state, hotkey, encode_string(text))

    def fail_reveal(self, hotkey: str) -> None:
        """Fail the reveal of a hotkey's timelocked commitment. Raises: ValueError."""
        with self.write() as state:
            pallets.fail_reveal(state, hotkey)

    def dissolve_subnet(self) -> None:
        """Remove the subnet in the next block."""
        with self.write() as state:
            pallets.clear_subnet(state)

    def replace_subnet(self, owner_hotkey: str) -> None:
        """Give the netuid to a new subnet without neurons in the next block."""
        with self.write() as state:
            pallets.clear_subnet(state)
            state.put("SubnetRegisteredAt", "", state.block)
            state.put("SubnetOwnerHotkey", "", owner_hotkey)
            state.put("SubnetOwner", "", owner_hotkey)

    def weights(self, hotkey: str) -> dict[int, int] | None:
        """Return the plain weights that a hotkey last set: uid to u16, the largest 65535."""
        state = self.at()
        row = pallets.find(state, hotkey)
        pairs = None if row is None else state.get("Weights", str(row.uid))
        return None if pairs is None else {uid: weight for uid, weight in pairs if weight}

    def weight_commits(self, hotkey: str) -> list[tuple[int, bytes, int]]:
        """List a hotkey's timelocked weights: (block, ciphertext, reveal round)."""
        commits = [entry for _, epoch in self.at().entries("TimelockedWeightCommits") for entry in epoch]
        own = [(block, bytes.fromhex(data[2:]), reveal) for who, block, data, reveal in commits if who == hotkey]
        return sorted(own)


def runtime_upgrades(state: State) -> int:
    """Return how often the runtime was upgraded, a negative number after downgrades."""
    return int(state.get("RuntimeUpgrades", default=0))


def _make_hotkey() -> str:
    keypair = bt.sp_core.Keypair
    return str(keypair.create_from_mnemonic(keypair.generate_mnemonic(12)).ss58_address)


def _replace_neuron(state: State, uid: int, hotkey: str, coldkey: str | None, is_validator: bool) -> None:
    neuron = pallets.NeuronRow(
        uid=uid,
        hotkey=hotkey,
        coldkey=coldkey or hotkey,
        registered_at=state.block,
        last_update=state.block,
        has_permit=is_validator,
        stake=_VALIDATOR_STAKE if is_validator else 0,
    )
    pallets.replace_neuron(state, neuron)


def _set_checked(state: State, name: str, value: Any) -> None:
    default = pallets.HYPERPARAMETERS.get(name)
    if default is None:
        raise ConfigError(f"hyperparameter must be one of {', '.join(pallets.HYPERPARAMETERS)}, not {name!r}")
    if type(value) is not type(default) or value < 0:
        raise ConfigError(f"hyperparameter {name} must be like {default!r}, not {value!r}")
    pallets.set_parameter(state, name, value)
