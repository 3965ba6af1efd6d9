"""The folder of a downloaded file, and the cache that serves several folders."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from template.errors import HostError
from template.localnet.hub.store import upload_files
from tests.fixtures.faulty_hub import FaultyHub
from tests.fixtures.hub import DATA, NEW, OLD, REPO, download, download_error, is_cached, upload_data


def test_downloaded_file_needs_no_network(server: FaultyHub, tmp_path: Path) -> None:
    commit = upload_data(server)
    first = download(server, commit, tmp_path / "data")
    server.close()
    assert download(server, commit, tmp_path / "data") == first


def test_cached_file_is_copied_without_network(server: FaultyHub, tmp_path: Path) -> None:
    commit = upload_data(server)
    download(server, commit, tmp_path / "one", cache_dir=tmp_path / "cache")
    server.close()
    file = download(server, commit, tmp_path / "two", cache_dir=tmp_path / "cache")
    assert (file.path, file.path.read_bytes()) == (tmp_path / "two" / DATA, OLD)


@pytest.mark.parametrize("place", ["data", "cache"])
def test_edited_file_is_downloaded_again(server: FaultyHub, tmp_path: Path, place: str) -> None:
    commit = upload_data(server)
    download(server, commit, tmp_path / "data", cache_dir=tmp_path / "cache")
    for path in (tmp_path / place).rglob(DATA):
        path.write_bytes(OLD[::-1])
    assert download(server, commit, tmp_path / "data", cache_dir=tmp_path / "cache").path.read_bytes() == OLD


class Killed(BaseException):
    """In place of a kill: the product does not catch it."""


def test_kill_at_any_step_mixes_no_two_revisions(
    server: FaultyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = upload_data(server, OLD), upload_data(server, NEW)
    for step in range(100):
        folder = tmp_path / f"data{step}"
        download(server, old, folder)
        calls = iter(range(step))

        def dying(call: Callable[..., object]) -> Callable[..., object]:
            def run(*args: object, **options: object) -> object:
                if next(calls, None) is None:  # noqa: B023
                    raise Killed
                return call(*args, **options)

            return run

        with monkeypatch.context() as patch, suppress(Killed):
            for name in ("fsync", "replace", "fchmod"):
                patch.setattr(os, name, dying(getattr(os, name)))
            download(server, new, folder)
        content = (folder / DATA).read_bytes()
        assert is_cached(folder, old) <= (content == OLD) and is_cached(folder, new) <= (content == NEW)
        if next(calls, None) is not None:
            break
    assert step > 5 and is_cached(folder, new)


def test_part_of_a_killed_download_goes_a_day_later(server: FaultyHub, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    old, new = upload_data(server, OLD), upload_data(server, NEW)
    download(server, old, folder)
    part = folder / f".{DATA}.part"
    part.write_bytes(NEW[:100])
    assert download(server, new, folder).path.read_bytes() == NEW
    assert part.exists(), "another process may be writing it"
    os.utime(part, (0, 0))
    download(server, old, folder)
    assert not part.exists()


def test_named_file_does_not_answer_for_the_only_jsonl(server: FaultyHub, tmp_path: Path) -> None:
    two = upload_files(server.store.root, REPO, {DATA: OLD, "more.jsonl": NEW})
    download(server, two, tmp_path / "data", cache_dir=tmp_path / "cache")
    download_error(server, two, tmp_path / "data", cache_dir=tmp_path / "cache", filename=None)


def test_cached_digest_answers_for_itself_only(server: FaultyHub, tmp_path: Path) -> None:
    old, new = (hashlib.sha256(content).hexdigest() for content in (OLD, NEW))
    upload_data(server, OLD)
    download(server, old, tmp_path / "one", cache_dir=tmp_path / "cache")
    upload_data(server, NEW)
    assert download(server, new, tmp_path / "one", cache_dir=tmp_path / "cache").path.read_bytes() == NEW
    server.close()
    assert download(server, old, tmp_path / "two", cache_dir=tmp_path / "cache").path.read_bytes() == OLD


def test_unusable_folder_is_a_host_error(server: FaultyHub, tmp_path: Path) -> None:
    commit = upload_data(server)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostError):
        download(server, commit, tmp_path / "file" / "data")
