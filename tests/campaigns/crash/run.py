"""One crash run: the real validator as a process, killed and started again until its competition is over.

This process is in charge of time: a round's blocks come once everybody in it is judged, whatever that takes, so that
kills change neither the blocks that submissions are seen at nor the rounds in which their turns come. What may not be
is looked for after every kill; what the run came to is read at its end.
"""

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from template.localnet.hub.server import HubServer
from tests.campaigns.crash import checks
from tests.campaigns.crash.launcher import EVENTS_FILE, KILLS_FILE, ROUND_BLOCKS, Plan
from tests.campaigns.crash.scenario import ROOT, Base, Stage, set_weather, start_of
from tests.campaigns.crash.scorer import write_program

SCRIPT = ROOT / "neurons" / "validator.py"

# How often the state is looked at, and how long nothing may change in it before the run is given up.
_GLANCE_S = 0.02
PATIENCE_S = 60.0
# The speed of the validator's clock: the pauses of a minute are some seconds.
SPEED = 20.0
# Blocks that are waited for another submission of weights after the chain took some, and how many come at once.
_AFTERMATH_BLOCKS, _STEP_BLOCKS = 40, 4
# The chain is not to pass a round's end while its weights are not on it; then something is wrong.
_LAST_BLOCKS = 30
RANDOM = "at a random moment"


@dataclass(frozen=True)
class Glance:
    """What a look into the state file shows. start: of the newest round; accepted: its weights that the chain took.

    told_at, doing: what the validator last said of itself.
    """

    verdicts: int = 0
    datasets: int = 0
    start: int = -1
    accepted: int = 0
    unsettled: int = 0
    attempts: int = 0
    told_at: float | None = None
    doing: str | None = None


_GLANCE = """SELECT (SELECT count(*) FROM verdicts), (SELECT count(*) FROM datasets), coalesce(max(start_block), -1),
    (SELECT count(*) FROM weight_intents WHERE round_id = (SELECT max(id) FROM rounds)
        AND json_extract(outcome, '$.is_accepted')),
    (SELECT count(*) FROM weight_intents WHERE outcome IS NULL), (SELECT count(*) FROM attempts),
    (SELECT updated_at FROM activity), (SELECT json_extract(content, '$.doing') FROM activity) FROM rounds"""


@dataclass
class Outcome:
    """What a run came to. points: passed, at least once. kills: by the point; findings: what may not be."""

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
    taken: int = 0
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def disagreements(self) -> list[str]:
        """Everything that may not be, with the run's name."""
        found = [*self.findings, *self.differences, *self.doubled, *self.orphans, *self.partial]
        return [f"{self.name}: {one}" for one in found]


class Run:
    """A competition of `phases` rounds in the new folder `folder`, with a validator in `state_dir`; to be closed.

    is_real: the real worker trains; else one answers from the table. killer: seconds that each next process is left
    alive before it is killed from here, drawn from the random numbers it is given; None kills none from here.
    share, shares, is_once, targets: as in `Plan`. may_end: a validator that ends by itself with such a status is
    started again, as a supervisor would.
    """

    def __init__(
        self,
        base: Base,
        folder: Path,
        *,
        phases: int,
        is_real: bool = False,
        mode: str = "table",
        share: int = 0,
        shares: int = 0,
        is_once: bool = False,
        targets: Collection[str] = (),
        killer: Callable[[random.Random], float] | None = None,
        most_kills: int = 10**6,
        seed: int = 0,
        speed: float = SPEED,
        executor_speed: float = SPEED,
        may_end: tuple[int, ...] = (),
        state_dir: Path | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.base, self.folder, self.phases = base, folder, base.phases[:phases]
        self.chain_file = base.copy_to(folder)
        self.state_dir = (state_dir or folder / "state").resolve()
        self.state_dir.mkdir(exist_ok=True)
        self.hub = HubServer(folder / "hub")
        set_weather(self.hub.store.root)
        self.stage = Stage(base, self.chain_file)
        self.outcome = Outcome(folder.name)
        self.may_end = may_end
        self.process: subprocess.Popen[bytes] | None = None
        self.glance = Glance()
        self._tell = tell
        self._killer, self._most_kills, self._rng = killer, most_kills, random.Random(seed)
        self._kill_at = float("inf")
        self._moved_at = time.monotonic()
        self._phase, self._aftermath = 0, 0
        self._events_before, self._is_up = 0, False
        self._told_before: tuple[float | None] | None = None
        evaluator = None
        if not is_real:
            # Its own copy, beside which it is told what to do.
            table = base.table if mode == "record" else Path(shutil.copy(base.table, folder))
            evaluator = str(write_program(folder / "scorer", mode, table))
        self.plan = Plan(
            folder=str(folder), script=str(SCRIPT), watched=str(self.state_dir), began_at=time.time(),
            share=share, shares=shares, is_once=is_once, targets=tuple(targets), evaluator=evaluator,
            speed=speed, executor_speed=executor_speed,
        )  # fmt: skip

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.stage.chain.close()
        self.hub.close()

    # The process

    def start(self, **options: object) -> subprocess.Popen[bytes]:
        """A new validator on the same state, in a session of its own. options: more for `Popen`."""
        plan_file, events = self.folder / "plan.json", self.folder / EVENTS_FILE
        self._events_before = events.stat().st_size if events.exists() else 0
        self.plan.save(plan_file)
        streams = {"stdout": subprocess.DEVNULL, **options}
        with (self.folder / "log").open("ab") as log:
            streams.setdefault("stderr", log)
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "tests.campaigns.crash.launcher", str(plan_file)),
                    *self.base.arguments(self.chain_file, self.state_dir),
                ],
                cwd="/",
                env=self.base.environment(self.folder, self.hub),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                **streams,  # type: ignore[call-overload]
            )
        self.outcome.starts += 1
        self._told_before, self._is_up = None, False
        if self._killer is not None and self.outcome.kills.total() < self._most_kills:
            self._kill_at = time.monotonic() + self._killer(self._rng)
        return self.process

    def kill(self, why: str = RANDOM) -> None:
        """SIGKILL from here, and everything that follows a kill but the next start."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self._bury(why)

    def await_end(self) -> None:
        """Waits for the validator to end by itself, which is a finding when it does not."""
        assert self.process is not None
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.outcome.findings.append(f"it did not end: {self.last_words()}")
            self.process.kill()
            self.process.wait()
        self._bury("the fault")

    def stop(self) -> None:
        """Ends the validator as an operator would."""
        assert self.process is not None
        self.process.terminate()
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.outcome.findings.append("SIGTERM did not end the validator within 30 s")
            self.process.kill()
            status = self.process.wait()
        own = self._new_kills()
        self.outcome.kills.update(own)
        # One that only starts has no handler yet, and one that ends passes points at which it may be killed.
        if status not in (0, -signal.SIGTERM) and not (status == -signal.SIGKILL and own):
            self.outcome.findings.append(f"SIGTERM ended the validator with status {status}: {self.last_words()}")
        self.outcome.orphans += [f"at the end: {one}" for one in checks.find_orphans(self.process.pid)]
        self.process, self._kill_at = None, float("inf")

    def worker(self) -> int | None:
        """The process that scores for the validator, None while there is none."""
        assert self.process is not None
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            with suppress(OSError):
                if found := path.read_text().split():
                    return int(found[-1])
        return None

    def is_at_work(self) -> bool:
        """True while a score is under way, as the validator tells it."""
        return "evaluating" in self.last_words()

    def _bury(self, why: str) -> None:
        """Looks at what the dead process left behind."""
        assert self.process is not None
        process, self.process, self._kill_at = self.process, None, float("inf")
        status, said, at = process.returncode, self.outcome, ""
        if status == -signal.SIGKILL:
            self._moved_at = time.monotonic()
            own = self._new_kills()
            at = own[0] if own else why
            said.kills[at] += 1
        else:
            at = f"status {status}"
            said.ends.append((status, self.last_words()))
            if status not in self.may_end:
                said.findings.append(f"the validator ended by itself with status {status}: {self.last_words()}")
        said.orphans += [f"killed {at}: {one}" for one in checks.find_orphans(process.pid)]
        partial, temporary = checks.check_files(self.state_dir)
        said.partial += [f"killed {at}: {one}" for one in partial]
        said.temporary = max(said.temporary, temporary)
        said.findings += [f"killed {at}: {one}" for one in self.check_database()]

    def _new_kills(self) -> list[str]:
        """The points at which a process was killed that is not counted yet: one at most."""
        return [one for one in self._read_lines(KILLS_FILE) if one not in self.outcome.kills]

    def check_database(self) -> list[str]:
        """What is wrong with the state file as it lies there."""
        return checks.check_database(self.state_dir / checks.STATE_FILE)

    def last_words(self) -> str:
        """The last line of the validator's log."""
        lines = self._read_lines("log")
        return lines[-1][:300] if lines else ""

    def _read_lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []

    # The competition

    def go(self, until: Callable[["Run"], bool] | None = None) -> Outcome:
        """Runs on until the competition is over, or `until` says so at a glance, with the validator alive then."""
        began = time.monotonic()
        if self.process is None:
            self.start()
        while self._phase < len(self.phases):
            if not self._step():
                break
            if until is not None and self.process is not None and until(self):
                break
            time.sleep(_GLANCE_S)
        self.outcome.seconds += time.monotonic() - began
        return self.outcome

    def _step(self) -> bool:
        """One look at everything. False when nothing moves any more."""
        assert self.process is not None
        if time.monotonic() >= self._kill_at:
            self.process.kill()
            self.process.wait()
        if self.process.poll() is not None:
            self._bury(RANDOM)
            self.start()
        found = self._look()
        if found is not None and found != self.glance:
            self.glance, self._moved_at = found, time.monotonic()
        if time.monotonic() - self._moved_at > PATIENCE_S:
            self.outcome.findings.append(f"nothing moved for {PATIENCE_S:.0f} s: {self.last_words()}")
            return False
        if found is not None and self._has_begun(found):
            self._pass_time(found)
        return True

    def _has_begun(self, found: Glance) -> bool:
        """True once this very process ticks and can score: for one that only starts, no block comes."""
        if self._told_before is None:
            self._told_before = (found.told_at,)
        if found.told_at != self._told_before[0] and found.doing not in (None, "a worker loads the model"):
            self._is_up = True
        return self._is_up

    def _look(self) -> Glance | None:
        """What the state file shows now, None until the process has opened it."""
        events = self.folder / EVENTS_FILE
        if not events.exists() or events.stat().st_size <= self._events_before:
            return None
        try:
            path = self.state_dir / checks.STATE_FILE
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1.0)) as db:
                return Glance(*db.execute(_GLANCE).fetchone())
        except sqlite3.Error:
            return None

    def _pass_time(self, found: Glance) -> None:
        """Makes the blocks that nobody has to be waited for."""
        phase, start = self.phases[self._phase], start_of(self._phase)
        is_judged = found.verdicts >= phase.verdicts and found.datasets >= phase.datasets
        if found.start != start or not is_judged:
            return
        chain = self.stage.chain
        if chain.block() > start + ROUND_BLOCKS - _LAST_BLOCKS:
            self.outcome.findings.append(f"no weights by the end of the round of block {start}")
            self._phase = len(self.phases)
        elif not found.accepted or found.unsettled:
            chain.advance(1)
            self._moved_at = time.monotonic()
        elif self._aftermath < _AFTERMATH_BLOCKS:
            chain.advance(_STEP_BLOCKS)
            self._aftermath += _STEP_BLOCKS
        else:
            self._phase, self._aftermath = self._phase + 1, 0
            self._tell(f"{self.folder.name}: {self._phase} of {len(self.phases)} rounds, {self.kills} kills")
            if self._phase < len(self.phases):
                self.stage.begin(self._phase, self.phases[self._phase])

    @property
    def kills(self) -> int:
        """So far."""
        return self.outcome.kills.total()

    def finish(self, expected: checks.EndState | None, *, but: Collection[str] = ()) -> Outcome:
        """Ends the validator as an operator would and compares what is there with an undisturbed run's end.

        but: parts of the end state in which it may be another.
        """
        said = self.outcome
        if self.process is not None:
            self.stop()
        events = self._read_lines(EVENTS_FILE)
        said.points = set(events)
        if said.starts == 1:
            said.findings += checks.check_order(events)
        said.findings += self.check_database()
        partial, said.temporary = checks.check_files(self.state_dir, is_complete=True)
        said.partial += partial
        hotkey = self.base.hotkey
        said.doubled += checks.check_weights(self.chain_file, hotkey, ROUND_BLOCKS)
        taken, said.submitted = checks.count_weights(self.chain_file, hotkey, ROUND_BLOCKS)
        said.taken = taken.total()
        if expected is not None:
            last = start_of(len(self.phases) - 1)
            said.differences += checks.compare(expected.until(last), self.end_state().until(last), but=but)
        bugs = [line for line in self._read_lines("log") if "Traceback" in line or "this is a bug" in line]
        said.findings += [f"the log says {one[:200]}" for one in bugs[:3]]
        return said

    def end_state(self) -> checks.EndState:
        """What the state file says, while no validator runs."""
        return checks.read_state(self.state_dir / checks.STATE_FILE)
