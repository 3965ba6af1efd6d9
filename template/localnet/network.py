"""A local network in one folder: chain, hub, competition, wallets and neurons."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from template.chain.client import bt
from template.errors import ConfigError
from template.localnet.chain.chain import LocalChain
from template.localnet.hub.server import HubServer
from template.localnet.hub.store import LOCAL_TOKEN_PREFIX, upload_files

NETUID = 96
VALIDATOR = "validator"
_OWNER = "owner"

# Long enough that the quickstart's work ends its round, not its blocks. The chain's tempo is a u16.
TEMPO = 50_000


@dataclass(frozen=True, kw_only=True)
class ChainSettings:
    """A new chain with one subnet. validators, miners: the names of wallets."""

    netuid: int = NETUID
    validators: Sequence[str] = (VALIDATOR,)
    miners: Sequence[str] = ()
    block_time_s: float = 1.0
    tempo: int = TEMPO
    weights_rate_limit: int = 1
    commit_reveal: bool = True
    finality_lag: int = 0


@dataclass(frozen=True)
class LocalNet:
    """Paths and addresses of a local network.

    hub_endpoint: empty without a Hub and its competition.
    """

    folder: Path
    hub_endpoint: str
    netuid: int = NETUID

    @property
    def wallets(self) -> Path:
        """The value for --wallet.path, with one wallet per participant."""
        return self.folder / "wallets"

    @property
    def competition(self) -> Path:
        """The value for --competition."""
        return self.folder / "competition.yaml"

    @property
    def chain_file(self) -> Path:
        return self.folder / "chain.sqlite3"

    def describe(self, network: str) -> dict[str, str]:
        """Return the parts by name, for scripts. `network` is the node's url."""
        return {
            "network": network,
            "netuid": str(self.netuid),
            "wallets": str(self.wallets),
            "chain_file": str(self.chain_file),
            **(self._describe_hub() if self.hub_endpoint else {}),
        }

    def _describe_hub(self) -> dict[str, str]:
        return {
            "competition": str(self.competition),
            "hub_endpoint": self.hub_endpoint,
            "token_prefix": LOCAL_TOKEN_PREFIX,
        }

    def announce(self, network: str) -> None:
        """Write the parts to localnet.json, for which scripts wait."""
        partial = self.folder / ".localnet.json"
        partial.write_text(json.dumps(self.describe(network), indent=2) + "\n", encoding="utf-8")
        partial.replace(self.folder / "localnet.json")


def create_localnet(
    folder: Path, hub: HubServer, *, sample: Path, miners: Sequence[str], block_time_s: float, tempo: int = TEMPO
) -> LocalNet:
    """Create a network of this subnet in a new folder.

    `sample` holds pool.jsonl and competition.yaml without eval_commit. The miners' wallets are registered beside
    `owner` (uid 0) and `validator`. Weights are plain. Raises: ConfigError for a folder with a network or an invalid
    sample.
    """
    net = LocalNet(folder.resolve(), hub.endpoint)
    make_folder(net)
    write_competition(net, hub, sample)
    create_chain(net, ChainSettings(miners=miners, block_time_s=block_time_s, tempo=tempo, commit_reveal=False))
    return net


def make_folder(net: LocalNet) -> None:
    """Make the network's folder. Raises: ConfigError if it has a network."""
    if net.chain_file.exists() or net.wallets.exists():
        raise ConfigError(f"{net.folder} holds a local network: remove the folder or name another")
    net.folder.mkdir(parents=True, exist_ok=True)


def create_chain(net: LocalNet, settings: ChainSettings) -> None:
    """Create the chain and the wallets of a network, for any subnet.

    Raises: ConfigError for a value out of range.
    """
    names = [_OWNER, *settings.validators, *settings.miners]
    if len(set(names)) < len(names):
        raise ConfigError(f"--validators and --miners must name every wallet once, and none {_OWNER}")
    owner = make_hotkey(net, _OWNER)
    with LocalChain.create(
        net.chain_file,
        netuid=settings.netuid,
        owner_hotkey=owner,
        owner_coldkey=coldkey_of(net, _OWNER),
        tempo=settings.tempo,
        weights_rate_limit=settings.weights_rate_limit,
        commit_reveal=settings.commit_reveal,
    ) as chain:
        chain.register(owner, coldkey_of(net, _OWNER))
        for name in (*settings.validators, *settings.miners):
            is_validator = name in settings.validators
            chain.register(make_hotkey(net, name), coldkey_of(net, name), is_validator=is_validator)
        chain.advance(2)
        chain.set_finality_lag(settings.finality_lag)
        if settings.block_time_s:
            chain.set_block_time(settings.block_time_s)


def write_competition(net: LocalNet, hub: HubServer, sample: Path) -> None:
    """Upload the sample's evaluation set and write the competition with its commit."""
    try:
        values = yaml.safe_load((sample / "competition.yaml").read_text(encoding="utf-8"))
        pool = (sample / "pool.jsonl").read_bytes()
        repo = values["repo"]
    except (OSError, TypeError, KeyError, yaml.YAMLError) as error:
        raise ConfigError(f"{sample}: no valid competition.yaml and pool.jsonl: {error!r}") from error
    values["eval_commit"] = upload_files(hub.store.root, repo, {"pool.jsonl": pool})
    net.competition.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def make_hotkey(net: LocalNet, name: str) -> str:
    """Create a throwaway wallet without a password; return its hotkey's address."""
    wallet = bt.Wallet(name, "default", path=str(net.wallets))
    wallet.create_new_coldkey(use_password=False, suppress=True)
    wallet.create_new_hotkey(suppress=True)
    return str(wallet.hotkey.ss58_address)


def coldkey_of(net: LocalNet, name: str) -> str:
    """Return the address of a wallet's coldkey."""
    return str(bt.Wallet(name, "default", path=str(net.wallets)).coldkeypub.ss58_address)
