"""Attacks by a hostile Hub; this module adds the ones that take several answers.

A miner is at fault only when the Hub itself reports that the miner's repo, commit or file is missing.
"""

import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from template.constants import DATA_FILE
from template.hub import datasets
from template.localnet.hub.store import HubStore, upload_files
from tests.campaigns.attack import hub_content, hub_transport
from tests.campaigns.attack.hub_harness import (
    AGAIN,
    CONTENT,
    DIGEST,
    FILE,
    LISTING,
    REPO,
    TAKEN,
    custom,
    fetch,
    start_hubs,
)
from tests.campaigns.attack.runner import Attack, judge
from tests.fixtures.faulty_hub import FaultKind, HubFault

_LARGE_REPO, _FILES = "bob/crowd", 100_000
_AT_ONCE = 50
_DEADLINE_S, _GRACE_S = 0.2, 10.0


@cache
def _large_repo() -> str:
    """Return the commit of a repo with a good file beside a hundred thousand others."""
    root = start_hubs().hub_root
    upload_files(root, _LARGE_REPO, {DATA_FILE: CONTENT})
    store = HubStore(root)
    blob = store.add_blob(b"")
    files = {f"folder-{number // 1000}/file-{number:06d}.jsonl": blob for number in range(_FILES)}
    store.commit(store.repo("datasets", _LARGE_REPO), files)
    return store.repo("datasets", _LARGE_REPO).head


def _fetch_large(folder: Path, *, by_digest: bool = False, filename: str | None = DATA_FILE) -> str:
    revision, hub = DIGEST if by_digest else _large_repo(), start_hubs().hub
    return judge(lambda: datasets.download_dataset(_LARGE_REPO, revision, folder, filename=filename, endpoint=hub))


@cache
def _list_large() -> None:
    """Read the listing once: the memory that it takes is measured by the attack that reads it first."""
    with tempfile.TemporaryDirectory() as folder:
        _fetch_large(Path(folder))


def _change_of_mind(folder: Path) -> str:
    """The Hub changes its answers after a download, which is not repeated."""
    first = fetch(folder)
    with start_hubs().faults(HubFault(kind=FaultKind.WRONG)):
        return first if first != TAKEN else fetch(folder)


def _abandoned(folder: Path, count: int) -> str:
    """Many downloads in a row end by their deadlines while a body never ends."""
    hubs = start_hubs()

    def ask() -> None:
        """Call the Hub; the client then closes what was idle for 5 s and keeps one."""
        datasets.resolve_revision(REPO, "main", token=None, endpoint=hubs.hub)

    ask()
    threads, sockets = _count_threads(), _count_sockets()
    drips = [HubFault(kind=FaultKind.DRIP, seconds=0.02, pattern=FILE)]
    drips += [replace(drips[0], pattern=LISTING, count=count // 2)]

    def download(number: int) -> str:
        place, options = folder / str(number % _AT_ONCE), {"deadline_s": _DEADLINE_S, "endpoint": hubs.hub}
        return judge(lambda: datasets.download_dataset(REPO, hubs.commit, place, **options))  # type: ignore[arg-type]

    with hubs.faults(*drips), ThreadPoolExecutor(_AT_ONCE) as pool:
        verdicts = Counter(pool.map(download, range(count)))
    until = time.monotonic() + _GRACE_S
    while time.monotonic() < until and (_count_threads() > threads or _count_sockets() > sockets):
        time.sleep(0.5)
        ask()
    counts = ", ".join(f"{count:,} {verdict}" for verdict, count in verdicts.items())
    left = max(0, _count_threads() - threads), max(0, _count_sockets() - sockets)
    return f"{counts}; left: {left[0]} threads, {left[1]} sockets"


def _count_threads() -> int:
    return sum(thread.name == "hub-call" for thread in threading.enumerate())


def _count_sockets() -> int:
    count = 0
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += str(handle.readlink()).startswith("socket:")
    return count


def _dripping(count: int, *, is_long: bool = False) -> Attack:
    return custom(
        f"{count:,} downloads that drip, {_AT_ONCE} at once",
        partial(_abandoned, count=count),
        f"{count:,} {AGAIN}; left: 0 threads, 0 sockets",
        max_seconds=60.0,
        max_memory=48,
        is_long=is_long,
    )


ATTACKS: tuple[Attack, ...] = (
    custom("none: a good file from a good Hub", fetch, TAKEN, max_seconds=20.0, max_memory=64),
    # Before attacks that leave connections open and busy until the hub ends.
    _dripping(200),
    _dripping(1_000, is_long=True),
    *hub_transport.ATTACKS,
    *hub_content.ATTACKS,
    custom("100,000 files beside it", _fetch_large, TAKEN, max_seconds=30.0, max_memory=192),
    custom(
        "100,000 files beside it, found by sha256",
        partial(_fetch_large, by_digest=True),
        TAKEN,
        prepare=_list_large,
    ),
    custom(
        "100,000 .jsonl files where only one is expected",
        partial(_fetch_large, filename=None),
        AGAIN,
        prepare=_list_large,
    ),
    custom("the Hub changes its mind after the download", _change_of_mind, TAKEN),
)
