"""What the kernel says of running processes and of who opens files: read from /proc, and from inotify."""

import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from template.wandb_process import child_processes

# From linux/inotify.h.
OPEN, ACCESS = 0x20, 0x1
WRITTEN = {0x2: "modify", 0x4: "attrib", 0x8: "close after writing", 0x100: "create", 0x200: "delete", 0x400: "delete"}
MOVED = {0x40: "move", 0x80: "move", 0x800: "move"}
_LISTEN = "0A"


def family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    return [pid, *(one for child in child_processes(pid) for one in family(child))]


@dataclass
class Witness:
    """What was seen of a family of processes. environments: by module. listeners: TCP ports they listen on."""

    environments: dict[str, set[bytes]] = field(default_factory=dict)
    command_lines: set[bytes] = field(default_factory=set)
    listeners: set[str] = field(default_factory=set)
    core_bytes: set[str] = field(default_factory=set)

    def look(self, pid: int) -> None:
        """Adds what a process shows now."""
        proc = Path(f"/proc/{pid}")
        try:
            words = (proc / "cmdline").read_bytes()
            name = next((word for word in words.decode().split("\0") if "template." in word or "core" in word), "main")
            self.environments.setdefault(name, set()).update((proc / "environ").read_bytes().split(b"\0"))
            self.command_lines.add(words + (proc / "comm").read_bytes())
            limits = (proc / "limits").read_text().splitlines()
            self.core_bytes.update(line.split()[4] for line in limits if line.startswith("Max core file size"))
            held = {link.readlink().name for link in (proc / "fd").iterdir()}
            for table in ("tcp", "tcp6"):
                for line in (proc / "net" / table).read_text().splitlines()[1:]:
                    columns = line.split()
                    if columns[3] == _LISTEN and f"socket:[{columns[9]}]" in held:
                        self.listeners.add(f"{name} {columns[1]}")
        except OSError:
            pass  # it ended meanwhile

    @contextmanager
    def watching(self, pid: int) -> Iterator[None]:
        """Looks at the family again and again."""
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(0.02):
                for one in family(pid):
                    self.look(one)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


class Watch:
    """Everything that happens to the files below a folder from now on, whoever does it."""

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._folders = {self._add(one): one for one in (folder, *folder.rglob("*")) if one.is_dir()}

    def _add(self, folder: Path) -> int:
        mask = OPEN | ACCESS | sum(WRITTEN) | sum(MOVED)
        number = int(self._libc.inotify_add_watch(self._fd, os.fsencode(folder), mask))
        assert number >= 0, os.strerror(ctypes.get_errno())
        return number

    def events(self) -> set[tuple[str, str]]:
        """(what, path) of all that happened to files, each once."""
        found = set()
        names = {OPEN: "open", ACCESS: "read", **WRITTEN, **MOVED}
        try:
            while content := os.read(self._fd, 1 << 20):
                at = 0
                while at < len(content):
                    watch, mask, _, length = struct.unpack_from("iIII", content, at)
                    name = content[at + 16 : at + 16 + length].rstrip(b"\0").decode()
                    path = str(self._folders[watch] / name)
                    is_folder = mask & 0x40000000 or not name
                    found |= {(what, path) for bit, what in names.items() if mask & bit and not is_folder}
                    found |= {(what, path) for bit, what in {**WRITTEN, **MOVED}.items() if mask & bit and is_folder}
                    at += 16 + length
        except BlockingIOError:
            return found
        return found

    def close(self) -> None:
        os.close(self._fd)
