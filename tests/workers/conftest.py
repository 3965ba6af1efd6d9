"""The evaluator of all workers' tests, and its result in this process."""

import pytest

from template.competition import Competition
from template.records import TrainResult
from template.workers.executor import Evaluator
from tests.fixtures.training import Bench, make_args
from tests.fixtures.workers import SEED


@pytest.fixture(scope="package")
def evaluator(bench: Bench) -> Evaluator:
    return Evaluator(
        competition=Competition.from_defaults(),
        training_args=make_args(),
        eval_data_dir=bench.eval_data_dir,
        model_path=bench.model_path,
        device="cpu",
        dtype="float32",
    )


@pytest.fixture(scope="package")
def expected(evaluator: Evaluator, bench: Bench) -> TrainResult:
    return evaluator.evaluate(bench.data_dir, SEED)
