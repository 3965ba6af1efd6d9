"""The files of an evaluation, and the error class of each failure."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from template import train
from template.config import load_training_args
from template.errors import ConfigError, HostError, Reason, SubmissionError
from template.train import RunOptions, load_resident_model, train_lora
from template.training import loop
from template.training.loop import NonFiniteLoss
from template.training.model_files import digest_folder
from tests.fixtures.training import DTYPES, Bench, edit_weights, make_args, make_row, make_rows, write_rows

NO_ANSWER = {"conversations": [{"role": "user", "content": "no answer"}]}


def test_rows_above_eval_size_change_nothing(bench: Bench, tmp_path: Path) -> None:
    rows = make_rows(6, seed=1)
    more = bench.run(data_dir=write_rows(tmp_path / "more", [*rows, NO_ANSWER]), rows=5)
    fewer = bench.run(data_dir=write_rows(tmp_path / "fewer", rows[:5]), rows=5)
    assert (more.loss, more.step_losses, more.train_rows) == (fewer.loss, fewer.step_losses, 5)
    assert more.train_sha256 != fewer.train_sha256


def test_evaluation_row_without_target_is_skipped(bench: Bench, tmp_path: Path) -> None:
    result = bench.run(eval_data_dir=write_rows(tmp_path, [NO_ANSWER, *make_rows(9, seed=2)]))
    assert (result.eval_rows, result.eval_skipped_rows) == (9, 1)
    assert result.loss == bench.run().loss


def test_changed_evaluation_file_is_read_again(bench: Bench, tmp_path: Path) -> None:
    write_rows(tmp_path, make_rows(3, seed=5))
    first = bench.run(eval_data_dir=tmp_path)
    write_rows(tmp_path, make_rows(3, seed=6))
    second = bench.run(eval_data_dir=tmp_path)
    assert first.eval_sha256 != second.eval_sha256
    assert first.loss != second.loss


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, Reason.MISSING_FILE),
        (b"", Reason.EMPTY),
        (b"\n\n", Reason.EMPTY),
        (b"{", Reason.MALFORMED),
        (b'{"conversations": []}', Reason.MALFORMED),
        (json.dumps(NO_ANSWER).encode(), Reason.NO_TARGET),
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


def test_diverging_training_is_a_submission_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LEARNING_RATE", 1e30)
    with pytest.raises(SubmissionError, match="not finite at") as caught:
        bench.run()
    assert caught.value.reason is Reason.DIVERGED


@pytest.mark.parametrize("token", [0, 300])
def test_non_finite_base_is_a_host_error(bench: Bench, tmp_path: Path, token: int) -> None:
    poisoned = Path(shutil.copytree(bench.model_path, tmp_path / "poisoned"))
    edit_weights(poisoned, lambda weights: weights["model.embed_tokens.weight"][token].fill_(math.nan))
    with pytest.raises(HostError, match="not finite"):
        bench.run(model_path=poisoned)


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


def test_resident_model_is_loaded_once(bench: Bench) -> None:
    bench.run()
    resident = train._resident
    model = load_resident_model(bench.options())
    bench.run(lucky_num=8)
    assert train._resident is resident
    assert resident is not None
    assert model is resident.model


@pytest.mark.parametrize("inputs", [*({"lucky_num": n} for n in (-1, 2**32, 1.5, True)), {"rows": 0}, {"rows": -1}])
def test_input_out_of_range_is_a_config_error(bench: Bench, inputs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"lucky_num|eval_size"):
        bench.run(**inputs)


def test_relative_model_path_is_resolved_once(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench.model_path.parent)
    options = bench.options(model_path=Path(bench.model_path.name))
    monkeypatch.chdir(tmp_path)
    assert load_resident_model(options).source.digest == digest_folder(bench.model_path)


def test_paths_may_be_strings(bench: Bench) -> None:
    options = RunOptions(training_args=make_args(), model_path=str(bench.model_path), device="cpu", dtype="float32")  # type: ignore[arg-type]
    loss = train_lora(7, 2.6, 250, None, str(bench.data_dir), str(bench.eval_data_dir), options)
    assert loss == bench.run().loss


def test_path_of_the_file_is_a_config_error(bench: Bench) -> None:
    for name in ("data_dir", "eval_data_dir"):
        with pytest.raises(ConfigError, match=r"expected a folder with a data.jsonl, not the file .*; pass "):
            bench.run(**{name: getattr(bench, name) / "data.jsonl"})


@pytest.mark.parametrize("rows", [2.5, None, "250", True, 0, -1])
def test_eval_size_must_be_a_positive_integer(bench: Bench, rows: Any) -> None:
    with pytest.raises(ConfigError, match=f"eval_size must be a positive integer.* {rows!r}"):
        bench.run(rows=rows)


@pytest.mark.parametrize("benchmark_loss", [None, "2.6", True])
def test_benchmark_loss_must_be_a_number(bench: Bench, benchmark_loss: Any) -> None:
    with pytest.raises(ConfigError, match="benchmark_loss must be a number"):
        train_lora(7, benchmark_loss, 250, None, bench.data_dir, bench.eval_data_dir, bench.options())


def test_no_options_are_the_defaults(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(train, "_load_resident", lambda args, options, _: seen.append((args, options)) or 1 / 0)
    for options in ((), (None,)):
        with pytest.raises(ZeroDivisionError):
            train_lora(7, 2.6, 250, None, bench.data_dir, bench.eval_data_dir, *options)
    assert seen == [(load_training_args(), RunOptions())] * 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_training_args_state_the_dtype(bench: Bench, dtype: str) -> None:
    args = dataclasses.replace(make_args(), dtype=dtype)
    options = RunOptions(training_args=args, model_path=bench.model_path, device="cpu")
    assert load_resident_model(options).dtype is DTYPES[dtype]
    assert load_resident_model(dataclasses.replace(options, dtype="float32")).dtype is DTYPES["float32"]
