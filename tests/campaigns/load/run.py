"""One situation of the load campaign, measured beside its limits.

The memory bound is the sum of the protocol's own limits, see `memory_bound`.
"""

import dataclasses
import itertools
import json
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from template.constants import MAX_EVAL_SET_BYTES, MAX_EVAL_SET_ROWS
from template.errors import HostError
from template.rules.schedule import MAX_WEIGHTS_PAUSE_BLOCKS, Policy, closing_block
from template.store.store import Store
from template.validator.weights import NOTHING_SCORED
from tests.campaigns.load.situations import LoadedSubnet, Situation
from tests.campaigns.measure import MIB, Figure, disk_bytes
from tests.campaigns.process_under_test import ValidatorProcess, write_empty_model
from tests.fixtures.faulty_hub import serve_hub

# What a validator's process may hold beside the pool, in MiB: 90 for Python and its libraries; 128 for eight answers
# of the Hub at their limit of 16; 70 for finding duplicates among 256 datasets and eight earlier versions of each, of
# 250 rows; 45 for the row keys, verdicts and blocks of as many and MAX_DATASETS more; 20 for one file that is checked;
# 20 for a round's receipts; the rest for SQLite's pages and what the allocator keeps.
BASE_MIB = 384
# A row of the pool takes its key, the digest of its line, and their places in two tables.
POOL_ROW_BYTES = 384
# The state file and its log, receipts and rounds of a few rounds, and the validator's own log.
_STATE_MIB = 128
# An evaluation of Qwen2.5-1.5B on an H200, see docs/internals/performance.md.
_EVALUATION_S = 8.25
# A round's weights must be on the chain so many blocks after they are due.
_LATE_BLOCKS = 24
# Less than a block of the main network.
_TICK_S = 12.0
_INTERVAL_S = 0.1
_START_S, _STOP_S = 600.0, 60.0


def memory_bound(pool_bytes: int, pool_rows: int) -> float:
    """Return the MiB that a validator may take with such a pool."""
    return BASE_MIB + (pool_bytes + pool_rows * POOL_ROW_BYTES) / MIB


MEMORY_BOUND_MIB = math.ceil(memory_bound(MAX_EVAL_SET_BYTES, MAX_EVAL_SET_ROWS))
"""With the largest pool."""


def run(situation: Situation, folder: Path) -> Iterator[Figure]:
    """Run the situation in a new folder. Raises: HostError when the validator fails."""
    loaded = LoadedSubnet(folder / "subnet", situation)
    figures_file = folder / "figures.json"
    try:
        with serve_hub(loaded.subnet.hub_root) as endpoint:
            loaded.begin()
            validator = ValidatorProcess(
                loaded.subnet,
                folder,
                hub_endpoint=endpoint,
                hooks="tests.campaigns.load.hooks",
                options={
                    "figures_file": str(figures_file),
                    "evaluation_s": _EVALUATION_S / situation.speed,
                    "speed": situation.speed if situation.hung else 1.0,
                },
                flags={
                    "--model_path": write_empty_model(folder / "model"),
                    "--miner_duplicate_sample_size": situation.queue_size,
                    "--max_epochs": situation.rounds,
                    "--poll_seconds": 6.0 / situation.speed,
                },
            )
            measured = _measure(loaded, validator)
        measured |= json.loads(figures_file.read_text(encoding="utf-8"))
        with Store(validator.state_file, is_read_only=True) as store:
            yield from _list_figures(loaded, store, measured)
    finally:
        loaded.subnet.close()


def _measure(loaded: LoadedSubnet, validator: ValidatorProcess) -> dict[str, float]:
    """Run the validator to its end. Raises: HostError."""
    situation, started = loaded.situation, time.monotonic()
    timeout_s = _START_S + (situation.rounds + 1.5) * situation.tempo * situation.block_s
    disk, due_block, has_begun = 0, 0, False
    process = validator.start()
    try:
        while validator.is_alive:
            disk = max(disk, disk_bytes(validator.state_dir))
            if not has_begun and _has_round(validator.state_file):
                has_begun, due_block = True, loaded.subnet.chain.block() + situation.recommit_blocks
                loaded.go()
            if has_begun and loaded.restless and loaded.subnet.chain.block() >= due_block:
                due_block = loaded.commit(loaded.restless) + situation.recommit_blocks
            if time.monotonic() - started > timeout_s:
                raise HostError(f"{situation.name}: the validator did not end within {timeout_s:.0f} s")
            time.sleep(_INTERVAL_S)
    finally:
        validator.terminate(_STOP_S)
    if process.returncode != 0:
        raise HostError(f"{situation.name}: exit status {process.returncode}: {validator.last_log_line()}")
    return {"disk": disk, "seconds": time.monotonic() - started}


def _has_round(path: Path) -> bool:
    """Return whether the validator has opened its first round."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            return db.execute("SELECT 1 FROM rounds").fetchone() is not None
    except sqlite3.Error:
        return False


def _list_figures(loaded: LoadedSubnet, store: Store, measured: Mapping[str, float]) -> Iterator[Figure]:
    situation, pool_bytes = loaded.situation, loaded.pool_bytes
    bound = round(memory_bound(pool_bytes, situation.pool_rows))
    # The pool twice, as the cache has it too, and the datasets of one queue.
    disk_bound = (2 * pool_bytes + situation.queue_size * loaded.largest_bytes) / MIB + _STATE_MIB
    yield Figure(f"memory of the validator, pool {pool_bytes / MIB:.0f} MiB", measured["peak_kib"] / 1024, "MiB", bound)
    yield Figure("disk below its state folder", measured["disk"] / MIB, "MiB", disk_bound)
    yield Figure(f"longest of {measured['ticks']} ticks", measured["tick_s"], "s", _TICK_S)
    yield Figure("before the first round: reading the pool, in one tick", measured["startup_s"], "s")
    yield Figure("share of the time that ticks take", 100 * measured["busy_s"] / measured["seconds"], "%")
    yield from _verdict_figures(loaded, store)
    yield from _weight_figures(loaded, store)


def _verdict_figures(loaded: LoadedSubnet, store: Store) -> Iterator[Figure]:
    (first,) = store.rows("SELECT min(started_at) AS at FROM rounds")
    (rejections,) = store.rows("SELECT count(*) AS number FROM verdicts")
    (losses,) = store.rows("SELECT min(finished_at) AS at, count(*) AS number FROM evaluations")
    yield Figure("rejections", rejections["number"])
    yield Figure("evaluations", losses["number"])
    if losses["at"] is not None:
        yield Figure("from the first round's opening to the first loss", losses["at"] - first["at"], "s")
    most = loaded.situation.verdict_rounds
    rounds = [row["id"] for row in store.rows("SELECT id FROM rounds ORDER BY id LIMIT ?", most)]
    rows = [row for number in rounds for row in store.leaderboard(number)]
    waiting = loaded.steady - {row.key.hotkey for row in rows if row.loss is not None or row.reason is not None}
    what = f"of {len(loaded.steady)} steady miners, without a verdict after {most} rounds"
    yield Figure(what, len(waiting), wanted=0)


def _weight_figures(loaded: LoadedSubnet, store: Store) -> Iterator[Figure]:
    """Yield each round's weights against the block at which they were due."""
    situation, last = loaded.situation, store.last_round()
    policy = Policy(blocks_per_epoch=situation.tempo, miner_duplicate_sample_size=situation.queue_size)
    delays: list[int] = []
    blocks_by_round: list[list[int]] = []
    for row in store.rows("SELECT id, start_block, end_block FROM rounds WHERE closed_at IS NOT NULL"):
        assert last is not None, "a round closed"
        closed = dataclasses.replace(last, start_block=row["start_block"], end_block=row["end_block"])
        intents = [(intent.block, intent.outcome) for intent in store.intents(row["id"]) if intent.outcome]
        accepted = [end.block for _, end in intents if end.is_accepted and end.block is not None]
        blocks_by_round.append(accepted)
        # Weights of nothing are due again after a pause.
        later = [block + MAX_WEIGHTS_PAUSE_BLOCKS for block, end in intents if end.error == NOTHING_SCORED]
        delays += [block - max([closing_block(closed, policy), *later]) for block in accepted]
    unrecorded = {call.block for call in loaded.subnet.weights_calls()} ^ {*itertools.chain(*blocks_by_round)}
    counts = list(map(len, blocks_by_round))
    yield Figure("rounds that closed", len(counts), wanted=situation.rounds, is_least=True)
    yield Figure("rounds without weights", counts.count(0), wanted=0)
    yield Figure("weights on chain for one round, at most", max(counts, default=0), wanted=1)
    yield Figure("calls on chain that no round recorded", len(unrecorded), wanted=0)
    yield Figure("latest weights, blocks after they were due", max(delays, default=math.nan), wanted=_LATE_BLOCKS)
