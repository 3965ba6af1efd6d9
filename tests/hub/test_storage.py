"""A folder keeps one revision at a time, whatever is done to it, and the cache keeps many."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from template.errors import HostError, RemoteError
from template.hub import storage
from template.localnet.hub.faults import FaultKind, HubFault, set_faults
from template.localnet.hub.server import HubServer
from template.localnet.hub.store import upload_files
from tests.fixtures.hub import DATA, NEW, OLD, REPO, download, download_error, is_cached, upload_data


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as running:
        yield running


def test_a_held_file_needs_no_network(server: HubServer, tmp_path: Path) -> None:
    commit = upload_data(server)
    first = download(server, commit, tmp_path / "data")
    server.close()
    assert download(server, commit, tmp_path / "data") == first


def test_the_cache_serves_another_folder_without_network(server: HubServer, tmp_path: Path) -> None:
    commit = upload_data(server)
    download(server, commit, tmp_path / "one", cache_dir=tmp_path / "cache")
    server.close()
    held = download(server, commit, tmp_path / "two", cache_dir=tmp_path / "cache")
    assert held.path == tmp_path / "two" / DATA
    assert held.path.read_bytes() == OLD


def test_a_corrupted_cache_is_fetched_afresh(server: HubServer, tmp_path: Path) -> None:
    commit = upload_data(server)
    download(server, commit, tmp_path / "one", cache_dir=tmp_path / "cache")
    (cached,) = (tmp_path / "cache").rglob(DATA)
    cached.write_bytes(OLD[::-1])
    assert download(server, commit, tmp_path / "two", cache_dir=tmp_path / "cache").path.read_bytes() == OLD


def test_an_edited_file_is_fetched_afresh(server: HubServer, tmp_path: Path) -> None:
    commit = upload_data(server)
    held = download(server, commit, tmp_path / "data")
    held.path.write_bytes(OLD[::-1])
    assert download(server, commit, tmp_path / "data").path.read_bytes() == OLD


def test_an_edited_file_is_not_claimed_after_an_outage(server: HubServer, tmp_path: Path) -> None:
    commit = upload_data(server)
    held = download(server, commit, tmp_path / "data")
    held.path.write_bytes(OLD[::-1])
    server.close()
    with pytest.raises(RemoteError):
        download(server, commit, tmp_path / "data")
    held.path.write_bytes(OLD)
    assert not is_cached(tmp_path / "data", commit)


class _Stopped(BaseException):
    """Stands for a kill: nothing in the product catches it."""


def test_no_step_of_an_installation_mixes_two_revisions(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = upload_data(server, OLD), upload_data(server, NEW)
    for step in range(100):
        folder = tmp_path / f"data{step}"
        download(server, old, folder)
        left = step

        def stop_at_zero(call: object) -> object:
            def counted(*args: object, **options: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    raise _Stopped
                return call(*args, **options)  # type: ignore[operator]

            return counted

        with monkeypatch.context() as patch, suppress(_Stopped):
            for name in ("fsync", "replace", "unlink", "fchmod"):
                patch.setattr(os, name, stop_at_zero(getattr(os, name)))
            download(server, new, folder)
        bytes_now = (folder / DATA).read_bytes()
        source = folder / storage.SOURCE_FILE
        named = source.read_text() if source.exists() else ""
        assert (old in named) <= (bytes_now == OLD)
        assert (new in named) <= (bytes_now == NEW)
        if left >= 0:
            break
    assert step > 5
    assert is_cached(folder, new)


def test_a_download_killed_midway_leaves_the_old_revision_alone(server: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    old, new = upload_data(server, OLD), upload_data(server, NEW)
    download(server, old, folder)
    set_faults(server.store.root, HubFault(kind=FaultKind.DRIP, seconds=0.05, pattern="/resolve/"))
    code = (
        "import sys; from pathlib import Path; from template.hub import datasets;"
        "datasets.download_dataset(sys.argv[1], sys.argv[2], Path(sys.argv[3]), endpoint=sys.argv[4])"
    )
    child = subprocess.Popen([sys.executable, "-c", code, REPO, new, str(folder), server.endpoint])
    while not list(folder.glob(".incoming-*")) and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert list(folder.glob(".incoming-*"))
    assert is_cached(folder, old) and not is_cached(folder, new)
    set_faults(server.store.root)
    assert download(server, new, folder).path.read_bytes() == NEW
    assert not list(folder.glob(".incoming-*"))


def test_a_named_file_is_no_answer_to_the_one_jsonl(server: HubServer, tmp_path: Path) -> None:
    two = upload_files(server.store.root, REPO, {DATA: OLD, "more.jsonl": NEW})
    download(server, two, tmp_path / "data", cache_dir=tmp_path / "cache")
    download_error(server, two, tmp_path / "data", cache_dir=tmp_path / "cache", filename=None)


def test_a_file_held_by_its_digest_outlives_what_main_becomes(server: HubServer, tmp_path: Path) -> None:
    digest = hashlib.sha256(OLD).hexdigest()
    upload_data(server, OLD)
    download(server, digest, tmp_path / "one", cache_dir=tmp_path / "cache")
    upload_data(server, NEW)
    assert download(server, digest, tmp_path / "one").path.read_bytes() == OLD
    server.close()
    assert download(server, digest, tmp_path / "two", cache_dir=tmp_path / "cache").path.read_bytes() == OLD


def test_a_held_file_is_no_answer_to_another_digest(server: HubServer, tmp_path: Path) -> None:
    upload_data(server, OLD)
    download(server, hashlib.sha256(OLD).hexdigest(), tmp_path / "data", cache_dir=tmp_path / "cache")
    upload_data(server, NEW)
    held = download(server, hashlib.sha256(NEW).hexdigest(), tmp_path / "data", cache_dir=tmp_path / "cache")
    assert held.path.read_bytes() == NEW


def test_a_folder_that_cannot_be_is_our_fault(server: HubServer, tmp_path: Path) -> None:
    commit = upload_data(server)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostError):
        download(server, commit, tmp_path / "file" / "data")
