"""A whole local network in one folder: chain, hub, sample competition, wallets, registered miners and a validator.

Everything is made by what stands here, throwaway keys included; nothing outside the folder is touched.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from template.chain.client import bt
from template.errors import ConfigError
from template.localnet.chain.chain import LocalChain
from template.localnet.hub.server import HubServer
from template.localnet.hub.store import LOCAL_TOKEN_PREFIX, upload_files

NETUID = 96
VALIDATOR = "validator"
_OWNER = "owner"

TRAINING_ARGS: Mapping[str, Any] = {
    "Qwen/Qwen2.5-0.5B-Instruct": {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
    }
}
"""What a training_args.yaml says where the tiny model is scored again and again."""

# Long enough that one epoch of the quickstart ends by its work and not by its blocks.
_TEMPO = 100_000


@dataclass(frozen=True)
class LocalNet:
    """Where the parts of a local network are. hub_endpoint is set while its hub is served."""

    folder: Path
    hub_endpoint: str

    @property
    def network(self) -> str:
        """What to give as --subtensor.network."""
        return f"sim:{self.folder / 'chain.sqlite3'}"

    @property
    def wallets(self) -> Path:
        """What to give as --wallet.path; one wallet for each participant, with the hotkey `default`."""
        return self.folder / "wallets"

    @property
    def competition(self) -> Path:
        """What to give as --competition."""
        return self.folder / "competition.yaml"

    @property
    def chain_file(self) -> Path:
        return self.folder / "chain.sqlite3"

    def describe(self) -> dict[str, str]:
        """The parts by name, for scripts."""
        return {
            "network": self.network,
            "netuid": str(NETUID),
            "wallets": str(self.wallets),
            "competition": str(self.competition),
            "hub_endpoint": self.hub_endpoint,
            "token_prefix": LOCAL_TOKEN_PREFIX,
        }


def create_localnet(
    folder: Path, hub: HubServer, *, sample: Path, miners: Sequence[str], block_time_s: float, tempo: int = _TEMPO
) -> LocalNet:
    """Makes a network in the new folder `folder`, its hub being `hub`.

    sample: a folder with pool.jsonl and competition.yaml (every field but eval_commit). miners: names of wallets to
    make and register beside `owner` (uid 0, who owns the subnet) and `validator`.
    Raises: ConfigError when the folder holds a network already or the sample is not one.
    """
    net = LocalNet(folder.resolve(), hub.endpoint)
    if net.chain_file.exists():
        raise ConfigError(f"{folder}: a local network is there already; remove the folder or name another")
    folder.mkdir(parents=True, exist_ok=True)
    write_competition(net, hub, sample)
    owner = make_hotkey(net, _OWNER)
    with LocalChain.create(
        net.chain_file, netuid=NETUID, owner_hotkey=owner, tempo=tempo, weights_rate_limit=1
    ) as chain:
        chain.register(owner)
        chain.register(make_hotkey(net, VALIDATOR), is_validator=True)
        for miner in miners:
            chain.register(make_hotkey(net, miner))
        chain.advance(2)
        if block_time_s:
            chain.set_block_time(block_time_s)
    # Renamed into place: whoever waits for the file must find it whole.
    partial = net.folder / ".localnet.json"
    partial.write_text(json.dumps(net.describe(), indent=2) + "\n", encoding="utf-8")
    partial.replace(net.folder / "localnet.json")
    return net


def write_competition(net: LocalNet, hub: HubServer, sample: Path) -> None:
    """Publishes the sample's pool on the hub and writes the competition with the commit that this made."""
    try:
        values = yaml.safe_load((sample / "competition.yaml").read_text(encoding="utf-8"))
        pool = (sample / "pool.jsonl").read_bytes()
        repo = values["repo"]
    except (OSError, TypeError, KeyError, yaml.YAMLError) as error:
        raise ConfigError(f"{sample}: not a sample competition: {error!r}") from error
    values["eval_commit"] = upload_files(hub.store.root, repo, {"pool.jsonl": pool})
    net.competition.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def make_hotkey(net: LocalNet, name: str) -> str:
    """Makes a throwaway wallet without a password and returns its hotkey's address."""
    wallet = bt.Wallet(name, "default", path=str(net.wallets))
    wallet.create_new_coldkey(use_password=False, suppress=True)
    wallet.create_new_hotkey(suppress=True)
    return str(wallet.hotkey.ss58_address)
