"""A bar on stderr for a score that somebody waits for; only a terminal gets to see it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from tqdm import tqdm

from template.records import Progress


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """What shows a score's progress: a bar with the remaining time, one for each stage."""
    bars: dict[str, tqdm[NoReturn]] = {}

    def show(progress: Progress) -> None:
        if progress.stage not in bars:
            for bar in bars.values():
                bar.close()
            bars[progress.stage] = tqdm(total=progress.total, desc=progress.stage, unit="tok", disable=None)
        bars[progress.stage].update(progress.done - bars[progress.stage].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()
