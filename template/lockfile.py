"""The lock file that keeps a second validator off one state."""

import fcntl
import os
from pathlib import Path

from template.errors import ConfigError


def take_lock(path: Path) -> int:
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
