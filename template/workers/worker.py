"""The worker process: holds the model and evaluates one dataset at a time.

    python -m template.workers.worker

Started by `template.workers.child`, which writes `template.workers.messages` to its stdin and reads them from its
stdout. It never outlives its parent: it exits at the end of stdin and, on Linux, on a signal from the kernel.
"""

import contextlib
import ctypes
import faulthandler
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, BinaryIO

from loguru import logger

from template.errors import SubnetError
from template.records import Progress
from template.telemetry.logging import configure_logging, quiet_libraries
from template.workers import messages
from template.workers.executor import Evaluator

if TYPE_CHECKING:
    from loguru import Message, Record

# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1


class EventWriter:
    """Thread-safe writer of events, which ignores a reader that is gone."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, event: messages.Event) -> None:
        self.send_line(messages.encode(event))

    def send_line(self, line: bytes) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stream.write(line)
            self._stream.flush()

    def send_progress(self, progress: Progress) -> None:
        self.send(messages.ProgressUpdate(progress=progress, memory_bytes=peak_memory_bytes()))

    def log(self, message: "Message") -> None:
        """Write a log line; a loguru sink."""
        self.send(messages.Logged(level=message.record["level"].name, message=str(message).rstrip("\n")))


def main(evaluator: Evaluator | None = None) -> None:
    """Evaluate until the parent is gone; `evaluator` replaces the parent's."""
    set_parent_death_signal()
    # Ctrl-C and some supervisors signal the whole process tree; the parent decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    commands, events = redirect_stdio()
    # Under memory pressure the kernel should kill this process, not the validator.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    first = commands.readline()
    if not first:
        return
    setup = messages.decode_command(first)
    if not isinstance(setup, messages.Setup):
        raise TypeError("the first command must be the setup")
    jobs: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=read_commands, args=(commands, jobs), name="commands", daemon=True).start()
    writer = EventWriter(events)
    send_logs(writer, setup.log_level)
    serve(evaluator or setup.evaluator, jobs, writer, setup.hub_token)


def set_parent_death_signal() -> None:
    """Have the Linux kernel kill this process when its parent's main thread ends.

    The end of stdin reaches only a running process, not one that is stopped or blocked in a library.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


def redirect_stdio() -> tuple[BinaryIO, BinaryIO]:
    """Return the parent's pipes, and redirect stray prints to stderr."""
    commands, events = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return commands, events


def read_commands(commands: BinaryIO, jobs: SimpleQueue[bytes]) -> None:
    """Queue the parent's lines; exit at their end, even during an evaluation."""
    for line in commands:
        jobs.put(line)
    os._exit(0)


def send_logs(writer: EventWriter, level: str) -> None:
    """Send all log lines of this process, the libraries' included, to the parent."""

    def choose_format(record: "Record") -> str:
        return "{message}\n{extra[exception]}" if "exception" in record["extra"] else "{message}"

    configure_logging(is_trace=level == "TRACE")
    quiet_libraries()
    logger.remove()
    logger.add(writer.log, level=level, format=choose_format, backtrace=False, diagnose=False)


def serve(evaluator: Evaluator, jobs: SimpleQueue[bytes], writer: EventWriter, hub_token: str | None = None) -> None:
    """Load the model, then evaluate job after job; errors become events."""
    try:
        with hub_token_env(hub_token):
            loaded = load(evaluator)
        writer.send(loaded)
    except Exception as error:
        send_failure(writer, error)
        return
    while True:
        job = messages.decode_command(jobs.get())
        if not isinstance(job, messages.Job):
            raise TypeError("expected a job")
        try:
            result = evaluator.evaluate(job.data_dir, job.lucky_num, writer.send_progress)
            writer.send(messages.Evaluated(result=result))
        except Exception as error:
            send_failure(writer, error)


@contextlib.contextmanager
def hub_token_env(hub_token: str | None) -> Iterator[None]:
    """Set HF_TOKEN only while the model is loaded, before any dataset arrives."""
    if hub_token is not None:
        os.environ["HF_TOKEN"] = hub_token
    try:
        yield
    finally:
        os.environ.pop("HF_TOKEN", None)


def send_failure(writer: EventWriter, error: Exception) -> None:
    """Send an error, and log the traceback of an unexpected one."""
    if not isinstance(error, SubnetError):
        logger.opt(exception=error).error("evaluation failed; this is a bug, please report it")
    writer.send(messages.Failed.of(error))


def load(evaluator: Evaluator) -> messages.Loaded:
    """Load the model and describe it, its device and this machine."""
    model = evaluator.load_model()
    from template.training.environment import choose_device, choose_dtype, describe_environment

    device = choose_device(evaluator.device)
    environment = describe_environment(device, choose_dtype(device, evaluator.dtype or evaluator.training_args.dtype))
    return messages.Loaded(model=model, device=str(device), environment=environment)


def peak_memory_bytes() -> int:
    """Return the peak memory: reserved on the GPUs in use, else resident."""
    import torch

    if torch.cuda.is_initialized():
        return sum(torch.cuda.max_memory_reserved(index) for index in range(torch.cuda.device_count()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
    # The interpreter's own exit can hang on a lost device.
    os._exit(0)
