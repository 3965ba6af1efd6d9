"""A hostile Hub, or whoever answers in its place: a table of attacks.

`attack_hub_wire` has what may be done to HTTP, `attack_hub_words` what may be said in it, and here stands what takes
more than one answer. Bytes on the disk, memory and seconds are bounded for each, and the miner is blamed only for what
the Hub itself says of the miner's repo.
"""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

from template import constants
from template.hub import datasets
from template.localnet.hub.store import HubStore, upload_files
from tests.campaigns.attack.hub_content import WORDS
from tests.campaigns.attack.hub_harness import AGAIN, CONTENT, DIGEST, FILE, LISTING, TAKEN, custom, fetch, stage
from tests.campaigns.attack.hub_transport import WIRE
from tests.campaigns.attack.runner import Attack, judge
from tests.fixtures.faulty_hub import FaultKind, HubFault

_CROWD = "bob/crowd"
_FILES = 100_000

_HOSTILE = 1_000
_AT_ONCE = 50
_GIVEN_UP_S = 0.2
_REST_S = 10.0


@cache
def _crowd() -> str:
    """The commit of a repo that holds a good file beside a hundred thousand others."""
    root = stage().hub_root
    commit = upload_files(root, _CROWD, {constants.DATA_FILE: CONTENT})
    store = HubStore(root)
    blob = store.add_blob(b"")
    crowd = {f"folder-{number // 1000}/file-{number:06d}.jsonl": blob for number in range(_FILES)}
    assert commit != store.commit(store.repo("datasets", _CROWD), crowd)
    return store.repo("datasets", _CROWD).head


def _meet_crowd(folder: Path, revision: str, filename: str | None = constants.DATA_FILE) -> str:
    return judge(lambda: datasets.download_dataset(_CROWD, revision, folder, filename=filename, endpoint=stage().hub))


def _change_of_mind(folder: Path) -> str:
    """What was fetched once is not asked for again, whatever the Hub would say by then."""
    here = stage()
    first = fetch(folder)
    here.set([HubFault(kind=FaultKind.WRONG)], ())
    try:
        return first if first != TAKEN else fetch(folder)
    finally:
        here.set((), ())


def _abandoned(folder: Path) -> str:
    """A thousand downloads in a row, each given up on while a body goes on for ever."""
    here = stage()
    threads, sockets = _calls(), _sockets()
    here.set(
        [
            HubFault(kind=FaultKind.DRIP, seconds=0.02, pattern=LISTING, count=_HOSTILE // 2),
            HubFault(kind=FaultKind.DRIP, seconds=0.02, pattern=FILE),
        ],
        (),
    )

    def one(number: int) -> str:
        place = folder / str(number % _AT_ONCE)
        return judge(
            lambda: datasets.download_dataset(
                "alice/talk", here.commit, place, deadline_s=_GIVEN_UP_S, endpoint=here.hub
            )
        )

    try:
        with ThreadPoolExecutor(_AT_ONCE) as many:
            verdicts = Counter(many.map(one, range(_HOSTILE)))
    finally:
        here.set((), ())
    patience = time.monotonic() + _REST_S
    while time.monotonic() < patience and (_calls() > threads or _sockets() > sockets):
        time.sleep(0.05)
    said = ", ".join(f"{count:,} {verdict}" for verdict, count in verdicts.items())
    return f"{said}; left: {max(0, _calls() - threads)} threads, {max(0, _sockets() - sockets)} sockets"


def _calls() -> int:
    return sum(thread.name == "hub-call" for thread in threading.enumerate())


def _sockets() -> int:
    found = 0
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += str(handle.readlink()).startswith("socket:")
    return found


_FIRST = custom("none: a good file from a good Hub", fetch, expected=TAKEN, max_seconds=20.0, max_memory=64)
_MANY = (
    custom(
        "100,000 files beside it",
        lambda folder: _meet_crowd(folder, _crowd()),
        expected=TAKEN,
        max_seconds=30.0,
        max_memory=192,
    ),
    custom("100,000 files beside it, found by sha256", lambda folder: _meet_crowd(folder, DIGEST), expected=TAKEN),
    custom(
        "100,000 .jsonl files where one is looked for",
        lambda folder: _meet_crowd(folder, _crowd(), None),
        expected=AGAIN,
    ),
    custom("the Hub changes its mind after the download", _change_of_mind, expected=TAKEN),
    custom(
        f"{_HOSTILE:,} downloads that drip, {_AT_ONCE} at once",
        _abandoned,
        expected=f"{_HOSTILE:,} {AGAIN}; left: 0 threads, 0 sockets",
        max_seconds=60.0,
        max_memory=48,
    ),
)

ATTACKS: tuple[Attack, ...] = (_FIRST, *WIRE, *WORDS, *_MANY)
