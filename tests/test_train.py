"""Evaluations: equal bits, no side effects, and whose fault a failure is."""

import contextlib
import dataclasses
import json
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
from tests.fixtures.training import BENCH_LOSS, ROOT, Bench, base_parameters, digests, make_args, make_rows, write_rows

both_dtypes = pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])

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
    bench.run(dtype, data_dir=other_data, eval_data_dir=other_data, lucky_num=1)
    with pytest.raises(Abort):
        bench.run(dtype, lucky_num=2, on_progress=abort_late)
    assert bits(bench.run(dtype)) == bits(expected[dtype])


def test_train_lora_returns_the_loss(bench: Bench, expected: dict[str, TrainResult]) -> None:
    loss = train_lora(7, 2.5, 250, None, str(bench.data_dir), str(bench.eval_data_dir), bench.options("bfloat16"))
    assert loss == expected["bfloat16"].loss


def test_loss_is_equal_beside_other_torch_work(bench: Bench, expected: dict[str, TrainResult]) -> None:
    load_resident_model(bench.options())
    is_over = threading.Event()
    rounds = 0

    def work() -> None:
        nonlocal rounds
        while not is_over.is_set():
            torch.manual_seed(rounds)
            # As transformers does to load a model.
            with setting(torch.set_default_dtype, torch.bfloat16, torch.float32):
                x = torch.randn(64, 64, dtype=torch.float32)
                torch.nn.functional.dropout(x @ x, 0.5)
            rounds += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        results = [bench.run() for _ in range(2)]
    finally:
        is_over.set()
        worker.join()
        torch.set_default_dtype(torch.float32)
    assert rounds > 10
    assert [bits(result) for result in results] == [bits(expected["float32"])] * 2


def test_concurrent_evaluations_are_serialized(bench: Bench, expected: dict[str, TrainResult]) -> None:
    results: dict[int, TrainResult] = {}

    def score(lucky_num: int) -> None:
        results[lucky_num] = bench.run(lucky_num=lucky_num)

    threads = [threading.Thread(target=score, args=(lucky_num,)) for lucky_num in (6, 7, 2**32 - 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bits(results[7]) == bits(expected["float32"])
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
    "another seed": ("float32", lambda: contextlib.nullcontext(torch.manual_seed(12345))),
    "one thread": ("bfloat16", lambda: setting(torch.set_num_threads, 1, torch.get_num_threads())),
    "medium precision": ("float32", lambda: setting(torch.set_float32_matmul_precision, "medium", "highest")),
    "bfloat16 for float32": ("float32", lambda: setting(set_mkldnn_precision, "bf16", "none")),
    "another device by default": ("float32", lambda: setting(torch.set_default_device, "meta", None)),
    "float64 by default": ("float32", lambda: setting(torch.set_default_dtype, torch.float64, torch.float32)),
    "determinism and filling": ("bfloat16", lambda: setting(torch.use_deterministic_algorithms, True, False)),
    "no_grad": ("float32", torch.no_grad),
    "inference_mode": ("bfloat16", torch.inference_mode),
    "autocast": ("float32", lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "other attention": ("bfloat16", lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)),
}


# The first is in the quick loop.
MODE_NAMES = [next(iter(CALLER_MODES)), *(pytest.param(name, marks=pytest.mark.slow) for name in [*CALLER_MODES][1:])]


@pytest.mark.parametrize("name", MODE_NAMES)
def test_settings_of_the_caller_do_not_change_the_loss(
    bench: Bench, expected: dict[str, TrainResult], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    dtype, mode = CALLER_MODES[name]
    monkeypatch.setattr(train, "_resident", None)  # load the model under them, too
    with mode():
        inside = bench.run(dtype)
    assert bits(inside) == bits(expected[dtype])


# Prints the settings before and after the import, and the losses; makes the tiny model once more.
_SCORE_CODE = """
import json
import sys
from pathlib import Path

import torch

def settings():
    mode = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    return [*mode, torch.get_num_threads(), *torch.get_rng_state().tolist()]

before = settings()
from tests.fixtures.training import Bench

after = settings()
model, data, eval_data, again = map(Path, sys.argv[1:])
bench = Bench(model_path=model, data_dir=data, eval_data_dir=eval_data)
losses = {dtype: bench.run(dtype).loss for dtype in ("float32", "bfloat16")}
print(json.dumps({"before": before, "after": after, "losses": losses}))
from scripts.bench.tiny_model import make_tiny_model
make_tiny_model(again)
"""


def test_order_of_a_files_rows_does_not_change_the_loss(bench: Bench, tmp_path: Path) -> None:
    rows = make_rows(13, seed=1)
    orders = [rows[start:] + rows[:start] for start in (0, 1, 7)]
    losses = {bench.run(data_dir=write_rows(tmp_path / str(index), order)).loss for index, order in enumerate(orders)}
    assert losses == {bench.run(data_dir=write_rows(tmp_path / "reversed", rows[::-1])).loss}


def test_rows_beyond_the_counted_ones_do_not_change_the_loss(bench: Bench, tmp_path: Path) -> None:
    rows = make_rows(13, seed=1)
    more = bench.run(rows=9, data_dir=write_rows(tmp_path / "more", rows)).loss
    assert more == bench.run(data_dir=write_rows(tmp_path / "counted", rows[8::-1])).loss


@pytest.fixture(scope="module")
def other_process(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings, losses and tiny model of a process of its own, whose strings have other hashes."""
    environment = os.environ | {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    if "OMP_NUM_THREADS" in os.environ:  # then this process has the limit
        del environment["OMP_NUM_THREADS"]
    model = tmp_path_factory.mktemp("again") / "model"
    paths = [str(path) for path in (bench.model_path, bench.data_dir, bench.eval_data_dir, model)]
    output = subprocess.check_output(
        [sys.executable, "-c", _SCORE_CODE, *paths], cwd=ROOT, env=environment, text=True, timeout=300
    )
    printed: dict[str, Any] = json.loads(output)
    return {**printed, "model": model}


@pytest.mark.slow
def test_loss_is_equal_in_another_process(other_process: dict[str, Any], expected: dict[str, TrainResult]) -> None:
    assert other_process["losses"] == {dtype: result.loss for dtype, result in expected.items()}


@pytest.mark.slow
def test_tiny_model_is_the_same_in_another_process(other_process: dict[str, Any], bench: Bench) -> None:
    files = [*bench.model_path.iterdir()]
    assert "model.safetensors" in {path.name for path in files}
    assert [path.name for path in files if path.read_bytes() != (other_process["model"] / path.name).read_bytes()] == []


@pytest.mark.slow
def test_import_changes_no_setting(other_process: dict[str, Any]) -> None:
    assert other_process["after"] == other_process["before"]
    assert other_process["before"][0] is False


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
        "device": torch.get_default_device(),
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
