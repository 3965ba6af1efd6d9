"""Files that are there whole or not at all: what is written gets its name when it is on the disk."""

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from template.errors import ConfigError

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def write_atomic(path: Path, parts: Iterable[bytes], *, mode: int = 0o600) -> None:
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


def acquire_lock(path: Path) -> int:
    """Takes the lock file beside the state and returns its descriptor; the kernel frees it when the process ends."""
    lock_path = path.with_name(path.name + ".lock")
    fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.truncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
    except BlockingIOError as error:
        holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise ConfigError(
            f"another validator (process {holder}) is using {path}; stop it, or give this one its own --state_dir"
        ) from error
    except OSError:
        os.close(fd)
        raise
    return fd


def check_folder(path: Path, flag: str) -> Path:
    """The folder as an absolute path, made if missing. Raises: ConfigError naming the flag."""
    folder = path.expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be made: {error.strerror or error}") from error
    return folder


def check_private_folder(path: Path, flag: str, *, marks: Sequence[str]) -> Path:
    """As `check_folder`, and what is in it is nobody else's to read or to change.

    marks: patterns of names that a folder of ours holds. One that others may enter is closed to them when it is ours or
    empty; a folder for something else is left as it is. Root may have made it, for a group of ours to write in. Raises:
    ConfigError when it is another user's, or when others may write into it and it is not ours to close.
    """
    folder = check_folder(path, flag)
    try:
        status = folder.stat()
        is_own = status.st_uid == os.geteuid()
        if not is_own and status.st_uid != 0:
            raise ConfigError(f"{flag} {path}: belongs to another user, who could change what is in it")
        if not status.st_mode & (0o077 if is_own else 0o002):
            return folder
        is_known = any(any(folder.glob(mark)) for mark in marks) or not any(folder.iterdir())
        if is_own and is_known and not status.st_mode & stat.S_ISVTX:
            folder.chmod(0o700)
            logger.warning("{} {} was open to other users of this machine; now it is not", flag, folder)
        elif status.st_mode & 0o022:
            raise ConfigError(f"{flag} {path}: others may write there, so nothing in it could be trusted; name another")
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be made private: {error.strerror or error}") from error
    return folder
