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
from safetensors.torch import load_file, save_file

from template import train
from template.errors import ConfigError, HostError, Reason, SubmissionError
from template.records import Progress, TrainResult
from template.train import load_resident_model, train_and_evaluate, train_lora
from template.training import loop
from template.training.loop import NonFiniteLoss
from tests.fixtures.training import (
    BENCH_LOSS,
    ROOT,
    Bench,
    base_parameters,
    digests,
    make_args,
    make_row,
    make_rows,
    write_rows,
)

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])

# Everything in a result but how long it took.
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


# Property 1: the same bits.


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


# What a caller may have switched on, each with the dtype that it would move the more.
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
    monkeypatch.setattr(train, "_resident", None)  # the model too is read under them
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
    if "OMP_NUM_THREADS" in os.environ:  # then this process is the one with a limit
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
    # The first two steps: at the first lora_B is zero, so nothing is added, and its learning rate is zero.
    assert without[:2] == pytest.approx(dropped[:2], rel=0, abs=1e-6)
    assert all(abs(a - b) > 1e-6 for a, b in zip(without[2:], dropped[2:], strict=True))


def test_dtype_changes_the_loss_a_little(expected: dict[str, TrainResult]) -> None:
    assert 0 < abs(expected["bfloat16"].loss - expected["float32"].loss) < 0.05


# Property 2: the base as it was, and the process too.


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


# Property 5: what moved the number is told.


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


# What is read of the files.


def test_rows_above_eval_size_are_not_trained_on(bench: Bench, tmp_path: Path) -> None:
    rows = make_rows(20, seed=1)
    more = bench.run(data_dir=write_rows(tmp_path / "more", rows), rows=13)
    fewer = bench.run(data_dir=write_rows(tmp_path / "fewer", rows[:13]), rows=13)
    assert (more.loss, more.step_losses, more.train_rows) == (fewer.loss, fewer.step_losses, 13)
    assert more.train_sha256 != fewer.train_sha256


def test_rows_above_eval_size_need_no_target(bench: Bench, tmp_path: Path) -> None:
    rows = [*make_rows(2, seed=1), {"conversations": [{"role": "user", "content": "no answer"}]}]
    assert bench.run(data_dir=write_rows(tmp_path, rows), rows=2).train_rows == 2


def test_long_row_is_truncated_at_2048_tokens(bench: Bench, tmp_path: Path) -> None:
    answer = "seven days " * 1500
    losses = []
    for tail in ("sea", "storm"):
        result = bench.run(data_dir=write_rows(tmp_path / tail, [make_row("How many?", answer + tail)]))
        assert result.train_tokens == 2048
        losses.append(result.loss)
    assert losses[0] == losses[1]


def test_evaluation_row_without_target_is_skipped(bench: Bench, tmp_path: Path) -> None:
    rows = make_rows(9, seed=2)
    no_target = {"conversations": [{"role": "user", "content": "no answer"}]}
    result = bench.run(eval_data_dir=write_rows(tmp_path, [no_target, *rows]))
    assert (result.eval_rows, result.eval_skipped_rows) == (9, 1)
    assert result.loss == bench.run().loss


def test_changed_evaluation_file_is_read_again(bench: Bench, tmp_path: Path) -> None:
    write_rows(tmp_path, make_rows(3, seed=5))
    first = bench.run(eval_data_dir=tmp_path)
    write_rows(tmp_path, make_rows(3, seed=6))
    second = bench.run(eval_data_dir=tmp_path)
    assert first.eval_sha256 != second.eval_sha256
    assert first.loss != second.loss


# Whose fault it is.


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, Reason.MISSING_FILE),
        (b"", Reason.EMPTY),
        (b"\n\n", Reason.EMPTY),
        (b"{", Reason.MALFORMED),
        (b'{"conversations": []}', Reason.MALFORMED),
        (json.dumps({"conversations": [{"role": "user", "content": "?"}]}).encode(), Reason.NO_TARGET),
        (json.dumps(make_row("seven days " * 2000, "cut away")).encode(), Reason.NO_TARGET),
    ],
)
def test_bad_file_is_the_fault_of_its_owner(
    bench: Bench, tmp_path: Path, content: bytes | None, reason: Reason
) -> None:
    if content is not None:
        (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(SubmissionError) as caught:
        bench.run(data_dir=tmp_path)
    assert caught.value.reason is reason
    with pytest.raises(ConfigError, match="evaluation set"):
        bench.run(eval_data_dir=tmp_path)


@both_dtypes
def test_diverging_training_is_a_submission_error(
    bench: Bench, expected: dict[str, TrainResult], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "LEARNING_RATE", 1e30)
        with pytest.raises(SubmissionError, match="not finite at") as caught:
            bench.run(dtype)
    assert caught.value.reason is Reason.DIVERGED
    assert bits(bench.run(dtype)) == bits(expected[dtype])


def poison(model: Path, folder: Path, token: int) -> Path:
    """Copy a model and set one token's embedding to NaN."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][token, 0] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("token", [0, 300])
def test_non_finite_base_is_a_host_error(bench: Bench, tmp_path: Path, token: int) -> None:
    with pytest.raises(HostError, match="not finite"):
        bench.run(model_path=poison(bench.model_path, tmp_path / "poisoned", token))


@pytest.mark.parametrize("second", ["nowhere", "training step 2 of 4"])
def test_irreproducible_failure_is_a_host_error(bench: Bench, monkeypatch: pytest.MonkeyPatch, second: str) -> None:
    run_once = train._run_once
    places = iter(["training step 1 of 4", second])

    def fail(*args: Any) -> Any:
        where = next(places)
        if where == "nowhere":
            return run_once(*args)
        raise NonFiniteLoss(where, [0])

    monkeypatch.setattr(train, "_run_once", fail)
    with pytest.raises(HostError, match="not reproducible"):
        bench.run()


@pytest.mark.parametrize(
    "error", [MemoryError("full"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), OSError(28, "No space left")]
)
def test_failure_of_this_machine_is_a_host_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> float:
        raise error

    monkeypatch.setattr(loop, "evaluate", fail)
    with pytest.raises(HostError):
        bench.run()


@pytest.mark.parametrize("lucky_num", [-1, 2**32, 1.5, True])
def test_lucky_num_out_of_range_is_a_config_error(bench: Bench, lucky_num: int) -> None:
    with pytest.raises(ConfigError, match="lucky_num"):
        bench.run(lucky_num=lucky_num)


def test_largest_lucky_num_is_accepted(bench: Bench) -> None:
    assert bench.run(lucky_num=2**32 - 1).lucky_num == 2**32 - 1


@pytest.mark.parametrize("rows", [0, -1])
def test_eval_size_below_one_is_a_config_error(bench: Bench, rows: int) -> None:
    with pytest.raises(ConfigError, match="eval_size"):
        bench.run(rows=rows)


@pytest.mark.parametrize("options", [{"device": "tpu"}, {"device": "cuda:99"}, {"dtype": "float16"}])
def test_unusable_device_or_dtype_is_a_config_error(bench: Bench, options: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        train_and_evaluate(7, 2.6, 250, options=dataclasses.replace(bench.options(), **options))  # type: ignore[arg-type]


def test_resident_model_is_loaded_once(bench: Bench) -> None:
    bench.run()
    resident = train._resident
    model = load_resident_model(bench.options())
    bench.run(lucky_num=8)
    assert train._resident is resident
    assert resident is not None
    assert model is resident.model
