"""A crash campaign: an undisturbed run, runs with kills, runs with faults."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.campaigns.crash.faults import FAULTS
from tests.campaigns.crash.points import kind_of
from tests.campaigns.crash.run import Outcome, Run
from tests.campaigns.crash.scenario import make_base
from tests.campaigns.process_under_test import STATE_FILE, write_empty_model

# Random kills in a run, and the seconds after a start: from the interpreter's first steps to work.
_RANDOM, _REAL_RANDOM = (4, (0.05, 2.5)), (2, (0.5, 14.0))
_JOBS, _MAX_REPEATS = 2, 16
_LINE = "{:<35} {:<6} {:>6} {:>5} {:>14}"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of a campaign.

    Args:
        walks: runs that share all points between them, or one point of each kind when `is_once`.
        random_runs: with kills at random moments; real_runs: the same with the real worker.
    """

    phases: int
    walks: int
    is_once: bool = False
    random_runs: int
    real_runs: int
    faults: tuple[str, ...]


FULL = Scale(phases=4, walks=6, random_runs=40, real_runs=6, faults=tuple(FAULTS))
SHORT = Scale(
    phases=2,
    walks=2,
    is_once=True,
    random_runs=1,
    real_runs=0,
    faults=("disk full", "log cut short", "clock a year ahead, and back", "worker killed in each stage"),
)


@dataclass
class Report:
    """The outcomes of all runs, the undisturbed one first."""

    outcomes: list[Outcome]

    @property
    def missed(self) -> set[str]:
        """Points of the undisturbed run at which no process was killed."""
        return self.outcomes[0].points.difference(*(outcome.kills for outcome in self.outcomes))

    def rows(self) -> Iterator[str]:
        """Yield a line for each kind of kill and worker, and for each fault."""
        points = Counter(map(kind_of, self.outcomes[0].points))
        rows: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for outcome in self.outcomes:
            kills = Counter(map(kind_of, outcome.kills.elements()))
            if outcome.name.startswith("fault"):
                kills = Counter({outcome.name: outcome.kills.total()})
            for kind, number in kills.items():
                is_same = not outcome.faults["differences"]
                rows[kind, outcome.worker].update(kills=number, runs=1, same=int(is_same))
        # First the points, each before and after.
        for kind, worker in sorted(rows, key=lambda key: (key[0].startswith(("at", "fault")), key[0].split()[1:], key)):
            row = rows[kind, worker]
            same = f"{row['same']} of {row['runs']} runs"
            yield _LINE.format(kind, worker, points[kind] or "-", row["kills"], same)

    def __str__(self) -> str:
        # Heartbeats are named by the action of the moment, so their names may not come again.
        missed = [point for point in self.missed if " | record_heartbeat " not in point]
        outcomes = self.outcomes
        lines = [
            _LINE.format("kind", "worker", "points", "kills", "same end"),
            *self.rows(),
            "",
            f"points of the undisturbed run {len(outcomes[0].points)}, without a kill {len(self.missed)},"
            f" heartbeats aside {len(missed)}",
            f"runs {len(outcomes)}, kills {sum(outcome.kills.total() for outcome in outcomes)},"
            f" restarts {sum(outcome.starts - 1 for outcome in outcomes)}",
            f"weights accepted {sum(outcome.accepted for outcome in outcomes)},"
            f" extrinsics with weights {sum(outcome.submitted for outcome in outcomes)}",
            f"temporary files at the end of a run, at most {max(outcome.temporary for outcome in outcomes)}",
        ]
        for kind in ("doubled", "orphans", "partial"):
            lines.append(f"{kind} {sum(len(outcome.faults[kind]) for outcome in outcomes)}")
        for outcome in outcomes:
            lines += [f"in {outcome.name}: {number} times {note}" for note, number in outcome.notes.items()]
        return "\n".join(lines)


class Campaign:
    """Carries a campaign out in a new folder, two runs at a time."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self._folder, self._scale = folder, scale

    def run(self) -> Report:
        self._base = make_base(self._folder / "base")
        model = self._base.folder / "model"
        if self._scale.real_runs or any(FAULTS[name].is_real for name in self._scale.faults):
            # Its import takes seconds.
            from scripts.bench.tiny_model import make_tiny_model

            make_tiny_model(model)
        else:
            # A validator does not start without a model, which the fake worker does not read.
            write_empty_model(model)
        report = Report([self._run("undisturbed")])
        if self._scale.real_runs:
            report.outcomes.append(self._run("undisturbed, real", is_real=True))
        with ThreadPoolExecutor(_JOBS) as pool:
            report.outcomes += pool.map(lambda job: job(), self._list_jobs())
        # A point may have moved: after a kill within a folder's removal, the rest is removed elsewhere.
        for number in range(0 if self._scale.is_once else _MAX_REPEATS):
            if report.missed:
                report.outcomes.append(self._run(f"again {number + 1}", targets=sorted(report.missed)))
        return report

    def _list_jobs(self) -> Iterator[Callable[[], Outcome]]:
        """Yield the runs, the long ones first."""
        scale, draw = self._scale, random.Random(1)
        for number in range(scale.walks):
            due: dict[str, Any] = {"share": number, "shares": scale.walks, "is_once": scale.is_once}
            yield partial(self._run, f"walk {number + 1}", **due)
        kinds = [(False, _RANDOM)] * scale.random_runs + [(True, _REAL_RANDOM)] * scale.real_runs
        for number, (is_real, (kills, between_s)) in enumerate(kinds, start=1):
            kill_after_s = [draw.uniform(*between_s) for _ in range(kills)]
            yield partial(self._run, f"random {number}", is_real=is_real, kill_after_s=kill_after_s)
        for name in scale.faults:
            fault = FAULTS[name]
            yield partial(fault.run, self._base, self._folder / f"fault: {name}", self._undisturbed(fault.is_real))

    def _undisturbed(self, is_real: bool) -> Path:
        return self._folder / ("undisturbed, real" if is_real else "undisturbed") / "state" / STATE_FILE

    def _run(self, name: str, *, is_real: bool = False, **options: Any) -> Outcome:
        with Run(self._base, self._folder / name, phases=self._scale.phases, is_real=is_real, **options) as run:
            run.go()
            return run.finish(self._undisturbed(is_real))
