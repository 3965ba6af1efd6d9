"""A crash campaign: an undisturbed run with the real worker, then kill upon kill, and fault upon fault."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from template.localnet.models.tiny import make_tiny_model
from tests.campaigns.crash.checks import EndState, adopt_orphans
from tests.campaigns.crash.faults import FAULTS, REAL_FAULTS, Fault, keep_mounts_private
from tests.campaigns.crash.report import Campaign
from tests.campaigns.crash.run import Outcome, Run
from tests.campaigns.crash.scenario import Base

# Seconds after its start at which a process is killed by chance: from the interpreter's first steps to its work.
_RANDOM_S = (0.05, 2.5)
_REAL_RANDOM_S = (0.5, 14.0)
_TRAINS = "chance, trains"
# Runs for what the walks passed by, at most.
_MOST_AGAIN = 16


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is done. walks: runs that share out all points between them, None: one of each kind in one run.

    random_kills: by chance, in each of random_jobs. real_kills: the same with the worker that trains. faults: by name.
    """

    phases: int
    walks: int | None
    random_jobs: int
    random_kills: int
    real_kills: int
    faults: tuple[str, ...]


FULL = Scale(
    phases=4, walks=6, random_jobs=4, random_kills=40, real_kills=12,
    faults=tuple(fault.name for fault in (*FAULTS, *REAL_FAULTS)),
)  # fmt: skip
SHORT = Scale(
    phases=2, walks=None, random_jobs=1, random_kills=5, real_kills=0,
    faults=("disk full", "log cut short", "clock a year ahead, and back", "worker killed in each stage"),
)  # fmt: skip


class Crew:
    """Carries a campaign out in the new folder `folder`, `jobs` runs at a time."""

    def __init__(self, folder: Path, scale: Scale, *, jobs: int, seed: int, tell: Callable[[str], None]) -> None:
        self._folder, self._scale, self._jobs, self._seed = folder, scale, jobs, seed
        self._lock = threading.Lock()
        self._tell_anybody = tell
        self.campaign = Campaign()

    def _tell(self, line: str) -> None:
        with self._lock:
            self._tell_anybody(line)

    def work(self) -> Campaign:
        """The whole campaign."""
        adopt_orphans()
        keep_mounts_private()
        base = Base(self._folder / "base", make_tiny_model(self._folder / "model")).make()
        expected, calm = self._record(base)
        jobs = [*self._walks(base, expected), *self._chances(base, expected)]
        faults = [fault for fault in (*FAULTS, *REAL_FAULTS) if fault.name in self._scale.faults]
        with ThreadPoolExecutor(self._jobs) as pool:
            # The long ones first.
            runs = [pool.submit(job) for job in jobs]
            mended = [pool.submit(self._bring, fault, base, expected) for fault in faults]
            self.campaign.outcomes += [calm, *(one for run in runs for one in run.result())]
            if self._scale.walks is not None:
                self.campaign.outcomes += self._walk_again(base, expected, calm.points)
            self.campaign.faults += [(fault.name, run.result()) for fault, run in zip(faults, mended, strict=True)]
        return self.campaign

    def _record(self, base: Base) -> tuple[EndState, Outcome]:
        """The undisturbed run, whose scores make the table."""
        self.campaign.scorers["undisturbed"] = "trains"
        with Run(base, self._folder / "undisturbed", phases=self._scale.phases, mode="record", tell=self._tell) as run:
            run.go()
            outcome = run.finish(None)
            return run.end_state(), outcome

    def _walks(self, base: Base, expected: EndState) -> list[Callable[[], list[Outcome]]]:
        scale = self._scale
        if scale.walks is None:
            return [lambda: [self._run("one of each", base, expected, shares=1, is_once=True)]]
        return [
            lambda share=share: [self._run(f"walk {share + 1}", base, expected, share=share, shares=scale.walks)]  # type: ignore[misc]
            for share in range(scale.walks)
        ]

    def _walk_again(self, base: Base, expected: EndState, points: set[str]) -> list[Outcome]:
        """Runs for the points that were not come to again, since a kill shortly before had changed the way.

        As when a folder is removed: after a kill in the midst of it, what is left is removed at another place.
        """
        found: list[Outcome] = []
        for at in range(_MOST_AGAIN):
            missed = points.difference(*(one.kills for one in (*self.campaign.outcomes, *found)))
            if not missed:
                break
            found.append(self._run(f"again {at + 1}", base, expected, targets=missed))
        return found

    def _chances(self, base: Base, expected: EndState) -> list[Callable[[], list[Outcome]]]:
        scale, seed = self._scale, self._seed
        found: list[Callable[[], list[Outcome]]] = [
            lambda at=at: self._kill_by_chance(  # type: ignore[misc]
                f"chance {at + 1}", base, expected, scale.random_kills, _RANDOM_S, seed=seed + at
            )
            for at in range(scale.random_jobs)
        ]
        if scale.real_kills:
            found.append(
                lambda: self._kill_by_chance(
                    _TRAINS, base, expected, scale.real_kills, _REAL_RANDOM_S, seed=seed, is_real=True
                )
            )
        return found

    def _kill_by_chance(
        self,
        name: str,
        base: Base,
        expected: EndState,
        kills: int,
        between_s: tuple[float, float],
        *,
        seed: int,
        is_real: bool = False,
    ) -> list[Outcome]:
        """As many runs as it takes: how many kills one of them sees is a matter of the machine's speed."""
        found: list[Outcome] = []
        while (left := kills - sum(one.kills.total() for one in found)) > 0 and len(found) < kills:
            found.append(
                self._run(
                    f"{name}, run {len(found) + 1}", base, expected, is_real=is_real, most_kills=left,
                    killer=lambda rng: rng.uniform(*between_s), seed=seed * 1000 + len(found),
                )
            )  # fmt: skip
            if is_real:
                self.campaign.scorers[found[-1].name] = "trains"
        return found

    def _run(self, name: str, base: Base, expected: EndState, **options: object) -> Outcome:
        with Run(base, self._folder / name, phases=self._scale.phases, tell=self._tell, **options) as run:  # type: ignore[arg-type]
            run.go()
            return run.finish(expected)

    def _bring(self, fault: Fault, base: Base, expected: EndState) -> Outcome:
        folder = self._folder / f"fault {fault.name}"
        if fault in REAL_FAULTS:
            self.campaign.scorers[folder.name] = "trains"
        outcome = fault.work(base, folder, expected)
        self._tell(f"{folder.name}: done in {outcome.seconds:.0f} s")
        return outcome
