"""What happened in a soak run, as JSON lines, and the one clock that everything in it goes by.

The diary is written by what makes things happen and read by `tests.campaigns.soak.reference_model`, which trusts it and
nothing that the validators say of themselves.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from template.localnet.chain import LocalChain

DIARY_FILE = "diary.jsonl"

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


class Diary:
    """The diary in `folder`, open for more."""

    def __init__(self, folder: Path, clock: SoakClock) -> None:
        self._clock = clock
        self._file = (folder / DIARY_FILE).open("a", encoding="utf-8")

    def close(self) -> None:
        self._file.close()

    def write(self, event: str, **facts: object) -> None:
        """Adds that `event` happened now."""
        self._file.write(json.dumps({"event": event, "time": self._clock(), **facts}) + "\n")
        self._file.flush()


def read_diary(folder: Path) -> Iterator[dict[str, object]]:
    """Every entry, in order."""
    with (folder / DIARY_FILE).open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
