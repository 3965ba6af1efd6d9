"""One crash run: a validator that restarts until its competition is over.

This process makes the blocks: a round's blocks come once everyone in it is evaluated, so that kills change neither the
blocks at which submissions are seen nor the rounds in which they are evaluated.
"""

import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.campaigns.command import Progress
from tests.campaigns.crash import checks
from tests.campaigns.crash.points import EVENTS_FILE, KILLS_FILE, ROUND_BLOCKS
from tests.campaigns.crash.scenario import Base, begin_phase, start_of
from tests.campaigns.crash.scorer import write_program
from tests.campaigns.process_under_test import ValidatorProcess, find_orphans
from tests.campaigns.synthetic_subnet import SyntheticSubnet
from tests.fixtures.faulty_hub import FaultyHub

_INTERVAL_S = 0.02
# A run is given up when nothing changes in its state for so long.
TIMEOUT_S = 60.0
# Of the validator's clock, so that pauses of a minute are some seconds.
_SPEED = 20.0
# Blocks after accepted weights in which a second submission would show, and blocks at a time.
_BLOCKS_AFTER, _STEP_BLOCKS = 40, 4
# Weights must be on the chain so many blocks before a round ends.
_LAST_BLOCKS = 30
RANDOM = "at a random moment"


@dataclass(frozen=True)
class Snapshot:
    """The content of the state file; start and accepted are of the newest round."""

    verdicts: int = 0
    datasets: int = 0
    start: int = -1
    accepted: int = 0
    unsettled: int = 0
    attempts: int = 0
    heartbeat_at: float | None = None
    doing: str | None = None


_SNAPSHOT = """SELECT (SELECT count(*) FROM verdicts), (SELECT count(*) FROM datasets), coalesce(max(start_block), -1),
    (SELECT count(*) FROM weight_intents WHERE round_id = (SELECT max(id) FROM rounds)
        AND json_extract(outcome, '$.is_accepted')),
    (SELECT count(*) FROM weight_intents WHERE outcome IS NULL), (SELECT count(*) FROM attempts),
    (SELECT updated_at FROM activity), (SELECT json_extract(content, '$.doing') FROM activity) FROM rounds"""


@dataclass
class Outcome:
    """The result of a run; its lists are disagreements, but for ends and notes."""

    name: str
    points: set[str] = field(default_factory=set)
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    ends: list[tuple[int, str]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)
    temporary: int = 0
    submitted: int = 0
    accepted: int = 0
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    worker: str = "table"

    @property
    def disagreements(self) -> list[str]:
        faults = [*self.findings, *self.differences, *self.doubled, *self.orphans, *self.partial]
        return [f"{self.name}: {fault}" for fault in faults]


class Run:
    """A competition of `phases` rounds in a new folder.

    Args:
        mode: of `tests.campaigns.crash.scorer`; None for the real worker.
        kill_between_s: each process is killed after so many seconds at random; None kills none from here.
        may_end: exit statuses after which the validator is restarted, as by a supervisor.
        due: of `CrashPoints`: share, shares, is_once, targets.
    """

    def __init__(
        self,
        base: Base,
        folder: Path,
        *,
        phases: int,
        mode: str | None = "table",
        kill_between_s: tuple[float, float] | None = None,
        max_kills: int = 10**6,
        seed: int = 0,
        executor_speed: float = _SPEED,
        may_end: tuple[int, ...] = (),
        state_dir: Path | None = None,
        progress: Progress = lambda _: None,
        **due: object,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.phases = folder, base.phases[:phases]
        self.subnet = SyntheticSubnet.copy(base.subnet, folder / "subnet")
        self.hub = FaultyHub(self.subnet.hub_root)
        self.outcome = Outcome(folder.name, worker="table" if mode == "table" else "real")
        self.snapshot = Snapshot()
        self._may_end, self._progress = may_end, progress
        self._kill_between_s, self._max_kills, self._rng = kill_between_s, max_kills, random.Random(seed)
        self._kill_at = float("inf")
        self._moved_at = time.monotonic()
        self._phase, self._blocks_after = 0, 0
        self._events_before, self._is_up = 0, False
        self._first_heartbeat: tuple[float | None] | None = None
        evaluator = None
        if mode is not None:
            # Beside its own copy a run names the stage in which the worker stays.
            table = base.table if mode == "record" else Path(shutil.copy(base.table, folder))
            evaluator = str(write_program(folder / "scorer", mode, table))
        state_dir = (state_dir or folder / "state").resolve()
        self.validator = ValidatorProcess(
            self.subnet,
            folder,
            hub_endpoint=self.hub.endpoint,
            hooks="tests.campaigns.crash.points",
            options={
                "folder": str(folder),
                "watched": str(state_dir),
                "began_at": time.time(),
                "speed": _SPEED,
                "executor_speed": executor_speed,
                "evaluator": evaluator,
                **{"share": 0, "shares": 0, "is_once": False, "targets": [], **due},
            },
            flags={
                "--training_args": base.training_args,
                "--model_path": base.model,
                "--device": "cpu",
                "--blocks_per_epoch": ROUND_BLOCKS,
                "--lucky_num_from": "chain",
                "--poll_seconds": 0.02,
            },
            state_dir=state_dir,
        )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self.validator.is_alive:
            self.validator.kill()
        self.subnet.close()
        self.hub.close()

    # The process

    def start(self, **streams: object) -> None:
        events = self.folder / EVENTS_FILE
        self._events_before = events.stat().st_size if events.exists() else 0
        self.validator.start(**streams)
        self.outcome.starts += 1
        self._first_heartbeat, self._is_up = None, False
        if self._kill_between_s is not None and self.outcome.kills.total() < self._max_kills:
            self._kill_at = time.monotonic() + self._rng.uniform(*self._kill_between_s)

    def kill(self, why: str = RANDOM) -> None:
        """Kill the validator from here and check its remains."""
        self.validator.kill()
        self._check_remains(why)

    def await_end(self) -> None:
        """Wait for the validator to end by itself, and check its remains."""
        assert self.validator.process is not None
        try:
            self.validator.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.outcome.findings.append(f"the validator did not end: {self.validator.last_log_line()}")
            self.validator.kill()
        self._check_remains("the fault")

    def stop(self) -> None:
        """End the validator with SIGTERM, as an operator would."""
        pid, status = self.validator.pid, self.validator.terminate(30)
        own = self._new_kills()
        self.outcome.kills.update(own)
        # A process that is only starting has no handler yet, and one that ends passes points that may be due.
        if status not in (0, -signal.SIGTERM) and not (status == -signal.SIGKILL and own):
            self.outcome.findings.append(f"SIGTERM: exit status {status}, log: {self.validator.last_log_line()}")
        self.outcome.orphans += [f"at the end: {orphan}" for orphan in find_orphans(pid)]
        self.validator.process, self._kill_at = None, float("inf")

    def _check_remains(self, why: str) -> None:
        """Check what the process that ended left behind."""
        process, outcome, validator = self.validator.process, self.outcome, self.validator
        assert process is not None
        validator.process, self._kill_at = None, float("inf")
        if process.returncode == -signal.SIGKILL:
            self._moved_at = time.monotonic()
            point = (self._new_kills() or [why])[0]
            outcome.kills[point] += 1
        else:
            point = f"status {process.returncode}"
            outcome.ends.append((process.returncode, validator.last_log_line()))
            if process.returncode not in self._may_end:
                outcome.findings.append(f"the validator ended with {point}: {validator.last_log_line()}")
        outcome.orphans += [f"killed {point}: {orphan}" for orphan in find_orphans(process.pid)]
        partial, temporary = checks.check_files(validator.state_dir)
        outcome.partial += [f"killed {point}: {file}" for file in partial]
        outcome.temporary = max(outcome.temporary, temporary)
        outcome.findings += [f"killed {point}: {fault}" for fault in checks.check_database(validator.state_file)]

    def _new_kills(self) -> list[str]:
        """Return the point at which a process killed itself, if not counted yet."""
        return [point for point in self.validator.lines(KILLS_FILE) if point not in self.outcome.kills]

    # The competition

    def go(self, until: Callable[["Run"], bool] | None = None) -> Outcome:
        """Run until the competition is over, or `until` holds with a live validator."""
        began = time.monotonic()
        if self.validator.process is None:
            self.start()
        while self._phase < len(self.phases) and self._step():
            if until is not None and self.validator.process is not None and until(self):
                break
            time.sleep(_INTERVAL_S)
        self.outcome.seconds += time.monotonic() - began
        return self.outcome

    def _step(self) -> bool:
        """Look at everything once; False when nothing moves any more."""
        if time.monotonic() >= self._kill_at:
            self.validator.kill()
        if not self.validator.is_alive:
            self._check_remains(RANDOM)
            self.start()
        snapshot = self._read_snapshot()
        if snapshot is not None and snapshot != self.snapshot:
            self.snapshot, self._moved_at = snapshot, time.monotonic()
        if time.monotonic() - self._moved_at > TIMEOUT_S:
            self.outcome.findings.append(f"nothing moved for {TIMEOUT_S:.0f} s: {self.validator.last_log_line()}")
            return False
        if snapshot is not None and self._has_begun(snapshot):
            self._make_blocks(snapshot)
        return True

    def _has_begun(self, snapshot: Snapshot) -> bool:
        """Return whether this process ticks and holds the model."""
        if self._first_heartbeat is None:
            self._first_heartbeat = (snapshot.heartbeat_at,)
        if snapshot.heartbeat_at != self._first_heartbeat[0] and "model" not in (snapshot.doing or "model"):
            self._is_up = True
        return self._is_up

    def _read_snapshot(self) -> Snapshot | None:
        """Return what the state file shows, None until the process has opened it."""
        events = self.folder / EVENTS_FILE
        if not events.exists() or events.stat().st_size <= self._events_before:
            return None
        try:
            uri = f"{self.validator.state_file.as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=1.0)) as db:
                return Snapshot(*db.execute(_SNAPSHOT).fetchone())
        except sqlite3.Error:
            return None

    def _make_blocks(self, snapshot: Snapshot) -> None:
        """Make the blocks that wait for nothing any more."""
        phase, start = self.phases[self._phase], start_of(self._phase)
        is_evaluated = snapshot.verdicts >= phase.verdicts and snapshot.datasets >= phase.datasets
        if snapshot.start != start or not is_evaluated:
            return
        chain = self.subnet.chain
        if chain.block() > start + ROUND_BLOCKS - _LAST_BLOCKS:
            self.outcome.findings.append(f"no weights by the end of the round of block {start}")
            self._phase = len(self.phases)
        elif not snapshot.accepted or snapshot.unsettled:
            chain.advance(1)
            self._moved_at = time.monotonic()
        elif self._blocks_after < _BLOCKS_AFTER:
            chain.advance(_STEP_BLOCKS)
            self._blocks_after += _STEP_BLOCKS
        else:
            self._phase, self._blocks_after = self._phase + 1, 0
            kills = self.outcome.kills.total()
            self._progress(f"{self.folder.name}: rounds={self._phase}/{len(self.phases)} kills={kills}")
            if self._phase < len(self.phases):
                begin_phase(self.subnet, self._phase, self.phases[self._phase])

    def finish(self, expected: checks.EndState | None, *, ignore: Collection[str] = ()) -> Outcome:
        """Stop the validator and compare its end state with an undisturbed run's."""
        outcome, validator = self.outcome, self.validator
        if validator.process is not None:
            self.stop()
        events = validator.lines(EVENTS_FILE)
        outcome.points = set(events)
        if outcome.starts == 1:
            outcome.findings += checks.check_order(events)
        outcome.findings += checks.check_database(validator.state_file)
        partial, outcome.temporary = checks.check_files(validator.state_dir, is_complete=True)
        outcome.partial += partial
        chain_file, hotkey = self.subnet.net.chain_file, self.subnet.validator_hotkey()
        outcome.doubled += checks.check_weights(chain_file, hotkey)
        accepted, outcome.submitted = checks.count_weights(chain_file, hotkey)
        outcome.accepted = accepted.total()
        if expected is not None:
            last = start_of(len(self.phases) - 1)
            outcome.differences += checks.compare(
                expected.until(last), checks.read_state(validator.state_file).until(last), ignore=ignore
            )
        outcome.findings += [f"in the log: {line}" for line in validator.logged_bugs()[:3]]
        return outcome
