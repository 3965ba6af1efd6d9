"""Disturbances of an evaluating process by other code within it.

Each disturbance is a context around the evaluations, whose value is called with their progress. The end of the process
undoes what the context does not.
"""

import contextlib
import ctypes
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from template.records import Progress
from template.training.loop import OnProgress, ignore_progress

Disturb = Callable[[], contextlib.AbstractContextManager[OnProgress]]

# From fenv.h, by kind of processor: to nearest, down, up, to zero.
_X86, _ARM = (0x0, 0x400, 0x800, 0xC00), (0x0, 0x800000, 0x400000, 0xC00000)
_NEAREST, DOWN, UP, TO_ZERO = _X86 if os.uname().machine in ("x86_64", "i686") else _ARM


def _inside(open_context: Callable[[], contextlib.AbstractContextManager[Any]]) -> Disturb:
    """Return a disturbance that puts all evaluations into a context."""

    @contextmanager
    def disturb() -> Iterator[OnProgress]:
        with open_context():
            yield ignore_progress

    return disturb


def _once(*acts: Callable[[], Any]) -> Disturb:
    """Return a disturbance that acts once, before the first evaluation."""
    return _inside(lambda: contextlib.nullcontext([act() for act in acts]))


undisturbed = _once()


def _beside(act: Callable[[], Any], threads: int = 1) -> Disturb:
    """Return a disturbance by threads that act again and again meanwhile."""

    @contextmanager
    def disturb() -> Iterator[OnProgress]:
        is_over = threading.Event()

        def loop() -> None:
            while not is_over.is_set():
                act()

        working = [threading.Thread(target=loop, daemon=True) for _ in range(threads)]
        for thread in working:
            thread.start()
        try:
            yield ignore_progress
        finally:
            is_over.set()
            for thread in working:
                thread.join()

    return disturb


def _round(direction: int) -> None:
    ctypes.CDLL("libm.so.6").fesetround(direction)


def _openmp() -> Any:
    return ctypes.CDLL(torch._C.__file__)


def _use_team() -> None:
    """Start all threads, which take over the settings of this one."""
    torch.ones(8_000_000).mul_(2)


def _tick(timer: int, number: int) -> None:
    signal.signal(number, lambda *_: None)
    signal.setitimer(timer, 0.001, 0.001)


def _fragment() -> None:
    draw = random.Random(0)
    tensors = [torch.empty(draw.randrange(1, 200_000)) for _ in range(5_000)]
    _FRAGMENTS.extend(tensors[::2])


_FRAGMENTS: list[torch.Tensor] = []


def _write_precision() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def _set(owner: Any, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


def _switch_threads() -> None:
    for count in (3, 7):
        torch.set_num_threads(count)
        time.sleep(1e-4)


def _draw() -> None:
    torch.manual_seed(1)
    random.seed(1)
    torch.nn.functional.dropout(torch.rand(1000), 0.5)


def _multiply() -> None:
    left = torch.randn(256, 256, device="cuda" if torch.cuda.is_available() else "cpu")
    left @ left


@contextmanager
def _take_cores_late() -> Iterator[OnProgress]:
    """Put all threads on one core in mid-training, as a container manager may."""

    def on_progress(progress: Progress) -> None:
        if progress.stage == "train":
            for task in Path("/proc/self/task").iterdir():
                os.sched_setaffinity(int(task.name), {min(os.sched_getaffinity(0))})

    yield on_progress


@contextmanager
def _stop_and_go() -> Iterator[OnProgress]:
    """Stop and continue the process from outside."""
    pid, own = os.getpid(), os.fork()
    if own == 0:
        while os.getppid() == pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.02)
                os.kill(pid, signal.SIGCONT)
            time.sleep(0.05)
        os._exit(0)
    try:
        yield ignore_progress
    finally:
        os.kill(own, signal.SIGKILL)
        os.waitpid(own, 0)


DISTURBANCES: dict[str, Disturb] = {
    # Arithmetic of threads.
    "denormals flushed": _once(lambda: torch.set_flush_denormal(True)),
    "denormals flushed in the team alone": _once(
        lambda: torch.set_flush_denormal(True), _use_team, lambda: torch.set_flush_denormal(False)
    ),
    "rounding up": _once(lambda: _round(UP)),
    "rounding down": _once(lambda: _round(DOWN)),
    "rounding to zero": _once(lambda: _round(TO_ZERO)),
    "rounding up in the team alone": _once(lambda: _round(UP), _use_team, lambda: _round(_NEAREST)),
    # OpenMP.
    "omp_set_dynamic(1)": _once(lambda: _openmp().omp_set_dynamic(1)),
    "omp_set_max_active_levels(0)": _once(lambda: _openmp().omp_set_max_active_levels(0)),
    "torch.set_num_threads(1)": _once(lambda: torch.set_num_threads(1)),
    "torch.set_num_threads(7)": _once(lambda: torch.set_num_threads(7)),
    "set_num_threads in another thread": _beside(_switch_threads),
    "cores taken away in mid-training": _take_cores_late,
    # Modes and switches of torch.
    "default dtype float64": _once(lambda: torch.set_default_dtype(torch.float64)),
    "default device meta": _once(lambda: torch.set_default_device("meta")),
    "autocast": _inside(lambda: torch.autocast("cuda" if torch.cuda.is_available() else "cpu", dtype=torch.bfloat16)),
    "no_grad": _inside(torch.no_grad),
    "inference_mode": _inside(torch.inference_mode),
    "deterministic off": _once(lambda: torch.use_deterministic_algorithms(False)),
    "deterministic on, warn only": _once(lambda: torch.use_deterministic_algorithms(True, warn_only=True)),
    "low precision products": _once(_write_precision),
    "medium matmul precision": _once(lambda: torch.set_float32_matmul_precision("medium")),
    "oneDNN off": _once(_set(torch.backends.mkldnn, "enabled", False)),
    "cuDNN's benchmark off": _once(_set(torch.backends.cudnn, "benchmark", False)),
    "anomaly mode": _once(lambda: torch.autograd.set_detect_anomaly(True)),
    "attention by plain products": _inside(lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)),
    "random streams used beside": _beside(_draw),
    # The process.
    "garbage collection off": _once(gc.disable),
    "garbage collection at every object": _once(lambda: gc.set_threshold(1, 1, 1)),
    "a signal every millisecond": _once(lambda: _tick(signal.ITIMER_REAL, signal.SIGALRM)),
    "a profiler's signal every millisecond": _once(lambda: _tick(signal.ITIMER_PROF, signal.SIGPROF)),
    "stopped and continued": _stop_and_go,
    "a Python profiler": _once(lambda: sys.setprofile(lambda *_: None)),
    "threads of products beside": _beside(_multiply, threads=2),
    "threads of Python beside": _beside(lambda: sum(range(1000)), threads=2),
    "memory in fragments": _once(_fragment),
}
