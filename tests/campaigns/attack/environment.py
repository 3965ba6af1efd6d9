"""The environment of attacks by chain data, with two honest miners, ann and ben.

All is the product's own but for the model: a rule gives each file its loss, so that an attack takes a moment. An attack
has failed only when both honest miners are paid what they would be without it.
"""

import atexit
import io
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from typing import Any

from rich.console import Console

from template.competition import CommitmentRecord, Incentives, Reward
from template.hub import datasets, storage
from template.localnet.chain.chain import LocalChain
from template.records import LeaderboardRow, SubmissionKey
from template.rules.schedule import Policy
from template.rules.scoring import score_of
from template.rules.stands import align
from template.status.report import print_status
from template.status.status import read_status
from template.store.store import Store
from template.validator.config import ValidatorConfig
from template.validator.downloads import Download, Downloader
from template.validator.loop import Validator
from tests.campaigns.attack.runner import Attack
from tests.campaigns.clock import BlockClock
from tests.campaigns.fake_executors import FakeExecutor
from tests.campaigns.synthetic_subnet import LARGE_ROWS, VALIDATOR, WIDE_CURVE, SyntheticSubnet, make_file, make_rows
from tests.fixtures.faulty_hub import FaultyHub
from tests.fixtures.substrate import LocalSubstrate

POOL = make_rows(140, words=17)
LARGE = POOL[:LARGE_ROWS]
HONEST = {"ann": POOL[LARGE_ROWS:120], "ben": POOL[120:140]}

_POLICY = Policy(blocks_per_epoch=12, block_threshold=2, miner_duplicate_sample_size=100)
# Everyone is paid for its loss at once, so that an attack shows in the next round.
_INCENTIVES = Incentives(
    reward=Reward.PROPORTIONAL,
    epsilon=0.0,
    evaluations=1,
    hold=1,
    slots=100,
    update_blocks=0,
    blocks_per_epoch=_POLICY.blocks_per_epoch,
)
_MAX_TICKS = 5000
_TIMEOUT_S = 30.0


def loss_of(content: bytes) -> float:
    """Return the loss of a file, inside the curve: lower for more rows."""
    return 5.9 + 8.0 / (10 + content.count(b"\n"))


class _Downloader(Downloader):
    """A downloader that looks for files on the hub of the environment too."""

    def __init__(self, limit: int, fetch: Download, endpoint: str) -> None:
        super().__init__(limit, fetch)
        self._endpoint = endpoint

    def start_lookup(self, key: SubmissionKey, look: Callable[[], None]) -> None:
        check: Any = look
        super().start_lookup(key, partial(check, endpoint=self._endpoint))


class Environment:
    """Everything there is to attack, in an empty folder.

    Args:
        node: makes the validator's node of the chain.
    """

    def __init__(self, folder: Path, *, node: Callable[[Path], LocalSubstrate] = LocalSubstrate) -> None:
        self.folder = folder
        self.state = folder / "state"
        competition = {"id": "arena", "repo": "arena/pool", "rows": 110, **WIDE_CURVE}
        self.subnet = SyntheticSubnet.create(folder, pool=POOL, competition=competition)
        self.hub = FaultyHub(self.subnet.hub_root)
        self.subnet.register(*HONEST)
        for name, rows in HONEST.items():
            self.enter(name, rows)
        # A round starts at an aligned block, and before the first one there was no subnet.
        self.subnet.advance_to(align(self.chain.block(), _POLICY.blocks_per_epoch))
        self.node = node(self.subnet.net.chain_file)
        self.open()

    @property
    def chain(self) -> LocalChain:
        return self.subnet.chain

    def open(self) -> None:
        """Start the validator."""
        competition = self.subnet.competition
        config = ValidatorConfig(
            competition=competition,
            incentives=_INCENTIVES,
            policy=_POLICY,
            data_dir=self.state / "data",
            eval_data_dir=self.state / "eval_data",
            receipt_dir=self.state / "receipts",
            round_dir=self.state / "rounds",
            poll_s=0.001,
        )
        self._download(competition.repo, competition.eval_commit, config.eval_data_dir, filename=None)
        self.connection = self.subnet.connect(node=self.node, deadline_s=5.0)
        self.store = Store(self.state / "validator.sqlite3")
        self.downloader = _Downloader(8, self._download_submission, self.hub.endpoint)
        self.executor = FakeExecutor(lambda path: loss_of(path.read_bytes()))
        self.clock = BlockClock(self.subnet.net.chain_file)
        self.validator = Validator(config, self.connection, self.store, self.executor, self.downloader, now=self.clock)

    def close_validator(self) -> None:
        self.store.close()
        self.connection.close()
        self.clock.close()

    def close(self) -> None:
        self.close_validator()
        self.subnet.close()
        self.hub.close()

    def _download(self, repo: str, commit: str, folder: Path, **options: object) -> storage.HubFile:
        return datasets.download_dataset(repo, commit, folder, endpoint=self.hub.endpoint, **options)  # type: ignore[arg-type]

    def _download_submission(self, record: CommitmentRecord, folder: Path, deadline_s: float) -> storage.HubFile:
        return self._download(record.namespace, record.commit, folder, deadline_s=deadline_s)

    def enter(self, name: str, rows: Sequence[str], *, repo: str | None = None) -> str:
        """Upload and commit these rows; return the text."""
        repo = repo or f"{name}/data"
        text = self.subnet.text(repo, self.subnet.upload(repo, rows))
        self.subnet.commit(name, text)
        return text

    def tick(self, blocks: int = 1) -> None:
        """Tick so many blocks later, once running downloads have ended."""
        if self.downloader.in_flight():
            self.downloader.wait(_TIMEOUT_S)
        if blocks:
            self.chain.advance(blocks)
        self.validator.tick()

    def pass_rounds(self, count: int = 1) -> None:
        """Tick until `count` new rounds have closed. Raises: RuntimeError."""
        period = _POLICY.blocks_per_epoch
        goal = align(self.chain.block(), period) + (count - 1) * period
        for _ in range(_MAX_TICKS):
            (closed,) = self.store.rows("SELECT max(start_block) AS block FROM rounds WHERE closed_at IS NOT NULL")
            if closed["block"] is not None and closed["block"] >= goal:
                return
            last = self.store.last_round()
            # Missed rounds take no blocks.
            is_behind = last is not None and self.chain.block() >= last.start_block + 2 * period
            self.tick(0 if is_behind else 1)
        raise RuntimeError("the validator's rounds do not end")

    def stand_count(self) -> int:
        """Return how many stands the validator keeps."""
        return sum(map(len, self.store.stands().values()))

    def verdict(self, name: str) -> str:
        """Return a miner's line in the last leaderboard, and any damage that is seen."""
        return "; ".join([self.line(name), *self.damage()])

    def line(self, name: str) -> str:
        """Return a miner's line in the last leaderboard."""
        last = self.store.last_round()
        rows: Sequence[LeaderboardRow] = self.store.leaderboard(last.id) if last else ()
        verdict = "absent"
        for row in rows:
            if row.key.hotkey == self.subnet.hotkey(name):
                verdict = f"miner: {row.reason}" if row.reason else "pending" if row.loss is None else "evaluated"
        return verdict

    def damage(self) -> Iterator[str]:
        """Yield harm to the honest miners, to the disk and to the output."""
        weights = self.chain.weights(self.subnet.validator_hotkey(VALIDATOR)) or {}
        names = {self.subnet.hotkey(name): name for name in HONEST}
        neurons = self.connection.view().neurons
        paid = {names[neuron.hotkey]: weights.get(neuron.uid, 0) for neuron in neurons if neuron.hotkey in names}
        due = {name: score_of(loss_of(make_file(rows)), self.subnet.competition) for name, rows in HONEST.items()}
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
            yield "the status is not printable"


@cache
def shared_environment(node: Callable[[Path], LocalSubstrate] = LocalSubstrate) -> Environment:
    """Return the environment of the attacks that share one."""
    folder = tempfile.mkdtemp(prefix="attack-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    env = Environment(Path(folder), node=node)
    atexit.register(env.close)
    return env


def in_environment(
    name: str,
    expected: str,
    play: Callable[[Environment], str],
    *,
    node: Callable[[Path], LocalSubstrate] = LocalSubstrate,
    max_seconds: float = 60.0,
    max_memory: int = 96,
    is_long: bool = False,
) -> Attack:
    """Return an attack in an environment of its own."""

    def run(folder: Path) -> str:
        with closing(Environment(folder, node=node)) as env:
            return play(env)

    limits: dict[str, Any] = {"max_seconds": max_seconds, "max_memory": max_memory, "max_disk": 32}
    return Attack(name, run, expected, **limits, is_long=is_long)
