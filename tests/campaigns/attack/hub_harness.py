"""Where the attacks of a hostile Hub take place: two hubs in processes of their own, and the product's way to them.

One is the Hub, the other stands for any other host: a store, a mirror, a stranger. Both hold the same repo, so whoever
is led astray comes home with the right file and says "taken". Their memory is not the product's and is not counted.
"""

import atexit
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from template import constants
from template.hub import datasets, storage
from template.hub.storage import Request
from template.localnet.hub.store import upload_files
from tests.campaigns.attack.runner import Attack, judge
from tests.fixtures.faulty_hub import HubFault, set_faults

REPO = "alice/talk"
CONTENT = b'{"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n' * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()
GIT_OID = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT, usedforsecurity=False).hexdigest()

# The three questions about a dataset, and the file itself.
LISTING, COMMIT, WHOLE, FILE = "/paths-info/", "expand=sha", "blobs=", "^GET .*/resolve/"

AGAIN, TAKEN = "again later", "taken"
NO_REPO, NO_FILE, TOO_LARGE = "miner: missing_repo", "miner: missing_file", "miner: too_large"

# What an attack may take that is refused for what it is, and one that only time tells from a slow Hub.
_PATIENCE_S, _SHORT_S, _MOST_S = 30.0, 0.25, 10.0
_MEMORY, _DISK = 12, 1


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The roots and endpoints of both hubs. commit: where REPO holds CONTENT, on either."""

    hub_root: Path
    elsewhere_root: Path
    hub: str
    elsewhere: str
    commit: str

    def fill(self, text: str) -> str:
        """`text` with what only the stage knows in place of {hub}, {elsewhere}, {port} (of elsewhere) and {file}."""
        known = {
            "{hub}": self.hub,
            "{elsewhere}": self.elsewhere,
            "{port}": self.elsewhere.rsplit(":", 1)[1],
            "{file}": f"datasets/{REPO}/resolve/{self.commit}/{constants.DATA_FILE}",
        }
        for name, value in known.items():
            text = text.replace(name, value)
        return text

    def set(self, here: Sequence[HubFault], elsewhere: Sequence[HubFault]) -> None:
        """Lets exactly these faults happen."""
        for root, faults in ((self.hub_root, here), (self.elsewhere_root, elsewhere)):
            set_faults(root, *(self._filled(fault) for fault in faults))

    def _filled(self, fault: HubFault) -> HubFault:
        headers = tuple((name, self.fill(value)) for name, value in fault.headers)
        return replace(fault, headers=headers, body=self.fill(fault.body))


@cache
def stage() -> Stage:
    """Both hubs, started once and ended with this process."""
    home = Path(tempfile.mkdtemp(prefix="attack-hub-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    commit = upload_files(home / "hub", REPO, {constants.DATA_FILE: CONTENT})
    shutil.copytree(home / "hub", home / "elsewhere")
    return Stage(
        hub_root=home / "hub",
        elsewhere_root=home / "elsewhere",
        hub=_serve(home / "hub"),
        elsewhere=_serve(home / "elsewhere"),
        commit=commit,
    )


def _serve(root: Path) -> str:
    command = [sys.executable, "-m", "tests.fixtures.faulty_hub", "--root", str(root)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)

    def end() -> None:
        server.kill()
        server.wait()

    atexit.register(end)
    assert server.stdout is not None
    with server.stdout:
        return server.stdout.readline().strip()


def fetch(
    folder: Path,
    *,
    revision: str | None = None,
    filename: str | None = constants.DATA_FILE,
    deadline_s: float = _PATIENCE_S,
    endpoint: str | None = None,
) -> str:
    """The verdict on a download of CONTENT, by its commit unless `revision` says otherwise.

    Raises: AssertionError when the folder afterwards claims what was not taken, or holds other bytes.
    """
    here = stage()
    home, revision = folder / "data", revision or here.commit
    verdict = judge(
        lambda: datasets.download_dataset(
            REPO, revision, home, filename=filename, deadline_s=deadline_s, endpoint=endpoint or here.hub
        )
    )
    held = storage.find_cached(home, Request(repo=REPO, revision=revision, filename=filename))
    if (held is not None) != (verdict == TAKEN) or (held is not None and held.path.read_bytes() != CONTENT):
        raise AssertionError(f"the verdict is {verdict!r}, and the folder holds {held}")
    return verdict


def attack(
    name: str,
    *faults: HubFault,
    expected: str = AGAIN,
    elsewhere: Sequence[HubFault] = (),
    is_slow: bool = False,
    by: str = "commit",
    max_memory: int = _MEMORY,
) -> Attack:
    """A download while the Hub has these faults. is_slow: nothing but the deadline ends it.

    by: how the file is asked for, "commit", "digest" or "whole" (the one .jsonl of the repo).
    """

    def run(folder: Path) -> str:
        here = stage()
        here.set(faults, elsewhere)
        try:
            return fetch(
                folder,
                revision=DIGEST if by == "digest" else None,
                filename=None if by == "whole" else constants.DATA_FILE,
                deadline_s=_SHORT_S if is_slow else _PATIENCE_S,
            )
        finally:
            here.set((), ())

    return custom(name, run, expected=expected, max_memory=max_memory)


def custom(
    name: str,
    run: Callable[[Path], str],
    *,
    expected: str = AGAIN,
    max_seconds: float = _MOST_S,
    max_memory: int = _MEMORY,
) -> Attack:
    """An attack of another shape, under the same limits."""
    return Attack(name=name, run=run, expected=expected, max_seconds=max_seconds, max_memory=max_memory, max_disk=_DISK)
