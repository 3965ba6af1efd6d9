"""A soak run: real validators, with real processes that score, on a soak world, disturbed in every way at hand.

This process is in charge of time: blocks come when `Soak.step` makes them, and the validators are ticked in between.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from template.config import load_competition
from template.localnet.chain.ledger import ChainFault
from template.localnet.chain.pallets import HYPERPARAMETERS
from template.localnet.hub import faults as hub_faults
from template.localnet.hub.faults import FaultKind
from template.localnet.hub.server import HubServer
from template.store.store import Store
from tests.campaigns.soak.node import BLOCKS_PER_EPOCH, Post, make_evaluator
from tests.campaigns.soak.world import World

RATE_LIMIT_BLOCKS = 10

# Looks at the network without blocks in between, at most: how much work a block leaves time for.
_TICKS_PER_STEP = 12

# Chances per step: of a spell of failure, of the end of a validator or of a worker. A short run has one of each.
_SPELL = 0.03
_END = 0.006
_STEPS_PER_ROUND = 11

# How often blocks come although a worker is busy, and how long its end is waited for at a time.
_HURRY = 0.1
_PATIENCE_S = 0.5

# Quiet rounds at the end, at most, until everybody is judged and all weights are settled.
_LAST_ROUNDS = 40

_HUB_FAULTS = (
    hub_faults.HubFault(kind=FaultKind.STATUS, status=503, pattern="/data"),
    hub_faults.HubFault(kind=FaultKind.STATUS, status=429, retry_after="60", pattern="/data"),
    hub_faults.HubFault(kind=FaultKind.DROP, pattern="/data"),
    hub_faults.HubFault(kind=FaultKind.TRUNCATE, pattern="/resolve/"),
    hub_faults.HubFault(kind=FaultKind.WRONG, pattern="/resolve/"),
    hub_faults.HubFault(kind=FaultKind.LATENCY, seconds=0.02, pattern="/data"),
)
_CHAIN_FAULTS: tuple[tuple[Any, ChainFault, int], ...] = (
    ("read", ChainFault.DISCONNECT, 1000),
    ("read", ChainFault.ERROR, 1000),
    ("connect", ChainFault.DISCONNECT, 1000),
    ("read", ChainFault.DISCONNECT, 3),
    ("write", ChainFault.DISCONNECT, 1),
    ("write", ChainFault.ERROR, 1),
    ("write", ChainFault.LOSE_ANSWER, 1),
)


class Soak:
    """Everything that runs, in the new folder `folder`; to be closed."""

    def __init__(
        self, folder: Path, hub: HubServer, *, miners: int, validators: int, seed: int, tell: Callable[[str], None]
    ) -> None:
        self._tell = tell
        self._rng = random.Random(f"weather {seed}")
        quiet = 2 * BLOCKS_PER_EPOCH
        self.world = World(folder, hub, miners=miners, validators=validators, quiet_blocks=quiet, seed=seed)
        self.world.chain.set_hyperparameter("WeightsSetRateLimit", RATE_LIMIT_BLOCKS)
        competition = load_competition(self.world.net.competition)
        self.posts = [Post(self.world, folder, at, make_evaluator(folder, competition, at)) for at in range(validators)]
        self._weather: dict[str, tuple[int, Any]] = {}
        self._end_chance = _END

    def close(self) -> None:
        for post in self.posts:
            post.close()
        self.world.close()

    @property
    def round(self) -> int:
        """Rounds since the first block."""
        return (self.world.chain.block() - self.world.first_block) // BLOCKS_PER_EPOCH

    def run(self, rounds: int, *, events_per_round: float = 3.0) -> None:
        """The storm, and then the quiet in which everything has to come to its end."""
        self._end_chance = max(_END, 1 / (rounds * _STEPS_PER_ROUND))
        self._measure()
        while self.round < rounds:
            self._pass_round(events=events_per_round / _STEPS_PER_ROUND, is_stormy=True)
        self._clear()
        while self.round < rounds + _LAST_ROUNDS and not (self.round >= rounds + 3 and self._is_settled()):
            self._pass_round(events=0.0, is_stormy=False)
        self.world.diary.write("finished", is_settled=self._is_settled(), blocks=self.world.chain.block())

    def _pass_round(self, *, events: float, is_stormy: bool) -> None:
        now = self.round
        while self.round == now:
            self._step(events=events, is_stormy=is_stormy)
        self._measure()
        self._tell(self.describe())

    def _measure(self) -> None:
        """Writes down what this process and the validators' folders take by now."""
        disk = {post.name: disk_bytes(post.folder) for post in self.posts}
        self.world.diary.write("measured", rss=_rss_bytes(), disk=disk)

    def describe(self) -> str:
        """How far it is, in a line."""
        verdicts = [len(post.store.rows("SELECT 1 FROM verdicts")) for post in self.posts]
        head = self.world.chain.block()
        return f"round {self.round} block {head} verdicts {verdicts} spells {sorted(self._weather)}"

    def _step(self, *, events: float, is_stormy: bool) -> None:
        self.world.step(events=events)
        if is_stormy:
            self._change_weather()
            self._disturb()
        for post in self.posts:
            with_faults = self._rng.random() < 0.9
            self._set_chain_faults(is_on=with_faults)
            for _ in range(_TICKS_PER_STEP):
                if not post.tick():
                    break
            self._set_chain_faults(is_on=False)
        self._let_work()

    def _let_work(self) -> None:
        """Holds the blocks while workers are at it, mostly: now and then a score outlasts a few of them."""
        while (busy := [post for post in self.posts if post.is_busy]) and self._rng.random() > _HURRY:
            busy[0].wait(_PATIENCE_S)
            for post in busy:
                post.tick()

    def _change_weather(self) -> None:
        """Begins and ends spells in which the hub fails, the chain fails, or the chain refuses weights."""
        head, rng = self.world.chain.block(), self._rng
        for kind, (until, _) in list(self._weather.items()):
            if head >= until:
                self._end(kind)
        kind = rng.choice(["hub", "chain", "refusal"])
        if kind in self._weather or rng.random() > _SPELL:
            return
        blocks = rng.choice([1, 3, 10, 30, 60])
        what: Any = None
        if kind == "hub":
            what = rng.choice(_HUB_FAULTS)
            hub_faults.set_faults(self.world.hub.store.root, what)
        elif kind == "chain":
            what = rng.choice(_CHAIN_FAULTS)
            # Writes are few: the spell is to meet one.
            blocks = max(blocks, BLOCKS_PER_EPOCH) if what[0] == "write" else blocks
        else:
            blocks = rng.choice([4, 30, 200])
            self.world.chain.set_hyperparameter("StakeThreshold", 10**18)
        self._weather[kind] = (head + blocks, what)
        self.world.diary.write("spell", kind=kind, blocks=blocks, what=str(what))

    def _end(self, kind: str) -> None:
        del self._weather[kind]
        if kind == "hub":
            hub_faults.set_faults(self.world.hub.store.root)
        elif kind == "refusal":
            self.world.chain.set_hyperparameter("StakeThreshold", HYPERPARAMETERS["StakeThreshold"])

    def _clear(self) -> None:
        for kind in list(self._weather):
            self._end(kind)

    def _set_chain_faults(self, *, is_on: bool) -> None:
        """The chain's present fault for the ticks of one validator; a spell outlives what they use up of it."""
        if "chain" in self._weather:
            kind, fault, calls = self._weather["chain"][1]
            self.world.chain.set_fault(kind, fault, calls=calls if is_on else 0)

    def _disturb(self) -> None:
        """Ends a validator, or a process that scores, now and then."""
        post = self._rng.choice(self.posts)
        if self._rng.random() < self._end_chance:
            post.restart()
        if self._rng.random() < self._end_chance:
            post.kill_worker()

    def _is_settled(self) -> bool:
        """True when nobody waits and no weights are of an unknown fate, in the last round of every validator."""
        return all(_is_quiet(post.store) for post in self.posts)


def _is_quiet(store: Store) -> bool:
    last = store.last_round(with_leaderboard=True)
    if last is None or any(line.reason is None and line.loss is None for line in store.leaderboard(last.id)):
        return False
    newest = store.last_round_id() or 0
    intents = [intent for number in (newest - 1, newest) for intent in store.intents(number)]
    return all(intent.outcome is not None for intent in intents)


def find_children() -> list[int]:
    """The processes that this one started and that are not gone."""
    stats = [path / "stat" for path in Path("/proc").glob("[0-9]*")]
    return [int(stat.parent.name) for stat in stats if _parent(stat) == os.getpid()]


def _parent(stat: Path) -> int | None:
    try:
        # The name, in brackets, may hold anything.
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def disk_bytes(folder: Path) -> int:
    """What the files below a folder hold."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
