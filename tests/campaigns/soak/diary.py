"""What happened in a soak run, as JSON lines, and the one clock that everything in it goes by.

The diary is written by what makes things happen and read by `tests.campaigns.soak.reference_model`, which trusts it and
nothing that the validators say of themselves.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tests.campaigns.clock import SoakClock

DIARY_FILE = "diary.jsonl"


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
