"""A whole small network for the tests of what runs on it: hub, stepped chain, wallets, and a pool of very short rows.

Whatever is started here is a process of the test's own, waited for with a bound and ended when the test is over.
"""

import importlib.util
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import canaries
import pytest
import yaml
from loguru import logger

from template.chain import Chain, open_wallet
from template.competition import CommitmentRecord, Competition
from template.constants import DATA_FILE
from template.localnet.hub_server import HubServer
from template.localnet.hub_store import publish
from template.localnet.ledger import Ledger
from template.localnet.localchain import LocalChain
from template.localnet.network import NETUID, create_localnet
from template.localnet.scale import decode_call
from template.localnet.substrate import LocalSubstrate
from template.records import ChainView
from template.settings import load_competition
from template.state import SubmissionKey
from template.validator import Validator

ROOT = Path(__file__).resolve().parent.parent
VALIDATOR = ROOT / "neurons" / "validator.py"
MINER = ROOT / "neurons" / "miner.py"
COMPUTE_LOSS = ROOT / "scripts" / "compute_loss.py"

POOL_ROWS = 130
# More than 100 shared rows make a copy, so the dataset that is copied has more.
LARGE_ROWS = 104
PATIENCE_S = 120.0


def make_line(number: int) -> str:
    """A row of some twenty tokens, another one for each number."""
    talk = [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": f"it is {number}"}]
    return json.dumps({"conversations": talk})


POOL = [make_line(number) for number in range(POOL_ROWS)]
LARGE = POOL[:LARGE_ROWS]
SMALL = POOL[-24:]


def make_copy(lines: Sequence[str] = LARGE) -> list[str]:
    """The same rows in another order, but for two."""
    rows = list(lines[2:]) + POOL[LARGE_ROWS : LARGE_ROWS + 2]
    random.Random(0).shuffle(rows)
    return rows


def make_content(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def write_dataset(folder: Path, lines: Sequence[str]) -> Path:
    """A folder with a data.jsonl of these lines."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DATA_FILE).write_bytes(make_content(lines))
    return folder


def write_training_args(path: Path, *, epochs: int = 1) -> Path:
    """Hyperparameters for the tiny model; more epochs make a score take longer."""
    values = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "num_train_epochs": epochs,
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
    }
    path.write_text(yaml.safe_dump({"Qwen/Qwen2.5-0.5B-Instruct": values}), encoding="utf-8")
    return path


class Net:
    """A local network in `folder`: its hub served by this process, blocks made by writes and by `admin.advance`.

    `owner` has uid 0, `validator` uid 1, the miners follow. Losses of the tiny model lie well inside the curve.
    """

    def __init__(
        self, folder: Path, miners: Sequence[str] = (), *, tempo: int = 100_000, pool: Sequence[str] = POOL
    ) -> None:
        sample = folder / "sample"
        sample.mkdir(parents=True)
        (sample / "pool.jsonl").write_bytes(make_content(pool))
        curve = {"bench": 6.1, "minb": 5.8, "maxb": 6.8, "bheight": 0.3, "pow": 1, "rows": 110}
        (sample / "competition.yaml").write_text(yaml.safe_dump({"id": "sample", "repo": "sample/pool", **curve}))
        self.hub = HubServer(folder / "hub")
        self.parts = create_localnet(
            folder / "net", self.hub, sample=sample, miners=miners, block_time_s=0.0, tempo=tempo
        )
        self.admin = LocalChain(self.parts.chain_file)
        self.competition: Competition = load_competition(self.parts.competition)
        self._chains: dict[str, Chain] = {}

    def __enter__(self) -> "Net":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for chain in self._chains.values():
            chain.close()
        self.admin.close()
        self.hub.close()

    def chain(self, name: str) -> Chain:
        """A connection that signs as `name`, the same one for the whole test."""
        if name not in self._chains:
            wallet = open_wallet(name, "default", self.parts.wallets)
            substrate = LocalSubstrate(self.parts.chain_file)
            self._chains[name] = Chain(self.parts.network, NETUID, wallet=wallet, substrate=substrate, deadline_s=30)
        return self._chains[name]

    def hotkey(self, name: str) -> str:
        return self.chain(name).hotkey

    def uid(self, name: str) -> int:
        uid = self.uid_or_none(name)
        assert uid is not None
        return uid

    def uid_or_none(self, name: str) -> int | None:
        neuron = self.chain(name).view().by_hotkey.get(self.hotkey(name))
        return None if neuron is None else neuron.uid

    def upload(self, name: str, lines: Sequence[str] | bytes, *, file: str = DATA_FILE) -> str:
        """The commit of NAME/data that holds these lines, put on the hub without the miner."""
        content = lines if isinstance(lines, bytes) else make_content(lines)
        return publish(self.hub.store.root, f"{name}/data", {file: content})

    def commit(self, name: str, text: str) -> SubmissionKey:
        """Publishes a commitment as `name`, without the miner."""
        outcome = self.chain(name).publish(text)
        assert outcome.is_accepted, outcome
        return SubmissionKey(self.hotkey(name), text)

    def submit(self, name: str, lines: Sequence[str] | bytes, *, file: str = DATA_FILE) -> SubmissionKey:
        """Uploads and commits, without the miner and so without its checks."""
        record = CommitmentRecord(f"{name}/data", self.competition.id, self.upload(name, lines, file=file))
        return self.commit(name, str(record))

    def calls(self) -> list[tuple[str, str]]:
        """(signer, function) of every extrinsic on the chain, in order."""
        with Ledger(self.parts.chain_file) as ledger:
            found = [entry for block in range(ledger.head() + 1) for entry in ledger.extrinsics(block)]
        return [(signer, decode_call(data).function) for data, signer in found]

    def count_calls(self, name: str, function: str) -> int:
        """How many times `name` has called a function of the chain."""
        return self.calls().count((self.hotkey(name), function))

    def chain_arguments(self, name: str) -> list[str]:
        """What neurons are started with to act as `name` on this network."""
        return [
            *("--netuid", str(NETUID), "--subtensor.network", self.parts.network),
            *("--wallet.path", str(self.parts.wallets), "--wallet.name", name),
            *("--competition", str(self.parts.competition)),
        ]

    def hub_token(self, name: str) -> str:
        """A token that the hub takes for NAME's, and that no output may hold."""
        token = canaries.hub_token(name)
        self.hub.store.add_token(token, name)
        return token

    def environment(self, name: str) -> dict[str, str]:
        """A process's environment in which the Hub is this network's, and NAME is logged in there."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        return {
            **kept,
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_TOKEN": self.hub_token(name),
            "HF_HOME": str(self.parts.folder / "hf_home"),
            "PYTHONPATH": str(ROOT),
            # Threads that spin while they wait starve each other on a busy machine; the number is the same.
            "OMP_WAIT_POLICY": "PASSIVE",
        }


class SteppingChain(Chain):
    """A chain on which every view finds `blocks` more blocks, so that ticks take time."""

    def __init__(self, net: Net, name: str | None, *, blocks: int = 1) -> None:
        wallet = None if name is None else open_wallet(name, "default", net.parts.wallets)
        substrate = LocalSubstrate(net.parts.chain_file)
        super().__init__(net.parts.network, NETUID, wallet=wallet, substrate=substrate, deadline_s=30)
        self._admin = net.admin
        self._blocks = blocks

    def view(self, block: int | None = None) -> ChainView:
        if self._blocks and block is None:
            self._admin.advance(self._blocks)
        return super().view(block)


class Process:
    """A program of this repository in a process of its own; its stderr is read as it comes."""

    def __init__(self, script: Path | str, *arguments: object, env: dict[str, str]) -> None:
        how = ["-m", script] if isinstance(script, str) else [str(script)]
        self._popen = subprocess.Popen(
            [sys.executable, *how, *map(str, arguments)],
            cwd="/",
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._popen.pid
        self.logs: list[str] = []
        self.output = ""
        self.status: int | None = None
        self._readers = [threading.Thread(target=self._read_logs), threading.Thread(target=self._read_output)]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
        self.finish()

    def _read_logs(self) -> None:
        assert self._popen.stderr is not None
        for line in self._popen.stderr:
            self.logs.append(line.rstrip())

    def _read_output(self) -> None:
        assert self._popen.stdout is not None
        self.output = self._popen.stdout.read()

    def wait_for(self, text: str, *, count: int = 1) -> None:
        """Returns once `count` lines of the log hold `text`."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self.lines(text)) < count:
            assert self._popen.poll() is None, f"ended without {text!r}: {self.logs[-20:]}"
            assert time.monotonic() < deadline, f"no {text!r} in {self.logs[-20:]}"
            time.sleep(0.01)

    def lines(self, text: str) -> list[str]:
        """The lines of the log that hold `text`."""
        return [line for line in list(self.logs) if text in line]

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def finish(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit status, once the process has ended by itself."""
        try:
            self.status = self._popen.wait(timeout_s)
        finally:
            if self._popen.poll() is None:
                self._popen.kill()
                self._popen.wait()
            for reader in self._readers:
                reader.join(PATIENCE_S)
            for stream in (self._popen.stdout, self._popen.stderr):
                if stream is not None:
                    stream.close()
        canaries.look("\n".join([self.output, *self.logs]), f"the output of {self._popen.args!r:.300}")
        return self.status


def run_process(script: Path | str, *arguments: object, env: dict[str, str]) -> Process:
    """The process, ended."""
    with Process(script, *arguments, env=env) as process:
        process.finish()
    return process


@contextmanager
def use_hub(net: Net, name: str = "validator") -> Iterator[None]:
    """This process meets the network's hub as `name`, as it would with HF_ENDPOINT and HF_TOKEN set at its start."""
    with pytest.MonkeyPatch.context() as patch:
        template = f"{net.hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr("huggingface_hub.constants.ENDPOINT", net.hub.endpoint)
        patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(net.parts.folder / "no-token"))
        patch.setenv("HF_TOKEN", net.hub_token(name))
        yield


@dataclass(frozen=True)
class Ended:
    """What an entry point left behind that ran in this process."""

    status: int
    output: str
    logs: list[str]


def call_main(main: Callable[[list[str]], int], *arguments: object) -> Ended:
    """Runs an entry point in this process, which gets its signal handlers, loggers and umask back.

    One that does not end is interrupted, as an operator would.
    """
    alarm = threading.Timer(PATIENCE_S, lambda: os.kill(os.getpid(), signal.SIGINT))
    alarm.start()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    root = logging.getLogger()
    kept, level = list(root.handlers), root.level
    os.umask(umask := os.umask(0o022))
    output, logs = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(logs):
            status = main([str(argument) for argument in arguments])
    except SystemExit as ending:
        status = int(ending.code or 0)
    finally:
        alarm.cancel()
        os.umask(umask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        root.handlers[:] = kept
        root.setLevel(level)
        logger.remove()
    canaries.look(output.getvalue() + logs.getvalue(), f"the output of {main.__module__}")
    return Ended(status, output.getvalue(), logs.getvalue().splitlines())


def run_bounded(validator: Validator) -> None:
    """Runs a validator to its end, which must come by itself."""
    alarm = threading.Timer(PATIENCE_S, validator.stop.set)
    alarm.start()
    try:
        validator.run()
    finally:
        alarm.cancel()
    assert not validator.stop.is_set(), "the validator did not end"


def load_main(script: Path) -> Callable[[list[str]], int]:
    """The `main` of a script, which is in no package."""
    spec = importlib.util.spec_from_file_location(f"script_{script.stem}", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[list[str]], int] = module.main
    return main
