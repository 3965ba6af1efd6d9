"""Check a model's files: that they are all there, and those that the Hub lists by their hashes.

huggingface_hub compares lengths only, and large files come from another host than the Hub. Its cache names each file by
the hash that the Hub lists: the sha256 of a large file, else the git blob id. Standard library only.
"""

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path

from template.errors import RemoteError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_OID = re.compile(r"[0-9a-f]{40}")

# Files of a model folder on which the loss depends.
_DIGESTED_SUFFIXES = {".safetensors", ".json", ".model", ".txt"}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_POINTER = b"version https://git-lfs"

# Configuration and tokenizer files.
_TEXT_SUFFIXES = {".json", ".model", ".txt", ".jinja"}


def check_snapshot(folder: Path, *, has_weights: bool) -> None:
    """Check that a snapshot's files hash to their blob names; delete a wrong file.

    Files that the cache does not name by a hash, as on a disk without symbolic links, pass. Raises RemoteError.
    """
    paths = [path for path in folder.iterdir() if path.suffix in _TEXT_SUFFIXES]
    for path in sorted(paths) + (_weights(folder) if has_weights else []):
        blob = path.resolve()
        if path.is_symlink() and blob.is_file() and not _matches_name(blob):
            with suppress(OSError):  # the cache may belong to another user
                blob.unlink()
            outcome = "could not be removed" if blob.exists() else "was removed"
            raise RemoteError(f"the Hub delivered a {path.name} that is not the one it lists; it {outcome}")


def digest_folder(folder: Path) -> str:
    """Hash the names and contents of a model's files: sha256 in hex."""
    total = hashlib.sha256()
    for path in _digested_files(folder):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{path.name}:{content}\n".encode())
    return total.hexdigest()


def file_states(folder: Path) -> list[tuple[str, int, int, int]]:
    """Return what changes when a digested file is written to or replaced."""
    states = [(path.name, path.stat()) for path in _digested_files(folder)]
    return [(name, state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states]


def _digested_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix in _DIGESTED_SUFFIXES and path.is_file())


def find_kind_problem(folder: Path) -> str | None:
    """Return why a folder holds no model, None if it seems to."""
    if not folder.is_dir():
        return "there is no such folder"
    if (folder / "adapter_config.json").exists():
        return (
            "holds a LoRA adapter (adapter_config.json), not a whole model; merge it into its base model, or name the"
            " folder of the base model"
        )
    if not (folder / "config.json").is_file():
        return "no config.json found; expected a model's folder"
    return None


def find_problem(folder: Path) -> str | None:
    """Return why a folder holds no whole model, None if it does. Reads no tensor."""
    if (problem := find_kind_problem(folder)) is not None:
        return problem
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return f"no tokenizer found; expected one of {', '.join(_TOKENIZER_FILES)}"
    try:
        problems = (_find_weight_problem(path) for path in _weights(folder))
        return next((problem for problem in problems if problem is not None), None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"its list of weights cannot be read: {error}"


def _find_weight_problem(path: Path) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    with path.open("rb") as stream:
        start = stream.read(len(_POINTER))
        if start == _POINTER:
            return f"{path.name} is a Git LFS pointer and not the file; run `git lfs pull` in the folder"
        stream.seek(0)
        # Source: the safetensors format. Eight bytes of length, a header in JSON, then the tensors.
        length = int.from_bytes(stream.read(8), "little")
        size = path.stat().st_size
        header = json.loads(stream.read(length)) if length < size else {}
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    if not ends or size != 8 + length + max(ends):
        return f"{path.name} has {size} bytes and is not complete; copy it again"
    return None


def _weights(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return [folder / "model.safetensors"]
    return sorted({folder / str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})


def _matches_name(blob: Path) -> bool:
    if _SHA256.fullmatch(blob.name):
        digest = hashlib.sha256()
    elif _GIT_OID.fullmatch(blob.name):
        digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    else:
        return True
    try:
        with blob.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    except PermissionError:  # the model loader cannot read it either
        return True
    return digest.hexdigest() == blob.name
