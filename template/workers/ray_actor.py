"""The actor that a worker is in a Ray cluster: a shell around the child process that scores, on whatever machine it is.

It needs this package there, of the same version, and of Ray what `template.workers.ray_driver` uses. It writes the
files that
come with the work into a folder of its own, which the next actor on the machine removes when this one was killed.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import shutil
import socket
import tempfile
from pathlib import Path
from queue import Empty, SimpleQueue

import ray

from template.constants import DATA_FILE
from template.errors import ConfigError, HostError, RemoteError
from template.workers import messages
from template.workers.child import WorkerProcess

_PREFIX = "dataset-worker-"
_LOCK = "lock"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileContent:
    """A file's bytes and their sha256 in hex, taken where the file was read."""

    data: bytes
    sha256: str

    def write(self, folder: Path) -> None:
        """Makes the folder's data file of it. Raises: HostError when it is not what was sent."""
        if hashlib.sha256(self.data).hexdigest() != self.sha256:
            raise HostError(f"{DATA_FILE} was damaged on its way")
        folder.mkdir(exist_ok=True)
        (folder / DATA_FILE).write_bytes(self.data)


class WorkerActor:
    """Methods are called beside each other; `poll` gives what the worker says, in order, as
    `template.workers.messages` lines.

    setup: a wire line; the folders it names are of another machine, but for the model's. files: the evaluation set,
    None when it is not there. Nothing is raised here but told, as the worker would.
    """

    def __init__(self, setup: bytes, eval_set: FileContent | None) -> None:
        self._said: SimpleQueue[bytes] = SimpleQueue()
        self._child: WorkerProcess | None = None
        self._is_closed = False
        self._folder, self._lock_fd = _make_folder()
        self._place = _name_place()
        context = ray.get_runtime_context()
        self._log(f"worker starts host={socket.gethostname()} node={context.get_node_id()} pid={os.getpid()}")
        try:
            record = messages.decode_command(setup)
            if not isinstance(record, messages.Setup):
                raise HostError("the first command must be the setup")
            if eval_set is not None:
                eval_set.write(self._folder / "eval_data")
            local = dataclasses.replace(record, eval_data_dir=str(self._folder / "eval_data"))
            self._child = WorkerProcess(local, self._take, self._say)
        except (HostError, OSError) as error:
            self._say(messages.Failed.of(error))

    def submit(self, lucky_num: int, dataset: FileContent | None) -> None:
        """Gives the worker a dataset; None for one whose file is not there."""
        folder = self._folder / "data"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            if dataset is not None:
                dataset.write(folder)
            if self._child is not None:
                self._child.send(messages.Job(data_dir=str(folder), lucky_num=lucky_num))
        except (HostError, OSError) as error:
            self._say(messages.Failed.of(error))

    def poll(self, wait_s: float) -> list[bytes]:
        """What the worker said since the last call, once there is anything, or nothing after `wait_s`."""
        lines: list[bytes] = []
        with contextlib.suppress(Empty):
            lines.append(self._said.get(timeout=wait_s))
            while True:
                lines.append(self._said.get_nowait())
        return lines

    def close(self) -> None:
        """Ends the worker and removes the folder; the actor is of no use afterwards."""
        self._is_closed = True
        if self._child is not None:
            self._child.kill()
            self._child.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def pids(self) -> tuple[int, int | None]:
        """The processes of this actor and of its child."""
        return os.getpid(), None if self._child is None else self._child.pid

    def _take(self, child: WorkerProcess, event: messages.Event) -> None:
        """Passes on what the child said, with the place where it is."""
        if isinstance(event, messages.Loaded):
            event = dataclasses.replace(event, device=f"{self._place} {event.device}")
        if isinstance(event, messages.Failed) and event.kind in (ConfigError.__name__, RemoteError.__name__):
            event = dataclasses.replace(event, message=f"{self._place}: {event.message}")
        self._say(event)

    def _say(self, event: messages.Event) -> None:
        self._said.put(messages.encode(event))

    def _log(self, message: str) -> None:
        self._say(messages.Logged(level="INFO", message=message))


def _name_place() -> str:
    """The node, and the GPUs of it that are this actor's, without an address: receipts are public."""
    gpus = ",".join(str(index) for index in ray.get_gpu_ids())
    node = f"node {ray.get_runtime_context().get_node_id()[:16]}"
    return f"{node} gpu {gpus}" if gpus else node


def _make_folder() -> tuple[Path, int]:
    """A new folder and the lock that says it is in use; the kernel frees it. Removes those that nobody holds."""
    for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError):
            os.close(_lock(old, os.O_RDWR))
            shutil.rmtree(old.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    return folder, _lock(folder / _LOCK, os.O_RDWR | os.O_CREAT)


def _lock(path: Path, flags: int) -> int:
    """The descriptor of the locked file. Raises: OSError, a BlockingIOError when another process holds it."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd
