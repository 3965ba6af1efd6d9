"""The one place that owns torch's process-wide numeric settings, its random streams and its dtype choice.

Nothing here runs at import. Every setting is put back when a score ends, so the score neither depends on what
the process did before nor leaves a trace in it.
"""

import contextlib
import hashlib
import os
import platform
from collections.abc import Iterator
from typing import Any

import peft
import tokenizers
import torch
import transformers

import template
from template.errors import ConfigError

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def choose_device(name: str | None = None) -> torch.device:
    """The device scores run on: the one named, else the first CUDA device, else the CPU.

    Raises: ConfigError when the name is no device of this machine.
    """
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device must be cpu, cuda or cuda:N, not {name!r}") from error
    if device.type == "cuda":
        index = device.index or 0
        if index >= torch.cuda.device_count():
            raise ConfigError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise ConfigError(f"--device must be cpu, cuda or cuda:N, not {name!r}")
    return device


def choose_dtype(device: torch.device, name: str | None = None) -> torch.dtype:
    """The base model's dtype: the one named, else bfloat16 where the device computes it fast, else float32.

    Raises: ConfigError when the name is neither bfloat16 nor float32.
    """
    if name is not None:
        if name not in _DTYPES:
            raise ConfigError(f"--dtype must be bfloat16 or float32, not {name!r}")
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16
    is_fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if is_fast else torch.float32


def thread_count() -> int:
    """CPU threads a score uses: the cores this process may run on, whatever OMP_NUM_THREADS says.

    Reductions split by thread, so a count inherited from the environment would move the number.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Deterministic kernels and fixed threads while a score runs; all of it is put back at the end.

    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    was_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filling: Any = torch.utils.deterministic  # an attribute that torch adds at run time
    was_filling = filling.fill_uninitialized_memory
    was_benchmark = torch.backends.cudnn.benchmark
    was_cudnn_deterministic = torch.backends.cudnn.deterministic
    was_tf32 = torch.backends.cuda.matmul.allow_tf32
    was_threads = torch.get_num_threads()
    # cuBLAS reads this when its handle is made; without it deterministic mode refuses matrix products on CUDA.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cuda_devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda_devices):
        try:
            torch.use_deterministic_algorithms(True)
            # Filling fresh memory guards against reading it uninitialized; nothing here does, and it costs a pass.
            filling.fill_uninitialized_memory = False
            # The subnet's seed sets benchmark; it only picks among convolutions, of which these models have none.
            torch.backends.cudnn.benchmark = True
            torch.backends.cudnn.deterministic = True
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.set_num_threads(thread_count())
            yield
        finally:
            torch.use_deterministic_algorithms(was_deterministic, warn_only=was_warn_only)
            filling.fill_uninitialized_memory = was_filling
            torch.backends.cudnn.benchmark = was_benchmark
            torch.backends.cudnn.deterministic = was_cudnn_deterministic
            torch.backends.cuda.matmul.allow_tf32 = was_tf32
            torch.set_num_threads(was_threads)


def seeded_generator(lucky_num: int, purpose: str, device: torch.device | None = None) -> torch.Generator:
    """A private random stream for one purpose (`adapter`, `order`, `dropout`) of one score.

    Private, because a stream shared with the process would depend on what else draws from it.
    """
    digest = hashlib.sha256(f"{purpose}:{lucky_num}".encode()).digest()
    generator = torch.Generator(device=device or torch.device("cpu"))
    return generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def describe_environment(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Everything outside the inputs that can move the number, by name, for the receipt."""
    if device.type == "cuda":
        device_name, capability = torch.cuda.get_device_name(device), f"cuda {torch.version.cuda}"
    else:
        device_name, capability = _cpu_model(), torch.backends.cpu.get_cpu_capability()
    return {
        "package": template.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "tokenizers": tokenizers.__version__,
        "python": platform.python_version(),
        "device": device.type,
        "device_name": device_name,
        "capability": capability,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": str(thread_count()),
    }


def _cpu_model() -> str:
    """The processor's own name where the kernel tells it, else the architecture."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()
