"""One scoring process of the stress run: scores the same dataset again and again, disturbed from within.

    python -m tests.campaigns.stress.score JOB.json

The job says what to score and what is done to this process meanwhile. Every score is a line of JSON on stdout: loss,
steps and trained adapter to the last bit, or the error that it ended with.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loguru import logger

from template.competition import Competition
from template.config import load_training_args
from template.errors import SubnetError
from template.records import TrainResult
from template.telemetry import logging
from template.training.loop import OnProgress
from template.workers.executor import Evaluator
from template.workers.worker import peak_memory_bytes, set_parent_death_signal

LUCKY_NUM = 20_000

# Of the other datasets, every one of that number is trained at a rate at which any training diverges.
_DIVERGING = 25


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process is to do: so many scores in each dtype.

    disturbance: by name, of `tests.campaigns.stress.disturbances`, None for none. between: folders of other datasets,
    `others` of which are scored before each score but the first.
    """

    model_id: str
    model_path: str
    data_dir: str
    eval_data_dir: str
    device: str
    dtypes: Sequence[str]
    scores: int
    disturbance: str | None = None
    between: Sequence[str] = ()
    others: int = 0

    def make_evaluator(self, dtype: str) -> Evaluator:
        """The scorer that the product makes of such settings."""
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
    """The end of one score: bits, or the class of an error and what it said.

    bits: the loss, a digest of the losses of all steps, and one of the trained adapter, "" where it is not at hand.
    contest: what the product calls the model; losses under two such names are never compared. memory_bytes: the most
    that was held, of the GPU where there is one; address_bytes: the most that was ever mapped.
    """

    dtype: str
    bits: Sequence[str] = ()
    eval_config: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    memory_bytes: int = 0
    address_bytes: int = 0
    error: str = ""
    said: str = ""

    @classmethod
    def of_error(cls, dtype: str, error: Exception) -> "Outcome":
        return cls(dtype=dtype, error=type(error).__name__, said=" ".join(str(error).split()))


def digest_steps(result: TrainResult) -> str:
    """sha256 in hex over the losses of all steps."""
    return hashlib.sha256(",".join(loss.hex() for loss in result.step_losses).encode()).hexdigest()


def score(evaluator: Evaluator, on_progress: OnProgress | None, data_dir: Path) -> Outcome:
    """One score in this process."""
    from template.train import RunOptions, load_resident_model

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
    total = hashlib.sha256()
    for name, parameter in sorted(adapter.items()):
        total.update(name.encode() + parameter.detach().cpu().numpy().tobytes())
    return Outcome(
        dtype=str(evaluator.dtype),
        bits=(result.loss.hex(), digest_steps(result), total.hexdigest()),
        eval_config=eval_config,
        environment=result.environment,
        seconds=seconds,
        memory_bytes=peak_memory_bytes(),
        address_bytes=_read_status("VmPeak"),
    )


def _read_status(name: str) -> int:
    """Bytes of a line of /proc/self/status, 0 where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


@contextmanager
def _diverging() -> Iterator[None]:
    from template.training import loop

    usual = loop.LEARNING_RATE
    loop.LEARNING_RATE = 1e30
    try:
        yield
    finally:
        loop.LEARNING_RATE = usual


def run(job: Job) -> Iterator[Outcome]:
    """The scores of the job, one after the other."""
    from tests.campaigns.stress.disturbances import DISTURBANCES, undisturbed

    scorers = [job.make_evaluator(dtype) for dtype in job.dtypes]
    others = [Path(folder) for folder in job.between]
    with DISTURBANCES[job.disturbance]() if job.disturbance else undisturbed() as on_progress:
        for evaluator, at in itertools.product(scorers, range(job.scores)):
            for number in range(job.others if at and others else 0):
                with _diverging() if number % _DIVERGING == 1 else contextlib.nullcontext():
                    score(evaluator, None, others[number % len(others)])
            yield score(evaluator, on_progress, Path(job.data_dir))


def main(argv: Sequence[str]) -> None:
    """Does the job of the file."""
    set_parent_death_signal()
    job = Job(**json.loads(Path(argv[0]).read_text(encoding="utf-8")))
    logging.quiet_libraries()
    logger.remove()
    for outcome in run(job):
        print(json.dumps(dataclasses.asdict(outcome)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
