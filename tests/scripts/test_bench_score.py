"""The benchmark of the score: its count of work against torch's own, and a whole run beside the plain Trainer."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from scripts.bench import score as bench_score
from scripts.bench.job import Load, Outcome, Score, Shape, Work, count_backward, count_forward
from scripts.bench.report import OURS, REFERENCE, check, compare, judge, summarize
from scripts.bench.rows import ROW_SETS, SHAPES, RowMaker, make_folders
from template.config import load_training_args
from template.data.chat_templates import template_for
from template.data.encoding import EncodedRow
from template.errors import ConfigError, HostError
from template.training.model import load_tokenizer
from tests.fixtures.network import call_main

RANK = 16
ROW = EncodedRow(tuple(range(3, 40)), tuple(at % 3 == 0 for at in range(37)), 1)
LOSS_TOLERANCE = 0.004
"""Of two runs on the tiny model under different random streams: some four standard deviations of its seeds."""


@pytest.fixture(scope="module")
def shape(tiny_model: Path) -> Shape:
    return Shape.from_config(json.loads((tiny_model / "config.json").read_text()))


@pytest.fixture(scope="module")
def network(tiny_model: Path) -> Any:
    """The tiny model with an adapter, and attention in plain products that a counter sees."""
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    config = peft.LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(base, config).train()


def work_seen(counter: FlopCounterMode) -> Work:
    """What torch counted, with attention cut to the pairs of a token and those before it."""
    seen = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    tokens = len(ROW.input_ids)
    attention = seen.pop("aten.bmm")
    return Work(linear=sum(seen.values()), attention=attention * (tokens + 1) // (2 * tokens))


def run_forward(network: Any) -> torch.Tensor:
    causal = network.get_base_model()
    hidden = causal.get_decoder()(torch.tensor([ROW.input_ids]), use_cache=False).last_hidden_state[0]
    positions = torch.tensor([at - 1 for at, hit in enumerate(ROW.targets) if hit and at])
    logits: torch.Tensor = causal.get_output_embeddings()(hidden[positions])
    return logits.sum()


def products(work: Work) -> int:
    return work.linear + work.lora + work.head


def test_the_forward_work_is_what_torch_counts(network: Any, shape: Shape) -> None:
    with FlopCounterMode(display=False) as counter:
        run_forward(network)
    seen, counted = work_seen(counter), count_forward(shape, RANK, ROW)
    assert min(counted.linear, counted.lora, counted.head, counted.attention) > 0
    assert products(counted) == seen.linear
    assert counted.attention == seen.attention


def test_the_backward_work_is_what_torch_counts(network: Any, shape: Shape) -> None:
    loss = run_forward(network)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(loss)
    seen, counted = work_seen(counter), count_backward(shape, RANK, ROW)
    assert products(counted) == seen.linear
    assert counted.attention == seen.attention


@dataclasses.dataclass(frozen=True)
class Ran:
    """One whole run: its exit status, what it printed, and what it wrote."""

    status: int
    printed: str
    written: dict[str, Any]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Two datasets of long rows by ours, the first of them by the reference, in float32 on the tiny model."""
    file = tmp_path_factory.mktemp("bench-score") / "out.json"
    command = ["--shape", "tiny", "--device", "cpu", "--dtypes", "float32", "--rows", "long", "--repeats", "1"]
    sizes = ["--train_rows", "9", "--eval_rows", "6", "--queue", "2", "--reference_queue", "1", "--noise_seeds", "3"]
    ended = call_main(bench_score.main, *command, *sizes, "--json", file)
    assert file.exists(), ended.logs
    return Ran(ended.status, ended.output, json.loads(file.read_text()))


def numbers(value: object) -> Iterator[float]:
    """Every number anywhere in a JSON value."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def test_both_runners_come_to_the_same_loss(ran: Ran) -> None:
    ours, reference = (ran.written["outcomes"][f"{runner} float32"][0]["scores"] for runner in (OURS, REFERENCE))
    assert (len(ours), len(reference)) == (2, 1)
    assert ours[0]["loss"] == pytest.approx(reference[0]["loss"], abs=LOSS_TOLERANCE)
    assert len({*ran.written["noise"], ours[0]["loss"]}) == 3, "the first seed's loss, again, and two others"


def test_both_take_the_steps_of_the_recipe(ran: Ran) -> None:
    steps = [score["steps"] for ran_once in ran.written["outcomes"].values() for score in ran_once[0]["scores"]]
    assert steps == [4, 4, 4], "nine rows in groups of eight, twice"
    assert "check: optimizer steps of every submission: 4: agree" in ran.printed


def test_every_figure_is_finite_and_positive(ran: Ran) -> None:
    for part in ("runners", "outcomes", "ratios", "ceilings", "load", "noise"):
        found = list(numbers(ran.written[part]))
        assert found and all(math.isfinite(number) and number > 0 for number in found), part


def test_the_table_holds_what_was_measured(ran: Ran) -> None:
    for runner in (OURS, REFERENCE):
        (line,) = [line for line in ran.printed.splitlines() if line.startswith(f"{runner:10}float32")]
        assert f"{ran.written['runners'][f'{runner} float32']['total_s']:.2f}" in line
        assert line.split()[-1] == f"{ran.written['runners'][f'{runner} float32']['loss']:.5f}"
    assert "queue: 2 datasets by ours, 1 of them by the reference" in ran.printed
    assert max(map(len, ran.printed.splitlines())) <= 120, ran.printed


def test_every_goal_is_printed_with_its_verdict(ran: Ran) -> None:
    goals = [line for line in ran.printed.splitlines() if line.startswith("goal: ")]
    assert len(goals) == len(ran.written["goals"]) > 0
    assert all(line.endswith((": met", ": not met")) for line in goals)
    assert any(line.startswith("goal: peak memory, ours (float32) against reference float32: ") for line in goals)


def test_the_status_tells_whether_the_checks_hold(ran: Ran) -> None:
    assert ran.status == (0 if all(verdict["holds"] for verdict in ran.written["checks"]) else 1)


BAD_ARGUMENTS = {
    "no repeats": (["--repeats", "0"], "--repeats must be positive"),
    "an empty queue": (["--queue", "0"], "--queue must be positive"),
    "one seed": (["--noise_seeds", "1"], "--noise_seeds must be 0 or at least 2"),
    "another dtype": (["--dtypes", "float32,float16"], "--dtypes must be of float32, bfloat16"),
    "a dtype twice": (["--dtypes", "float32,float32"], "--dtypes must be of float32, bfloat16"),
    "one file of two": (["--train_file", "x.jsonl"], "--train_file and --eval_file go together"),
    "two models": (["--shape", "tiny", "--model_path", "x"], "pass one of them"),
    "no model": (["--model_path", "/nonexistent"], "--model_path /nonexistent: no model there"),
    "nowhere to write": (["--json", "/nonexistent/out.json"], "--json /nonexistent/out.json: its folder"),
    "no device": (["--device", "tpu"], "--device must be cpu, cuda or cuda:N"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_a_bad_argument_is_named(case: str) -> None:
    arguments, told = BAD_ARGUMENTS[case]
    ended = call_main(bench_score.main, *arguments)
    assert ended.status == ConfigError.exit_code
    assert told in "\n".join(ended.logs)


def test_a_file_that_holds_no_rows_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    ended = call_main(bench_score.main, "--shape", "tiny", "--train_file", file, "--eval_file", file)
    assert ended.status == ConfigError.exit_code
    assert "--train_file" in ended.logs[-1] and "line 1" in ended.logs[-1]


def test_files_without_an_answer_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"conversations": [{"role": "user", "content": "A question without an answer"}]}\n')
    command = ["--shape", "tiny", "--device", "cpu", "--only", "ours", "--dtypes", "float32"]
    ended = call_main(bench_score.main, *command, "--train_file", file, "--eval_file", file)
    assert ended.status == ConfigError.exit_code
    assert "no row with an answer" in ended.logs[-1]


def test_a_runner_that_fails_says_why(tmp_path: Path, tiny_model: Path) -> None:
    for file in tiny_model.glob("*.json"):
        shutil.copy(file, tmp_path)  # no weights
    model = ["--model_path", tmp_path, "--model_id", "Qwen/Qwen2.5-1.5B-Instruct"]
    ended = call_main(bench_score.main, *model, "--device", "cpu", "--only", "ours", "--dtypes", "float32")
    assert ended.status == HostError.exit_code
    assert "ours in float32 ended with status" in ended.logs[-1] and str(tmp_path) in ended.logs[-1]


def score(loss: float, *, seconds: float = 1.0, steps: int = 4) -> Score:
    return Score(load_s=seconds, train_s=seconds, eval_s=seconds, total_s=3 * seconds, loss=loss, steps=steps)


def outcomes(ours: Score, reference: Score, *, peak_mib: float = 100.0) -> Mapping[tuple[str, str], list[Outcome]]:
    """One repeat of each in bfloat16; peak_mib: of ours, beside the reference's 100."""
    return {
        (OURS, "bfloat16"): [Outcome(scores=[ours], peak_mib=peak_mib)],
        (REFERENCE, "bfloat16"): [Outcome(scores=[reference], peak_mib=100.0)],
    }


# One deviation is 0.001 of a loss, so 0.00141 of a difference, and half of that for the mean of four.
@pytest.mark.parametrize(
    ("apart", "count", "holds"), [(0.0042, 1, True), (0.0043, 1, False), (0.0021, 4, True), (0.0022, 4, False)]
)
def test_losses_agree_within_three_deviations_of_their_difference(apart: float, count: int, holds: bool) -> None:
    ran = outcomes(score(3.0 + apart), score(3.0))
    repeated = {key: [Outcome(scores=found.scores * count, peak_mib=1.0)] for key, (found,) in ran.items()}
    assert [verdict.holds for verdict in check(repeated, [3.0, 3.001, 3.002])] == [True, holds]


def test_other_optimizer_steps_are_no_agreement() -> None:
    assert [verdict.holds for verdict in check(outcomes(score(3.0), score(3.0, steps=3)), [])] == [False]


def goals(
    ours: Score, reference: Score, *, peak_mib: float = 100.0, device: str = "cpu", shortest_row: int = 250
) -> dict[str, bool]:
    """The goals of a queue of eight, by the first words of each, on work that fills half of the ceiling in a second."""
    load = Load(
        submissions=8,
        train_rows=1,
        train_tokens=1,
        train_flops=5e9,
        eval_rows=1,
        eval_tokens=1,
        eval_flops=5e9,
        shortest_row=shortest_row,
    )
    ran = outcomes(ours, reference, peak_mib=peak_mib)
    figures = summarize(ran, load, {"bfloat16": 10.0})
    verdicts = judge(figures, compare(ran), load, best="bfloat16", device=device)
    return {verdict.text.split(",")[0].split(" on ")[0]: verdict.holds for verdict in verdicts}


def test_each_goal_is_met_from_its_bound_on() -> None:
    met = {"queue of 8": True, "peak memory": True, "training": True, "evaluation": True}
    assert goals(score(3.0), score(3.0, seconds=4.0)) == met
    assert goals(score(3.0), score(3.0, seconds=3.9)) == met | {"queue of 8": False}
    assert goals(score(3.0), score(3.0, seconds=4.0), peak_mib=100.1) == met | {"peak memory": False}
    slower = met | {"training": False, "evaluation": False}
    assert goals(score(3.0, seconds=1.1), score(3.0, seconds=4.4)) == slower


def test_a_goal_that_the_run_cannot_speak_of_is_not_printed() -> None:
    assert goals(score(3.0), score(3.0), shortest_row=199).keys() == {"queue of 8", "peak memory"}
    on_cuda = goals(score(3.0), score(3.0, seconds=5.0), peak_mib=12_001, device="cuda", shortest_row=199)
    assert on_cuda == {"throughput": True, "peak memory": False, "GPU memory": False}


@pytest.fixture(scope="module")
def maker(tiny_model: Path) -> RowMaker:
    training = load_training_args()
    return RowMaker(template_for(training.model_id), load_tokenizer(training, model_path=tiny_model))


@pytest.mark.parametrize("name", ROW_SETS)
def test_made_rows_have_the_lengths_of_their_set(name: str, maker: RowMaker, tmp_path: Path) -> None:
    rows = dataclasses.replace(ROW_SETS[name], train_rows=40, eval_rows=40)
    data_dirs, eval_dir = make_folders(tmp_path / "one", maker, rows, 2)
    for folder, (least, most) in [(data_dirs[0], rows.train_tokens), (eval_dir, rows.eval_tokens)]:
        lengths = [len(row.input_ids) for row in maker.encode_folder(folder)]
        assert len(lengths) == 40
        # The tiny tokenizer has few words of more than one letter, so the last of each text may reach over.
        assert least - 1 <= min(lengths) and max(lengths) <= most + 12
    systems = [json.loads(line).get("system") for line in (eval_dir / "data.jsonl").read_text().splitlines()]
    assert (len(set(systems)) > 2) == rows.has_characters
    assert len(set(systems)) <= 5
    assert (data_dirs[0] / "data.jsonl").read_bytes() != (data_dirs[1] / "data.jsonl").read_bytes()
    again, _ = make_folders(tmp_path / "two", maker, rows, 1)
    assert (data_dirs[0] / "data.jsonl").read_bytes() == (again[0] / "data.jsonl").read_bytes()


def test_the_shapes_are_of_models_with_a_template_and_known_work() -> None:
    for model_id, values in SHAPES.values():
        assert template_for(model_id)
        assert values is None or Shape.from_config(values).vocabulary == values["vocab_size"]


def test_the_work_of_an_unknown_family_is_refused() -> None:
    with pytest.raises(ConfigError, match="gemma"):
        Shape.from_config({"model_type": "gemma2"})
