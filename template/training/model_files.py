"""Check downloaded model files against the hashes that the Hub lists.

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
