"""Files that are there whole or not at all: what is written gets its name when it is on the disk."""

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, parts: Iterable[bytes], *, mode: int = 0o600) -> None:
    """Replaces the file at once by the parts in their order; whoever looks sees the old one or the new one.

    mode: who may read it, whatever the umask. What a kill leaves behind is called `.NAME.` and something, a name that
    nobody can have put a link at. Raises: OSError, with nothing left behind.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(handle, mode)
            stream.writelines(parts)
            stream.flush()
            os.fsync(handle)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
