"""The estimated time of an evaluation and of a round."""

from argparse import Namespace
from pathlib import Path

import pytest

from scripts import doctor
from template.competition import Competition, Incentives
from template.doctor.pace import extrapolate, judge_round
from template.doctor.setup import Role, Setup
from template.records import EvaluationResult, Progress
from template.store.store import Store
from tests.fixtures.network import Ended, Net, call_main, write_training_args
from tests.fixtures.store import make_evaluation


def train(at_s: float, done: int) -> tuple[float, Progress]:
    return at_s, Progress(stage="train", done=done, total=1000)


def evaluate(at_s: float, done: int) -> tuple[float, Progress]:
    return at_s, Progress(stage="evaluate", done=done, total=600)


LOADING = (1.0, Progress(stage="load", done=0, total=0))


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([], None),
        ([LOADING], None),
        # 0.2 s a token, 1000 tokens to train, and half as many to evaluate.
        ([LOADING, train(10.0, 40), train(20.0, 100)], 300.0),
        # Training took 20 s, and evaluating 0.1 s a token.
        ([LOADING, train(20.0, 1000), evaluate(25.0, 30), evaluate(30.0, 100)], 80.0),
        ([LOADING, evaluate(5.0, 50)], 60.0),
    ],
)
def test_unfinished_evaluation_is_extrapolated(looks: list[tuple[float, Progress]], expected: float | None) -> None:
    assert extrapolate(looks, 0.5) == expected


def judge(seconds: float, **changed: object) -> str:
    flags = {"executor": "local", "device": None, "miner_sample_size": None, "blocks_per_epoch": None}
    args = Namespace(**{**flags, "block_threshold": 50, "model_path": None, **changed})
    setup = Setup(args=args, role=Role.VALIDATOR, state_dir=Path("/state"))
    finding = judge_round(setup, Incentives(), seconds)
    return f"{finding.level}: {finding.text}"


def test_round_that_ends_in_time_is_told_from_one_that_does_not() -> None:
    text = "a round's 30 evaluations take about 60 min with 1 at a time, and 62 min are left until its weights are set"
    assert judge(120.0) == f"ok: {text}"
    assert judge(130.0).startswith("warning: a round's 30 evaluations take about 65 min with 1 at a time")
    assert judge(130.0, device="cuda:0,cuda:1").startswith("ok: a round's 30 evaluations take about 32 min with 2")
    assert judge(130.0, miner_sample_size=10).startswith("ok: a round's 10 evaluations take about 22 min")


def run_doctor(net: Net, model_path: Path, *flags: object) -> Ended:
    state = ("--state_dir", net.parts.folder / "state", "--model_path", model_path, "--device", "cpu")
    training = ("--training_args", write_training_args(net.parts.folder / "args.yaml"))
    return call_main(doctor.main, *net.chain_arguments("validator"), *state, *training, *flags)


def times(ended: Ended) -> list[str]:
    return [line for line in ended.output.splitlines() if line[8:26].strip() == "time"]


def test_recorded_evaluations_are_the_estimate(net: Net, tiny_model: Path) -> None:
    (net.parts.folder / "state").mkdir()
    with Store(net.parts.folder / "state" / "validator.sqlite3") as store:
        config = store.get_or_create_config(Competition.from_defaults(), "h" * 64, "org/model@abc", now=1.0)
        for number, seconds in enumerate((10.0, 90.0, 11.0), start=1):
            result = EvaluationResult(loss=2.5, seconds=seconds, receipt="{}", receipt_digest="r" * 64)
            store.record_evaluation(config, make_evaluation(number=number), result, now=float(number))
    first, second = times(run_doctor(net, tiny_model, "--measure_seconds", 0))
    assert "ok" in first and "an evaluation takes about 11 s: median of the last 3" in first
    assert "a round's 30 evaluations take about 6 min with 1 at a time" in second


def test_time_that_cannot_be_known_is_unknown(net: Net, tiny_model: Path) -> None:
    (line,) = times(run_doctor(net, tiny_model, "--measure_seconds", 60))
    assert line.startswith("warning") and "unknown: the evaluation set is not on this machine" in line
    (line,) = times(run_doctor(net, tiny_model, "--measure_seconds", 0))
    assert "unknown: not measured" in line


@pytest.mark.slow
def test_evaluation_is_measured_with_the_real_settings(net: Net, tiny_model: Path) -> None:
    from template.hub.datasets import fetch_eval_set

    fetch_eval_set(net.competition, net.parts.folder / "state" / "eval_data", None, None)
    first, second = times(run_doctor(net, tiny_model))
    assert "ok" in first and "measured now, with 110 rows of the evaluation set" in first
    assert "a round's 30 evaluations take about" in second
