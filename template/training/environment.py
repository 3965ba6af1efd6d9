"""Device and dtype of an evaluation, and all else on which its loss depends."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

import peft
import tokenizers
import torch
import transformers

import template
from template.config import DTYPES
from template.errors import ConfigError
from template.training.devices import TorchBuild, describe_gpus, parse_device

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"

# Environment variables by which math libraries choose their kernels, read before any code here runs.
_KERNEL_PREFIXES = (
    *("ATEN_CPU_", "CUBLAS", "CUDNN_", "DISABLE_ADDMM_CUDA_LT", "DNNL_", "GLIBC_TUNABLES", "KMP_", "MKL_"),
    *("NVIDIA_TF32", "OMP_", "ONEDNN_", "PYTORCH_TUNABLEOP_", "TORCH_"),
)
_HARMLESS_VARIABLES = {
    *("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"),  # the number of threads is set here
    *("TORCH_CPP_LOG_LEVEL", "TORCH_HOME", "TORCH_LOGS", "TORCH_SHOW_CPP_STACKTRACES"),
}

# The parts of a receipt's environment that depend on the machine, not on the release; losses are only compared where
# they are equal. LOSS_VERSIONS covers the libraries of a release, but torch's build depends on the machine.
_MACHINE_FIELDS = ("capability", "device_name", "kernel_variables", "torch")


def choose_device(name: str | None = None) -> torch.device:
    """Return the named device, by default the first GPU, else the CPU; or ConfigError."""
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    index = parse_device(name)
    if index is None:
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        build = TorchBuild(version=torch.__version__, cuda=torch.version.cuda)
        raise ConfigError(f"--device {name}: {describe_gpus(build, torch.cuda.device_count())}")
    return torch.device("cuda", index)


def choose_dtype(device: torch.device, name: str | None = None) -> torch.dtype:
    """Return the named dtype, by default bfloat16 where it is fast, else float32.

    Raises ConfigError for an unknown name, and for bfloat16 on a GPU without it.
    """
    if name is not None:
        if name not in DTYPES:
            raise ConfigError(f"--dtype must be {' or '.join(DTYPES)}, not {name!r}")
        if name == "bfloat16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            raise ConfigError(
                f"{torch.cuda.get_device_name(device)} does not compute bfloat16, which the training arguments or "
                "--dtype ask for; use a GPU of compute capability 8.0 (Ampere) or newer"
            )
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type == "cuda":
        return torch.bfloat16
    is_fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if is_fast else torch.float32


def thread_count() -> int:
    """Return the CPU threads of an evaluation: the cores of this process.

    Not OMP_NUM_THREADS, because reductions are split by thread, so the loss depends on it.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_environment(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Describe everything but the inputs on which a loss depends, for the receipt."""
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
        "kernel_variables": _kernel_variables(),
    }


def machine_fingerprint(device: torch.device, dtype: torch.dtype) -> str:
    """Hash what can change a loss between machines of one release (8 hex digits)."""
    environment = describe_environment(device, dtype)
    names = (*_MACHINE_FIELDS, "threads") if device.type == "cpu" else _MACHINE_FIELDS
    text = "\n".join(f"{name}={environment[name]}" for name in names)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _kernel_variables() -> str:
    variables = {item for item in os.environ.items() if item[0].startswith(_KERNEL_PREFIXES)} - {CUBLAS_WORKSPACE}
    return " ".join(f"{name}={value}" for name, value in sorted(variables) if name not in _HARMLESS_VARIABLES)


def _cpu_model() -> str:
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()
