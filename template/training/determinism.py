"""The one place that owns torch's process-wide numeric settings, its random streams and its dtype choice.

Nothing here runs at import. Every setting is put back when a score ends, so the score neither depends on what
the process did before nor leaves a trace in it.
"""

import contextlib
import ctypes
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from template.errors import ConfigError, HostError
from template.training.environment import CUBLAS_WORKSPACE, thread_count

# All that torch has: it takes the best that is deterministic, unless a caller has switched some off.
_ATTENTION_KERNELS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]


# Variables by which OpenMP gives fewer threads than it is asked for, with the only value that does not.
_TEAM_VARIABLES = {"OMP_DYNAMIC": "false", "OMP_THREAD_LIMIT": ""}
# Those by which it keeps this process on one core, which moves no number beside a GPU.
_BINDING_VARIABLES = {
    "OMP_PLACES": "",
    "OMP_PROC_BIND": "false",
    "GOMP_CPU_AFFINITY": "",
    "KMP_AFFINITY": "disabled",
}

_CUBLAS_WORKSPACES = (":4096:8", ":16:8")

_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_OTHER_ALLOCATOR = re.compile(r"backend\s*:\s*(?!native)\w")
_NO_CACHING = "PYTORCH_NO_CUDA_MEMORY_CACHING"

# Elements of an operation that each thread of a team takes a part of.
_ELEMENTS_PER_THREAD = 2**16


@contextlib.contextmanager
def thread_lanes(count: int) -> Iterator[Executor]:
    """Threads that work side by side while a score runs, each with its share of the score's own; then all as before."""
    before = torch.get_num_threads()
    try:
        share = thread_count() // count
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)  # for some libraries it is the process's number, not the thread's


@contextlib.contextmanager
def deterministic_mode(device: torch.device) -> Iterator[None]:
    """Deterministic kernels, fixed precision and threads while a score runs; all of it is put back at the end.

    Modes of the caller (no_grad, inference_mode, autocast, a default device) do not reach inside.
    Raises: ConfigError when the environment lets OpenMP give fewer threads than it is asked for, makes cuBLAS
    indeterminate, or puts another allocator in the place of torch's own on a GPU; HostError when other code of this
    process has OpenMP do so, has changed how its threads round, or changes the settings or the cores meanwhile.
    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    _refuse_variables(device)
    threads = thread_count()
    # cuBLAS reads this when its handle is made; without it deterministic mode refuses matrix products on CUDA.
    os.environ.setdefault(*CUBLAS_WORKSPACE)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))  # streams and graphs belong to the current one
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(sdpa_kernel(_ATTENTION_KERNELS))
        if torch.get_default_device().type != "cpu":
            stack.callback(torch.set_default_device, torch.get_default_device())
            torch.set_default_device(None)
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        pinned = list(_pinned_settings(threads))
        for read, write, value in pinned:
            stack.callback(write, read())
            write(value)
        _require_whole_teams(threads)
        _require_plain_arithmetic(threads)
        yield
        # The default dtype may change: others load models meanwhile, and nothing here takes it.
        if any(read() != value for read, _, value in pinned):
            raise HostError("another thread of this process changed torch's settings while it scored")
        if thread_count() != threads:
            raise HostError(f"the cores of this process went from {threads} to {thread_count()} while it scored")


def _refuse_variables(device: torch.device) -> None:
    # oneDNN splits a product by the threads it asks for. Given fewer it leaves parts of the result unwritten, without
    # a word (seen with bfloat16). OpenMP reads these before anything here runs, so they can only be refused.
    refused = _TEAM_VARIABLES if device.type == "cuda" else _TEAM_VARIABLES | _BINDING_VARIABLES
    for name, harmless in refused.items():
        if os.environ.get(name, harmless).strip().lower() != harmless:
            raise ConfigError(f"unset {name} in the environment: with it, a CPU computes wrong numbers")
    if os.environ.get("OMP_MAX_ACTIVE_LEVELS", "").strip() == "0":
        raise ConfigError("unset OMP_MAX_ACTIVE_LEVELS in the environment: with 0, a CPU computes wrong numbers")
    name, usual = CUBLAS_WORKSPACE
    if device.type != "cuda":
        return
    if os.environ.get(name, usual) not in _CUBLAS_WORKSPACES:
        raise ConfigError(f"unset {name} in the environment, or make it one of {' '.join(_CUBLAS_WORKSPACES)}")
    # Recorded graphs work in memory that torch's own allocator keeps for them. With another one, or with none that
    # keeps any, the process ends or the device fails (seen).
    for name in _ALLOCATOR_VARIABLES:
        if _OTHER_ALLOCATOR.search(os.environ.get(name, "")):
            raise ConfigError(f"unset {name} in the environment, or leave torch's own backend in it")
    if os.environ.get(_NO_CACHING, "0") not in ("", "0"):
        raise ConfigError(f"unset {_NO_CACHING} in the environment: graphs need memory that stays where it is")


def _require_whole_teams(threads: int) -> None:
    """As `_refuse_variables`, of what other code asked of the OpenMP library that torch runs on, where it has one."""
    with contextlib.suppress(OSError, AttributeError):
        openmp = ctypes.CDLL(torch._C.__file__)  # finds what torch is linked with, whatever its name
        is_whole = (
            not openmp.omp_get_dynamic()
            and openmp.omp_get_max_active_levels() > 0
            and openmp.omp_get_thread_limit() >= threads
        )
        if not is_whole:
            raise HostError("other code of this process lets OpenMP give fewer threads than it is asked for")


def _require_plain_arithmetic(threads: int) -> None:
    # Rounding and what becomes of the least numbers are settings of each thread's own, which new threads inherit and
    # some libraries change when they are loaded. A part of an ulp more or less tells the direction of rounding.
    count = threads * _ELEMENTS_PER_THREAD
    ones, least = torch.ones(count), torch.ones(count, dtype=torch.int32).view(torch.float32)
    quarter = torch.full((count,), 2.0**-26)
    is_nearest = bool((ones + quarter == 1.0).all()) and bool((ones - quarter == 1.0).all())
    if not is_nearest or not bool(((least * 2.0).view(torch.int32) == 2).all()):
        raise HostError("other code of this process changed how its threads round or treat denormal numbers")


def _pinned_settings(threads: int) -> Iterator[tuple[Callable[[], Any], Callable[[Any], None], Any]]:
    """Every process-wide setting of torch that can move the number: how to read it, to write it, and its value."""
    yield torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 2  # errors on what is not
    yield torch.get_num_threads, torch.set_num_threads, threads
    yield torch.is_anomaly_enabled, torch.set_anomaly_enabled, False  # it would make an error of what diverges
    mkldnn: Any = torch.backends.mkldnn  # a module that torch replaces by an object at run time
    attributes: list[tuple[object, str, object]] = [
        # Filling fresh memory guards against reading it uninitialized; nothing here does, and it costs a pass.
        (torch.utils.deterministic, "fill_uninitialized_memory", False),
        # The subnet's seed sets benchmark; it only picks among convolutions, of which these models have none.
        (torch.backends.cudnn, "benchmark", True),
        (torch.backends.cudnn, "deterministic", True),
        # float32 means float32: "high" and "medium" matmul precision put tf32 or bfloat16 in its place, CPUs included.
        # Read and written per backend, because torch refuses the older names once a caller has used the newer.
        (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
        (mkldnn.matmul, "fp32_precision", "ieee"),
        (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", True),
        (mkldnn, "enabled", True),
    ]
    for owner, name, value in attributes:
        yield partial(getattr, owner, name), partial(setattr, owner, name), value


def derive_seed(lucky_num: int, purpose: str) -> int:
    """The seed, below 2**63, of a private random stream for one purpose of one score: `adapter`, `order`, `dropout`."""
    digest = hashlib.sha256(f"{purpose}:{lucky_num}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def make_generator(lucky_num: int, purpose: str) -> torch.Generator:
    """A private random stream on the CPU.

    Private, because a stream shared with the process would depend on what else draws from it.
    """
    return begin_stream(torch.Generator(), derive_seed(lucky_num, purpose))


def begin_stream(generator: torch.Generator, seed: int) -> torch.Generator:
    """The generator, at the beginning of the stream `seed`, 0 <= seed < 2**63."""
    return generator.manual_seed(seed)
