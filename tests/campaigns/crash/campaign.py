"""A crash campaign: an undisturbed run, runs with kills, runs with faults."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.campaigns.command import Progress
from tests.campaigns.crash.checks import EndState, read_state
from tests.campaigns.crash.faults import FAULTS, keep_mounts_private
from tests.campaigns.crash.points import kind_of
from tests.campaigns.crash.run import RANDOM, Outcome, Run
from tests.campaigns.crash.scenario import Base, make_base
from tests.campaigns.process_under_test import adopt_orphans

# Seconds after its start at which a process is killed by chance: from the interpreter's first steps to its work.
_RANDOM_S, _REAL_RANDOM_S = (0.05, 2.5), (0.5, 14.0)
_MAX_REPEATS = 16
_HEADINGS = ("kind", "worker", "points", "kills", "restarts", "same end", "doubled", "orphans", "partial")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of a campaign.

    Args:
        walks: runs that share all points between them; None kills at one point of each kind in one run.
        random_kills: at random moments, in each of `random_jobs`; real_kills: the same with the real worker.
    """

    phases: int
    walks: int | None
    random_jobs: int
    random_kills: int
    real_kills: int
    faults: tuple[str, ...]


FULL = Scale(phases=4, walks=6, random_jobs=4, random_kills=40, real_kills=12, faults=tuple(FAULTS))
SHORT = Scale(
    phases=2,
    walks=None,
    random_jobs=1,
    random_kills=5,
    real_kills=0,
    faults=("disk full", "log cut short", "clock a year ahead, and back", "worker killed in each stage"),
)


def _is_of_kind(fault: str, kind: str) -> bool:
    """Return whether a fault was found after a kill of this kind, or at a run's end."""
    return not fault.startswith("killed ") or kind_of(fault.removeprefix("killed ").partition(": ")[0]) == kind


@dataclass
class Report:
    """The outcomes of all runs, the undisturbed one first, and of all faults."""

    runs: list[Outcome] = field(default_factory=list)
    faults: dict[str, Outcome] = field(default_factory=dict)

    @property
    def all(self) -> list[Outcome]:
        return [*self.runs, *self.faults.values()]

    @property
    def missed(self) -> set[str]:
        """Points of the undisturbed run at which no process was killed."""
        return self.runs[0].points.difference(*(outcome.kills for outcome in self.runs))

    def rows(self) -> list[list[str]]:
        """Return a line for each kind of kill and worker, and for each fault."""
        counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        points: dict[tuple[str, str], set[str]] = defaultdict(set)
        for outcome in self.runs:
            for point, kills in outcome.kills.items():
                counts[kind_of(point), outcome.worker].update(kills=kills, restarts=kills)
            for point in outcome.points | (outcome.kills.keys() - {RANDOM}):
                points[kind_of(point), outcome.worker].add(point)
            for kind in {kind_of(point) for point in outcome.kills}:
                row = counts[kind, outcome.worker]
                row.update(runs=1, same=int(not outcome.differences), doubled=len(outcome.doubled))
                for name in ("orphans", "partial"):
                    row[name] += sum(_is_of_kind(fault, kind) for fault in getattr(outcome, name))
        ordered = sorted(counts.items(), key=lambda item: (item[0][0] == RANDOM, item[0][0].split()[1:], item[0]))
        for name, outcome in self.faults.items():
            row = Counter(kills=outcome.kills.total(), restarts=outcome.starts - 1, runs=1)
            row.update(same=int(not outcome.differences), doubled=len(outcome.doubled))
            row.update(orphans=len(outcome.orphans), partial=len(outcome.partial))
            ordered.append(((f"fault: {name}", outcome.worker), row))
        rows = []
        for key, row in ordered:
            same = f"{row['same']} of {row['runs']} runs"
            numbers = [str(row[name]) for name in ("doubled", "orphans", "partial")]
            rows.append([*key, str(len(points[key]) or "-"), str(row["kills"]), str(row["restarts"]), same, *numbers])
        return rows

    def __str__(self) -> str:
        table = [list(_HEADINGS), *self.rows()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) if index < 2 else cell.rjust(width) for index, (cell, width) in enumerate(row))
            for row in (zip(cells, widths, strict=True) for cells in table)
        ]
        # Heartbeats are named by the action of the moment, so their names may not come again.
        missed = [point for point in self.missed if " | record_heartbeat " not in point]
        lines += [
            "",
            f"points of the undisturbed run {len(self.runs[0].points)}, without a kill {len(self.missed)},"
            f" heartbeats aside {len(missed)}",
            f"runs {len(self.all)}, kills {sum(outcome.kills.total() for outcome in self.all)},"
            f" restarts {sum(outcome.starts - 1 for outcome in self.all)}",
            f"weights accepted {sum(outcome.accepted for outcome in self.all)},"
            f" extrinsics with weights {sum(outcome.submitted for outcome in self.all)}",
            f"temporary files at the end of a run, at most {max(outcome.temporary for outcome in self.all)}",
        ]
        for name, outcome in self.faults.items():
            lines += [f"{name}: {note}" for note in outcome.notes]
            for status, count in Counter(status for status, _ in outcome.ends).items():
                error = dict(outcome.ends)[status].partition("ERROR")[2].strip()
                lines.append(f"{name}: exit status {status}, {count} times: {error}")
        return "\n".join(lines)


class Campaign:
    """Carries a campaign out in a new folder, `jobs` runs at a time."""

    def __init__(self, folder: Path, scale: Scale, *, jobs: int, seed: int, progress: Progress) -> None:
        self._folder, self._scale, self._jobs, self._seed = folder, scale, jobs, seed
        self._lock, self._print = threading.Lock(), progress
        self.report = Report()

    def _progress(self, line: str) -> None:
        with self._lock:
            self._print(line)

    def run(self) -> Report:
        adopt_orphans()
        keep_mounts_private()
        base = make_base(self._folder / "base")
        with Run(
            base, self._folder / "undisturbed", phases=self._scale.phases, mode="record", progress=self._progress
        ) as run:
            run.go()
            undisturbed = run.finish(None)
            expected = read_state(run.validator.state_file)
        with ThreadPoolExecutor(self._jobs) as pool:
            # The long ones first.
            jobs = [pool.submit(job) for job in self._list_jobs(base, expected)]
            faults = {name: pool.submit(self._run_fault, name, base, expected) for name in self._scale.faults}
            self.report.runs += [undisturbed, *(outcome for job in jobs for outcome in job.result())]
            if self._scale.walks is not None:
                self._repeat_missed(base, expected)
            self.report.faults.update({name: fault.result() for name, fault in faults.items()})
        return self.report

    def _list_jobs(self, base: Base, expected: EndState) -> list[Callable[[], list[Outcome]]]:
        scale, walk, jobs = (
            self._scale,
            partial(self._walk, base, expected),
            partial(self._kill_randomly, base, expected),
        )
        walks = [partial(walk, "one of each", shares=1, is_once=True)]
        if scale.walks is not None:
            walks = [partial(walk, f"walk {n + 1}", share=n, shares=scale.walks) for n in range(scale.walks)]
        kills = [
            partial(jobs, f"random {n + 1}", scale.random_kills, _RANDOM_S, seed=self._seed + n)
            for n in range(scale.random_jobs)
        ]
        if scale.real_kills:
            real = partial(jobs, "random, real worker", scale.real_kills, _REAL_RANDOM_S, seed=self._seed, mode=None)
            kills.append(real)
        return [*walks, *kills]

    def _walk(self, base: Base, expected: EndState, name: str, **due: object) -> list[Outcome]:
        return [self._run(name, base, expected, **due)]

    def _repeat_missed(self, base: Base, expected: EndState) -> None:
        """Run again for the points that no walk reached a second time.

        What is left of a folder after a kill within its removal, for example, is removed at another place.
        """
        for number in range(_MAX_REPEATS):
            if not self.report.missed:
                break
            targets = sorted(self.report.missed)
            self.report.runs.append(self._run(f"again {number + 1}", base, expected, targets=targets))

    def _kill_randomly(
        self,
        base: Base,
        expected: EndState,
        name: str,
        kills: int,
        between_s: tuple[float, float],
        *,
        seed: int,
        mode: str | None = "table",
    ) -> list[Outcome]:
        """Run until there were so many kills."""
        outcomes: list[Outcome] = []
        while (left := kills - sum(outcome.kills.total() for outcome in outcomes)) > 0 and len(outcomes) < kills:
            number = len(outcomes)
            options = {"mode": mode, "max_kills": left, "seed": seed * 1000 + number, "kill_between_s": between_s}
            outcomes.append(self._run(f"{name}, run {number + 1}", base, expected, **options))
        return outcomes

    def _run(self, name: str, base: Base, expected: EndState, **options: object) -> Outcome:
        with Run(
            base,
            self._folder / name,
            phases=self._scale.phases,
            progress=self._progress,
            **options,  # type: ignore[arg-type]
        ) as run:
            run.go()
            return run.finish(expected)

    def _run_fault(self, name: str, base: Base, expected: EndState) -> Outcome:
        outcome = FAULTS[name](base, self._folder / f"fault {name}", expected)
        self._progress(f"fault {name}: seconds={outcome.seconds:.0f}")
        return outcome
