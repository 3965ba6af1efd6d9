"""Attacks as a table: what a stranger sends, what the product must make of it, and what it may cost.

`attack_rows`, `attack_hub` and `attack_chain` hold the tables. The tests launch each one, and -m
tests.campaigns.attack prints
what each one cost. Linux only: the peak of the memory is the kernel's own.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from template.errors import ConfigError, HostError, RemoteError, SubmissionError
from tests.campaigns.measure import memory_kib, peak_disk, reset_peak_memory

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One thing that a stranger does. run: does it, with an empty folder for files, and returns the verdict.

    name: what is sent, in words. expected: the verdict that is right. max_memory and max_disk: MiB beyond what the
    process and the folder held before.
    """

    name: str
    run: Callable[[Path], str]
    expected: str
    max_seconds: float
    max_memory: int
    max_disk: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of an attack. memory, disk: MiB at the peak, beyond what there was before."""

    attack: Attack
    verdict: str
    seconds: float
    memory: float
    disk: float

    def faults(self) -> list[str]:
        """What is not as it must be, in words; none when the attack failed."""
        attack, found = self.attack, []
        if self.verdict != attack.expected:
            found.append(f"{attack.name}: expected {attack.expected!r}, found {self.verdict!r}")
        for what, cost, most in (
            ("seconds", self.seconds, attack.max_seconds),
            ("MiB of memory", self.memory, attack.max_memory),
            ("MiB on disk", self.disk, attack.max_disk),
        ):
            if cost > most:
                found.append(f"{attack.name}: {cost:.1f} {what}, at most {most:g} expected")
        return found


def judge(call: Callable[[], object]) -> str:
    """The verdict on whatever `call` does: whose fault it is, or "taken". Any error but the four kinds is raised."""
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
    """Carries the attack out in `folder`, which must be empty, and measures it."""
    reset_peak_memory()
    before = memory_kib("VmRSS")
    started = time.monotonic()
    with peak_disk(folder) as peak:
        try:
            verdict = attack.run(folder)
        except Exception as error:
            # What nobody meant to raise is what an attacker is after, and no reason to leave out the other attacks.
            logger.exception("{}", attack.name)
            verdict = f"raised {type(error).__name__}: {error}"
        seconds = time.monotonic() - started
    return Outcome(
        attack=attack,
        verdict=verdict,
        seconds=seconds,
        memory=max(0, memory_kib("VmHWM") - before) / 1024,
        disk=peak[0] / MIB,
    )


def report(outcomes: list[Outcome]) -> str:
    """A table of what each attack came to and cost, and the most that any did."""
    width = max(len(outcome.attack.name) for outcome in outcomes)
    verdict_width = max(len(outcome.verdict) for outcome in outcomes)
    lines = [f"{'attack':<{width}}  {'verdict':<{verdict_width}}  seconds (most)    MiB (most)   disk (most)"]
    for one in outcomes:
        attack = one.attack
        lines.append(
            f"{attack.name:<{width}}  {one.verdict:<{verdict_width}}  "
            f"{one.seconds:7.2f} {f'({attack.max_seconds:g})':>6}  {one.memory:6.1f} {f'({attack.max_memory})':>6}  "
            f"{one.disk:5.1f} {f'({attack.max_disk})':>6}"
        )
    most = [max(getattr(one, cost) for one in outcomes) for cost in ("seconds", "memory", "disk")]
    lines.append("{} attacks; at most {:.1f} s, {:.0f} MiB of memory, {:.0f} MiB on disk".format(len(outcomes), *most))
    return "\n".join(lines)
