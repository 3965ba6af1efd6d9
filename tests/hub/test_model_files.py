"""Files of a cached model are compared with the digests in their names."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from template.errors import RemoteError
from template.training.model_files import check_snapshot, find_problem

SHARDS = ("model-1.safetensors", "model-2.safetensors")
INDEX = "model.safetensors.index.json"


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A commit's folder in the cache: links to files called by their sha256."""
    weight_map = json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}).encode()
    files = {"config.json": b"{}", "tokenizer.model": b"t", INDEX: weight_map, "other.safetensors": b"other"}
    files |= {name: name.encode() for name in SHARDS} | {"original/params.json": b"[]"}
    for name, content in files.items():
        blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
        path = tmp_path / "snapshots" / name
        for folder in (blob.parent, path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        path.symlink_to(blob)
    return tmp_path / "snapshots"


def change(path: Path) -> None:
    path.resolve().write_bytes(b"changed")


def test_intact_snapshot_passes(snapshot: Path) -> None:
    check_snapshot(snapshot, has_weights=True)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", INDEX, *SHARDS])
def test_changed_file_is_an_error_and_removed(snapshot: Path, name: str) -> None:
    change(snapshot / name)
    if name in SHARDS:
        check_snapshot(snapshot, has_weights=False)
    with pytest.raises(RemoteError, match=rf"{name}.*was removed"):
        check_snapshot(snapshot, has_weights=name in SHARDS)
    assert not (snapshot / name).exists()


@pytest.mark.parametrize("name", ["other.safetensors", "original/params.json"])
def test_unread_file_is_not_checked(snapshot: Path, name: str) -> None:
    change(snapshot / name)
    check_snapshot(snapshot, has_weights=True)
    assert (snapshot / name).exists()


def test_changed_file_of_a_read_only_cache_is_an_error(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(*_: object, **named: object) -> None:
        raise PermissionError(13, "read-only")

    change(snapshot / "config.json")
    monkeypatch.setattr(os, "unlink", forbid)
    monkeypatch.setattr(Path, "unlink", forbid)
    with pytest.raises(RemoteError, match=r"config.json.*could not be removed"):
        check_snapshot(snapshot, has_weights=False)


def test_unreadable_file_is_not_checked(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(*_: object, **named: object) -> None:
        raise PermissionError(13, "not yours")

    monkeypatch.setattr(Path, "open", forbid)
    check_snapshot(snapshot, has_weights=False)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


INCOMPLETE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "half of them": (lambda folder: shorten(folder / "model.safetensors"), "is not complete; copy it again"),
    "an empty file": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        "has 0 bytes and is not complete",
    ),
    "a pointer": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "is a Git LFS pointer and not the file; run `git lfs pull`",
    ),
    "a list without its file": (
        lambda folder: [
            (folder / "model.safetensors").unlink(),
            (folder / INDEX).write_text(json.dumps({"weight_map": {"a": SHARDS[0]}})),
        ],
        "model-1.safetensors is missing",
    ),
    "a broken list": (
        lambda folder: [(folder / "model.safetensors").unlink(), (folder / INDEX).write_text("{")],
        "its list of weights cannot be read",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer found"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json found"),
    "an adapter": (lambda folder: (folder / "adapter_config.json").touch(), "holds a LoRA adapter"),
    "no folder": (lambda folder: folder.rename(folder.with_name("moved")), "there is no such folder"),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_incomplete_model_is_named(name: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    assert find_problem(folder) is None
    damage, expected = INCOMPLETE[name]
    damage(folder)
    assert expected in (find_problem(folder) or "")
