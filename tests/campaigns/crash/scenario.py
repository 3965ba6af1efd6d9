"""The competition of a crash run: a few rounds with miners of every kind, the same blocks and bytes in every run.

It is made once; each run works on a copy, with a hub and a chain of its own, so that the chain's hashes, and with them
the seeds and losses, are the same. Time is the chain's alone, and whoever runs it makes the blocks.
"""

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from template.chain.client import Chain, beacon_round_at, open_wallet
from template.constants import DATA_FILE
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.substrate import LocalSubstrate
from template.localnet.hub import faults as hub_faults
from template.localnet.hub.server import HubServer
from template.localnet.hub.store import upload_files
from template.localnet.network import NETUID, TRAINING_ARGS, VALIDATOR, LocalNet, create_localnet
from tests.campaigns.crash.launcher import ROUND_BLOCKS

ROOT = Path(__file__).resolve().parents[3]

COMPETITION_ID = "crash"
MINERS = ("alice", "bob", "carol", "dave", "erin", "frank", "gina", "copycat", "outsider", "broken", "ghost", "bare")
# Blocks before a round's start at which the miners of its phase commit.
_BEFORE_BLOCKS = 20
# What is sealed is opened by hand; the beacon's own round must lie in the future.
_FAR_S = 86_400.0

_POOL_ROWS = 130
# More than 100 shared rows make a copy.
_LARGE = range(104)
# The tiny model's losses after these rows lie well inside.
_CURVE = {"bench": 6.1, "minb": 5.8, "maxb": 6.8, "bheight": 0.3, "pow": 1, "rows": 110}


@dataclass(frozen=True)
class Deed:
    """What a miner does before a round: commits a text, seals it, or has the chain open what it sealed."""

    miner: str
    kind: str
    text: str


@dataclass(frozen=True)
class Phase:
    """One round. deeds: before its start. verdicts, datasets: how many there are when everybody in it is judged."""

    deeds: tuple[Deed, ...]
    verdicts: int
    datasets: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "deeds", tuple(one if isinstance(one, Deed) else Deed(**one) for one in self.deeds))


def start_of(number: int) -> int:
    """The block in which the round of the phase `number` starts."""
    return ROUND_BLOCKS * (number + 1)


class Base:
    """What all runs are copies of, in `folder`: network, hub, the deeds still to come, the model's settings."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.model = model
        self.net = LocalNet((folder / "net").resolve(), "")
        self.training_args = folder / "training_args.yaml"
        self.table = folder / "scores.jsonl"
        self.phases: tuple[Phase, ...] = ()

    def make(self) -> "Base":
        """Makes everything, the deeds before the first round done."""
        sample = self.folder / "sample"
        sample.mkdir(parents=True)
        (sample / "pool.jsonl").write_bytes(_as_file(range(_POOL_ROWS)))
        (sample / "competition.yaml").write_text(
            yaml.safe_dump({"id": COMPETITION_ID, "repo": "crash/pool", **_CURVE}), encoding="utf-8"
        )
        self.training_args.write_text(yaml.safe_dump(dict(TRAINING_ARGS)), encoding="utf-8")
        with HubServer(self.folder / "hub") as hub:
            create_localnet(self.net.folder, hub, sample=sample, miners=MINERS, block_time_s=0.0)
            self.phases = _write_story(hub.store.root)
        with Stage(self, self.net.chain_file) as stage:
            stage.begin(0, self.phases[0])
        text = json.dumps([asdict(phase) for phase in self.phases])
        (self.folder / "phases.json").write_text(text, encoding="utf-8")
        return self

    @classmethod
    def open(cls, folder: Path, model: Path) -> "Base":
        """One that was made before."""
        base = cls(folder, model)
        base.phases = tuple(Phase(**one) for one in json.loads((folder / "phases.json").read_text(encoding="utf-8")))
        return base

    @property
    def hotkey(self) -> str:
        """The validator's."""
        return str(open_wallet(VALIDATOR, "default", self.net.wallets).hotkey.ss58_address)

    def copy_to(self, folder: Path) -> Path:
        """Chain and hub of a run's own, in `folder`; the file of the chain."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.folder / "hub", folder / "hub")
        return Path(shutil.copy(self.net.chain_file, folder / "chain.sqlite3"))

    def arguments(self, chain_file: Path, state_dir: Path) -> list[str]:
        """What the validator is started with."""
        return [
            *("--netuid", str(NETUID), "--subtensor.network", f"sim:{chain_file}"),
            *("--wallet.path", str(self.net.wallets), "--wallet.name", VALIDATOR),
            *("--competition", str(self.net.competition), "--state_dir", str(state_dir)),
            *("--training_args", str(self.training_args), "--model_path", str(self.model), "--device", "cpu"),
            *("--blocks_per_epoch", str(ROUND_BLOCKS), "--lucky_num_from", "chain"),
            *("--poll_seconds", "0.02", "--wandb.off"),
        ]

    def environment(self, folder: Path, hub: HubServer) -> dict[str, str]:
        """A process's environment, in which the Hub is the run's. One thread: bits are those of a number of them."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        return {
            **kept,
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(folder / "hf_home"),
            "BTCLI_TOKEN_SYMBOLS_CACHE": str(folder / "token_symbols.json"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }


class Stage:
    """A run's chain, on which the miners act when their time has come."""

    def __init__(self, base: Base, chain_file: Path) -> None:
        self._base = base
        self._file = chain_file
        self.chain = LocalChain(chain_file)

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        self.chain.close()

    def begin(self, number: int, phase: Phase) -> None:
        """Passes the time to the round's start, the deeds included. Raises: RuntimeError when it is too late."""
        self._advance_to(start_of(number) - _BEFORE_BLOCKS)
        for deed in phase.deeds:
            self._do(deed)
        self._advance_to(start_of(number))

    def _advance_to(self, block: int) -> None:
        head = self.chain.block()
        if head > block:
            raise RuntimeError(f"the chain is at block {head}, after block {block}: this is another story")
        if head < block:
            self.chain.advance(block - head)

    def _do(self, deed: Deed) -> None:
        wallet = open_wallet(deed.miner, "default", self._base.net.wallets)
        if deed.kind == "reveal":
            self.chain.reveal(str(wallet.hotkey.ss58_address), deed.text)
            return
        with Chain("local", NETUID, wallet=wallet, substrate=LocalSubstrate(self._file), deadline_s=30.0) as chain:
            if deed.kind == "commit":
                outcome = chain.publish(deed.text)
            else:
                outcome = chain.publish_sealed(deed.text, beacon_round_at(time.time() + _FAR_S))
        if not outcome.is_accepted:
            raise RuntimeError(f"the chain refused a miner: {outcome}")


def set_weather(root: Path) -> None:
    """Has the hub of a run fail once, so that somebody's try comes to nothing and is recorded."""
    hub_faults.set_faults(
        root, hub_faults.HubFault(kind=hub_faults.FaultKind.STATUS, status=503, pattern="bob/data", count=1)
    )


def _write_story(root: Path) -> tuple[Phase, ...]:
    """Puts all files on the hub and says who commits which of them when."""

    def text(miner: str, content: bytes | None, *, by_digest: bool = False) -> str:
        files = {"README.md": miner.encode()} if content is None else {DATA_FILE: content}
        commit = upload_files(root, f"{miner}/data", files)
        revision = hashlib.sha256(content or b"").hexdigest() if by_digest else commit
        return f"{miner}/data:{COMPETITION_ID}:{revision}"

    def commits(*pairs: tuple[str, str]) -> Iterable[Deed]:
        return (Deed(miner, "commit", written) for miner, written in pairs)

    copy = [*_LARGE[2:], 110, 111]
    random.Random(0).shuffle(copy)
    sealed = text("dave", _as_file(range(40, 70)))
    first = commits(
        ("alice", text("alice", _as_file(_LARGE))),
        ("bob", text("bob", _as_file(range(106, 130)))),
        ("copycat", text("copycat", _as_file(copy))),
        ("outsider", text("outsider", _as_file([1, 2, 3, 1000]))),
        ("broken", text("broken", _as_file(range(5))[:-9])),
        ("ghost", f"ghost/nothing:{COMPETITION_ID}:{'0' * 40}"),
        ("bare", text("bare", None)),
    )
    second = (
        Deed("dave", "seal", sealed),
        *commits(
            ("bob", text("bob", _as_file(range(90, 120)))),
            ("carol", text("carol", _as_file(range(20, 50)))),
            ("outsider", text("outsider", _as_file(range(60, 90)))),
        ),
        Deed("dave", "reveal", sealed),
    )
    third = commits(
        ("erin", text("erin", _as_file(range(0, 60, 2)))),
        ("gina", text("gina", _as_file(range(1, 60, 2)), by_digest=True)),
        ("copycat", text("copycat", _as_file(range(70, 100)))),
        ("frank", text("frank", b"\n")),
    )
    return (
        Phase(tuple(first), verdicts=6, datasets=3),
        Phase(second, verdicts=10, datasets=7),
        Phase(tuple(third), verdicts=14, datasets=10),
        Phase((), verdicts=14, datasets=10),
    )


def _as_file(numbers: Sequence[int]) -> bytes:
    return "".join(f"{_make_line(number)}\n" for number in numbers).encode()


def _make_line(number: int) -> str:
    turns = [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": f"it is {number}"}]
    return json.dumps({"conversations": turns})
