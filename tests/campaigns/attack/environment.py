"""Where chain data attacks: a chain, a hub, a validator with its state file, two honest miners, and whoever attacks.

All is the product's own but for the model, in whose place a rule gives each file its loss, so that an attack takes a
moment. The honest are `ann` and `ben`; an attack has failed only when both are paid what they would be without it.
"""

import asyncio
import dataclasses
import hashlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from rich.console import Console

from template.chain.client import Chain
from template.competition import CommitmentRecord
from template.config import load_competition
from template.constants import DATA_FILE
from template.hub import datasets
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.substrate import LocalSubstrate
from template.localnet.hub.server import HubServer
from template.localnet.hub.store import upload_files
from template.localnet.network import NETUID, LocalNet, write_competition
from template.records import LeaderboardRow, RunningEvaluation, SubmissionKey
from template.rules.schedule import Policy
from template.rules.scoring import compute_score
from template.store.store import Store
from template.validator.config import ValidatorConfig
from template.validator.downloads import Downloader
from template.validator.loop import Validator
from template.validator.status import read_status
from template.validator.status_report import print_status
from template.workers.executor import CompletedJob
from tests.campaigns.clock import SoakClock
from tests.campaigns.synthetic_subnet import IdleExecutor, make_key, make_lines, make_result

POOL = make_lines(140, words=17)
# More than 100 shared rows make a copy.
LARGE = POOL[:104]
HONEST = {"ann": POOL[104:120], "ben": POOL[120:140]}

_CURVE = {"bench": 6.1, "minb": 5.8, "maxb": 6.8, "bheight": 0.3, "pow": 1}
_POLICY = Policy(blocks_per_epoch=12, block_threshold=2, miner_sample_size=100, miner_duplicate_sample_size=100)
_PATIENCE_TICKS = 400
_PATIENCE_S = 30.0


class Tally(IdleExecutor):
    """An `Executor` that gives every file the loss that a rule says, as soon as it is asked."""

    def __init__(self) -> None:
        self._jobs: list[tuple[SubmissionKey, Path, int]] = []
        self.scored = 0

    def submit(self, key: SubmissionKey, data_dir: Path, lucky_num: int) -> None:
        self._jobs.append((key, data_dir, lucky_num))

    def collect(self) -> list[CompletedJob]:
        jobs, self._jobs = self._jobs, []
        return [self._score(*job) for job in jobs]

    def running(self) -> tuple[RunningEvaluation, ...]:
        return tuple(RunningEvaluation(key=key, device="none", started_at=0.0) for key, _, _ in self._jobs)

    def _score(self, key: SubmissionKey, data_dir: Path, lucky_num: int) -> CompletedJob:
        content = (data_dir / DATA_FILE).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        result = make_result(key, loss=loss_of(content))
        result = dataclasses.replace(result, train_sha256=sha256, lucky_num=lucky_num)
        self.scored += 1
        return CompletedJob(key=key, result=result, error=None)


def loss_of(content: bytes) -> float:
    """The loss that the rule gives to a file, inside the curve: more rows, a lower one."""
    return 5.9 + 8.0 / (10 + content.count(b"\n"))


def make_file(rows: Sequence[str]) -> bytes:
    """A data.jsonl of these rows."""
    return "".join(f"{row}\n" for row in rows).encode()


class Arena:
    """Everything there is to attack, in the empty folder `folder`. node: the validator's way to the chain."""

    def __init__(self, folder: Path, *, node: Callable[[Path], LocalSubstrate] = LocalSubstrate) -> None:
        self.folder = folder
        self.hub = HubServer(folder / "hub")
        self.net = LocalNet(folder / "net", self.hub.endpoint)
        (sample := folder / "sample").mkdir()
        (sample / "pool.jsonl").write_bytes(make_file(POOL))
        (sample / "competition.yaml").write_text(
            yaml.safe_dump({"id": "arena", "repo": "arena/pool", "rows": 110, **_CURVE}), encoding="utf-8"
        )
        self.net.folder.mkdir()
        write_competition(self.net, self.hub, sample)
        self.competition = load_competition(self.net.competition)
        self.chain = LocalChain.create(
            self.net.chain_file, netuid=NETUID, owner_hotkey=self.hotkey("owner"), tempo=100_000, weights_rate_limit=1
        )
        self.register("owner", "validator", *HONEST)
        for name, rows in HONEST.items():
            self.enter(name, rows)
        self.node = node(self.net.chain_file)
        self.state = folder / "state"
        self.open()

    def open(self) -> None:
        """Starts the validator."""
        config = ValidatorConfig(
            competition=self.competition,
            policy=_POLICY,
            data_dir=self.state / "data",
            eval_data_dir=self.state / "eval_data",
            receipt_dir=self.state / "receipts",
            round_dir=self.state / "rounds",
            poll_s=0.001,
        )
        repo, commit = self.competition.repo, self.competition.eval_commit
        datasets.download_dataset(repo, commit, config.eval_data_dir, filename=None, endpoint=self.hub.endpoint)
        self.link = self.connect("validator", self.node)
        self.store = Store(self.state / "validator.sqlite3")
        self.fetcher = Downloader(8, self._fetch)
        self.executor = Tally()
        self.clock = SoakClock(self.chain)
        self.validator = Validator(config, self.link, self.store, self.executor, self.fetcher, now=self.clock)

    def close_validator(self) -> None:
        """Ends the validator; `open` starts it again."""
        self.store.close()
        self.link.close()

    def close(self) -> None:
        self.close_validator()
        self.chain.close()
        self.hub.close()

    def _fetch(self, record: CommitmentRecord, folder: Path, deadline_s: float) -> datasets.HubFile:
        return datasets.download_dataset(
            record.namespace, record.commit, folder, deadline_s=deadline_s, endpoint=self.hub.endpoint
        )

    def hotkey(self, name: str) -> str:
        return str(make_key(name).ss58_address)

    def register(self, *names: str) -> None:
        for name in names:
            self.chain.register(self.hotkey(name), is_validator=name == "validator")

    def connect(self, name: str, node: LocalSubstrate | None = None) -> Chain:
        """A connection that signs as `name`."""
        wallet: Any = SimpleNamespace(hotkey=make_key(name))
        node = node or LocalSubstrate(self.net.chain_file)
        return Chain(self.chain.network, NETUID, wallet=wallet, substrate=node, deadline_s=5.0)

    def say(self, name: str, text: str) -> None:
        """Commits a text as `name`. Raises: as `commit`."""
        raw = text.encode()
        self.commit(name, {f"Raw{len(raw)}": raw})

    def commit(self, name: str, *fields: object) -> None:
        """Commits these fields as `name`, as any client can, and waits for no block.

        Raises: RuntimeError when the chain does not take them.
        """

        async def submit() -> Any:
            node = LocalSubstrate(self.net.chain_file)
            await node.connect()
            try:
                call = ("Commitments", "set_commitment", {"netuid": NETUID, "info": {"fields": list(fields)}})
                composed, key = await node.compose(call), make_key(name)
                return await node.submit(composed, key, wait_for_inclusion=False, wait_for_finalization=False)
            finally:
                await node.close()

        result = asyncio.run(submit())
        if not result.success:
            raise RuntimeError(f"the chain refused {fields}: {result.message}")

    @contextmanager
    def one_block(self) -> Iterator[None]:
        """All that is written within goes into one block."""
        self.chain.set_block_time(3600.0)
        yield
        self.chain.set_block_time(0.0)

    def upload(self, repo: str, rows: Sequence[str], *, is_private: bool = False) -> str:
        return upload_files(self.hub.store.root, repo, {DATA_FILE: make_file(rows)}, private=is_private)

    def text(self, repo: str, revision: str) -> str:
        return f"{repo}:{self.competition.id}:{revision}"

    def enter(self, name: str, rows: Sequence[str], *, repo: str | None = None) -> str:
        """Uploads and commits these rows; returns the text."""
        repo = repo or f"{name}/data"
        self.say(name, text := self.text(repo, self.upload(repo, rows)))
        return text

    def tick(self, blocks: int = 1) -> None:
        """A tick of the validator `blocks` blocks later, once what is being downloaded has come."""
        if self.fetcher.in_flight():
            self.fetcher.wait(_PATIENCE_S)
        if blocks:
            self.chain.advance(blocks)
        self.validator.tick()

    def pass_rounds(self, count: int = 1) -> None:
        """Ticks until so many more rounds are closed. Raises: RuntimeError when they do not."""
        goal = self.validator.rounds_done + count
        for _ in range(_PATIENCE_TICKS * count):
            if self.validator.rounds_done >= goal:
                return
            self.tick()
        raise RuntimeError("the validator's rounds do not end")

    def lines(self) -> dict[str, LeaderboardRow]:
        """The last round's table by hotkey."""
        last = self.store.last_round()
        return {line.key.hotkey: line for line in self.store.leaderboard(last.id)} if last else {}

    def verdict(self, name: str) -> str:
        """What the last table says of somebody, and that the honest are hurt where they are."""
        line = self.lines().get(self.hotkey(name))
        told = "not there" if line is None else "scored" if line.loss is not None and line.reason is None else "waits"
        if line is not None and line.reason is not None:
            told = f"miner: {line.reason}"
        return told + "".join(f"; {wrong}" for wrong in self.damage())

    def damage(self) -> Iterator[str]:
        """What of an attack's harm is seen: to the honest, on the disk, or in what a person looks at."""
        weights = self.chain.weights(self.hotkey("validator")) or {}
        names = {self.hotkey(name): name for name in HONEST}
        uids = {names[one.hotkey]: one.uid for one in self.link.view().neurons if one.hotkey in names}
        due = {name: self._score_of(make_file(rows)) for name, rows in HONEST.items()}
        paid = {name: weights.get(uid, 0) for name, uid in uids.items()}
        if not all(paid.values()) or not math.isclose(paid["ann"] * due["ben"], paid["ben"] * due["ann"], rel_tol=1e-3):
            yield f"the honest are paid {paid}"
        for path in self.state.rglob("*"):
            name = str(path.relative_to(self.state))
            if not (name.isascii() and name.isprintable()) or path.is_symlink():
                yield f"odd file {name!r}"
        console = Console(file=io.StringIO(), markup=False, highlight=False, emoji=False, width=120)
        with console.capture() as capture:
            print_status(read_status(self.state, self.clock()), console, max_rows=None)
        if not all(line.isprintable() for line in capture.get().split("\n")):
            yield "the status is not plain"

    def _score_of(self, content: bytes) -> float:
        curve = self.competition
        return compute_score(
            loss_of(content), curve.bench, curve.minb, curve.maxb, curve.pow, curve.bheight, curve.id, curve.id
        )


@contextmanager
def arena(folder: Path, *, node: Callable[[Path], LocalSubstrate] = LocalSubstrate) -> Iterator[Arena]:
    """An arena, closed afterwards."""
    made = Arena(folder, node=node)
    try:
        yield made
    finally:
        made.close()
