"""Memory, disk and time: what a campaign measures, beside its limits."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
_INTERVAL_S = 0.01


@dataclass(frozen=True)
class Figure:
    """A measured value beside its limit, or its least value when `is_least`."""

    what: str
    measured: float
    unit: str = ""
    wanted: float | None = None
    is_least: bool = False

    @property
    def is_met(self) -> bool:
        if self.wanted is None:
            return True
        return self.measured >= self.wanted if self.is_least else self.measured <= self.wanted

    def __str__(self) -> str:
        wanted = "" if self.wanted is None else f"{'at least' if self.is_least else 'at most'} {self.wanted:g}"
        verdict = "" if self.wanted is None else "met" if self.is_met else "NOT MET"
        return f"{self.what:<64} {self.measured:>10.3f} {self.unit:<6} {wanted:<14} {verdict}".rstrip()


def memory_kib(field: str, pid: int | str = "self") -> int:
    """Return a field of /proc/PID/status; 0 when the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    match = re.search(rf"^{field}:\s*(\d+) kB$", status, re.MULTILINE)
    return int(match.group(1)) if match else 0


def reset_peak_memory() -> None:
    """Restart VmHWM of this process at its present size, see proc(5)."""
    Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def peak_disk(folder: Path) -> Iterator[list[int]]:
    """Yield [the most bytes that the folder held], measured every 10 ms."""
    peak, is_over = [0], threading.Event()

    def watch() -> None:
        is_last = False
        while not is_last:
            is_last = is_over.wait(_INTERVAL_S)
            peak[0] = max(peak[0], disk_bytes(folder))

    watcher = threading.Thread(target=watch, name="disk", daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        is_over.set()
        watcher.join()


def disk_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(f"{root}/{name}").st_size
    return total
