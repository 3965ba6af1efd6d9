"""Load runs: one situation after another, each a new world and a validator in a process of its own, measured.

The memory bound is made of the protocol's own limits, see `memory_bound`; what is measured stands beside it.
"""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from template.constants import BLOCK_S, MAX_EVAL_SET_BYTES, MAX_EVAL_SET_ROWS
from template.errors import HostError
from template.localnet.hub import faults as hub_faults
from template.localnet.hub.faults import FaultKind
from template.localnet.hub.server import serve_hub
from template.localnet.network import NETUID, VALIDATOR
from template.rules import schedule
from template.rules.schedule import Policy
from template.store.store import Store
from template.validator.weights import NOTHING_SCORED
from tests.campaigns.load.world import LoadWorld, make_pool
from tests.campaigns.measure import Line

MIB = 2**20

# What a validator's process may hold beside the pool, in MiB: 90 for Python and its libraries; 128 for eight answers
# of the Hub at their limit of 16; 70 for a look for copies among 256 datasets and eight earlier versions of each, of
# 250 rows; 45 for the row keys, verdicts and blocks of as many and MAX_DATASETS more; 20 for one file that is checked;
# 20 for a round's receipts; the rest for SQLite's pages and what the allocator keeps. A row of the pool takes its key,
# the digest of its line, and their places in two tables. The pool's file is in memory only while it is read.
BASE_MIB = 384
POOL_ROW_BYTES = 384

# The state file and its log, receipts and rounds of a few rounds, and the validator's own log.
STATE_MIB = 128

# A score of Qwen2.5-1.5B on an H200, see docs/performance.md.
SCORE_S = 8.25

# Blocks after the last ones of a round began, with 50 of them to go, by which its weights must be on chain.
LATE_BLOCKS = 24

# One look, one decision, one thing done: less than a block of the main network takes.
TICK_S = 12.0

_PAUSE_BLOCKS = schedule.MAX_WEIGHTS_PAUSE_BLOCKS
_ROOT = Path(__file__).resolve().parents[3]
_GLANCE_S = 0.1
_START_S = 600.0


def memory_bound(pool_bytes: int, pool_rows: int) -> float:
    """MiB that a validator's process may take at most with such a pool, by the limits of template/constants.py."""
    return BASE_MIB + (pool_bytes + pool_rows * POOL_ROW_BYTES) / MIB


MEMORY_BOUND_MIB = math.ceil(memory_bound(MAX_EVAL_SET_BYTES, MAX_EVAL_SET_ROWS))
"""With the largest pool that there can be."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What happens. kind: of datasets, see `LoadWorld.datasets`. rows: of each that count. block_s: seconds a block.

    steady: miners who commit once, the first of them the last in line; all others commit again every
    `recommit_blocks` blocks, when that is not 0. hung: miners, the first in line, whose repos never answer. within:
    rounds in which every steady miner must have its verdict. policy: what of it differs from one that scores everybody.
    """

    name: str
    what: str
    kind: str = "near"
    miners: int = 256
    rows: int = 250
    pool_rows: int = 40_000
    row_bytes: int = 1_200
    block_s: float = 0.25
    tempo: int = 360
    rounds: int = 2
    within: int = 2
    recommit_blocks: int = 0
    steady: int = 256
    hung: int = 0
    sample_size: int = 256
    queue_size: int = 256

    @property
    def times(self) -> float:
        """How many times as fast as the main network's the blocks are."""
        return BLOCK_S / self.block_s

    @property
    def policy(self) -> Policy:
        return Policy(miner_sample_size=self.sample_size, miner_duplicate_sample_size=self.queue_size)


@dataclass
class _Watch:
    """What is seen from outside while a validator runs. peak_kib: VmHWM; disk: bytes, the most at any look."""

    peak_kib: int = 0
    disk: int = 0
    seconds: float = 0.0


def run(situation: Situation, folder: Path) -> Iterator[Line]:
    """Carries the situation out in the new folder `folder`. Raises: HostError when the validator ends badly."""
    pool = make_pool(situation.pool_rows, situation.row_bytes)
    world = LoadWorld(folder, miners=situation.miners, pool=pool, rows=situation.rows, tempo=situation.tempo)
    try:
        world.publish(situation.kind)
        _hang(world, situation)
        with serve_hub(world.hub_root) as endpoint:
            # The first in line commit a block before the others.
            if situation.hung:
                world.commit(world.miners[: situation.hung])
            world.commit(world.miners[situation.hung :])
            world.start_clock(situation.block_s)
            watch = _watch(world, situation, endpoint)
        report = json.loads(_report_file(world).read_text(encoding="utf-8"))
        with Store(_state_file(world), is_read_only=True) as store:
            yield from _lines(situation, world, store, watch, report)
    finally:
        world.close()


def _hang(world: LoadWorld, situation: Situation) -> None:
    """Has the first repos send their answers a byte at a time, for ever."""
    if situation.hung:
        names = "|".join(miner.repo for miner in world.miners[: situation.hung])
        hub_faults.set_faults(
            world.hub_root, hub_faults.HubFault(kind=FaultKind.HEADER_DRIP, seconds=0.2, pattern=f"/({names})/")
        )


def _state_file(world: LoadWorld) -> Path:
    return world.net.folder / "state" / "validator.sqlite3"


def _report_file(world: LoadWorld) -> Path:
    return world.net.folder / "report.json"


def _start(world: LoadWorld, situation: Situation, endpoint: str) -> "subprocess.Popen[bytes]":
    flags = {
        "--report": _report_file(world),
        "--score_seconds": SCORE_S / situation.times,
        "--times_as_fast": situation.times if situation.hung else 1.0,
        "--": "",
        "--netuid": NETUID,
        "--subtensor.network": world.net.network,
        "--wallet.path": world.net.wallets,
        "--wallet.name": VALIDATOR,
        "--competition": world.net.competition,
        "--state_dir": _state_file(world).parent,
        "--blocks_per_epoch": situation.tempo,
        "--miner_sample_size": situation.sample_size,
        "--miner_duplicate_sample_size": situation.queue_size,
        "--max_epochs": situation.rounds,
        "--poll_seconds": 6.0 / situation.times,
        "--logging.file": world.net.folder / "validator.log",
        "--wandb.off": "",
    }
    words = [str(word) for pair in flags.items() for word in pair if word != ""]
    command = [sys.executable, "-m", "tests.campaigns.load.validator", *words]
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(world.net.folder / "hf")}
    return subprocess.Popen(command, cwd=_ROOT, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _watch(world: LoadWorld, situation: Situation, endpoint: str) -> _Watch:
    """Runs the validator to its end, and everybody who commits again meanwhile. Raises: HostError."""
    watch, started = _Watch(), time.monotonic()
    patience_s = _START_S + (situation.rounds + 1.5) * situation.tempo * situation.block_s
    restless = world.miners[situation.hung : situation.miners - situation.steady] if situation.recommit_blocks else []
    due_block = world.chain.block() + situation.recommit_blocks
    with _start(world, situation, endpoint) as process:
        try:
            while process.poll() is None:
                watch.peak_kib = max(watch.peak_kib, _peak_kib(process.pid))
                watch.disk = max(watch.disk, _disk_bytes(_state_file(world).parent))
                if restless and world.chain.block() >= due_block:
                    due_block = world.commit(restless) + situation.recommit_blocks
                if time.monotonic() - started > patience_s:
                    raise HostError(f"{situation.name}: the validator did not end within {patience_s:.0f} s")
                time.sleep(_GLANCE_S)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
    if process.returncode != 0:
        raise HostError(f"{situation.name}: the validator ended with {process.returncode}; see {world.net.folder}")
    watch.seconds = time.monotonic() - started
    return watch


def _peak_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def _disk_bytes(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size  # noqa: PTH118 - thousands of files at every look
            except OSError:
                continue
    return total


def _lines(
    situation: Situation, world: LoadWorld, store: Store, watch: _Watch, report: Mapping[str, float]
) -> Iterator[Line]:
    bound = memory_bound(world.pool_bytes, situation.pool_rows)
    peak = max(watch.peak_kib, report["peak_kib"]) / 1024
    yield Line(f"memory of the validator, pool {world.pool_bytes / MIB:.0f} MiB", peak, "MiB", round(bound))
    yield Line("disk below its state folder", watch.disk / MIB, "MiB", _disk_bound(situation, world) / MIB)
    yield Line(f"longest of {report['ticks']} ticks, in {report['tick']}", report["tick_s"], "s", TICK_S)
    yield Line("before the first round: reading the pool, in one tick", report["waking_s"], "s")
    yield Line("share of the time that ticks take", 100 * report["busy_s"] / watch.seconds, "%")
    yield from _time_lines(situation, world, store)
    yield from _weight_lines(situation, world, store)


def _disk_bound(situation: Situation, world: LoadWorld) -> float:
    """Bytes: the pool twice (the cache has it as well), the datasets of one queue, and the rest of the state."""
    return 2 * world.pool_bytes + situation.queue_size * world.largest_bytes + STATE_MIB * MIB


def _time_lines(situation: Situation, world: LoadWorld, store: Store) -> Iterator[Line]:
    (first,) = store.rows("SELECT min(started_at) AS at FROM rounds")
    (verdict,) = store.rows("SELECT min(decided_at) AS at, count(*) AS number FROM verdicts")
    scored = store.rows("SELECT count(*) AS number FROM verdicts WHERE loss IS NOT NULL")[0]["number"]
    yield Line("verdicts", verdict["number"], "")
    yield Line("scores", scored, "")
    if verdict["at"] is not None:
        yield Line("from the first round's opening to the first verdict", verdict["at"] - first["at"], "s")
    steady = {miner.hotkey for miner in world.miners[situation.miners - situation.steady :]}
    steady -= {miner.hotkey for miner in world.miners[: situation.hung]}
    waiting = steady - set(_judged(store, situation.within))
    yield Line(
        f"of {len(steady)} steady miners, without a verdict after {situation.within} rounds", len(waiting), "", 0
    )


def _judged(store: Store, rounds: int) -> Iterator[str]:
    """The hotkeys with a verdict, or a copy's line, in the tables of the first rounds."""
    numbers = [row["id"] for row in store.rows("SELECT id FROM rounds ORDER BY id LIMIT ?", rounds)]
    for number in numbers:
        for line in store.leaderboard(number):
            if line.loss is not None or line.reason is not None:
                yield line.key.hotkey


def _weight_lines(situation: Situation, world: LoadWorld, store: Store) -> Iterator[Line]:
    """Every round's weights against the block at which they were due, by the chain's own record."""
    late: list[int] = []
    told: list[int] = []
    missing, most = 0, 0
    some = store.last_round()
    closed = store.rows("SELECT id, start_block, end_block FROM rounds WHERE closed_at IS NOT NULL ORDER BY id")
    for row in closed:
        assert some is not None, "a round closed"
        current = dataclasses.replace(some, start_block=row["start_block"], end_block=row["end_block"])
        outcomes = [intent.outcome for intent in store.intents(row["id"])]
        taken = [one.block for one in outcomes if one and one.is_accepted and one.block is not None]
        told += taken
        most, missing = max(most, len(taken)), missing + (not taken)
        # Weights of nothing are due again after a pause.
        empty = [one.block for one in store.intents(row["id"]) if one.outcome and one.outcome.error == NOTHING_SCORED]
        due = max([schedule.closing_block(current, situation.policy), *(at + _PAUSE_BLOCKS for at in empty)])
        late += [block - due for block in taken]
    yield Line("rounds that closed", len(closed), "", situation.rounds, is_least=True)
    yield Line("rounds without weights", missing, "", 0)
    yield Line("weights on chain for one round, at most", most, "", 1)
    yield Line("calls on chain that no round knows of", len(set(world.weights_blocks()) ^ set(told)), "", 0)
    yield Line("latest weights, blocks after they were due", max(late, default=math.nan), "", LATE_BLOCKS)
