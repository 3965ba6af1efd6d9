"""Estimate how long an evaluation and a round take on this machine."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from template import cli, constants
from template.competition import Incentives
from template.config import load_competition, load_incentives, load_training_args
from template.doctor.findings import Finding, passed, warned
from template.doctor.setup import Setup
from template.errors import HostError, SubnetError
from template.files import OutputFile, temporary_folder
from template.hub.checks import find_model
from template.records import Progress, SubmissionKey
from template.status.status import STATE_FILE
from template.store.store import StatusStore
from template.terminal import format_duration
from template.workers.executor import Executor
from template.workers.supervisor import LocalExecutor

LOAD_S = 300.0
_POLL_S = 0.5
_RECORDED = 30
_KEY = SubmissionKey("doctor", "doctor")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of one evaluation, and how they were found."""

    seconds: float
    method: str


def estimate_pace(setup: Setup, limit_s: float) -> Iterator[Finding]:
    """Estimate by the evaluations of the state, otherwise by one that runs for at most `limit_s`."""
    try:
        pace = _recorded_pace(setup.state_dir / STATE_FILE) or _measure(setup, limit_s)
    except SubnetError as error:
        yield warned("time", f"time of an evaluation unknown: {error}", "look again after the first round (status)")
        return
    yield passed("time", f"an evaluation takes about {format_duration(pace.seconds)}: {pace.method}")
    yield judge_round(setup, load_incentives(setup.args.competition), pace.seconds)


def judge_round(setup: Setup, incentives: Incentives, seconds: float) -> Finding:
    """Compare the evaluations of a round with its length."""
    args = setup.args
    workers = args.ray_workers if args.executor == "ray" else max(1, len(setup.devices))
    slots = args.miner_sample_size or incentives.slots
    blocks = (args.blocks_per_epoch or incentives.blocks_per_epoch) - args.block_threshold
    needed_s, available_s = seconds * -(-slots // workers), float(blocks * constants.BLOCK_S)
    text = (
        f"a round's {slots} evaluations take about {format_duration(needed_s)} with {workers} at a time, and"
        f" {format_duration(available_s)} are left until its weights are set"
    )
    if needed_s <= available_s:
        return passed("time", text)
    return warned("time", text, "use a faster GPU, or several: --device cuda:0,cuda:1")


def _recorded_pace(path: Path) -> Pace | None:
    if not path.exists():
        return None
    with StatusStore(path) as store:
        seconds = store.evaluation_seconds(_RECORDED)
    return Pace(seconds=statistics.median(seconds), method=f"median of the last {len(seconds)}") if seconds else None


def _measure(setup: Setup, limit_s: float) -> Pace:
    """Evaluate the first rows of the evaluation set with the real settings.

    Raises: HostError where that is not possible; other errors of the evaluation.
    """
    args = setup.args
    training_args = load_training_args(args.training_args)
    eval_file = setup.eval_file()
    if limit_s <= 0:
        raise HostError("not measured (--measure_seconds 0)")
    if args.executor != "local":
        raise HostError("not measured in a Ray cluster")
    if eval_file is None:
        raise HostError("the evaluation set is not on this machine before the first start")
    if setup.model_path is None and find_model(training_args.model_id, training_args.revision, setup.cache_dir) is None:
        raise HostError("the model is not on this machine before the first start")
    competition = load_competition(args.competition)
    evaluator = cli.make_evaluator(args, competition, eval_file.parent, setup.cache_dir)
    executor = LocalExecutor(evaluator, [setup.devices[0] if setup.devices else None], log_level="ERROR")
    try:
        with temporary_folder() as folder:
            content = _read_rows(eval_file, competition.rows)
            OutputFile(name=constants.DATA_FILE, content=content, mode=0o600).write(folder)
            trained_bytes = len(content) * training_args.hyperparameters.num_train_epochs
            _load(executor)
            return _evaluate(executor, folder, limit_s, eval_file.stat().st_size / trained_bytes)
    finally:
        executor.close()


def _read_rows(eval_file: Path, rows: int) -> bytes:
    """Return the first rows of the evaluation set, as many as a dataset may have."""
    lines, size = list[bytes](), 0
    with eval_file.open("rb") as stream:
        for line in stream:
            size += len(line)
            if len(lines) == rows or size > constants.MAX_SUBMISSION_BYTES:
                break
            lines.append(line)
    return b"".join(lines)


def _load(executor: Executor) -> None:
    """Wait until a worker has loaded the model. Raises: SubnetError."""
    deadline = time.monotonic() + LOAD_S
    while executor.start() is None:
        if time.monotonic() > deadline:
            raise HostError(f"the model was not loaded within {LOAD_S:.0f} s")
        executor.wait(_POLL_S)


def _evaluate(executor: Executor, folder: Path, limit_s: float, eval_share: float) -> Pace:
    """Evaluate until the end or the limit. eval_share: as in `extrapolate`. Raises: SubnetError."""
    started_at = time.monotonic()
    executor.submit(_KEY, folder, 0)
    looks: list[tuple[float, Progress]] = []
    while (at_s := time.monotonic() - started_at) < limit_s:
        for job in executor.collect():
            if job.result is None:
                raise job.error or HostError("the evaluation ended without a result")
            seconds, rows = job.result.train_seconds + job.result.eval_seconds, job.result.train_rows
            return Pace(seconds=seconds, method=f"measured now, with {rows} rows of the evaluation set")
        looks += [
            (at_s, Progress(stage=running.stage, done=running.done, total=running.total))
            for running in executor.running()
        ]
        executor.wait(_POLL_S)
    estimate = extrapolate(looks, eval_share)
    if estimate is None:
        raise HostError(f"no training step ended within {limit_s:.0f} s (--measure_seconds)")
    return Pace(seconds=estimate, method=f"extrapolated from its first {limit_s:.0f} s, so at most a rough guide")


def extrapolate(looks: Sequence[tuple[float, Progress]], eval_share: float) -> float | None:
    """Return the expected seconds of an evaluation that was not waited for, None before any progress.

    looks: its progress, so many seconds after its start. While it trains, a token of the evaluation set counts like one
    of training, which takes longer. eval_share: tokens of the evaluation set by those of the training.
    """
    trained = [(at_s, progress) for at_s, progress in looks if progress.stage == "train"]
    evaluated = [(at_s, progress) for at_s, progress in looks if progress.stage == "evaluate"]
    trained_s = trained[-1][0] if trained else 0.0
    if evaluated:
        at_s, progress = evaluated[-1]
        return trained_s + (at_s - trained_s) / progress.done * progress.total
    if not trained:
        return None
    progress = trained[-1][1]
    return trained_s / progress.done * progress.total * (1.0 + eval_share)
