"""The process that uses Ray; its actors, the workers, end when it ends.

    python -m template.workers.ray_driver

Started by `template.workers.ray_executor`. Stdin is a socket that passes one more socket for each worker, on which
`template.workers.messages` travel: a `RayConfig`, a `Setup`, then jobs one way and events the other. The end of a
socket ends its worker, the end of stdin the process.
"""

import contextlib
import faulthandler
import hashlib
import logging
import os
import signal
import socket
import textwrap
import threading
from pathlib import Path
from typing import Any

# Ray's errors are reported as events, not on stderr. Read when Ray is imported.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from template.constants import DATA_FILE
from template.data.rows import EVAL_SET_LIMITS, SUBMISSION_LIMITS, Limits
from template.errors import ConfigError, HostError
from template.workers import messages
from template.workers.ray_actor import FileContent, WorkerActor
from template.workers.worker import EventWriter

_CONNECT_S = 60.0  # to find the cluster; Ray itself would search for minutes
_POLL_S = 10.0  # for one call of `poll` without an event
_SILENCE_S = 60.0  # without an answer, until the actor's machine counts as lost
_PLACE_S = 20.0  # without room in the cluster, until a warning
_CLOSE_S = 6.0  # for an actor to end its worker
_CONCURRENCY = 4  # methods of an actor: poll, submit, close, and one to spare


class Cluster:
    """The connection to Ray, shared by the threads of all workers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The latest evaluation set in Ray's store, by sha256: it is sent to each machine once.
        self._eval_sets: dict[str, Any] = {}

    def connect(self, address: str) -> None:
        """Join the cluster, once. Raises: ConfigError if that is not possible."""
        with self._lock:
            if not ray.is_initialized():
                _connect(address)

    def share(self, folder: Path) -> Any:
        """Return a reference to the evaluation set in Ray's store, None if missing."""
        content = read_content(folder, EVAL_SET_LIMITS)
        if content is None:
            return None
        with self._lock:
            if content.sha256 not in self._eval_sets:
                self._eval_sets = {content.sha256: ray.put(content)}
            return self._eval_sets[content.sha256]


class ActorHandle:
    """The actor of one worker, and the thread that passes on its events."""

    def __init__(self, config: messages.RayConfig, setup: messages.Setup, eval_set: Any, writer: EventWriter) -> None:
        self._config = config
        self._writer = writer
        self._has_place = False
        actor: Any = ray.remote(WorkerActor)
        self._actor = actor.options(
            num_cpus=config.cpus_per_worker,
            num_gpus=config.gpus_per_worker,
            accelerator_type=config.accelerator_type,
            max_concurrency=_CONCURRENCY,
            max_restarts=0,
        ).remote(messages.encode(setup), eval_set)
        threading.Thread(target=self._pass_events, name="actor-events", daemon=True).start()

    def submit(self, job: messages.Job) -> None:
        """Send the dataset. Raises: HostError when it cannot be read here."""
        self._actor.submit.remote(job.lucky_num, read_content(job.data_dir, SUBMISSION_LIMITS))

    def stop(self) -> None:
        """End the worker and its actor at once."""
        with contextlib.suppress(RayError):
            if self._has_place:
                ray.wait([self._actor.close.remote()], timeout=_CLOSE_S)
        with contextlib.suppress(RayError):
            ray.kill(self._actor)

    def _pass_events(self) -> None:
        try:
            self._wait_for_place()
            while True:
                for line in ray.get(self._actor.poll.remote(_POLL_S), timeout=_SILENCE_S):
                    self._writer.send_line(line)
        except GetTimeoutError:
            why = f"its actor did not answer for {_SILENCE_S:.0f} s"
        except RayActorError as error:
            why = f"its actor was lost: {shorten(error)}"
            if error.actor_init_failed:
                self._writer.send(messages.Failed.of(ConfigError(f"the worker cannot start: {shorten(error)}")))
        except RayError as error:
            why = f"Ray failed: {shorten(error)}"
        self._writer.send(messages.WorkerExited(why=why, is_machine_lost=True))

    def _wait_for_place(self) -> None:
        place = self._actor.pids.remote()
        if not ray.wait([place], timeout=_PLACE_S)[0]:
            wanted = f"{self._config.gpus_per_worker:g} GPUs and {self._config.cpus_per_worker} CPUs"
            kind = f" of type {self._config.accelerator_type}" if self._config.accelerator_type else ""
            message = f"the cluster has no room yet for a worker with {wanted}{kind}; `ray status` shows what it has"
            self._writer.send(messages.Logged(level="WARNING", message=message))
        ray.get(place)
        self._has_place = True


def main() -> None:
    """Serve workers until the validator closes stdin."""
    # Ctrl-C and some supervisors signal the whole process tree; the validator decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    cluster, threads = Cluster(), []
    with socket.socket(fileno=os.dup(0)) as control:
        while fds := socket.recv_fds(control, 1, 1)[1]:
            connection = socket.socket(fileno=fds[0])
            threads.append(threading.Thread(target=serve_worker, args=(connection, cluster), daemon=True))
            threads[-1].start()
    if ray.is_initialized():
        for thread in threads:
            thread.join(_CLOSE_S + 1.0)
        ray.shutdown()


def serve_worker(connection: socket.socket, cluster: Cluster) -> None:
    """Run one worker until the validator closes its connection."""
    with connection, connection.makefile("rb") as commands, connection.makefile("wb") as events:
        writer, actor = EventWriter(events), None
        for line in commands:
            try:
                match messages.decode_command(line):
                    case messages.RayConfig() as config:
                        cluster.connect(config.address)
                    case messages.Setup() as setup:
                        eval_set = cluster.share(setup.evaluator.eval_data_dir)
                        actor = ActorHandle(config, setup, eval_set, writer)
                    case messages.Job() as job if actor is not None:
                        actor.submit(job)
            except ConfigError as error:
                writer.send(messages.Failed.of(error))
                # A thread that still searches for the cluster cannot be stopped, so the next try needs a new process.
                os._exit(1)
            except HostError as error:
                writer.send(messages.Failed.of(error))
            except RayError as error:
                writer.send(messages.WorkerExited(why=f"Ray failed: {shorten(error)}", is_machine_lost=True))
        if actor is not None:
            actor.stop()


def _connect(address: str) -> None:
    failures: list[BaseException] = []

    def join() -> None:
        try:
            if address != "auto":
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S / 2).close()
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except BaseException as error:
            failures.append(error)

    # In a thread of its own, because nothing else ends Ray's search for a cluster.
    thread = threading.Thread(target=join, name="connect", daemon=True)
    thread.start()
    thread.join(_CONNECT_S)
    if thread.is_alive():
        raise ConfigError(f"--ray.address {address}: no cluster answered within {_CONNECT_S:.0f} s")
    for error in failures:
        raise ConfigError(
            f"--ray.address {address}: no cluster of which this machine is a node, with Ray {ray.__version__} and this"
            f" Python: {shorten(error)}"
        ) from error


def read_content(folder: Path, limits: Limits) -> FileContent | None:
    """Read the data file, up to one byte past its limit; None if it is missing."""
    try:
        with (folder / DATA_FILE).open("rb") as stream:
            data = stream.read(limits.file_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"{folder / DATA_FILE}: cannot be read: {error.strerror or error}") from error
    return FileContent(data=data, sha256=hashlib.sha256(data).hexdigest())


def shorten(error: BaseException) -> str:
    """Return an error of Ray in one line, with its beginning and its end."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 400 else f"{textwrap.shorten(words, 200)} ... {words[-200:]}"


if __name__ == "__main__":
    main()
    # Ray's threads can hang the interpreter's own exit.
    os._exit(0)
