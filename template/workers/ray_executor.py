"""Scores on the machines of a Ray cluster: one actor for each worker, the model resident in a process below it.

What a worker is, how long it may take, when it is replaced and what its failures mean is `template.workers.supervisor`;
only the way to it is longer. This process starts another, `template.workers.ray_driver`, which alone speaks to Ray.
Ray ends
a process whose cluster goes away, and blocks one for minutes that looks for a cluster in vain; neither may happen to a
validator that has weights to set. In the cluster, an actor (`template.workers.ray_actor`) starts the same child
process that a
local worker is. So a hang is killed, memory is counted and threads are set as they are at home, and the bits are those
of a local score on a like machine.

Files travel with the work, so no folder is shared: the evaluation set when a worker starts, a dataset with its job.
The model does not: a worker takes it from the Hub at the pinned revision, into the Hub client's own cache there and
with the token of that machine, or from `--model_path`, which must be there.

A machine that goes away ends its job as a RemoteError, after which the validator gives the submission to another
worker: such losses are no sign of a bad submission, so they never count towards parking it.
"""

import importlib.util
import itertools
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from loguru import logger

from template.errors import ConfigError, HostError
from template.records import TrainResult
from template.workers import messages
from template.workers.child import log_line, start_module
from template.workers.executor import Evaluator
from template.workers.supervisor import Worker, WorkerPool
from template.workers.timeouts import WorkerTimeouts

_DEFAULT_TIMEOUTS = WorkerTimeouts()

# Seconds that the driver is given to end one worker, or all of them and itself.
_STOP_S = 10.0

# By which Ray knows its own where a cluster asks for it.
_RAY_SECRETS = ("RAY_AUTH_TOKEN",)


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """The cluster, and the number and resources of its workers; see `messages.RayConfig`.

    Ray counts both and binds nothing to a CPU: a score runs threads on all the cores that the node may use.
    """

    address: str = "auto"
    workers: int = 1
    gpus_per_worker: float = 1.0
    cpus_per_worker: int = 1
    accelerator_type: str | None = None

    def check(self) -> None:
        """Raises: ConfigError naming the flag that is wrong, or saying that Ray is not installed."""
        host, _, port = self.address.rpartition(":")
        if self.address != "auto" and not (host and port.isdigit() and "/" not in host):
            raise ConfigError(f"--ray.address must be auto or HOST:PORT of the cluster's head, not {self.address!r}")
        if self.workers < 1:
            raise ConfigError(f"--ray.workers must be positive, not {self.workers}")
        if not 0.0 <= self.gpus_per_worker <= 1.0:
            raise ConfigError(
                f"--ray.gpus_per_worker must lie in [0, 1], not {self.gpus_per_worker}: a score runs on one GPU"
            )
        if self.cpus_per_worker < 1:
            raise ConfigError(f"--ray.cpus_per_worker must be positive, not {self.cpus_per_worker}")
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("--executor ray needs Ray, which scripts/setup.sh installs unless WITHOUT_TOOLS is set")


class RayExecutor(WorkerPool):
    """An `Executor` in a Ray cluster. Arguments beside `options` are those of `WorkerPool`.

    Raises: ConfigError as `RayOptions.check`. That there is no cluster is told by `start`.
    """

    kind = "ray"

    def __init__(
        self,
        evaluator: Evaluator,
        options: RayOptions,
        *,
        past_results: Sequence[TrainResult] = (),
        timeouts: WorkerTimeouts = _DEFAULT_TIMEOUTS,
        log_level: str = "DEBUG",
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        options.check()
        devices = ["cuda" if options.gpus_per_worker else "cpu"] * options.workers
        super().__init__(
            evaluator, devices, past_results=past_results, timeouts=timeouts, log_level=log_level, clock=clock, now=now
        )
        self._cluster = messages.RayConfig(
            address=options.address,
            gpus=options.gpus_per_worker,
            cpus=options.cpus_per_worker,
            accelerator_type=options.accelerator_type,
        )
        self._driver: _Driver | None = None

    def close(self) -> None:
        super().close()
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def _start(self, setup: messages.Setup) -> Worker:
        if self._driver is None or self._driver.is_over:
            if self._driver is not None:
                self._driver.close()
            self._driver = _Driver(self._cluster)
        # This machine's folders are not those of the others.
        return self._driver.start_worker(replace(setup, cache_dir=None), self._on_event)


class _Driver:
    """The process that speaks to Ray for all workers. When it ends, all of them have."""

    def __init__(self, cluster: messages.RayConfig) -> None:
        """Raises: HostError when no process can be started."""
        self._process: subprocess.Popen[bytes] = start_module("template.workers.ray_driver", keep=_RAY_SECRETS)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._workers: dict[int, _RayWorker] = {}
        self._is_over = False
        self._reader = threading.Thread(target=self._read, name=f"ray-driver-{self._process.pid}", daemon=True)
        self._reader.start()
        self._write(messages.encode(cluster))

    @property
    def is_over(self) -> bool:
        """True once the process is gone, or no longer to be used."""
        return self._is_over

    def start_worker(self, setup: messages.Setup, tell: Callable[[Worker, messages.Event], None]) -> "_RayWorker":
        """A new worker in the cluster. That there is none is told as its end."""
        worker = _RayWorker(self, next(self._numbers), tell)
        with self._lock:
            self._workers[worker.number] = worker
        worker.send(setup)
        if self._is_over:
            self._tell_end("the process that speaks to Ray ended")
        return worker

    def send(self, number: int, command: messages.Command) -> None:
        """Writes the command for one worker. That nobody reads it is told as the worker's end."""
        self._write(b"%d %b" % (number, messages.encode(command)))

    def abandon(self) -> None:
        """Kills the process, and with it what is left of all its workers, which Ray then ends."""
        self._is_over = True
        self._process.kill()

    def close(self) -> None:
        """Has the process end its workers and itself, and waits for that; kills it when it does not."""
        self._is_over = True
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            logger.debug("the Ray driver left its last command unread")
        self._reader.join(_STOP_S)
        if self._reader.is_alive():
            logger.warning("the Ray driver pid={} did not end in {:.0f} s and is killed", self._process.pid, _STOP_S)
            self._process.kill()
            self._reader.join(_STOP_S)

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            logger.debug("the Ray driver does not read: {}", error)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            try:
                while line := stream.readline(messages.MAX_LINE_BYTES):
                    self._relay(line)
            except (HostError, ValueError) as error:
                logger.error("the Ray driver: {}", error)
                self._process.kill()
        status = self._process.wait()
        self._is_over = True
        self._tell_end(f"the process that speaks to Ray ended with status {status}; is the cluster gone?")

    def _relay(self, line: bytes) -> None:
        number, _, record = line.partition(b" ")
        event = messages.decode_event(record)
        with self._lock:
            worker = self._workers.get(int(number))
        if worker is None:
            return
        if isinstance(event, messages.WorkerExited):
            with self._lock:
                del self._workers[worker.number]
        worker.take(event)

    def _tell_end(self, why: str) -> None:
        with self._lock:
            left, self._workers = list(self._workers.values()), {}
        for worker in left:
            worker.take(messages.WorkerExited(why=why, is_machine_lost=True))


class _RayWorker:
    """This end of one worker in the cluster."""

    def __init__(self, driver: _Driver, number: int, tell: Callable[[Worker, messages.Event], None]) -> None:
        self.number = number
        self._driver = driver
        self._tell = tell
        self._label = f"worker {number}"
        self._ended = threading.Event()

    def send(self, command: messages.Command) -> None:
        self._driver.send(self.number, command)

    def kill(self) -> None:
        self.send(messages.StopWorker())

    def join(self) -> None:
        if not self._ended.wait(_STOP_S):
            logger.error("the Ray driver cannot end {}; it is killed, and all its workers with it", self._label)
            self._driver.abandon()

    def take(self, event: messages.Event) -> None:
        """Passes on what the worker said; called by the driver's thread alone."""
        if isinstance(event, messages.Logged):
            log_line(self._label, event)
            return
        if isinstance(event, messages.Loaded):
            self._label = event.device
        if isinstance(event, messages.WorkerExited):
            self._ended.set()
        self._tell(self, event)
