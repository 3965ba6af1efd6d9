"""The clock of a simulated subnet: twelve seconds per block."""

import fcntl
from pathlib import Path

from template.localnet.chain.ledger import Ledger

_START_S = 1_700_000_000.0
_BLOCK_S = 12.0
_STEP_S = 1e-5


class BlockClock:
    """POSIX seconds by the chain's newest block; no two readings are equal."""

    def __init__(self, chain_file: Path) -> None:
        self._ledger = Ledger(chain_file)
        self._last_reading = chain_file.with_name("clock")

    def __call__(self) -> float:
        with self._last_reading.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            now = max(block_time(self._ledger.block()), float(file.read() or 0.0) + _STEP_S)
            file.truncate(0)
            file.write(repr(now))
        return now

    def close(self) -> None:
        self._ledger.close()


def block_time(block: int) -> float:
    """Return the time at which a block begins."""
    return _START_S + _BLOCK_S * block


def block_at(time_s: float) -> int:
    """Return the newest block at a time."""
    return int((time_s - _START_S) // _BLOCK_S)
