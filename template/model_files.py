"""A model's files as the Hub's cache holds them, compared with what the Hub lists.

The downloader of huggingface_hub compares lengths only, and most of a model comes from a store that is another host
than the Hub. Its cache names each file's content by what the Hub itself lists: the sha256 of a file in large-file
storage, else the git blob id. So the name tells whether the content is the commit's. Standard library only.
"""

import hashlib
import re
from pathlib import Path

from template.errors import RemoteError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_OID = re.compile(r"[0-9a-f]{40}")
_CHUNK_BYTES = 2**20


def check_snapshot(folder: Path) -> None:
    """Passes the cache's folder of one commit when every file in it is what it is named by.

    What is not is removed, to be fetched again. A file that the cache keeps under no such name is passed over: on a
    disk without symbolic links, or of a Hub that names its files otherwise.
    Raises: RemoteError naming the first file that is another one.
    """
    for path in sorted(folder.rglob("*")):
        blob = path.resolve()
        if path.is_symlink() and blob.is_file() and not _is_named_right(blob):
            blob.unlink()
            raise RemoteError(f"the Hub delivered a {path.name} that is not the one it lists; it was removed")


def _is_named_right(blob: Path) -> bool:
    if _SHA256.fullmatch(blob.name):
        digest = hashlib.sha256()
    elif _GIT_OID.fullmatch(blob.name):
        digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    else:
        return True
    with blob.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == blob.name
