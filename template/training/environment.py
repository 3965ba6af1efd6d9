"""TODO"""

import contextlib
import hashlib
import os
import platform
import re
from pathlib import Path

import peft
import tokenizers
import torch
import transformers

import template
from template.errors import ConfigError

_DEVICE = re.compile(r"cpu|cuda(?::(?P<index>[0-9]{1,3}))?")


_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


# Variables by which the math libraries choose other kernels, read by them before anything here runs. The number of
# threads is not among them: a score sets its own.
_KERNEL_PREFIXES = (
    "ATEN_CPU_",
    "CUBLAS",
    "CUDNN_",
    "DISABLE_ADDMM_CUDA_LT",
    "DNNL_",
    "GLIBC_TUNABLES",
    "KMP_",
    "MKL_",
    "NVIDIA_TF32",
    "OMP_",
    "ONEDNN_",
    "PYTORCH_TUNABLEOP_",
    "TORCH_",
)


_HARMLESS_VARIABLES = {
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "TORCH_CPP_LOG_LEVEL",
    "TORCH_HOME",
    "TORCH_LOGS",
    "TORCH_SHOW_CPP_STACKTRACES",
}


# Of a receipt's environment, what the machine decides and no release: losses under others are not compared. The
# libraries are the release's, whose LOSS_VERSION speaks for them; torch's build is chosen on the machine.
_MACHINES_OWN = ("capability", "device_name", "kernel_variables", "torch")


CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"


def choose_device(name: str | None = None) -> torch.device:
    """The device scores run on: the one named, else the first CUDA device, else the CPU.

    Raises: ConfigError when the name is no device of this machine.
    """
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    # Not left to torch.device, which keeps an index in eight bits and so takes cuda:256 for cuda:0.
    match = _DEVICE.fullmatch(name)
    if match is None:
        raise ConfigError(f"--device must be cpu, cuda or cuda:N, not {name!r}")
    if name == "cpu":
        return torch.device("cpu")
    index = int(match["index"] or 0)
    if index >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)


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
        "kernel_variables": _kernel_variables(),
    }


def machine_fingerprint(device: torch.device, dtype: torch.dtype) -> str:
    """Eight hex digits that are equal where the machine's own part in the number is, under one release."""
    environment = describe_environment(device, dtype)
    names = (*_MACHINES_OWN, "threads") if device.type == "cpu" else _MACHINES_OWN
    text = "\n".join(f"{name}={environment[name]}" for name in names)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _kernel_variables() -> str:
    """The variables of the environment that steer kernels, as `NAME=value NAME=value`."""
    chosen = {name: value for name, value in os.environ.items() if name.startswith(_KERNEL_PREFIXES)}
    kept = sorted({*chosen.items()} - {CUBLAS_WORKSPACE})
    return " ".join(f"{name}={value}" for name, value in kept if name not in _HARMLESS_VARIABLES)


def _cpu_model() -> str:
    """The processor's own name where the kernel tells it, else the architecture."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()
