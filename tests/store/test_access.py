"""The state file while another program locks it, and in a folder that takes no files."""

import contextlib
import ctypes
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from template.records import SubmissionKey
from template.store import database
from template.store.store import Store
from tests.fixtures.logs import log_lines
from tests.fixtures.network import ROOT
from tests.fixtures.views import make_stand, make_text

STANDS = [make_stand(SubmissionKey(name, make_text()), 1) for name in ("first", "second")]
HELD_S = 0.3
# prctl(2) and capabilities(7): with these, root may write to any folder.
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state file with one stand."""
    monkeypatch.setattr(database, "_BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(database, "_LOCK_PAUSE_S", 0.01)
    path = tmp_path / "state" / "validator.sqlite3"
    with Store(path) as store:
        store.record_stands(STANDS[:1])
    return path


@contextlib.contextmanager
def locked(path: Path, statements: str) -> Iterator[None]:
    """Lock the file as another program does, for `HELD_S`."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.executescript(statements)
        release = threading.Timer(HELD_S, other.close)
        release.start()
        yield
        release.join()


def write(path: Path) -> None:
    with Store(path) as store, locked(path, "BEGIN IMMEDIATE;"):
        store.record_stands(STANDS[1:])


def start(path: Path) -> None:
    # This mode locks readers out as well.
    with locked(path, "PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE; CREATE TABLE other (x);"), Store(path) as store:
        store.record_stands(STANDS[1:])


@pytest.mark.parametrize("work", [write, start])
def test_lock_of_another_program_is_waited_for(path: Path, work: Callable[[Path], None]) -> None:
    with log_lines("WARNING") as logs:
        work(path)
    with Store(path) as store:
        assert set(store.stands()) == {"first", "second"}
    assert logs and all(f"another program, such as a backup, has locked {path}" in line for line in logs)


READ = """
import sys
from pathlib import Path
from template.status.status import read_status
from template.store.store import StatusStore
path = Path(sys.argv[1])
with StatusStore(path) as store:
    print(sorted(store.stands()), sorted(file.name for file in path.parent.iterdir()))
assert read_status(path.parent, 0.0).state_dir == str(path.parent)
try:
    path.with_name("probe").touch()
except PermissionError:
    print("read-only")
"""


def read_without_writing(path: Path) -> list[str]:
    """Read the state in a process that may not write to its folder."""
    prctl = ctypes.CDLL(None).prctl

    def drop_privileges() -> None:
        prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE)
        prctl(PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH)

    path.parent.chmod(0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ, path],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=drop_privileges, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        path.parent.chmod(0o755)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_state_is_read_in_a_folder_that_takes_no_files(path: Path) -> None:
    path.chmod(0o400)
    assert read_without_writing(path) == [
        "['first'] ['validator.sqlite3', 'validator.sqlite3.lock']", "read-only"
    ]  # fmt: skip


KILLED = """
import os, sys
from pathlib import Path
from template.records import SubmissionKey
from template.store.store import Store
from tests.fixtures.views import make_stand, make_text
Store(Path(sys.argv[1])).record_stands([make_stand(SubmissionKey("second", make_text()), 1)])
os._exit(1)
"""


def test_log_of_a_killed_validator_is_read_there_too(path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, path], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    path.with_name(f"{path.name}-shm").unlink()
    names = "['validator.sqlite3', 'validator.sqlite3-wal', 'validator.sqlite3.lock']"
    assert read_without_writing(path) == [f"['first', 'second'] {names}", "read-only"]
