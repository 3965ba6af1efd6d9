"""Devices, dtypes, random streams and the environment that a receipt names."""

import os
import subprocess
import sys

import pytest
import torch
from score_fixtures import CPU, ROOT

import template
from template import numerics
from template.errors import ConfigError


def test_cpu_can_be_named_and_is_what_is_left_without_cuda() -> None:
    assert numerics.choose_device("cpu") == CPU
    if not torch.cuda.is_available():
        assert numerics.choose_device() == CPU


@pytest.mark.parametrize("name", ["", "tpu", "cuda:-1", "cuda:x", "cuda:1000", "cuda:256", "mps", "meta", "cpu cuda"])
def test_a_device_this_machine_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--device"):
        numerics.choose_device(name)


def test_dtype_is_the_one_named() -> None:
    assert numerics.choose_dtype(CPU, "bfloat16") is torch.bfloat16
    assert numerics.choose_dtype(torch.device("cuda"), "float32") is torch.float32


def test_dtype_is_bfloat16_on_cuda_and_where_the_cpu_has_it() -> None:
    assert numerics.choose_dtype(torch.device("cuda")) is torch.bfloat16
    flags = set()
    if os.path.exists("/proc/cpuinfo"):  # noqa: PTH110
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            flags = next(({*line.split()} for line in lines if line.startswith("flags")), set())
    if flags:
        is_fast = bool({"avx512_bf16", "amx_tile"} & flags)
        assert numerics.choose_dtype(CPU) is (torch.bfloat16 if is_fast else torch.float32)


@pytest.mark.parametrize("name", ["", "float16", "bf16", "torch.float32"])
def test_another_dtype_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--dtype"):
        numerics.choose_dtype(CPU, name)


def test_streams_differ_by_purpose_and_seed_and_repeat() -> None:
    def draw(lucky_num: int, purpose: str) -> list[float]:
        values: list[float] = torch.rand(4, generator=numerics.seeded_generator(lucky_num, purpose)).tolist()
        return values

    streams = [(seed, purpose) for seed in (0, 1, 2**32 - 1) for purpose in ("adapter", "order", "dropout")]
    assert len({tuple(draw(*stream)) for stream in streams}) == len(streams)
    torch.manual_seed(3)
    assert [draw(*stream) for stream in streams] == [draw(*stream) for stream in streams]


def test_streams_never_change_from_one_version_to_the_next() -> None:
    # Known values: whoever changes how a seed is made changes every score of every receipt.
    adapter = numerics.seeded_generator(7, "adapter")
    assert adapter.initial_seed() == 8525067064003092717
    assert torch.randint(1000, (4,), generator=adapter).tolist() == [587, 566, 390, 696]


@pytest.mark.parametrize("name", ["OMP_DYNAMIC", "OMP_THREAD_LIMIT"])
def test_an_openmp_that_may_give_fewer_threads_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "TRUE" if name == "OMP_DYNAMIC" else "1")
    with pytest.raises(ConfigError, match=name), numerics.deterministic(CPU):
        pass


def test_an_openmp_that_is_not_dynamic_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_DYNAMIC", "FALSE")
    with numerics.deterministic(CPU):
        pass


def test_inside_everything_is_pinned() -> None:
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(numerics.thread_count() + 1)
    with numerics.deterministic(CPU):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.deterministic
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.get_num_threads() == numerics.thread_count()
        inside = torch.rand(4)
    assert torch.get_num_threads() == numerics.thread_count() + 1
    torch.set_num_threads(threads)
    assert torch.equal(torch.rand(4), inside)  # drawn inside, and yet not used up


def test_it_may_be_entered_again_inside() -> None:
    with numerics.deterministic(CPU):
        with numerics.deterministic(CPU):
            pass
        assert torch.are_deterministic_algorithms_enabled()


def test_environment_names_versions_device_and_dtype() -> None:
    environment = numerics.describe_environment(CPU, torch.bfloat16)
    assert environment["torch"] == torch.__version__
    assert environment["package"] == template.__version__
    assert (environment["device"], environment["dtype"]) == ("cpu", "bfloat16")
    assert environment["threads"] == str(len(os.sched_getaffinity(0)))
    assert all(isinstance(value, str) for value in environment.values())


def test_variables_that_steer_kernels_are_named_and_thread_counts_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def named() -> str:
        return numerics.describe_environment(CPU, torch.float32)["kernel_variables"]

    before = named()
    with numerics.deterministic(CPU):  # which sets one for cuBLAS
        assert named() == before
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert named() == before
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in named()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    assert "CUBLAS_WORKSPACE_CONFIG=:16:8" in named()


def test_importing_the_score_changes_no_setting() -> None:
    code = (
        "import torch; before = torch.get_rng_state(), torch.get_num_threads(), torch.backends.cudnn.benchmark;"
        "import template.train; after = torch.get_rng_state(), torch.get_num_threads(), torch.backends.cudnn.benchmark;"
        "assert torch.equal(before[0], after[0]) and before[1:] == after[1:];"
        "assert not torch.are_deterministic_algorithms_enabled()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
