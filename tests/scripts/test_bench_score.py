"""The benchmark of an evaluation against torch's count and the HF Trainer."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from scripts.bench import score
from scripts.bench.flops import Shape, Work, count_backward, count_forward
from scripts.bench.inputs import ROW_SETS, SHAPES, RowMaker, make_folders
from scripts.bench.job import OURS, PADDING_FREE, REFERENCE, TUNED, Run
from scripts.bench.runner import Outcome
from scripts.bench.score import Measurements, check
from template.config import load_training_args
from template.data.chat_templates import template_for
from template.data.encoding import EncodedRow
from template.errors import ConfigError, HostError
from template.training.model import load_tokenizer
from tests.fixtures.network import call_main

RANK = 16
ROW = EncodedRow(tuple(range(3, 40)), tuple(position % 3 == 0 for position in range(37)), 1)
# About four standard deviations of the tiny model's loss over its seeds.
LOSS_TOLERANCE = 0.004


@pytest.fixture(scope="module")
def shape(tiny_model: Path) -> Shape:
    return Shape.from_config(json.loads((tiny_model / "config.json").read_text()))


@pytest.fixture(scope="module")
def network(tiny_model: Path) -> Any:
    """The tiny model with an adapter and eager attention, which the counter sees."""
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    config = peft.LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(base, config).train()


def run_forward(network: Any) -> torch.Tensor:
    causal = network.get_base_model()
    hidden = causal.get_decoder()(torch.tensor([ROW.input_ids]), use_cache=False).last_hidden_state[0]
    positions = torch.tensor([index - 1 for index, is_target in enumerate(ROW.targets) if is_target and index])
    logits: torch.Tensor = causal.get_output_embeddings()(hidden[positions])
    return logits.sum()


def assert_counted(counter: FlopCounterMode, work: Work) -> None:
    counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    tokens = len(ROW.input_ids)
    # Eager attention also computes the pairs that the causal mask removes.
    assert work.attention == counts.pop("aten.bmm") * (tokens + 1) // (2 * tokens)
    assert work.linear + work.lora + work.head == sum(counts.values())
    assert min(work.linear, work.lora, work.head, work.attention) > 0


def test_counted_operations_equal_torchs_count(network: Any, shape: Shape) -> None:
    with FlopCounterMode(display=False) as forward:
        loss = run_forward(network)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.backward(loss)
    assert_counted(forward, count_forward(shape, RANK, ROW))
    assert_counted(backward, count_backward(shape, RANK, ROW))


@dataclasses.dataclass(frozen=True)
class Result:
    """Exit status, printed report and JSON file of a benchmark."""

    status: int
    report: str
    content: dict[str, Any]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, small_products: None) -> Result:
    """Two datasets by ours and by the tuned Trainers, the first also by the reference, in float32."""
    file = tmp_path_factory.mktemp("bench-score") / "out.json"
    command = ["--shape", "tiny", "--device", "cpu", "--dtypes", "float32", "--rows", "short", "--repeats", "1"]
    sizes = ["--train_rows", "9", "--eval_rows", "6", "--queue", "2", "--reference_queue", "1", "--noise_seeds", "3"]
    ended = call_main(score.main, *command, *sizes, "--json", file)
    assert file.exists(), ended.logs
    return Result(ended.status, ended.output, json.loads(file.read_text()))


@pytest.mark.slow
def test_all_runners_compute_the_same_loss(result: Result) -> None:
    ours, tuned, padding_free, reference = (
        result.content["outcomes"][f"{runner} float32"][0]["runs"] for runner in (OURS, TUNED, PADDING_FREE, REFERENCE)
    )
    assert (len(ours), len(tuned), len(padding_free), len(reference)) == (2, 2, 2, 1)
    assert ours[0]["loss"] == pytest.approx(reference[0]["loss"], abs=LOSS_TOLERANCE)
    for own, *others in zip(ours, tuned, padding_free, strict=True):
        assert [other["loss"] for other in others] == pytest.approx([own["loss"]] * 2, abs=LOSS_TOLERANCE)
    assert len({*result.content["noise"], ours[0]["loss"]}) == 3, "the first seed again, and two others"
    # Nine rows in groups of eight, twice.
    assert "check: optimizer steps of every dataset: 4: agree" in result.report


def numbers(value: object) -> Iterator[float]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


@pytest.mark.slow
def test_every_measurement_is_finite_and_positive(result: Result) -> None:
    for part in ("runners", "outcomes", "ratios", "ceilings", "load", "noise"):
        values = list(numbers(result.content[part]))
        assert values and all(math.isfinite(number) and number > 0 for number in values), part


@pytest.mark.slow
def test_report_prints_the_measurements(result: Result) -> None:
    for runner in (OURS, TUNED, PADDING_FREE, REFERENCE):
        (line,) = [line for line in result.report.splitlines() if line.startswith(f"{runner:13}float32")]
        figures = result.content["runners"][f"{runner} float32"]
        assert f"{figures['total_s']:.2f}" in line and line.split()[-1] == f"{figures['loss']:.5f}"
    assert "queue: 2 datasets, 1 by the reference" in result.report
    assert max(map(len, result.report.splitlines())) <= 120, result.report


@pytest.mark.slow
def test_report_says_which_peers_lack_a_package(result: Result) -> None:
    reason = (
        f"its releases up to 2026.10.9 need transformers 5.17 or older, and {transformers.__version__} is installed"
    )
    assert f"unsloth: not run, because {reason}" in result.report.splitlines()
    assert "padding_free: torch's own attention, because flash_attn needs a GPU" in result.report.splitlines()


@pytest.mark.slow
def test_status_is_zero_when_all_checks_agree(result: Result) -> None:
    assert result.status == (0 if all(result.content["checks"].values()) else 1)


BAD_ARGUMENTS = {
    "dtype": (["--dtypes", "float32,float16"], 2, "expected float32,bfloat16"),
    "rows": (["--train_rows", "0"], 2, "expected a positive integer"),
    "two models": (["--shape", "tiny", "--model_path", "x"], 3, "pass one of them"),
    "no model": (["--model_path", "/nonexistent"], 3, "--model_path /nonexistent: no model found"),
    "json": (["--json", "/nonexistent/out.json"], 3, "--json /nonexistent/out.json: its folder"),
    "device": (["--device", "tpu"], 3, "--device must be cpu, cuda or cuda:N"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_argument_is_named(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    arguments, status, message = BAD_ARGUMENTS[case]
    ended = call_main(score.main, *arguments)
    assert ended.status == status
    assert message in "\n".join([*ended.logs, capfd.readouterr().err])


def test_failing_runner_is_reported_with_its_error(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Started in place of Python, whose imports take seconds.
    failing = tmp_path / "python"
    failing.write_text('#!/bin/sh\necho "$2 $(basename $3)" >&2; echo no weights >&2; exit 3\n')
    failing.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(failing))
    model = ["--model_path", tiny_model, "--model_id", "Qwen/Qwen2.5-1.5B-Instruct"]
    ended = call_main(score.main, *model, "--device", "cpu", "--only", "ours", "--dtypes", "float32")
    assert ended.status == HostError.exit_code
    assert "ours in float32 ended with status 3: scripts.bench.runner job.json no weights" in ended.logs[-1]


# One standard deviation is 0.001 of a loss, so 0.00141 of a difference, and half of that for the mean of four.
@pytest.mark.parametrize(
    ("difference", "count", "steps", "expected"),
    [
        (0.0042, 1, 4, [True, True]),
        (0.0043, 1, 4, [True, False]),
        (0.0021, 4, 4, [True, True]),
        (0.0022, 4, 4, [True, False]),
        (0.0, 1, 3, [False, True]),
    ],
)
def test_steps_and_losses_agree_within_three_deviations(
    difference: float, count: int, steps: int, expected: list[bool]
) -> None:
    outcomes = {}
    for runner, loss, runner_steps in ((OURS, 3.0 + difference, 4), (REFERENCE, 3.0, steps)):
        run = Run(load_s=1.0, train_s=1.0, eval_s=1.0, total_s=3.0, loss=loss, steps=runner_steps)
        outcomes[runner, "bfloat16"] = [Outcome(runs=[run] * count, peak_mib=1.0)]
    assert list(check(Measurements(outcomes=outcomes, noise=[3.0, 3.001, 3.002])).values()) == expected


@pytest.fixture(scope="module")
def maker(tiny_model: Path) -> RowMaker:
    training = load_training_args()
    return RowMaker(template_for(training.model_id), load_tokenizer(training, model_path=tiny_model))


@pytest.mark.parametrize("name", ROW_SETS)
def test_made_rows_have_the_lengths_of_their_set(name: str, maker: RowMaker, tmp_path: Path) -> None:
    rows = dataclasses.replace(ROW_SETS[name], train_rows=40, eval_rows=40)
    data_dirs, eval_dir = make_folders(tmp_path / "first", maker, rows, 2)
    for folder, (least, most) in [(data_dirs[0], rows.train_tokens), (eval_dir, rows.eval_tokens)]:
        lengths = [len(row.input_ids) for row in maker.encode_folder(folder)]
        assert len(lengths) == 40
        # The tiny tokenizer has few whole words, so the last word of a text may exceed the length.
        assert least - 1 <= min(lengths) and max(lengths) <= most + 12
    systems = {json.loads(line).get("system") for line in (eval_dir / "data.jsonl").read_text().splitlines()}
    assert (len(systems) > 2) == rows.has_characters and len(systems) <= 5
    assert (data_dirs[0] / "data.jsonl").read_bytes() != (data_dirs[1] / "data.jsonl").read_bytes()
    again, _ = make_folders(tmp_path / "second", maker, rows, 1)
    assert (data_dirs[0] / "data.jsonl").read_bytes() == (again[0] / "data.jsonl").read_bytes()


def test_every_shape_has_a_template_and_a_known_family() -> None:
    for model_id, values in SHAPES.values():
        assert template_for(model_id)
        assert values is None or Shape.from_config(values).vocabulary == values["vocab_size"]
    with pytest.raises(ConfigError, match="gemma"):
        Shape.from_config({"model_type": "gemma2"})
