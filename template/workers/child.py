"""The parent's end of one worker process: how it is started, spoken to, listened to and killed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Container
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

from loguru import logger

import template
from template.errors import HostError
from template.telemetry.redaction import without_secrets
from template.workers import messages

_PACKAGE_ROOT = Path(template.__file__).resolve().parent.parent

# The Hub client's variables for its token, in the order it looks at them.
_HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

# Seconds that a killed process is given to be gone. One that a driver holds in the kernel may take for ever.
_KILL_S = 5.0


def start_module(name: str, *, keep: Container[str] = ()) -> subprocess.Popen[bytes]:
    """A process that runs a module of this package, its stdin and stdout as pipes. Raises: HostError.

    keep: the secrets in this process's environment that it gets; whoever is of the same user reads it in /proc.
    """
    path = os.pathsep.join(filter(None, (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
    try:
        return subprocess.Popen(
            # Without -P, a folder named `template` in the working directory would be taken for this package.
            [sys.executable, "-P", "-m", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**without_secrets(os.environ, keep=keep), "PYTHONPATH": path},
        )
    except OSError as error:
        raise HostError(f"no process can be started: {error}") from error


class WorkerProcess:
    """One worker process. What it writes is told by a thread of its own; its log lines are logged there and then.

    log: where else those go.
    """

    def __init__(
        self,
        setup: messages.Setup,
        tell: Callable[["WorkerProcess", messages.Event], None],
        log: Callable[[messages.Logged], None] | None = None,
    ) -> None:
        """Raises: HostError when no process can be started."""
        self._process = start_module("template.workers.worker")
        self.pid = self._process.pid
        self._tell = tell
        self._log = log or partial(log_line, setup.device or "default device")
        self._reader = threading.Thread(target=self._read, name=f"worker-{self.pid}", daemon=True)
        self._reader.start()
        token = next(filter(None, map(os.environ.get, _HUB_TOKENS)), None)
        # A local folder is loaded without the Hub.
        self.send(replace(setup, hub_token=None if setup.model_path else token))

    def send(self, command: messages.Command) -> None:
        """Writes the command. That nobody reads it is told as the process's end, not here."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(messages.encode(command))
            self._process.stdin.flush()
        except OSError as error:
            logger.debug("worker pid={} does not read: {}", self.pid, error)

    def kill(self) -> None:
        """Asks for the end, which `join` waits for."""
        self._process.kill()

    def join(self) -> None:
        """Waits for the end of a killed process."""
        self._reader.join(_KILL_S)
        if self._reader.is_alive():
            logger.error("worker pid={} cannot be killed; a driver may hold it", self.pid)
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            logger.debug("worker pid={} left its last command unread", self.pid)

    def _read(self) -> None:
        assert self._process.stdout is not None
        why = ""
        with self._process.stdout as stream:
            try:
                self._relay(stream)
            except HostError as error:
                why = str(error)
                self._process.kill()
        status = self._process.wait()
        self._tell(self, messages.WorkerExited(why=why or _describe_status(status)))

    def _relay(self, stream: IO[bytes]) -> None:
        while line := stream.readline(messages.MAX_LINE_BYTES):
            event = messages.decode_event(line)
            if isinstance(event, messages.Logged):
                self._log(event)
            else:
                self._tell(self, event)


def log_line(label: str, event: messages.Logged) -> None:
    """A worker's line of log as one of this process's own."""
    try:
        logger.log(event.level, "[{}] {}", label, event.message)
    except ValueError:
        logger.warning("[{}] {}", label, event.message)  # a level of the worker's own libraries


def _describe_status(status: int) -> str:
    """What ended a process, in words."""
    if status == -signal.SIGKILL:
        return "the worker was killed by SIGKILL, probably by the kernel because the machine ran out of memory"
    if status < 0:
        name = signal.Signals(-status).name if -status in list(signal.Signals) else f"signal {-status}"
        return f"the worker was killed by {name}"
    return f"the worker ended with status {status}; what it wrote before is on stderr"
