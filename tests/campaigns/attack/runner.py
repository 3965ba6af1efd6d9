"""An attack, its expected verdict and its limits. Linux only."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from template.errors import ConfigError, HostError, RemoteError, SubmissionError
from tests.campaigns.measure import MIB, memory_kib, peak_disk, reset_peak_memory


@dataclass(frozen=True, kw_only=True)
class Attack:
    """An act of one stranger.

    Args:
        run: does it, with an empty folder for files, and returns the verdict.
        max_memory, max_disk: MiB beyond what the process and the folder held before.
    """

    name: str
    run: Callable[[Path], str]
    expected: str
    max_seconds: float
    max_memory: int
    max_disk: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The verdict on an attack, and its cost at the peak."""

    attack: Attack
    verdict: str
    seconds: float
    memory: float
    disk: float

    def faults(self) -> list[str]:
        """Return what differs from the expected; empty when the attack failed."""
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
    reset_peak_memory()
    before = memory_kib("VmRSS")
    started = time.monotonic()
    with peak_disk(folder) as peak:
        try:
            verdict = attack.run(folder)
        except Exception as error:
            # An unexpected error is what an attacker is after, and no reason to leave out the other attacks.
            logger.exception("{}", attack.name)
            verdict = f"raised {type(error).__name__}: {error}"
        seconds = time.monotonic() - started
    memory = max(0, memory_kib("VmHWM") - before) / 1024
    return Outcome(attack=attack, verdict=verdict, seconds=seconds, memory=memory, disk=peak[0] / MIB)


def report(outcomes: Sequence[Outcome]) -> str:
    """Return a table of verdicts and costs, and the largest costs."""
    width = max(len(outcome.attack.name) for outcome in outcomes)
    verdict_width = max(len(outcome.verdict) for outcome in outcomes)
    lines = [f"{'attack':<{width}}  {'verdict':<{verdict_width}}  seconds (most)    MiB (most)   disk (most)"]
    for outcome in outcomes:
        attack = outcome.attack
        lines.append(
            f"{attack.name:<{width}}  {outcome.verdict:<{verdict_width}}  "
            f"{outcome.seconds:7.2f} {f'({attack.max_seconds:g})':>6}  "
            f"{outcome.memory:6.1f} {f'({attack.max_memory})':>6}  {outcome.disk:5.1f} {f'({attack.max_disk})':>6}"
        )
    most = [max(getattr(outcome, cost) for outcome in outcomes) for cost in ("seconds", "memory", "disk")]
    lines.append("{} attacks; at most {:.1f} s, {:.0f} MiB of memory, {:.0f} MiB on disk".format(len(outcomes), *most))
    return "\n".join(lines)
