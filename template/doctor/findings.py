"""What checks found, and how many of them run side by side within a time limit."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from template.errors import ConfigError, HostError, SubnetError


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found.

    remedy: what to type or do next. exit_code: status with which a start ends, 0 where the program starts all the same.
    """

    check: str
    level: Level
    text: str
    remedy: str = ""
    exit_code: int = 0

    def __str__(self) -> str:
        return f"{self.text}. What to do: {self.remedy}" if self.remedy else self.text


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check that runs beside others. name: of the findings that it could not make itself."""

    name: str
    run: Callable[[], Iterable[Finding]]
    timeout_s: float = 30.0


def passed(check: str, text: str) -> Finding:
    """Return a finding without a fault."""
    return Finding(check=check, level=Level.OK, text=text)


def warned(check: str, text: str, remedy: str) -> Finding:
    """Return a finding that limits the work and does not prevent it."""
    return Finding(check=check, level=Level.WARNING, text=text, remedy=remedy)


def failed(check: str, text: str, remedy: str) -> Finding:
    """Return a fault with which a program starts all the same, since it may pass."""
    return Finding(check=check, level=Level.FAILURE, text=text, remedy=remedy)


def from_error(check: str, error: SubnetError, remedy: str = "") -> Finding:
    """Return the finding of a failed call. Faults of the chain or the Hub may pass, so no start ends with them."""
    code = error.exit_code if isinstance(error, ConfigError | HostError) else 0
    return Finding(check=check, level=Level.FAILURE, text=str(error), remedy=remedy, exit_code=code)


def run_checks(checks: Sequence[Check]) -> list[Finding]:
    """Run all checks at once; return their findings in this order, each fault once.

    A check that is late or fails by itself is a finding, too.
    """
    started_at = time.monotonic()
    findings: list[list[Finding]] = [[] for _ in checks]
    # Daemons: a call that hangs does not hold up the end of the process.
    threads = [
        threading.Thread(target=_collect, args=pair, name=pair[0].name, daemon=True)
        for pair in zip(checks, findings, strict=True)
    ]
    for thread in threads:
        thread.start()
    merged: dict[tuple[Level, str], Finding] = {}
    for check, thread, own in zip(checks, threads, findings, strict=True):
        thread.join(max(0.0, started_at + check.timeout_s - time.monotonic()))
        late = [failed(check.name, f"no result within {check.timeout_s:g} s", "try again; then look at the network")]
        for finding in [*own, *(late if thread.is_alive() else [])]:
            merged.setdefault((finding.level, finding.text), finding)
    return list(merged.values())


def _collect(check: Check, findings: list[Finding]) -> None:
    try:
        for finding in check.run():
            findings.append(finding)
    except SubnetError as error:
        findings.append(from_error(check.name, error))
    except Exception as error:
        findings.append(failed(check.name, f"the check itself failed: {error!r}", "please report this bug"))
