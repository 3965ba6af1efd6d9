"""One crash run: a validator that restarts until its competition is over.

This process makes the blocks: a round's blocks come once everyone in it is evaluated, so that kills change neither the
blocks at which submissions are seen nor the rounds in which they are evaluated.
"""

import math
import signal
import sqlite3
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.campaigns.command import print_progress
from tests.campaigns.crash import checks
from tests.campaigns.crash.points import EVENTS_FILE, KILLS_FILE, ROUND_BLOCKS
from tests.campaigns.crash.scenario import Base, begin_phase, start_of
from tests.campaigns.crash.scorer import write_program
from tests.campaigns.process_under_test import ValidatorProcess, find_orphans
from tests.campaigns.synthetic_subnet import SyntheticSubnet
from tests.fixtures.faulty_hub import FaultyHub

_INTERVAL_S = 0.02
# A run is given up when nothing happens in it for so long, or its validator ends by itself so often.
_TIMEOUT_S, _MAX_ENDS = 60.0, 20
# Of the validator's clock, so that pauses of a minute are some seconds.
_SPEED = 20.0
# Blocks after accepted weights in which a second submission would show, and blocks at a time.
_BLOCKS_AFTER, _STEP_BLOCKS = 40, 4
# Weights must be on the chain so many blocks before a round ends.
_LAST_BLOCKS = 30
RANDOM = "at a random moment"


# Numbers of the state file by which a run goes on; accepted weights are the newest round's.
_COUNTS = {
    "verdicts": "(SELECT count(*) FROM verdicts) + (SELECT count(*) FROM evaluations)",
    "datasets": "count(*) FROM contents",
    "attempts": "count(*) FROM attempts",
    "start": "coalesce(max(start_block), 0) FROM rounds",
    "accepted": "count(*) FROM weight_intents WHERE round_id = (SELECT max(id) FROM rounds)"
    " AND json_extract(outcome, '$.is_accepted')",
    "unsettled": "count(*) FROM weight_intents WHERE outcome IS NULL",
}


@dataclass
class Outcome:
    """The result of a run, with its faults by kind, such as "differences"."""

    name: str
    worker: str = "fake"
    points: set[str] = field(default_factory=set)
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    faults: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: Counter[str] = field(default_factory=Counter)
    temporary: int = 0
    submitted: int = 0
    accepted: int = 0

    @property
    def disagreements(self) -> list[str]:
        return [f"{self.name}: {fault}" for faults in self.faults.values() for fault in faults]


class Run:
    """A competition of `phases` rounds in a new folder.

    Args:
        is_real: the worker trains; otherwise `tests.campaigns.crash.scorer` replaces it.
        kill_after_s: seconds after which this process kills the validator, for each start.
        may_end: exit statuses after which the validator is restarted, as by a supervisor.
        due: of `CrashPoints`: share, shares, is_once, targets.
    """

    def __init__(
        self,
        base: Base,
        folder: Path,
        *,
        phases: int,
        is_real: bool = False,
        kill_after_s: Iterable[float] = (),
        executor_speed: float = _SPEED,
        may_end: tuple[int, ...] = (),
        **due: object,
    ) -> None:
        self.folder, self.phases = folder, base.phases[:phases]
        self.subnet = SyntheticSubnet.copy(base.folder / "subnet", folder / "subnet")
        self._events = folder / EVENTS_FILE
        self._events.touch()
        self.hub = FaultyHub(self.subnet.hub_root)
        self.outcome = Outcome(folder.name, worker="real" if is_real else "fake")
        self.counts = dict.fromkeys(_COUNTS, 0)
        self._may_end = may_end
        self._kill_after_s, self._kill_at = iter(kill_after_s), math.inf
        self._events_before, self._events_bytes, self._moved_at = 0, 0, time.monotonic()
        self._phase, self._blocks_after = 0, 0
        self.validator = ValidatorProcess(
            self.subnet,
            folder,
            hub_endpoint=self.hub.endpoint,
            hooks="tests.campaigns.crash.points",
            options={
                "folder": str(folder),
                "watched": str((folder / "state").resolve()),
                "chain_file": str(self.subnet.net.chain_file),
                "began_at": time.time(),
                "speed": _SPEED,
                "executor_speed": executor_speed,
                "worker": None if is_real else str(write_program(folder)),
                **{"share": 0, "shares": 0, "is_once": False, "targets": [], **due},
            },
            flags={
                "--training_args": base.folder / "training_args.yaml",
                "--model_path": base.folder / "model",
                "--device": "cpu",
                "--poll_seconds": 0.02,
            },
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
        self._events_before, self._moved_at = self._events.stat().st_size, time.monotonic()
        self.validator.start(**streams)
        self.outcome.starts += 1
        self._kill_at = time.monotonic() + next(self._kill_after_s, math.inf)

    def kill(self) -> None:
        """Kill the validator from here and check its remains."""
        self.validator.kill()
        self._check_remains()

    def await_end(self) -> None:
        """Wait for the validator to end by itself, and check its remains."""
        assert self.validator.process is not None
        try:
            self.validator.process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.outcome.faults["other"].append(f"the validator did not end: {self.validator.last_log_line()}")
            self.validator.kill()
        self._check_remains()

    def stop(self) -> None:
        """End the validator with SIGTERM, as an operator would."""
        if self.validator.terminate(30) is None:
            self.outcome.faults["other"].append(f"SIGTERM did not end it: {self.validator.last_log_line()}")
        # A process that is only starting has no handler yet.
        self._check_remains(0, -signal.SIGTERM)

    def _check_remains(self, *expected: int) -> None:
        """Check the exit, files and children of an ended process. expected: statuses."""
        process, outcome, validator = self.validator.process, self.outcome, self.validator
        assert process is not None
        validator.process = None
        if process.returncode == -signal.SIGKILL:
            # A process that killed itself has written down where.
            ending = next((point for point in validator.lines(KILLS_FILE) if point not in outcome.kills), RANDOM)
            outcome.kills[ending] += 1
        else:
            error = validator.last_log_line()
            ending = f"exit status {process.returncode}: {error.partition('ERROR')[2].strip() or error}"
            if process.returncode not in expected:
                outcome.notes[ending] += 1
            if process.returncode not in (*expected, *self._may_end):
                outcome.faults["other"].append(ending)
        partial, temporary = checks.check_files(validator.state_dir)
        outcome.temporary = max(outcome.temporary, temporary)
        for kind, faults in (
            ("orphans", find_orphans(process.pid)),
            ("partial", partial),
            ("state", checks.check_database(validator.state_file)),
        ):
            outcome.faults[kind] += [f"after {ending}: {fault}" for fault in faults]

    # The competition

    def go(self, until: Callable[["Run"], object] | None = None) -> Outcome:
        """Run until the competition is over, or `until` holds with a live validator."""
        if self.validator.process is None:
            self.start()
        while self._phase < len(self.phases) and self._step():
            if until is not None and self.validator.process is not None and until(self):
                break
            time.sleep(_INTERVAL_S)
        return self.outcome

    def _step(self) -> bool:
        """Look at everything once; False when the run is given up."""
        if time.monotonic() >= self._kill_at:
            self.validator.kill()
        if not self.validator.is_alive:
            self._check_remains()
            self.start()
        if (size := self._events.stat().st_size) != self._events_bytes:
            self._events_bytes, self._moved_at = size, time.monotonic()
        if time.monotonic() - self._moved_at > _TIMEOUT_S or self.outcome.notes.total() > _MAX_ENDS:
            self.outcome.faults["other"].append(f"given up: {self.validator.last_log_line()}")
            return False
        if self._is_up() and self._read_counts():
            self._make_blocks()
        return True

    def _is_up(self) -> bool:
        """Return whether this process ticks and holds the model."""
        with self._events.open() as file:
            file.seek(self._events_before)
            beats = [line for line in file if line.startswith("after COMMIT | record_heartbeat")]
        return any("model" not in beat for beat in beats)

    def _read_counts(self) -> bool:
        try:
            uri = f"{self.validator.state_file.as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=1.0)) as db:
                db.execute("BEGIN")
                self.counts.update(
                    {name: db.execute(f"SELECT {query}").fetchone()[0] for name, query in _COUNTS.items()}
                )
        except sqlite3.Error:
            return False
        return True

    def _make_blocks(self) -> None:
        """Make the blocks that wait for nothing any more."""
        counts, phase, start = self.counts, self.phases[self._phase], start_of(self._phase)
        is_evaluated = counts["verdicts"] >= phase.verdicts and counts["datasets"] >= phase.datasets
        if counts["start"] != start or not is_evaluated:
            return
        chain = self.subnet.chain
        if chain.block() > start + ROUND_BLOCKS - _LAST_BLOCKS:
            self.outcome.faults["other"].append(f"no weights by the end of the round of block {start}")
            self._phase = len(self.phases)
        elif not counts["accepted"] or counts["unsettled"]:
            chain.advance(1)
        elif self._blocks_after < _BLOCKS_AFTER:
            chain.advance(_STEP_BLOCKS)
            self._blocks_after += _STEP_BLOCKS
        else:
            self._phase, self._blocks_after = self._phase + 1, 0
            if self._phase < len(self.phases):
                begin_phase(self.subnet, self._phase, self.phases[self._phase])

    def finish(self, undisturbed: Path | None, *, ignore: Collection[str] = ()) -> Outcome:
        """Stop the validator and compare its state file with an undisturbed run's."""
        outcome, validator = self.outcome, self.validator
        if validator.process is not None:
            self.stop()
        events = validator.lines(EVENTS_FILE)
        outcome.points = set(events)
        if outcome.starts == 1:
            outcome.faults["other"] += checks.check_order(events)
        outcome.faults["other"] += [f"in the log: {line}" for line in validator.logged_bugs()[:3]]
        partial, outcome.temporary = checks.check_files(validator.state_dir, is_complete=True)
        outcome.faults["partial"] += partial
        calls = self.subnet.weights_calls()
        outcome.submitted, outcome.accepted = len(calls), sum(call.error is None for call in calls)
        outcome.faults["doubled"] += checks.check_weights(calls)
        if undisturbed is not None:
            last = start_of(len(self.phases) - 1)
            states = [checks.read_state(path, last) for path in (undisturbed, validator.state_file)]
            outcome.faults["differences"] += checks.compare(*states, ignore=ignore)
        print_progress(f"{outcome.name}: kills={outcome.kills.total()} starts={outcome.starts}")
        return outcome
