"""One process of the stress run, which evaluates the same dataset repeatedly.

    python -m tests.campaigns.stress.evaluation JOB

JOB is a `Job` in JSON. Each evaluation is a line of JSON on stdout: loss, steps and trained adapter to the last bit, or
the error.
"""

import dataclasses
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from loguru import logger

from template.competition import Competition
from template.config import load_training_args
from template.errors import SubnetError
from template.records import TrainResult
from template.telemetry import logging
from template.train import RunOptions, load_resident_model
from template.training import loop
from template.workers.executor import Evaluator
from template.workers.worker import peak_memory_bytes, set_parent_death_signal
from tests.campaigns.measure import memory_kib
from tests.campaigns.stress.disturbances import DISTURBANCES, undisturbed

LUCKY_NUM = 20_000
# One in so many evaluations of other datasets trains at a rate at which any training diverges.
_DIVERGING, _DIVERGING_RATE = 25, 1e30


@dataclass(frozen=True, kw_only=True)
class Job:
    """The work of one process.

    Args:
        evaluations: in each dtype.
        disturbance: of `tests.campaigns.stress.disturbances`.
        other_dirs: other datasets, `others` of which are evaluated before each evaluation but the first.
    """

    model_id: str
    model_path: str
    data_dir: str
    eval_data_dir: str
    device: str
    dtypes: Sequence[str]
    evaluations: int
    disturbance: str | None = None
    other_dirs: Sequence[str] = ()
    others: int = 0

    def make_evaluator(self, dtype: str) -> Evaluator:
        return Evaluator(
            competition=Competition.from_defaults(),
            training_args=dataclasses.replace(load_training_args(), model_id=self.model_id, revision=None),
            eval_data_dir=Path(self.eval_data_dir),
            model_path=Path(self.model_path),
            device=self.device,
            dtype=dtype,
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of one evaluation.

    Args:
        bits: the loss, a digest of all step losses, and one of the trained adapter, "" where it is not at hand.
        eval_config: the product's name of the model; losses under two names are never compared.
        memory_bytes: the most that was held, of the GPU where there is one; address_bytes: that was ever mapped.
    """

    dtype: str
    bits: Sequence[str] = ()
    eval_config: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    memory_bytes: int = 0
    address_bytes: int = 0
    error: str = ""
    message: str = ""

    @classmethod
    def of_error(cls, dtype: str, error: Exception) -> "Outcome":
        return cls(dtype=dtype, error=type(error).__name__, message=" ".join(str(error).split()))

    @classmethod
    def of_result(cls, dtype: str, eval_config: str, result: TrainResult, adapter: str = "") -> "Outcome":
        steps = hashlib.sha256(",".join(loss.hex() for loss in result.step_losses).encode()).hexdigest()
        return cls(
            dtype=dtype,
            bits=(result.loss.hex(), steps, adapter),
            eval_config=eval_config,
            environment=result.environment,
            seconds=result.load_seconds + result.train_seconds + result.eval_seconds,
        )


def evaluate(evaluator: Evaluator, on_progress: loop.OnProgress | None, data_dir: Path) -> Outcome:
    started = time.perf_counter()
    try:
        result = evaluator.evaluate(data_dir, LUCKY_NUM, on_progress)
        seconds = time.perf_counter() - started
        options = RunOptions(
            training_args=evaluator.training_args,
            model_path=evaluator.model_path,
            device=evaluator.device,
            dtype=evaluator.dtype,
        )
        adapter = load_resident_model(options).adapter_parameters
        eval_config = evaluator.load_model()
    except SubnetError as error:
        return Outcome.of_error(str(evaluator.dtype), error)
    digest = hashlib.sha256()
    for name, parameter in sorted(adapter.items()):
        digest.update(name.encode() + parameter.detach().cpu().numpy().tobytes())
    outcome = Outcome.of_result(str(evaluator.dtype), eval_config, result, digest.hexdigest())
    return dataclasses.replace(
        outcome, seconds=seconds, memory_bytes=peak_memory_bytes(), address_bytes=memory_kib("VmPeak") * 1024
    )


def run(job: Job) -> Iterator[Outcome]:
    evaluators = [job.make_evaluator(dtype) for dtype in job.dtypes]
    others = [Path(folder) for folder in job.other_dirs]
    with DISTURBANCES[job.disturbance]() if job.disturbance else undisturbed() as on_progress:
        for evaluator, index in itertools.product(evaluators, range(job.evaluations)):
            for number in range(job.others if index and others else 0):
                rate = _DIVERGING_RATE if number % _DIVERGING == 1 else loop.LEARNING_RATE
                with mock.patch.object(loop, "LEARNING_RATE", rate):
                    evaluate(evaluator, None, others[number % len(others)])
            yield evaluate(evaluator, on_progress, Path(job.data_dir))


def main(argv: Sequence[str]) -> None:
    set_parent_death_signal()
    job = Job(**json.loads(argv[0]))
    logging.quiet_libraries()
    logger.remove()
    for outcome in run(job):
        print(json.dumps(dataclasses.asdict(outcome)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
