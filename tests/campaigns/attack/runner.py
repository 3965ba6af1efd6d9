"""An attack, its expected verdict and its limits. Linux only."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from template.errors import ConfigError, HostError, RemoteError, SubmissionError
from tests.campaigns.measure import MIB, memory_kib, peak_disk, reset_peak_memory


@dataclass(frozen=True)
class Attack:
    """An act of one stranger.

    Args:
        run: does it, with an empty folder for files, and returns the verdict.
        max_memory, max_disk: MiB beyond what the process and the folder held before.
        prepare: called before the run, and not measured.
        is_long: for the campaign alone; the tests run a smaller attack of the same kind.
    """

    name: str
    run: Callable[[Path], str]
    expected: str
    max_seconds: float
    max_memory: int
    max_disk: int = 0
    prepare: Callable[[], object] | None = None
    is_long: bool = False


@dataclass(frozen=True)
class Outcome:
    """The verdict on an attack, and its cost at the peak."""

    attack: Attack
    verdict: str
    seconds: float
    memory: float
    disk: float

    def __str__(self) -> str:
        limits = self.attack
        return (
            f"{limits.name:<64} {self.verdict:<30} {self.seconds:6.2f} s ({limits.max_seconds:g})  "
            f"{self.memory:5.1f} MiB ({limits.max_memory})  {self.disk:4.1f} MiB on disk ({limits.max_disk})"
        )

    def faults(self) -> list[str]:
        """Return the differences from the expected; empty when the attack failed."""
        attack, faults = self.attack, []
        if self.verdict != attack.expected:
            faults.append(f"{attack.name}: expected {attack.expected!r}, found {self.verdict!r}")
        for what, cost, most in (
            ("seconds", self.seconds, attack.max_seconds),
            ("MiB of memory", self.memory, attack.max_memory),
            ("MiB on disk", self.disk, attack.max_disk),
        ):
            if cost > most:
                faults.append(f"{attack.name}: {cost:.1f} {what}, at most {most:g} expected")
        return faults


def judge(call: Callable[[], object]) -> str:
    """Return whose fault an error of `call` is, or "taken"."""
    try:
        call()
    except SubmissionError as error:
        return f"miner: {error.reason}"
    except RemoteError:
        return "again later"
    except HostError:
        return "our machine"
    except ConfigError:
        return "operator"
    return "taken"


def launch(attack: Attack, folder: Path) -> Outcome:
    """Run the attack in an empty folder and measure it."""
    if attack.prepare is not None:
        attack.prepare()
    reset_peak_memory()
    before = memory_kib("VmRSS")
    started = time.monotonic()
    with peak_disk(folder) as peak:
        try:
            verdict = attack.run(folder)
        except Exception as error:
            # An unexpected error is a successful attack; the other attacks still run.
            logger.exception("{}", attack.name)
            verdict = f"raised {type(error).__name__}: {error}"
        seconds = time.monotonic() - started
    memory = max(0, memory_kib("VmHWM") - before) / 1024
    return Outcome(attack, verdict, seconds, memory, peak[0] / MIB)
