"""Write files atomically, lock them, and make private folders."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from loguru import logger

from template.errors import ConfigError, HostError


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """A file for a folder that is named elsewhere. mode: its permissions."""

    name: str
    content: bytes
    mode: int

    def write(self, folder: Path) -> Path:
        """Write the file, creating the folder. Raises: HostError."""
        path = folder / self.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, [self.content], mode=self.mode)
        except OSError as error:
            raise HostError(f"cannot write {path}: {error.strerror or error}") from error
        return path


def write_atomic(path: Path, parts: Iterable[bytes], *, mode: int = 0o600) -> None:
    """Replace the file by `parts` in one step: readers see the old content or the new.

    mode: the file's permissions, regardless of the umask. An OSError leaves no partial file, a kill `.NAME.RANDOM`.
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


def acquire_lock(path: Path) -> FileLock:
    """Lock the file beside `path`. Raises: ConfigError when another process has it."""
    # Without flock, two validators could write one state: better no start than a lock that is only a file's existence.
    lock = FileLock(lock_path(path), timeout=0, mode=0o600, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"another validator (process {lock_holder_pid(path) or 'unknown'}) is using {path}; "
            "stop it, or give this one its own --state_dir"
        ) from error
    return lock


def lock_path(path: Path) -> Path:
    """Return the path of the lock file of `path`."""
    return path.with_name(path.name + ".lock")


def lock_holder_pid(path: Path) -> int | None:
    """Return the process that holds the lock of `path`, None if not visible.

    Reads the kernel's list: an attempt to take the lock could make a validator that starts at that moment fail. The
    list leaves out holders in another container.
    """
    try:
        inode = lock_path(path).stat().st_ino
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in locks:
        # "1: FLOCK ADVISORY WRITE 18466 fe:00:2146749 0 EOF". Some file systems list another device than stat does.
        words = line.split()
        if len(words) == 8 and words[1] == "FLOCK" and words[3] == "WRITE" and words[5].endswith(f":{inode}"):
            return int(words[4])
    return None


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a temporary folder. Raises: HostError when there is none, or no space."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="subnet-")
        problem = find_write_problem(Path(folder.name))
    except OSError as error:
        raise HostError(f"no temporary folder: {error.strerror or error}; set TMPDIR to another one") from error
    with folder:
        if problem is not None:
            raise HostError(f"the temporary folder {tempfile.gettempdir()}: {problem}; free space, or set TMPDIR")
        yield Path(folder.name)


def pid_namespace() -> str:
    """Return the name of this process's pid namespace, empty if it is unknown."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def check_folder(path: Path, flag: str) -> Path:
    """Create the folder and return its absolute path. Raises: ConfigError."""
    folder = path.expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot create the folder: {error.strerror or error}") from error
    return folder


def find_write_problem(folder: Path) -> str | None:
    """Return why the folder takes no files, None if it does. Creates the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        return error.strerror or str(error)
    return None


def check_private_folder(path: Path, flag: str, *, marks: Sequence[str]) -> Path:
    """Create the folder, or close it to other users if it is empty or ours.

    A folder that root made for a group to write in is fine. marks: name patterns of files that only our folders hold.
    Raises: ConfigError when it belongs to another user, or others may write to it and it is not ours to close.
    """
    folder = check_folder(path, flag)
    try:
        status = folder.stat()
        is_own = status.st_uid == os.geteuid()
        if not is_own and status.st_uid != 0:
            raise ConfigError(f"{flag} {path}: belongs to another user, who could change its files; name another")
        if not status.st_mode & (0o077 if is_own else 0o002):
            return folder
        is_ours = any(any(folder.glob(mark)) for mark in marks) or not any(folder.iterdir())
        if is_own and is_ours and not status.st_mode & stat.S_ISVTX:
            folder.chmod(0o700)
            logger.warning("closed a folder to other users of this machine: {} {}", flag, folder)
        elif status.st_mode & 0o022:
            raise ConfigError(f"{flag} {path}: other users can write to this folder; name another")
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot make the folder private: {error.strerror or error}") from error
    return folder
