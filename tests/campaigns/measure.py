"""A figure beside what is asked of it, as the benchmarks and the load runs print it."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_GLANCE_S = 0.01


@dataclass(frozen=True)
class Line:
    """One figure. wanted: the most that it may be, or the least when `is_least`; None when nothing is asked of it."""

    what: str
    measured: float
    unit: str
    wanted: float | None = None
    is_least: bool = False

    @property
    def is_met(self) -> bool:
        """True when it is as wanted."""
        if self.wanted is None:
            return True
        return self.measured >= self.wanted if self.is_least else self.measured <= self.wanted

    def __str__(self) -> str:
        wanted = "" if self.wanted is None else f"{'at least' if self.is_least else 'at most'} {self.wanted:g}"
        verdict = "" if self.wanted is None else "met" if self.is_met else "NOT MET"
        return f"{self.what:<64} {self.measured:>10.3f} {self.unit:<6} {wanted:<14} {verdict}".rstrip()


def memory_kib(field: str) -> int:
    """A figure of this process as /proc has it: VmRSS now, VmHWM at the peak since `reset_peak_memory`."""
    found = re.search(rf"^{field}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, f"the kernel tells no {field}"
    return int(found.group(1))


def reset_peak_memory() -> None:
    """VmHWM begins anew (proc(5), /proc/pid/clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def peak_disk(folder: Path) -> Iterator[list[int]]:
    """The most bytes that files below the folder held at a time, looked at every 10 ms and once at the end."""
    peak, is_over = [0], threading.Event()

    def watch() -> None:
        while True:
            is_last = is_over.wait(_GLANCE_S)
            peak[0] = max(peak[0], _disk_bytes(folder))
            if is_last:
                return

    watcher = threading.Thread(target=watch, name="disk", daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        is_over.set()
        watcher.join()


def _disk_bytes(folder: Path) -> int:
    total = 0
    # Whatever is being moved or removed meanwhile, folders too, counts as nothing.
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(root, name).lstat().st_size
    return total
