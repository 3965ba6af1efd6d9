"""TODO"""

from template.localnet.chain.chain import LocalChain

BLOCK_S = 12.0


_START_S = 1_700_000_000.0


_INSTANT_S = 1e-5


class SoakClock:
    """POSIX seconds at twelve per block, which go on a little whenever they are read: no two readings are equal."""

    def __init__(self, chain: LocalChain) -> None:
        self._chain = chain
        self._last = 0.0

    def __call__(self) -> float:
        self._last = max(block_time(self._chain.block()), self._last + _INSTANT_S)
        return self._last


def block_time(block: int) -> float:
    """When a block begins."""
    return _START_S + BLOCK_S * block


def block_at(time_s: float) -> int:
    """The block that was the newest at a moment."""
    return int((time_s - _START_S) // BLOCK_S)
