"""The names of devices, and the GPUs of this machine, without loading torch. Standard library only."""

import ctypes
import importlib.util
import re
import runpy
from dataclasses import dataclass
from pathlib import Path

from template.errors import ConfigError

_DEVICE = re.compile(r"cpu|cuda(?::(?P<index>[0-9]{1,3}))?")
# From cuda.h.
_CUDA_SUCCESS = 0
_CUDA_ERROR_NO_DEVICE = 100


@dataclass(frozen=True, kw_only=True)
class TorchBuild:
    """The installed torch. cuda: version that it is built for, None for CPUs alone."""

    version: str
    cuda: str | None


def parse_device(name: str) -> int | None:
    """Return the index of a GPU, None for the CPU. Raises: ConfigError for another name."""
    # torch.device keeps the index in eight bits and takes cuda:256 for cuda:0.
    match = _DEVICE.fullmatch(name)
    if match is None:
        raise ConfigError(f"--device must be cpu, cuda or cuda:N, not {name!r}")
    return None if name == "cpu" else int(match["index"] or 0)


def find_build() -> TorchBuild | None:
    """Return the installed torch, None without one."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    values = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return TorchBuild(version=str(values["__version__"]), cuda=values["cuda"])


def describe_gpus(build: TorchBuild, count: int, reason: str = "finds no GPU") -> str:
    """Describe the GPUs that a build can use, or why there are none. reason: why a build for GPUs has none."""
    if build.cuda is None:
        return f"torch {build.version} is a build for CPUs; install the CUDA build of the same version"
    if not count:
        return f"torch is built for CUDA {build.cuda}, and {reason}; check the driver with nvidia-smi"
    return f"torch finds {count} GPUs"


def count_gpus(build: TorchBuild) -> tuple[int, str]:
    """Return how many GPUs the driver offers to this build, and why if there are none.

    Asks the driver as torch does, so CUDA_VISIBLE_DEVICES counts.
    """
    if build.cuda is None:
        return 0, "it is a build for CPUs"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0, "this machine has no NVIDIA driver (libcuda.so.1)"
    version, count = ctypes.c_int(), ctypes.c_int()
    status = driver.cuInit(0)
    if status == _CUDA_SUCCESS and driver.cuDriverGetVersion(ctypes.byref(version)) == _CUDA_SUCCESS:
        # A driver runs all builds of its own major version. Source: CUDA Compatibility, minor version compatibility.
        if version.value // 1000 < int(build.cuda.split(".")[0]):
            return 0, f"the driver supports CUDA {version.value // 1000}.{version.value % 1000 // 10} only"
        status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status not in (_CUDA_SUCCESS, _CUDA_ERROR_NO_DEVICE):
        return 0, f"the driver failed with CUDA error {status}"
    return count.value, "finds no GPU"
