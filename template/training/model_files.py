"""A model's files as the Hub's cache holds them, compared with what the Hub lists.

The downloader of huggingface_hub compares lengths only, and most of a model comes from a store that is another host
than the Hub. Its cache names each file's content by what the Hub itself lists: the sha256 of a file in large-file
storage, else the git blob id. So the name tells whether the content is the commit's. Standard library only.
"""

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path

from template.errors import RemoteError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_OID = re.compile(r"[0-9a-f]{40}")
_CHUNK_BYTES = 2**20

# Of the files beside the weights, what a configuration or a tokenizer is read from.
_DESCRIBING_SUFFIXES = {".json", ".model", ".txt", ".jinja"}


def check_snapshot(folder: Path, *, has_weights: bool) -> None:
    """Passes the cache's folder of one commit when each file in it that is read here is what it is named by.

    What is not is removed, where that may be, to be fetched again. Of the weights, which are long to read, only those
    that the model is made of are looked at, and none without `has_weights`. A file that the cache keeps under no such
    name is passed over: on a disk without symbolic links, or of a Hub that names its files otherwise.
    Raises: RemoteError naming the first file that is another one.
    """
    paths = [path for path in folder.iterdir() if path.suffix in _DESCRIBING_SUFFIXES]
    for path in sorted(paths) + (_weights(folder) if has_weights else []):
        blob = path.resolve()
        if path.is_symlink() and blob.is_file() and not _is_named_right(blob):
            # The cache may be another user's.
            with suppress(OSError):
                blob.unlink()
            told = "could not be removed" if blob.exists() else "was removed"
            raise RemoteError(f"the Hub delivered a {path.name} that is not the one it lists; it {told}")


def _weights(folder: Path) -> list[Path]:
    """Where a model's weights are: in one file or, as the index tells, in several."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return [folder / "model.safetensors"]
    return sorted({folder / str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})


def _is_named_right(blob: Path) -> bool:
    if _SHA256.fullmatch(blob.name):
        digest = hashlib.sha256()
    elif _GIT_OID.fullmatch(blob.name):
        digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    else:
        return True
    try:
        with blob.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except PermissionError:
        # So it was not read here either.
        return True
    return digest.hexdigest() == blob.name
