"""Faults of the local hub, switched on and off while it runs, from any process with its root folder.

ROOT/faults.json lists them. The server applies the first one that matches a request; a fault with a count is used up
after that many requests, over all servers on the root.
"""

import json
import re
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from template.localnet.hub.store import locked, write_json


class FaultKind(StrEnum):
    """A way for a response to fail."""

    LATENCY = "latency"
    """It comes `seconds` late."""
    STATUS = "status"
    """It has `status`, and `retry_after` as its Retry-After header."""
    TRUNCATE = "truncate"
    """It declares its full length and closes after `size` bytes, half for a size of 0."""
    ENDLESS = "endless"
    """Its body never ends and declares no length."""
    DRIP = "drip"
    """Its body comes one byte every `seconds`."""
    HEADER_DRIP = "header_drip"
    """Its header comes one byte every `seconds` and never ends."""
    WRONG = "wrong"
    """Its body has the right length and other bytes."""
    GZIP_BOMB = "gzip_bomb"
    """Its body is gzip of `size` zero bytes, whatever the request accepts."""
    DROP = "drop"
    """The connection closes without a response."""
    REPLY = "reply"
    """It is the fault's status, headers and body; Content-Length is added unless they frame it."""
    RAW = "raw"
    """The connection sends `body`, then `rest` `repeat` times with `seconds` after each, and closes."""


@dataclass(frozen=True, kw_only=True)
class HubFault:
    """A fault for requests whose "METHOD /path?query" matches `pattern`.

    Args:
        count: uses left, None for ever.
        headers: text of which each character is a byte, like body and rest.
        repeat: None for ever.
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
            raise ValueError(f"count must be 1 or more, not {self.count}")


def set_faults(root: Path, *faults: HubFault) -> None:
    """Replace all faults by these."""
    with locked(root):
        _write(root, list(faults))


def read_faults(root: Path) -> list[HubFault]:
    """List the faults that are left, in the order in which they are tried."""
    path = root / "faults.json"
    return [HubFault(**row) for row in json.loads(path.read_text())] if path.exists() else []


def take_fault(root: Path, request_line: str) -> HubFault | None:
    """Return the first fault that matches, and count off one use."""
    if not (root / "faults.json").exists():
        return None
    with locked(root):
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
    write_json(root / "faults.json", [asdict(fault) for fault in faults])
