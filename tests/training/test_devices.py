"""GPUs and torch's build, without torch."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from template.errors import ConfigError
from template.training import devices
from template.training.devices import TorchBuild, count_gpus, describe_gpus, find_build, parse_device

CPU, CUDA = TorchBuild(version="2.13.0+cpu", cuda=None), TorchBuild(version="2.13.0+cu130", cuda="13.0")


def make_driver(*, status: int = 0, version: int = 13000, count: int = 2) -> SimpleNamespace:
    """Make a driver with these answers."""

    def answer(value: int) -> object:
        def call(pointer: object) -> int:
            pointer._obj.value = value  # type: ignore[attr-defined]
            return 0

        return call

    return SimpleNamespace(
        cuInit=lambda flags: status, cuDriverGetVersion=answer(version), cuDeviceGetCount=answer(count)
    )


def test_build_is_that_of_torch() -> None:
    assert find_build() == TorchBuild(version=torch.__version__, cuda=torch.version.cuda)


@pytest.mark.parametrize(
    ("driver", "count", "described"),
    [
        (make_driver(), 2, "torch finds 2 GPUs"),
        (make_driver(version=13020, count=1), 1, "torch finds 1 GPUs"),
        (make_driver(count=0), 0, "and finds no GPU; check the driver with nvidia-smi"),
        (make_driver(status=100), 0, "and finds no GPU; check"),
        (make_driver(version=12080), 0, "and the driver supports CUDA 12.8 only; check"),
        (make_driver(status=802), 0, "and the driver failed with CUDA error 802; check"),
        (None, 0, "and this machine has no NVIDIA driver (libcuda.so.1); check"),
    ],
)
def test_gpus_are_those_of_the_driver(
    driver: SimpleNamespace | None, count: int, described: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> SimpleNamespace:
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    monkeypatch.setattr(devices, "ctypes", SimpleNamespace(CDLL=load, c_int=ctypes.c_int, byref=ctypes.byref))
    found, reason = count_gpus(CUDA)
    assert found == count and described in describe_gpus(CUDA, found, reason)


def test_build_for_cpus_has_no_gpu() -> None:
    assert count_gpus(CPU)[0] == 0
    assert "is a build for CPUs; install the CUDA build of the same version" in describe_gpus(CPU, 0)


@pytest.mark.parametrize("name", ["abacus", "cuda:", "cuda:-1", "cuda:1000", "CUDA", "cuda:0 "])
def test_other_names_are_no_device(name: str) -> None:
    with pytest.raises(ConfigError, match="--device must be cpu, cuda or cuda:N"):
        parse_device(name)


def test_device_names_have_their_index() -> None:
    assert [parse_device(name) for name in ("cpu", "cuda", "cuda:0", "cuda:255")] == [None, 0, 0, 255]
