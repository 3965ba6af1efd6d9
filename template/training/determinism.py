"""torch's process-wide numeric settings and the random streams of an evaluation.

Nothing is changed at import, and every setting is restored afterwards, so that an evaluation neither depends on the
process nor changes it.
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
from template.training import environment
from template.training.environment import CUBLAS_WORKSPACE
from template.training.heap import return_freed_memory

# All of torch's attention kernels: it takes the best deterministic one, unless a caller has disabled some.
_ATTENTION_KERNELS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]

# Variables with which OpenMP may start fewer threads than requested, with their only harmless value.
_THREAD_VARIABLES = {"OMP_DYNAMIC": "false", "OMP_THREAD_LIMIT": ""}
# Variables that may bind the process to one core, which changes no loss on a GPU.
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

# Enough elements per thread that every thread gets a part of an operation.
_ELEMENTS_PER_THREAD = 2**16


@contextlib.contextmanager
def thread_lanes(count: int) -> Iterator[Executor]:
    """Yield an executor of `count` threads that share an evaluation's threads equally."""
    before = torch.get_num_threads()
    try:
        share = environment.thread_count() // count
        with ThreadPoolExecutor(count, initializer=_set_lane_threads, initargs=(share,)) as executor:
            yield executor
    finally:
        torch.set_num_threads(before)  # per process, not per thread, in some OpenMP libraries
        return_freed_memory()  # of the threads, which the evaluation's thread would not use


def _set_lane_threads(count: int) -> None:
    # The first use of torch in a new thread takes over the number that any thread of the process set last. Have that
    # happen before the number is set.
    torch.get_num_threads()
    torch.set_num_threads(count)


@contextlib.contextmanager
def deterministic_mode(device: torch.device) -> Iterator[None]:
    """Run with deterministic kernels and fixed precision, threads and torch modes.

    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    _reject_variables(device)
    threads = environment.thread_count()
    # cuBLAS reads this when its handle is created; without it deterministic mode rejects matrix products on CUDA.
    os.environ.setdefault(*CUBLAS_WORKSPACE)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))  # new streams and graphs belong to the current device
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
        _check_openmp(threads)
        _check_arithmetic(threads)
        yield
        # The default dtype may change when other threads load models; nothing here depends on it.
        if any(read() != value for read, _, value in pinned):
            raise HostError("another thread of this process changed torch's settings during an evaluation")
        if (cores := environment.thread_count()) != threads:
            raise HostError(f"the cores of this process changed from {threads} to {cores} during an evaluation")


def _reject_variables(device: torch.device) -> None:
    # oneDNN splits a product by the number of threads that it requests. With fewer threads it silently leaves parts of
    # the result unwritten (observed with bfloat16). OpenMP reads these variables before any code here runs.
    rejected = _THREAD_VARIABLES if device.type == "cuda" else _THREAD_VARIABLES | _BINDING_VARIABLES
    for name, harmless in rejected.items():
        if os.environ.get(name, harmless).strip().lower() != harmless:
            raise ConfigError(f"unset {name} in the environment: with it, a CPU computes wrong numbers")
    if os.environ.get("OMP_MAX_ACTIVE_LEVELS", "").strip() == "0":
        raise ConfigError("unset OMP_MAX_ACTIVE_LEVELS in the environment: with 0, a CPU computes wrong numbers")
    name, default = CUBLAS_WORKSPACE
    if device.type != "cuda":
        return
    if os.environ.get(name, default) not in _CUBLAS_WORKSPACES:
        raise ConfigError(f"unset {name} in the environment, or set it to one of {' '.join(_CUBLAS_WORKSPACES)}")
    # CUDA graphs need memory that torch's own caching allocator keeps for them. With another allocator, or without
    # caching, the process crashes or the device fails (observed).
    for name in _ALLOCATOR_VARIABLES:
        if _OTHER_ALLOCATOR.search(os.environ.get(name, "")):
            raise ConfigError(f"unset {name} in the environment, or keep torch's native backend in it")
    if os.environ.get(_NO_CACHING, "0") not in ("", "0"):
        raise ConfigError(f"unset {_NO_CACHING} in the environment: CUDA graphs need cached memory")


def _check_openmp(threads: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        openmp = ctypes.CDLL(torch._C.__file__)  # resolves the OpenMP library that torch is linked with
        is_complete = (
            not openmp.omp_get_dynamic()
            and openmp.omp_get_max_active_levels() > 0
            and openmp.omp_get_thread_limit() >= threads
        )
        if not is_complete:
            raise HostError("other code of this process lets OpenMP start fewer threads than requested")


def _check_arithmetic(threads: int) -> None:
    # Rounding mode and denormal handling are per thread, inherited by new threads, and changed by some libraries when
    # they are loaded. Adding a quarter ulp reveals the rounding direction.
    count = threads * _ELEMENTS_PER_THREAD
    ones, least = torch.ones(count), torch.ones(count, dtype=torch.int32).view(torch.float32)
    quarter = torch.full((count,), 2.0**-26)
    is_nearest = bool((ones + quarter == 1.0).all()) and bool((ones - quarter == 1.0).all())
    if not is_nearest or not bool(((least * 2.0).view(torch.int32) == 2).all()):
        raise HostError("other code of this process changed the rounding mode or the handling of denormal numbers")


def _pinned_settings(threads: int) -> Iterator[tuple[Callable[[], Any], Callable[[Any], None], Any]]:
    """Yield (getter, setter, value) of each global setting that can change a loss."""
    yield torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 2  # raise if nondeterministic
    yield torch.get_num_threads, torch.set_num_threads, threads
    yield torch.is_anomaly_enabled, torch.set_anomaly_enabled, False  # it raises where training diverges
    mkldnn: Any = torch.backends.mkldnn  # torch replaces this module by an object at run time
    attributes: list[tuple[object, str, object]] = [
        # Guards against reading uninitialized memory, which nothing here does, and costs a pass.
        (torch.utils.deterministic, "fill_uninitialized_memory", False),
        # The subnet's protocol sets benchmark; it concerns convolutions only, of which these models have none.
        (torch.backends.cudnn, "benchmark", True),
        (torch.backends.cudnn, "deterministic", True),
        # "high" and "medium" matmul precision replace float32 by tf32 or bfloat16, on CPUs too. Set per backend,
        # because torch rejects the older names once a caller has used the newer ones.
        (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
        (mkldnn.matmul, "fp32_precision", "ieee"),
        (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", True),
        (mkldnn, "enabled", True),
    ]
    for owner, name, value in attributes:
        yield partial(getattr, owner, name), partial(setattr, owner, name), value


def derive_seed(lucky_num: int, purpose: str) -> int:
    """Derive the seed, below 2**63, of one random stream of an evaluation."""
    digest = hashlib.sha256(f"{purpose}:{lucky_num}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def make_generator(lucky_num: int, purpose: str) -> torch.Generator:
    """Create a CPU stream that other draws of the process do not affect."""
    return torch.Generator().manual_seed(derive_seed(lucky_num, purpose))
