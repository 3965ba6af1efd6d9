"""Executor whose workers run in a Ray cluster, one actor for each.

This process never loads Ray: Ray ends a process whose cluster goes away, and blocks for minutes one that searches for a
cluster, and neither may happen to a validator that has weights to set. It starts `template.workers.ray_driver`, which
connects one socket per worker with an actor. The actor (`template.workers.ray_actor`) starts the same child process as
a local worker, so a hang is killed, memory is counted and threads are set as they are locally, and the bits are equal.

Files are sent, the evaluation set at a worker's start and a dataset with its job. The model is not: each machine
downloads it with its own token and cache, or has it at `--model_path`.
"""

import contextlib
import importlib.util
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace

from loguru import logger

from template.errors import ConfigError, HostError
from template.workers import messages
from template.workers.child import WorkerConnection, start_module
from template.workers.executor import Evaluator
from template.workers.messages import RayConfig
from template.workers.supervisor import DEFAULT_TIMEOUTS, WorkerPool
from template.workers.timeouts import WorkerTimeouts

# Time for the driver to end a worker, or everything.
_STOP_S = 10.0
# Ray's own secret, with which a process enters a cluster.
_RAY_SECRETS = ("RAY_AUTH_TOKEN",)


def check_config(config: RayConfig) -> None:
    """Raise a ConfigError for a wrong flag, or if Ray is not installed."""
    host, _, port = config.address.rpartition(":")
    if config.address != "auto" and not (host and port.isdigit() and "/" not in host):
        raise ConfigError(f"--ray.address must be auto or HOST:PORT of the cluster's head, not {config.address!r}")
    if config.workers < 1:
        raise ConfigError(f"--ray.workers must be positive, not {config.workers}")
    if not 0.0 <= config.gpus_per_worker <= 1.0:
        raise ConfigError(f"--ray.gpus_per_worker must be in [0, 1], not {config.gpus_per_worker}")
    if config.cpus_per_worker < 1:
        raise ConfigError(f"--ray.cpus_per_worker must be positive, not {config.cpus_per_worker}")
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--executor ray needs Ray, which scripts/setup.sh installs unless WITHOUT_TOOLS is set")


class RayExecutor(WorkerPool):
    """An `Executor` in a Ray cluster; `start` raises when there is no cluster."""

    kind = "ray"

    def __init__(
        self,
        evaluator: Evaluator,
        config: RayConfig,
        *,
        timeouts: WorkerTimeouts = DEFAULT_TIMEOUTS,
        log_level: str = "DEBUG",
    ) -> None:
        check_config(config)
        devices = ["cuda" if config.gpus_per_worker else "cpu"] * config.workers
        super().__init__(evaluator, devices, timeouts=timeouts, log_level=log_level)
        self._config = config
        self._driver: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        super().close()
        self._stop_driver()

    def _start_worker(self, setup: messages.Setup) -> WorkerConnection:
        if self._driver is None or self._driver.poll() is not None:
            self._stop_driver()
            self._control, theirs = socket.socketpair()
            with theirs:
                module = "template.workers.ray_driver"
                self._driver = start_module(module, keep=_RAY_SECRETS, stdin=theirs, stdout=subprocess.DEVNULL)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"w"], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise HostError(f"the Ray driver exited: {error}") from error
        worker = _RayWorker(ours, self._driver, self._on_event)
        worker.send(self._config)
        # The other machines have caches of their own.
        worker.send(replace(setup, evaluator=replace(setup.evaluator, cache_dir=None)))
        return worker

    def _stop_driver(self) -> None:
        """Let the driver end its workers and itself, or kill it."""
        if self._driver is not None:
            self._control.close()
            try:
                self._driver.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                logger.warning("Ray driver pid={} did not exit in {:.0f} s, killed", self._driver.pid, _STOP_S)
                self._driver.kill()
                self._driver.wait()
            self._driver = None


class _RayWorker(WorkerConnection):
    """A worker in the cluster. The end of the commands ends it."""

    JOIN_S = _STOP_S

    def __init__(
        self,
        connection: socket.socket,
        driver: subprocess.Popen[bytes],
        on_event: Callable[[WorkerConnection, messages.Event], None],
    ) -> None:
        self._driver = driver
        self._socket = connection
        super().__init__(connection.makefile("wb"), connection.makefile("rb"), on_event)

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def _give_up(self) -> None:
        logger.error("the Ray driver cannot end a worker, so it is killed with all its workers")
        self._driver.kill()

    def _exit_event(self) -> messages.WorkerExited:
        self._socket.close()
        return messages.WorkerExited(why="the Ray driver exited; is the cluster gone?", is_machine_lost=True)
