"""The parent's end of a worker: its streams of commands and events, its process."""

import os
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Container
from dataclasses import replace
from typing import IO, Any

from loguru import logger

from template.errors import HostError
from template.telemetry.redaction import child_environment
from template.workers import messages

# The Hub client's variables for its token, in its order.
_HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def start_module(name: str, *, keep: Container[str] = (), **streams: Any) -> subprocess.Popen[bytes]:
    """Start a module as a process, with only those secrets named in `keep`."""
    try:
        # -P: a folder named `template` in the working directory must not be taken for this package.
        return subprocess.Popen([sys.executable, "-P", "-m", name], env=child_environment(keep=keep), **streams)
    except OSError as error:
        raise HostError(f"cannot start a process: {error}") from error


class WorkerConnection(ABC):
    """A worker behind two streams; a thread passes all its events to `on_event`."""

    JOIN_S = 5.0  # for the end of a killed worker

    def __init__(
        self,
        commands: IO[bytes],
        events: IO[bytes],
        on_event: Callable[["WorkerConnection", messages.Event], None],
    ) -> None:
        self._commands = commands
        self._events = events
        self._on_event = on_event
        self._reader = threading.Thread(target=self._read, name="worker-events", daemon=True)
        self._reader.start()

    def send(self, command: messages.Command) -> None:
        """Write a command. The `WorkerExited` event reports a worker that is gone."""
        try:
            self._commands.write(messages.encode(command))
            self._commands.flush()
        except (OSError, ValueError) as error:
            logger.debug("worker does not read: {}", error)

    @abstractmethod
    def kill(self) -> None:
        """Request the end of the worker; `join` waits for it."""

    def join(self) -> None:
        """Wait until a killed worker is gone, for at most `JOIN_S`."""
        self._reader.join(self.JOIN_S)
        if self._reader.is_alive():
            self._give_up()
        try:
            self._commands.close()
        except OSError:
            logger.debug("worker left its last command unread")

    @abstractmethod
    def _give_up(self) -> None:
        """Handle a worker that did not exit in time."""

    @abstractmethod
    def _exit_event(self) -> messages.WorkerExited:
        """Describe the end of the worker, once its events have ended."""

    def _read(self) -> None:
        why = ""
        with self._events as stream:
            try:
                while line := stream.readline(messages.MAX_LINE_BYTES):
                    self._on_event(self, messages.decode_event(line))
            except (HostError, OSError) as error:
                why = str(error)
                self.kill()
        event = self._exit_event()
        self._on_event(self, replace(event, why=why) if why else event)


class WorkerProcess(WorkerConnection):
    """A worker in a child process of this one."""

    def __init__(self, setup: messages.Setup, on_event: Callable[[WorkerConnection, messages.Event], None]) -> None:
        self._process = start_module("template.workers.worker", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = self._process.pid
        assert self._process.stdin is not None and self._process.stdout is not None
        super().__init__(self._process.stdin, self._process.stdout, on_event)
        token = next(filter(None, map(os.environ.get, _HUB_TOKENS)), None)
        # A local folder is loaded without the Hub.
        self.send(replace(setup, hub_token=None if setup.evaluator.model_path else token))

    def kill(self) -> None:
        self._process.kill()

    def _give_up(self) -> None:
        logger.error("worker pid={} cannot be killed; a driver may block it", self.pid)

    def _exit_event(self) -> messages.WorkerExited:
        status = self._process.wait()
        if status == -signal.SIGKILL:
            why = "the worker was killed by SIGKILL, probably by the kernel because the machine ran out of memory"
        elif status < 0:
            name = signal.Signals(-status).name if -status in list(signal.Signals) else f"signal {-status}"
            why = f"the worker was killed by {name}"
        else:
            why = f"the worker exited with status {status}; see its output on stderr"
        return messages.WorkerExited(why=why)
