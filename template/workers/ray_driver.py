"""The process that speaks to Ray for a validator: its workers are this process's actors, and end with it at the latest.

    python -m template.workers.ray_driver

Started by `template.workers.ray_executor`, never by hand. It reads a `messages.RayConfig` from stdin, then lines of a
worker's number
and a record for it, and writes lines alike to stdout. The end of stdin ends it, wherever it waits.
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
from queue import SimpleQueue
from typing import Any, BinaryIO

# Ray's own complaints go to stderr; what they come to is told through the pipe. Read when Ray is imported.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from template.constants import DATA_FILE
from template.data.rows import EVAL_SET_LIMITS, SUBMISSION_LIMITS, Limits
from template.errors import ConfigError, HostError
from template.workers import messages
from template.workers.ray_actor import FileContent, WorkerActor
from template.workers.worker import redirect_stdio

# Seconds to find the cluster. Ray itself would look for minutes.
_CONNECT_S = 60.0

# Seconds that one question to an actor may stay open with nothing to tell, and after which one without any answer is
# taken for lost: with it its machine, or the way there.
_HEAR_S = 10.0
_SILENCE_S = 60.0

# Seconds that a worker waits for a place before that is logged, and that its actor is given to end it.
_ROOM_S = 20.0
_CLOSE_S = 6.0

# Methods of an actor that run beside each other: hear, submit, close, and one to spare.
_CONCURRENCY = 4


class EventWriter:
    """The way to the validator: records under a worker's number, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, number: int, event: messages.Event) -> None:
        """Writes the event."""
        self.send_line(number, messages.encode(event))

    def send_line(self, number: int, line: bytes) -> None:
        """Writes an encoded event. Ends the process when nobody is there to read it."""
        with self._lock:
            try:
                self._stream.write(b"%d %b" % (number, line))
                self._stream.flush()
            except OSError:
                os._exit(0)


class ActorHandle:
    """One worker's actor, and the thread that listens to it."""

    def __init__(
        self, number: int, link: EventWriter, cluster: messages.RayConfig, setup: messages.Setup, eval_set: Any
    ) -> None:
        """eval_set: a reference to the `FileContent` in Ray's store, or None."""
        self._number = number
        self._link = link
        self._cluster = cluster
        self._has_place = False
        actor: Any = ray.remote(WorkerActor)
        self._actor = actor.options(
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus,
            accelerator_type=cluster.accelerator_type,
            max_concurrency=_CONCURRENCY,
            max_restarts=0,
        ).remote(messages.encode(setup), eval_set)
        threading.Thread(target=self._listen, name=f"worker-{number}", daemon=True).start()

    def submit(self, job: messages.Job) -> None:
        """Sends the dataset. Raises: HostError when it cannot be read here."""
        dataset = read_content(Path(job.data_dir), SUBMISSION_LIMITS)
        self._actor.submit.remote(job.lucky_num, dataset)

    def stop(self) -> None:
        """Ends the worker and its actor, whatever they do."""
        with contextlib.suppress(RayError):
            if self._has_place:
                ray.wait([self._actor.close.remote()], timeout=_CLOSE_S)
        with contextlib.suppress(RayError):
            ray.kill(self._actor)
        # Whether or not the listener hears of it: the way to the machine may be what is broken.
        self._lose("it was ended")

    def _listen(self) -> None:
        try:
            self._wait_for_place()
            while True:
                for line in ray.get(self._actor.poll.remote(_HEAR_S), timeout=_SILENCE_S):
                    self._link.send_line(self._number, line)
        except GetTimeoutError:
            self._lose(f"its actor did not answer for {_SILENCE_S:.0f} s")
        except RayActorError as error:
            if error.actor_init_failed:
                self._link.send(
                    self._number, messages.Failed.of(ConfigError(f"no worker starts there: {shorten(error)}"))
                )
            self._lose(f"its actor was lost: {shorten(error)}")
        except RayError as error:
            self._lose(f"Ray failed: {shorten(error)}")

    def _wait_for_place(self) -> None:
        place = self._actor.pids.remote()
        if not ray.wait([place], timeout=_ROOM_S)[0]:
            wanted = f"{self._cluster.gpus:g} GPUs and {self._cluster.cpus} CPUs"
            kind = f" of type {self._cluster.accelerator_type}" if self._cluster.accelerator_type else ""
            message = f"the cluster has no room yet for a worker with {wanted}{kind}; `ray status` shows what it has"
            self._link.send(self._number, messages.Logged(level="WARNING", message=message))
        ray.get(place)
        self._has_place = True

    def _lose(self, why: str) -> None:
        self._link.send(self._number, messages.WorkerExited(why=why, is_machine_lost=True))


class Driver:
    """Carries out the validator's commands, one after the other."""

    def __init__(self, link: EventWriter, cluster: messages.RayConfig) -> None:
        self._link = link
        self._cluster = cluster
        self._held: dict[int, ActorHandle] = {}
        # The evaluation set in Ray's store, by sha256: sent to each machine once.
        self._eval_sets: dict[str, Any] = {}

    def handle(self, line: bytes) -> None:
        """One command. What befalls it is told as that worker's error."""
        digits, _, record = line.partition(b" ")
        number, command = int(digits), messages.decode_command(record)
        try:
            self._handle(number, command)
        except (HostError, ConfigError) as error:
            self._link.send(number, messages.Failed.of(error))
        except RayError as error:
            self._link.send(number, messages.WorkerExited(why=f"Ray failed: {shorten(error)}", is_machine_lost=True))

    def _handle(self, number: int, command: messages.Command) -> None:
        match command:
            case messages.Setup():
                eval_set = self._share(Path(command.eval_data_dir))
                self._held[number] = ActorHandle(number, self._link, self._cluster, command, eval_set)
            case messages.Job() if number in self._held:
                self._held[number].submit(command)
            case messages.StopWorker() if number in self._held:
                threading.Thread(target=self._held.pop(number).stop, daemon=True).start()

    def close(self) -> None:
        """Ends all workers, and the connection."""
        held, self._held = list(self._held.values()), {}
        threads = [threading.Thread(target=each.stop, daemon=True) for each in held]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_CLOSE_S + 1.0)
        ray.shutdown()

    def _share(self, folder: Path) -> Any:
        content = read_content(folder, EVAL_SET_LIMITS)
        if content is None:
            return None
        if content.sha256 not in self._eval_sets:
            self._eval_sets = {content.sha256: ray.put(content)}
        return self._eval_sets[content.sha256]


def main() -> None:
    """Serves until the validator closes the pipe."""
    # Ctrl-C reaches the whole group, and some supervisors signal every process below theirs: the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    commands, events = redirect_stdio()
    first = commands.readline()
    if not first:
        return
    cluster = messages.decode_command(first)
    if not isinstance(cluster, messages.RayConfig):
        raise TypeError("the first command must be the cluster")
    link, lines = EventWriter(events), SimpleQueue[bytes]()
    driver = Driver(link, cluster)
    threading.Thread(target=read_commands, args=(commands, lines, driver), name="commands", daemon=True).start()
    line = lines.get()
    try:
        connect(cluster)
    except ConfigError as error:
        # To whoever is waiting; the rest hear it from this process's end, and the next attempt has a new process.
        link.send(int(line.partition(b" ")[0]), messages.Failed.of(error))
        return
    # Ray has put its own handler in the place of the default, which would take its time.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        driver.handle(line)
        line = lines.get()


def read_commands(commands: BinaryIO, lines: "SimpleQueue[bytes]", driver: Driver) -> None:
    """Queues the validator's lines, and ends everything when there are no more."""
    for line in commands:
        lines.put(line)
    with contextlib.suppress(Exception):
        driver.close()
    os._exit(0)


def connect(cluster: messages.RayConfig) -> None:
    """Joins the cluster. Raises: ConfigError when there is none, or one that this Ray cannot join."""
    where = f"--ray.address {cluster.address}"
    failure: list[BaseException] = []

    def join() -> None:
        try:
            if cluster.address != "auto":
                host, _, port = cluster.address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S / 2).close()
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        except BaseException as error:
            failure.append(error)

    # In a thread of its own, because nothing ends Ray's search for a cluster.
    thread = threading.Thread(target=join, name="connect", daemon=True)
    thread.start()
    thread.join(_CONNECT_S)
    if thread.is_alive():
        raise ConfigError(f"{where}: no cluster answers within {_CONNECT_S:.0f} s")
    for error in failure:
        raise ConfigError(
            f"{where}: no cluster that this machine is a node of, and that runs this Ray {ray.__version__} and"
            f" Python: {shorten(error)}"
        ) from error


def read_content(folder: Path, limits: Limits) -> FileContent | None:
    """The folder's data file, up to one byte past its limit, which is enough to be refused; None where there is none.

    Raises: HostError when it cannot be read.
    """
    try:
        with (folder / DATA_FILE).open("rb") as stream:
            data = stream.read(limits.file_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"{folder / DATA_FILE}: cannot be read: {error.strerror or error}") from error
    return FileContent(data=data, sha256=hashlib.sha256(data).hexdigest())


def shorten(error: BaseException) -> str:
    """An error of Ray's in one line, of which the end says most."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 400 else f"{textwrap.shorten(words, 200)} ... {words[-200:]}"


if __name__ == "__main__":
    main()
    # Without the interpreter's own end, in which Ray's threads can hang.
    os._exit(0)
