"""The worker process: scores what its parent asks for, one dataset at a time, on one device, the model resident.

    python -m template.workers.worker

Started by `template.workers.child`, never by hand: it reads `template.workers.messages` records from stdin and writes
them to
stdout. It never outlives its parent, whose death is the end of stdin, and on Linux a signal from the kernel.
"""

import contextlib
import ctypes
import dataclasses
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
    from loguru import Message

# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1


class EventWriter:
    """The way to the parent: records out under a lock, since logs come from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, event: messages.Event) -> None:
        """Writes the event. Ends the process when nobody is there to read it."""
        line = messages.encode(event)
        with self._lock:
            try:
                self._stream.write(line)
                self._stream.flush()
            except OSError:
                os._exit(0)

    def send_progress(self, progress: Progress) -> None:
        """What a score calls as it goes on."""
        self.send(messages.ProgressUpdate(progress=progress, memory_bytes=peak_memory_bytes()))

    def log(self, message: "Message") -> None:
        """A loguru sink."""
        self.send(messages.Logged(level=message.record["level"].name, message=str(message).rstrip("\n")))


def main() -> None:
    """Loads the model and scores until the parent is gone."""
    set_parent_death_signal()
    # Ctrl-C reaches the whole group, and some supervisors signal every process below theirs: the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    commands, events = redirect_stdio()
    raise_oom_score()
    first = commands.readline()
    if not first:
        return
    setup = messages.decode_command(first)
    if not isinstance(setup, messages.Setup):
        raise TypeError("the first command must be the setup")
    jobs: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=read_commands, args=(commands, jobs), name="commands", daemon=True).start()
    link = EventWriter(events)
    send_logs_to_parent(link, setup.log_level)
    serve(make_evaluator(setup), jobs, link, setup.hub_token)


def set_parent_death_signal() -> None:
    """Asks the kernel, where it is Linux, to kill this process when the parent dies.

    The end of stdin reaches only a process that runs: not one that is stopped, or whose interpreter a library holds.
    The kernel's parent is the thread that started this process, and the executor starts its workers from the main one.
    """
    # No symbol of that name elsewhere. What it answers is not looked at: then there is still stdin.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


def redirect_stdio() -> tuple[BinaryIO, BinaryIO]:
    """Stdin and stdout as the parent's pipes, for this module alone: a stray print goes to stderr from here on."""
    commands, events = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return commands, events


def raise_oom_score() -> None:
    """Asks the kernel to end this process, not the validator, when the machine runs out of memory."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def read_commands(commands: BinaryIO, jobs: SimpleQueue[bytes]) -> None:
    """Queues the parent's lines, and ends the process at once, in mid-training or not, when there are no more."""
    for line in commands:
        jobs.put(line)
    os._exit(0)


def send_logs_to_parent(link: EventWriter, level: str) -> None:
    """Everything that is logged here, the libraries' own lines included, goes to the parent, which has the sinks."""
    configure_logging(is_trace=level == "TRACE")
    quiet_libraries()
    logger.remove()
    logger.add(link.log, level=level, format="{message}", backtrace=False, diagnose=False)


def make_evaluator(setup: messages.Setup) -> Evaluator:
    """The scorer that the parent was given."""
    fields = {field.name: getattr(setup, field.name) for field in dataclasses.fields(Evaluator)}
    for name in ("eval_data_dir", "cache_dir", "model_path"):
        fields[name] = None if fields[name] is None else Path(fields[name])
    return Evaluator(**fields)


def serve(evaluator: Evaluator, jobs: SimpleQueue[bytes], link: EventWriter, hub_token: str | None = None) -> None:
    """Loads, then scores what comes. Every failure is told; which of them end this process is the parent's choice."""
    try:
        with hub_token_env(hub_token):
            loaded = load(evaluator)
        link.send(loaded)
    except Exception as error:
        send_failure(link, error)
        return
    while True:
        job = messages.decode_command(jobs.get())
        if not isinstance(job, messages.Job):
            raise TypeError("expected a job")
        try:
            result = evaluator.evaluate(Path(job.data_dir), job.lucky_num, link.send_progress)
            link.send(messages.Evaluated(result=result))
        except Exception as error:
            send_failure(link, error)


@contextlib.contextmanager
def hub_token_env(hub_token: str | None) -> Iterator[None]:
    """The token where the Hub's client looks for it while a model is fetched, and nowhere once strangers' rows come."""
    if hub_token is not None:
        os.environ["HF_TOKEN"] = hub_token
    try:
        yield
    finally:
        os.environ.pop("HF_TOKEN", None)


def send_failure(link: EventWriter, error: Exception) -> None:
    """The error as an event, with its traceback in the log when nobody meant to raise it."""
    if not isinstance(error, SubnetError):
        logger.opt(exception=error).error("a score failed; this is a bug, please report it")
    link.send(messages.Failed.of(error))


def load(evaluator: Evaluator) -> messages.Loaded:
    """Loads the model; what is to be said of it and of where it is, the device as torch names it.

    Raises: as `Evaluator.load_model`.
    """
    from template.training.environment import choose_device, choose_dtype, describe_environment

    model = evaluator.load_model()
    device = choose_device(evaluator.device)
    environment = describe_environment(device, choose_dtype(device, evaluator.dtype))
    return messages.Loaded(model=model, device=str(device), environment=environment)


def peak_memory_bytes() -> int:
    """The most this process had in use so far: on its GPU where it has one, else resident in the machine's memory."""
    import torch

    if torch.cuda.is_initialized():
        return sum(torch.cuda.max_memory_reserved(index) for index in range(torch.cuda.device_count()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
    # Without the interpreter's own end, which a device that is lost can hang.
    os._exit(0)
