"""Evaluations: equal bits, no side effects, and whose fault a failure is."""

import contextlib
import dataclasses
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from template import train
from template.errors import SubmissionError
from template.records import Progress, TrainResult
from template.train import load_resident_model, train_lora
from template.training import loop
from tests.fixtures.training import (
    BENCH_LOSS,
    ROOT,
    Bench,
    base_parameters,
    digests,
    make_args,
    make_rows,
    write_rows,
)

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])

# Fields that differ between equal runs.
SECONDS = ("load_seconds", "train_seconds", "eval_seconds")


def bits(result: TrainResult) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(result).items() if name not in SECONDS}


class Abort(Exception):
    pass


def abort_late(progress: Progress) -> None:
    if progress.stage == "train" and progress.done == progress.total:
        raise Abort


@pytest.fixture(scope="module")
def expected(bench: Bench) -> dict[str, TrainResult]:
    """The result by dtype that every other run must equal."""
    return {dtype: bench.run(dtype) for dtype in ("float32", "bfloat16")}


@pytest.fixture
def other_data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "other", make_rows(5, seed=9))


@both_dtypes
def test_loss_is_equal_whatever_was_evaluated_before(
    bench: Bench, expected: dict[str, TrainResult], other_data: Path, dtype: str
) -> None:
    assert bits(bench.run(dtype)) == bits(expected[dtype])
    bench.run(dtype, data_dir=other_data, lucky_num=1)
    bench.run(dtype, eval_data_dir=other_data)
    with pytest.raises(Abort):
        bench.run(dtype, lucky_num=2, on_progress=abort_late)
    assert bits(bench.run(dtype)) == bits(expected[dtype])


@both_dtypes
def test_loss_is_equal_after_reloading_the_model(
    bench: Bench, expected: dict[str, TrainResult], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(train, "_resident", None)
    torch.manual_seed(12345)
    assert bits(bench.run(dtype)) == bits(expected[dtype])


@both_dtypes
def test_train_lora_returns_the_loss(bench: Bench, expected: dict[str, TrainResult], dtype: str) -> None:
    loss = train_lora(7, 2.5, 250, None, str(bench.data_dir), str(bench.eval_data_dir), bench.options(dtype))
    assert loss == expected[dtype].loss


@both_dtypes
def test_loss_is_equal_beside_other_torch_work(bench: Bench, expected: dict[str, TrainResult], dtype: str) -> None:
    load_resident_model(bench.options(dtype))
    is_over = threading.Event()
    rounds = 0

    def work() -> None:
        nonlocal rounds
        while not is_over.is_set():
            torch.manual_seed(rounds)
            with setting(
                torch.set_default_dtype, torch.bfloat16, torch.float32
            ):  # as transformers does to load a model
                x = torch.randn(64, 64, dtype=torch.float32)
                torch.nn.functional.dropout(x @ x, 0.5)
            rounds += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        results = [bench.run(dtype) for _ in range(3)]
    finally:
        is_over.set()
        worker.join()
        torch.set_default_dtype(torch.float32)
    assert rounds > 10
    assert [bits(result) for result in results] == [bits(expected[dtype])] * 3


@both_dtypes
def test_concurrent_evaluations_are_serialized(bench: Bench, expected: dict[str, TrainResult], dtype: str) -> None:
    results: dict[int, TrainResult] = {}

    def score(lucky_num: int) -> None:
        results[lucky_num] = bench.run(dtype, lucky_num=lucky_num)

    threads = [threading.Thread(target=score, args=(lucky_num,)) for lucky_num in (6, 7, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bits(results[7]) == bits(expected[dtype])
    assert len({result.loss for result in results.values()}) == 3


@contextlib.contextmanager
def setting(write: Callable[[Any], object], value: object, before: object) -> Iterator[None]:
    write(value)
    try:
        yield
    finally:
        write(before)


def set_mkldnn_precision(value: str) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = value  # type: ignore[attr-defined]


# Modes of a caller, each with the dtype whose loss it would change more.
CALLER_MODES: dict[str, tuple[str, Callable[[], contextlib.AbstractContextManager[Any]]]] = {
    "one thread": ("bfloat16", lambda: setting(torch.set_num_threads, 1, torch.get_num_threads())),
    "medium precision": ("float32", lambda: setting(torch.set_float32_matmul_precision, "medium", "highest")),
    "bfloat16 for float32": ("float32", lambda: setting(set_mkldnn_precision, "bf16", "none")),
    "float64 by default": ("float32", lambda: setting(torch.set_default_dtype, torch.float64, torch.float32)),
    "determinism and filling": ("bfloat16", lambda: setting(torch.use_deterministic_algorithms, True, False)),
    "no_grad": ("float32", torch.no_grad),
    "inference_mode": ("bfloat16", torch.inference_mode),
    "autocast": ("float32", lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "other attention": ("bfloat16", lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)),
}


@pytest.mark.parametrize("name", CALLER_MODES)
def test_settings_of_the_caller_do_not_change_the_loss(
    bench: Bench, expected: dict[str, TrainResult], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    dtype, mode = CALLER_MODES[name]
    monkeypatch.setattr(train, "_resident", None)  # load the model under them, too
    with mode():
        inside = bench.run(dtype)
    assert bits(inside) == bits(expected[dtype])
    assert bits(bench.run(dtype)) == bits(expected[dtype])


_SCORE_CODE = """
import sys
from pathlib import Path
from tests.fixtures.training import Bench
model, data, eval_data = map(Path, sys.argv[1:])
bench = Bench(model_path=model, data_dir=data, eval_data_dir=eval_data)
print(*(bench.run(dtype).loss.hex() for dtype in ("bfloat16", "float32")))
"""


def test_loss_is_equal_in_another_process(bench: Bench, expected: dict[str, TrainResult]) -> None:
    environment = os.environ | {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    if "OMP_NUM_THREADS" in os.environ:  # then this process has the limit
        del environment["OMP_NUM_THREADS"]
    paths = [str(path) for path in (bench.model_path, bench.data_dir, bench.eval_data_dir)]
    output = subprocess.check_output(
        [sys.executable, "-c", _SCORE_CODE, *paths], cwd=ROOT, env=environment, text=True, timeout=300
    )
    assert output.split() == [expected[dtype].loss.hex() for dtype in ("bfloat16", "float32")]


@both_dtypes
def test_lucky_num_changes_the_loss(bench: Bench, expected: dict[str, TrainResult], dtype: str) -> None:
    assert bench.run(dtype, lucky_num=8).loss != expected[dtype].loss


def test_dropout_changes_the_step_losses(bench: Bench, expected: dict[str, TrainResult]) -> None:
    without = bench.run(lora_dropout=0.0).step_losses
    dropped = expected["float32"].step_losses
    # In the first two steps lora_B is zero, because the first learning rate is zero.
    assert without[:2] == pytest.approx(dropped[:2], rel=0, abs=1e-6)
    assert all(abs(a - b) > 1e-6 for a, b in zip(without[2:], dropped[2:], strict=True))


def test_dtype_changes_the_loss_a_little(expected: dict[str, TrainResult]) -> None:
    assert 0 < abs(expected["bfloat16"].loss - expected["float32"].loss) < 0.05


def base_digests() -> dict[str, str]:
    assert train._resident is not None
    network = train._resident.model.network
    frozen = dict(base_parameters(train._resident.model)) | dict(network.named_buffers())
    assert len(frozen) == 26 + 2
    return digests(frozen)


@both_dtypes
def test_base_is_unchanged_by_any_evaluation(bench: Bench, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    load_resident_model(bench.options(dtype))
    before = base_digests()
    bench.run(dtype)
    assert base_digests() == before
    with pytest.raises(Abort):
        bench.run(dtype, on_progress=abort_late)
    assert base_digests() == before
    monkeypatch.setattr(loop, "LEARNING_RATE", 1e30)
    with pytest.raises(SubmissionError):
        bench.run(dtype)
    assert base_digests() == before


def process_state() -> dict[str, Any]:
    return {
        "random": torch.random.get_rng_state().tolist(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "filling": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "benchmark": torch.backends.cudnn.benchmark,
        "cudnn": torch.backends.cudnn.deterministic,
        "precision": torch.get_float32_matmul_precision(),
        "cuda precision": torch.backends.cuda.matmul.fp32_precision,
        "cpu precision": torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "flash": torch.backends.cuda.flash_sdp_enabled(),
    }


@pytest.mark.parametrize("on_progress", [loop.ignore_progress, abort_late])
def test_settings_and_random_state_are_restored(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, on_progress: Callable[[Progress], None]
) -> None:
    monkeypatch.setattr(train, "_resident", None)
    torch.manual_seed(99)
    with (
        setting(torch.set_float32_matmul_precision, "medium", "highest"),
        setting(torch.set_num_threads, 1, torch.get_num_threads()),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        before = process_state()
        with contextlib.suppress(Abort):
            bench.run(on_progress=on_progress)
        assert process_state() == before


def test_result_has_everything_that_can_change_the_loss(bench: Bench, expected: dict[str, TrainResult]) -> None:
    result = expected["bfloat16"]
    names = {"package", "torch", "transformers", "peft", "tokenizers", "device", "dtype", "threads"}
    assert names <= result.environment.keys()
    assert (result.environment["device"], result.environment["dtype"]) == ("cpu", "bfloat16")
    assert (result.benchmark_loss, result.lucky_num) == (BENCH_LOSS, 7)
    assert (result.train_rows, result.eval_rows, result.eval_skipped_rows) == (13, 9, 0)
    assert result.hyperparameters == make_args().hyperparameters.to_dict()
    assert result.hyperparameters_digest == make_args().hyperparameters.digest
    assert result.model_revision is None
    assert result.model_digest is not None
    assert len(result.step_losses) == 4
    assert math.isfinite(result.loss)
    assert min(result.load_seconds, result.train_seconds, result.eval_seconds) > 0
