"""Devices, dtypes, random streams, deterministic mode and the environment."""

import ctypes
import os
import platform
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import template
from template.errors import ConfigError, HostError
from template.training import determinism, environment
from template.training.heap import return_freed_memory
from tests.campaigns.measure import memory_kib
from tests.fixtures.training import CPU, needs_malloc_trim

CUDA = torch.device("cuda:0")


def test_device_is_the_cpu_without_cuda() -> None:
    assert environment.choose_device("cpu") == CPU
    if not torch.cuda.is_available():
        assert environment.choose_device() == CPU


@pytest.mark.parametrize("name", ["", "tpu", "cuda:-1", "cuda:x", "cuda:1000", "cuda:256", "mps", "meta", "cpu cuda"])
def test_unavailable_device_is_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError, match="--device"):
        environment.choose_device(name)


def test_default_dtype_is_bfloat16_where_it_is_fast() -> None:
    assert environment.choose_dtype(torch.device("cuda")) is torch.bfloat16
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()
    if "flags" in words:
        is_fast = bool({"avx512_bf16", "amx_tile"} & words)
        assert environment.choose_dtype(CPU) is (torch.bfloat16 if is_fast else torch.float32)


@pytest.mark.parametrize("name", ["", "float16", "bf16", "torch.float32"])
def test_unsupported_dtype_is_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError, match="--dtype"):
        environment.choose_dtype(CPU, name)


def test_gpu_without_bfloat16_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    device = torch.device("cuda", 0)
    for capability, is_supported in (((7, 0), False), ((7, 5), False), ((8, 0), True), ((10, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert environment.choose_dtype(device, "float32") is torch.float32
        if is_supported:
            assert environment.choose_dtype(device, "bfloat16") is torch.bfloat16
            continue
        with pytest.raises(ConfigError, match="Tesla V100 does not compute bfloat16"):
            environment.choose_dtype(device, "bfloat16")


def test_streams_differ_by_purpose_and_seed() -> None:
    def draw(lucky_num: int, purpose: str) -> list[float]:
        values: list[float] = torch.rand(4, generator=determinism.make_generator(lucky_num, purpose)).tolist()
        return values

    streams = [(seed, purpose) for seed in (0, 1, 2**32 - 1) for purpose in ("adapter", "order", "dropout")]
    assert len({tuple(draw(*stream)) for stream in streams}) == len(streams)
    torch.manual_seed(3)
    assert [draw(*stream) for stream in streams] == [draw(*stream) for stream in streams]


def test_streams_never_change_between_versions() -> None:
    # Another derivation of seeds changes the loss of every receipt.
    adapter = determinism.make_generator(7, "adapter")
    assert adapter.initial_seed() == 8525067064003092717
    assert torch.randint(1000, (4,), generator=adapter).tolist() == [587, 566, 390, 696]


UNSOUND = {
    "OMP_DYNAMIC": "TRUE",
    "OMP_THREAD_LIMIT": "1",
    "OMP_MAX_ACTIVE_LEVELS": "0",
    "OMP_PROC_BIND": "spread",
    "OMP_PLACES": "cores",
    "GOMP_CPU_AFFINITY": "0-1",
    "KMP_AFFINITY": "compact",
}


@pytest.mark.parametrize("name", UNSOUND)
def test_openmp_variable_is_a_config_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, UNSOUND[name])
    with pytest.raises(ConfigError, match=name), determinism.deterministic_mode(CPU):
        pass


@pytest.mark.parametrize(
    ("name", "value"),
    [("OMP_DYNAMIC", "FALSE"), ("OMP_DYNAMIC", " false "), ("OMP_PROC_BIND", "false"), ("OMP_MAX_ACTIVE_LEVELS", "1")],
)
def test_harmless_openmp_variable_is_accepted(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with determinism.deterministic_mode(CPU):
        pass


def test_core_binding_is_accepted_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")  # checked next, and rejected
    with pytest.raises(ConfigError, match="CUBLAS_WORKSPACE_CONFIG"), determinism.deterministic_mode(CUDA):
        pass


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CUBLAS_WORKSPACE_CONFIG", ":0:0"),
        ("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync"),
        ("PYTORCH_ALLOC_CONF", "expandable_segments:True, backend : cudaMallocAsync"),
        ("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),
    ],
)
def test_cuda_variable_is_checked_on_a_gpu_only(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name), determinism.deterministic_mode(CUDA):
        pass
    with determinism.deterministic_mode(CPU):
        pass


def error_after(change: Callable[[], object]) -> str:
    """Return the error of deterministic mode in a thread that made a change."""
    errors = []

    def work() -> None:
        torch.set_num_threads(2)
        change()
        try:
            with determinism.deterministic_mode(CPU):
                pass
        except HostError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return "".join(errors)


@pytest.mark.skipif(platform.system() != "Linux", reason="finds the library's functions as Linux does")
def test_openmp_changed_by_other_code_is_a_host_error() -> None:
    openmp = ctypes.CDLL(torch._C.__file__)
    levels = openmp.omp_get_max_active_levels()
    try:
        for change in (lambda: openmp.omp_set_dynamic(1), lambda: openmp.omp_set_max_active_levels(0)):
            assert "OpenMP start fewer threads" in error_after(change)
    finally:
        openmp.omp_set_max_active_levels(levels)  # per process in some versions
    assert error_after(lambda: (openmp.omp_set_dynamic(1), openmp.omp_set_dynamic(0))) == ""


def work_in_a_team() -> None:
    torch.ones(4_000_000).mul_(2)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of the directions are x86's")
def test_changed_rounding_is_a_host_error() -> None:
    set_rounding, set_flushing = ctypes.CDLL("libm.so.6").fesetround, torch.set_flush_denormal
    nearest, down, up, to_zero = 0, 0x400, 0x800, 0xC00
    changes: list[Callable[[], object]] = [
        lambda: set_rounding(down),
        lambda: set_rounding(up),
        lambda: set_rounding(to_zero),
        lambda: (set_rounding(up), work_in_a_team(), set_rounding(nearest)),
        lambda: set_flushing(True),
        lambda: (set_flushing(True), work_in_a_team(), set_flushing(False)),
    ]
    errors = [error_after(change) for change in changes]
    assert all("changed the rounding mode" in error for error in errors), errors
    assert error_after(lambda: (set_rounding(up), set_rounding(nearest), work_in_a_team())) == ""


def test_setting_changed_during_a_run_is_a_host_error() -> None:
    with (
        pytest.raises(HostError, match="another thread of this process changed torch's settings"),
        determinism.deterministic_mode(CPU),
    ):
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    assert torch.backends.mkldnn.enabled


@pytest.mark.skipif(environment.thread_count() == 1, reason="there is only one core")
def test_cores_lost_during_a_run_are_a_host_error() -> None:
    cores = os.sched_getaffinity(0)
    try:
        with (
            pytest.raises(HostError, match="the cores of this process changed from"),
            determinism.deterministic_mode(CPU),
        ):
            os.sched_setaffinity(0, {min(cores)})
    finally:
        os.sched_setaffinity(0, cores)


KERNEL_VARIABLES = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2",
    "CUBLAS_WORKSPACE_CONFIG": ":16:8",
}


def test_fingerprint_depends_on_the_machine_not_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest() -> str:
        return environment.machine_fingerprint(CPU, torch.float32)

    before = digest()
    with determinism.deterministic_mode(CPU):  # which sets a variable for cuBLAS
        assert digest() == before
    with monkeypatch.context() as patch:
        patch.setattr(template, "__version__", "99.0.0")
        assert digest() == before
    for name, value in KERNEL_VARIABLES.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert digest() != before, name
            assert f"{name}={value}" in environment.describe_environment(CPU, torch.float32)["kernel_variables"]
    with monkeypatch.context() as patch:
        patch.setattr(environment, "thread_count", lambda: 1000)
        assert digest() != before
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCH_LOGS", "+all")
    assert digest() == before


def test_settings_are_pinned() -> None:
    with determinism.deterministic_mode(CPU):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.deterministic
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.get_num_threads() == environment.thread_count()


def test_lane_keeps_its_threads_when_another_thread_sets_some() -> None:
    threads = environment.thread_count()
    with determinism.thread_lanes(1) as lane:
        lane.submit(int).result()
        other = threading.Thread(target=torch.set_num_threads, args=(threads + 1,))
        other.start()
        other.join()
        assert lane.submit(torch.get_num_threads).result() == threads


def test_deterministic_mode_is_reentrant() -> None:
    with determinism.deterministic_mode(CPU):
        with determinism.deterministic_mode(CPU):
            pass
        assert torch.are_deterministic_algorithms_enabled()


@needs_malloc_trim
def test_lanes_return_the_memory_that_they_freed() -> None:
    def allocate(_: int) -> torch.Tensor:
        # The last tensor stays and is above all freed ones, so the heap does not shrink by itself.
        return [torch.zeros(2**14) for _ in range(1024)][-1]

    return_freed_memory()  # of earlier tests, which the threads could use
    before = memory_kib("RssAnon")
    with determinism.thread_lanes(2) as executor:
        last = list(executor.map(allocate, range(2)))
        assert memory_kib("RssAnon") - before > 2**16
    assert memory_kib("RssAnon") - before < 2**14
    assert len(last) == 2
