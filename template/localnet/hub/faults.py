"""Faults for the local hub, switched on and off while it runs, from any process that sees its root folder.

They are kept in ROOT/faults.json. The server takes the first one that fits each request before it answers, and a
fault with a count is used up that many requests later, over all servers on the root together.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path


class FaultKind(StrEnum):
    """What goes wrong with an answer."""

    LATENCY = "latency"
    """It comes `seconds` late."""
    STATUS = "status"
    """It is `status`, with `retry_after` as its Retry-After header when set."""
    TRUNCATE = "truncate"
    """Its full length is declared, and the connection closes after `size` bytes of it, or half when size is 0."""
    ENDLESS = "endless"
    """Its body never ends; no length is declared."""
    DRIP = "drip"
    """Its body comes one byte every `seconds`."""
    HEADER_DRIP = "header_drip"
    """Its header comes one byte every `seconds` and never ends."""
    WRONG = "wrong"
    """Its body has the right length and other bytes."""
    GZIP_BOMB = "gzip_bomb"
    """Its body is gzip that expands to `size` bytes of nothing, asked for or not."""
    DROP = "drop"
    """The connection closes instead."""
    REPLY = "reply"
    """Its status, headers and body are those of the fault; Content-Length is added unless they say how it is framed."""
    RAW = "raw"
    """`body` goes over the wire as it is, then `rest`, `repeat` times, with `seconds` after each; then it closes."""


@dataclass(frozen=True, kw_only=True)
class HubFault:
    """One fault. pattern: a regular expression sought in "METHOD /path?query". count: uses left; None is for ever.

    headers, body, rest: text of which each character is a byte. repeat: None is for ever.
    """

    kind: FaultKind
    pattern: str = ""
    count: int | None = None
    seconds: float = 1.0
    status: int = 503
    retry_after: str | None = None
    size: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""
    rest: str = ""
    repeat: int | None = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", FaultKind(self.kind))
        object.__setattr__(self, "headers", tuple((name, value) for name, value in self.headers))
        re.compile(self.pattern)
        if self.count is not None and self.count < 1:
            raise ValueError(f"a fault happens at least once, not {self.count} times")


def set_faults(root: Path, *faults: HubFault) -> None:
    """Let exactly these faults happen from now on; none clears them."""
    with _locked(root):
        _write(root, list(faults))


def read_faults(root: Path) -> list[HubFault]:
    """The faults still to come, in the order they are tried."""
    try:
        rows = json.loads((root / "faults.json").read_text())
    except FileNotFoundError:
        return []
    return [HubFault(**row) for row in rows]


def take_fault(root: Path, request_line: str) -> HubFault | None:
    """The first fault that fits "METHOD /path?query", one use of it spent."""
    if not (root / "faults.json").exists():
        return None
    with _locked(root):
        faults = read_faults(root)
        for index, fault in enumerate(faults):
            if re.search(fault.pattern, request_line) is None:
                continue
            if fault.count is not None:
                left = [replace(fault, count=fault.count - 1)] if fault.count > 1 else []
                _write(root, [*faults[:index], *left, *faults[index + 1 :]])
            return fault
    return None


def _write(root: Path, faults: list[HubFault]) -> None:
    part = root / ".faults.json.part"
    part.write_text(json.dumps([asdict(fault) for fault in faults]))
    os.replace(part, root / "faults.json")


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
