"""Show how far a long download is: a bar on a terminal, elsewhere a line in the log from time to time."""

import time
from collections.abc import Iterable, Iterator
from typing import NoReturn

from loguru import logger
from tqdm import tqdm

LOG_EVERY_S = 30.0
# A bar that is gone at once would only disturb.
_BAR_AFTER_S = 2.0


def show_download(chunks: Iterable[bytes], name: str, total: int) -> Iterator[bytes]:
    """Yield the chunks of a file of `total` bytes."""
    began = logged_at = time.monotonic()
    done = 0
    # None: no bar where stderr is no terminal.
    bar: tqdm[NoReturn] = tqdm(total=total, desc=name, unit="B", unit_scale=True, disable=None, delay=_BAR_AFTER_S)
    with bar:
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            bar.update(len(chunk))
            now = time.monotonic()
            if bar.disable and done < total and now - logged_at >= LOG_EVERY_S:
                logged_at = now
                logger.info("downloading {}: {}", name, describe_download(done, total, done / (now - began)))


def describe_download(done: int, total: int | None, speed: float) -> str:
    """Say how much is there and how long the rest takes. total: bytes, None if unknown. speed: bytes a second."""
    if not total:
        return f"{format_bytes(done)} so far"
    left = f", about {max(total - done, 0) / speed / 60:.0f} min left" if speed > 0 else ""
    return f"{format_bytes(done)} of {format_bytes(total)}{left}"


def format_bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
