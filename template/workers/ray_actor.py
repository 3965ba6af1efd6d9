"""The Ray actor of a worker: it starts the child process that evaluates.

It needs the same version of this package there. Files that come with the work go into a folder of its own; the next
actor on the machine deletes the folder of an actor that was killed.
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import socket
import tempfile
from pathlib import Path
from queue import Empty, Queue

import ray
from filelock import FileLock, Timeout

from template.constants import DATA_FILE
from template.errors import ConfigError, HostError, RemoteError
from template.workers import messages
from template.workers.child import WorkerConnection, WorkerProcess

_PREFIX = "dataset-worker-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileContent:
    """The bytes of a file, and their sha256 in hex from where the file was read."""

    data: bytes
    sha256: str

    def write(self, folder: Path) -> None:
        """Write the folder's data file. Raises: HostError when the bytes changed."""
        if hashlib.sha256(self.data).hexdigest() != self.sha256:
            raise HostError(f"{DATA_FILE} was damaged on its way to the worker")
        folder.mkdir(exist_ok=True)
        (folder / DATA_FILE).write_bytes(self.data)


class WorkerActor:
    """A worker on this machine. Methods run in parallel; errors become events."""

    def __init__(self, setup: bytes, eval_set: FileContent | None) -> None:
        """Start the worker with an encoded `Setup` and the evaluation set."""
        # A SimpleQueue can wait for ever in spite of its timeout: see template/stop_request.py.
        self._lines: Queue[bytes] = Queue()
        self._worker: WorkerProcess | None = None
        self._folder, self._lock = _make_folder()
        self._place = _name_place()
        node = ray.get_runtime_context().get_node_id()
        message = f"worker starts host={socket.gethostname()} node={node} pid={os.getpid()}"
        self._send(messages.Logged(level="INFO", message=message))
        try:
            record = messages.decode_command(setup)
            if not isinstance(record, messages.Setup):
                raise HostError("the first command must be the setup")
            if eval_set is not None:
                eval_set.write(self._folder / "eval_data")
            evaluator = dataclasses.replace(record.evaluator, eval_data_dir=self._folder / "eval_data")
            self._worker = WorkerProcess(dataclasses.replace(record, evaluator=evaluator), self._on_event)
        except (HostError, OSError) as error:
            self._send(messages.Failed.of(error))

    def submit(self, lucky_num: int, dataset: FileContent | None) -> None:
        """Start to evaluate a dataset; None when its file is missing."""
        folder = self._folder / "data"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            if dataset is not None:
                dataset.write(folder)
            if self._worker is not None:
                self._worker.send(messages.Job(data_dir=folder, lucky_num=lucky_num))
        except (HostError, OSError) as error:
            self._send(messages.Failed.of(error))

    def poll(self, wait_s: float) -> list[bytes]:
        """Return the encoded events since the last call, waiting for the first of them."""
        lines: list[bytes] = []
        with contextlib.suppress(Empty):
            lines.append(self._lines.get(timeout=wait_s))
            while True:
                lines.append(self._lines.get_nowait())
        return lines

    def close(self) -> None:
        """Kill the worker and delete the folder. The actor cannot be used afterwards."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def pids(self) -> tuple[int, int | None]:
        return os.getpid(), None if self._worker is None else self._worker.pid

    def _on_event(self, worker: WorkerConnection, event: messages.Event) -> None:
        if isinstance(event, messages.Loaded):
            event = dataclasses.replace(event, device=f"{self._place} {event.device}")
        if isinstance(event, messages.Failed) and event.kind in (ConfigError.__name__, RemoteError.__name__):
            event = dataclasses.replace(event, message=f"{self._place}: {event.message}")
        self._send(event)

    def _send(self, event: messages.Event) -> None:
        self._lines.put(messages.encode(event))


def _name_place() -> str:
    """Name the node and this actor's GPUs; no address, since receipts are public."""
    gpus = ",".join(str(index) for index in ray.get_gpu_ids())
    node = f"node {ray.get_runtime_context().get_node_id()[:16]}"
    return f"{node} gpu {gpus}" if gpus else node


def _make_folder() -> tuple[Path, FileLock]:
    """Create a locked folder, and delete those whose lock the kernel has released."""
    for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/lock"):
        with contextlib.suppress(OSError, Timeout), FileLock(old, timeout=0, mode=0o600, fallback_to_soft=False):
            shutil.rmtree(old.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = FileLock(folder / "lock", timeout=0, mode=0o600, fallback_to_soft=False)
    lock.acquire()
    return folder, lock
