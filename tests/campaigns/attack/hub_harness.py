"""Two hubs in processes of their own, and the product's download from them.

One is the Hub, the other any other host: a store, a mirror, a stranger's. Both hold the same repo, so a download that
is led away still ends with the right file and counts as "taken". The hubs' memory is not measured.
"""

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from template.constants import DATA_FILE
from template.hub import datasets, storage
from template.hub.storage import Request
from template.localnet.hub.store import upload_files
from tests.campaigns.attack.runner import Attack, judge
from tests.fixtures.faulty_hub import FaultKind, HubFault, serve_hub, set_faults

REPO = "alice/talk"
CONTENT = b'{"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n' * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()
GIT_OID = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT, usedforsecurity=False).hexdigest()
# The requests of a download: two kinds of listings, and the file itself.
LISTING, WHOLE, FILE = "/paths-info/", "blobs=", "^GET .*/resolve"
AGAIN, TAKEN = "again later", "taken"
NO_REPO, NO_FILE, TOO_LARGE = "miner: missing_repo", "miner: missing_file", "miner: too_large"
# Download deadlines: of most attacks, and of those that look like a slow Hub.
_DEADLINE_S, _SHORT_DEADLINE_S = 30.0, 0.25
_MAX_MEMORY = 12


@dataclass(frozen=True, kw_only=True)
class Hubs:
    """Content roots and endpoints of both hubs, and the commit of CONTENT on both."""

    hub_root: Path
    elsewhere_root: Path
    hub: str
    elsewhere: str
    commit: str

    def _fill(self, text: str) -> str:
        """Fill {hub}, {elsewhere}, {port} (of elsewhere) and {file} in a text."""
        values = {
            "{hub}": self.hub,
            "{elsewhere}": self.elsewhere,
            "{port}": self.elsewhere.rsplit(":", 1)[1],
            "{file}": f"datasets/{REPO}/resolve/{self.commit}/{DATA_FILE}",
        }
        for name, value in values.items():
            text = text.replace(name, value)
        return text

    @contextmanager
    def faults(self, *faults: HubFault, elsewhere: Sequence[HubFault] = ()) -> Iterator[None]:
        """Let exactly these faults happen, with the names in their texts filled."""
        roots = {self.hub_root: faults, self.elsewhere_root: elsewhere}
        try:
            for root, chosen in roots.items():
                set_faults(root, *(self._filled(fault) for fault in chosen))
            yield
        finally:
            for root in roots:
                set_faults(root)

    def _filled(self, fault: HubFault) -> HubFault:
        headers = tuple((name, self._fill(value)) for name, value in fault.headers)
        return replace(fault, headers=headers, body=self._fill(fault.body))


@cache
def start_hubs() -> Hubs:
    """Start both hubs once; they end with this process."""
    stack = ExitStack()
    atexit.register(stack.close)
    home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attack-hub-", ignore_cleanup_errors=True)))
    commit = upload_files(home / "hub", REPO, {DATA_FILE: CONTENT})
    shutil.copytree(home / "hub", home / "elsewhere")
    hub, elsewhere = (stack.enter_context(serve_hub(home / name)) for name in ("hub", "elsewhere"))
    return Hubs(hub_root=home / "hub", elsewhere_root=home / "elsewhere", hub=hub, elsewhere=elsewhere, commit=commit)


def fetch(
    folder: Path,
    *,
    revision: str | None = None,
    filename: str | None = DATA_FILE,
    deadline_s: float = _DEADLINE_S,
    endpoint: str | None = None,
) -> str:
    """Return the verdict on a download of CONTENT, by default by its commit.

    Raises: AssertionError when the folder holds a file that was not taken, or other bytes.
    """
    home, revision = folder / "data", revision or start_hubs().commit
    download = partial(datasets.download_dataset, REPO, revision, home, filename=filename)
    verdict = judge(partial(download, deadline_s=deadline_s, endpoint=endpoint or start_hubs().hub))
    file = storage.find_cached(home, Request(repo=REPO, revision=revision, filename=filename))
    if (file is not None) != (verdict == TAKEN) or (file is not None and file.path.read_bytes() != CONTENT):
        raise AssertionError(f"the verdict is {verdict!r}, and the folder holds {file}")
    return verdict


custom = partial(Attack, max_seconds=10.0, max_memory=_MAX_MEMORY, max_disk=1)


def attack(
    name: str,
    *faults: HubFault,
    expected: str = AGAIN,
    elsewhere: Sequence[HubFault] = (),
    is_slow: bool = False,
    by: str = "commit",
    max_memory: int = _MAX_MEMORY,
) -> Attack:
    """Return the attack of a download while the Hub has these faults.

    Args:
        is_slow: only the deadline ends it.
        by: how the file is requested, "commit", "digest" or "whole" (the one .jsonl of the repo).
    """

    def run(folder: Path) -> str:
        with start_hubs().faults(*faults, elsewhere=elsewhere):
            return fetch(
                folder,
                revision=DIGEST if by == "digest" else None,
                filename=None if by == "whole" else DATA_FILE,
                deadline_s=_SHORT_DEADLINE_S if is_slow else _DEADLINE_S,
            )

    return custom(name, run, expected, max_memory=max_memory)


def reply(body: str = "", *, pattern: str = LISTING, status: int = 200, **headers: str) -> HubFault:
    """Return a fault that is a whole answer; `X_Name` is the header X-Name."""
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return HubFault(kind=FaultKind.REPLY, status=status, headers=named, body=body, pattern=pattern)
