"""Evaluates a dataset in every situation and compares the bits.

Each situation has processes of its own, started as the product starts its workers or, where a child is killed, by the
product's executor.
"""

import contextlib
import dataclasses
import json
import os
import random
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from template.constants import DATA_FILE
from template.errors import HostError
from template.records import SubmissionKey
from template.telemetry.wandb_run import child_processes
from template.workers.executor import Evaluator
from template.workers.supervisor import LocalExecutor
from template.workers.timeouts import WorkerTimeouts
from tests.campaigns.process_under_test import ROOT
from tests.campaigns.stress.evaluation import LUCKY_NUM, Job, Outcome
from tests.campaigns.stress.situations import Situation, Verdict
from tests.campaigns.synthetic_subnet import make_file, make_rows

_TIMEOUT_S = 3600.0
HEADER = f"{'situation':<48} {'runs':>6} {'equal':>5} {'slowest':>8}  notes"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The result of one situation; slowest is in multiples of the usual time."""

    situation: Situation
    verdicts: tuple[Verdict, ...]
    slowest: float | None
    notes: str

    @property
    def is_as_allowed(self) -> bool:
        return bool(self.verdicts) and set(self.verdicts) <= self.situation.allowed

    def __str__(self) -> str:
        slowest = "" if self.slowest is None else f"{self.slowest:.1f}x"
        verdict = "" if self.is_as_allowed else "NOT ALLOWED: "
        equal = self.verdicts.count(Verdict.EQUAL)
        line = f"{self.situation.name:<48} {len(self.verdicts):>6} {equal:>5} {slowest:>8}"
        return f"{line}  {verdict}{self.notes}".rstrip()


def make_unequal_rows(count: int, *, seed: int, words: int) -> bytes:
    """Return a file of rows of up to so many words."""
    lengths = random.Random(seed).choices(range(4, words), k=count)
    return make_file(row for length in lengths for row in make_rows(1, seed=seed + length, words=length))


def write_datasets(folder: Path, *, rows: int) -> Path:
    """Write all datasets, the main one of so many rows, and return their folder."""
    files = {
        "data": make_unequal_rows(rows, seed=1, words=50),
        "evaluation": make_unequal_rows(rows * 2 // 3, seed=2, words=50),
        "long": make_unequal_rows(8 * rows, seed=3, words=90),
        "others/one-row": make_unequal_rows(1, seed=11, words=6),
        "others/short-rows": make_unequal_rows(9, seed=12, words=8),
        "others/unequal-rows": make_unequal_rows(5, seed=13, words=120),
        "others/broken": b'{"conversations": 7}',
        "others/empty": b"",
        "others/without-an-answer": b'{"conversations": [{"role": "user", "content": "?"}]}',
        "others/cut": make_file(make_rows(1, seed=14, words=600)),
        "others/no-text": b"\0\0",
    }
    for name, content in files.items():
        (folder / name).mkdir(parents=True)
        (folder / name / DATA_FILE).write_bytes(content)
    return folder


@dataclass
class Stress:
    """The run on one model and device."""

    model_id: str
    model_path: Path
    datasets: Path
    device: str
    dtypes: tuple[str, ...]
    evaluations: int
    reference: list[Outcome] = field(default_factory=list)

    def measure(self) -> Row:
        """Make the undisturbed evaluations. Raises: HostError."""
        plain = Situation(name="undisturbed")
        self.reference = self._evaluate_in_process(plain)
        if errors := [outcome.message for outcome in self.reference if outcome.error]:
            raise HostError(f"the undisturbed evaluation failed: {errors[0]}")
        return self.judge(plain, self.reference)

    def run(self, situation: Situation) -> Row:
        """Evaluate in a situation and compare with the reference."""
        with external_load(situation):
            if situation.is_child_killed:
                jobs = [self.job(Situation(name="")).make_evaluator(dtype) for dtype in self.dtypes]
                outcomes = [outcome for evaluator in jobs for outcome in self._evaluate_after_kill(evaluator)]
            else:
                outcomes = self._evaluate_in_process(situation)
        return self.judge(situation, outcomes)

    def job(self, situation: Situation) -> Job:
        """Return the job of a process of the situation."""
        return Job(
            model_id=self.model_id,
            model_path=str(self.model_path),
            data_dir=str(self.datasets / "data"),
            eval_data_dir=str(self.datasets / "evaluation"),
            device=self.device,
            dtypes=self.dtypes,
            evaluations=2 if situation.others else self.evaluations,
            disturbance=situation.disturbance,
            other_dirs=[str(folder) for folder in sorted((self.datasets / "others").iterdir())],
            others=situation.others,
        )

    def _evaluate_in_process(self, situation: Situation) -> list[Outcome]:
        """Return the outcomes of a process, and of its end when that was too early."""
        job, prelude = self.job(situation), situation.prelude
        if situation.address_share is not None:
            kib = int(self.reference[-1].address_bytes * situation.address_share) // 1024
            prelude = f"ulimit -v {kib}; {prelude}"
        command = [sys.executable, "-P", "-m", "tests.campaigns.stress.evaluation", json.dumps(dataclasses.asdict(job))]
        ended = subprocess.run(
            ["sh", "-c", f'{prelude} "$@"', "sh", *command],
            env={**_environment(), **situation.environment},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        outcomes = [Outcome(**json.loads(line)) for line in ended.stdout.splitlines() if line.startswith("{")]
        if len(outcomes) < job.evaluations * len(job.dtypes):
            last = (ended.stderr.strip().splitlines() or [""])[-1]
            message = f"ended with status {ended.returncode}: {last[:60]}"
            outcomes.append(Outcome(dtype="", error="the process", message=message))
        return outcomes

    def _evaluate_after_kill(self, evaluator: Evaluator) -> Iterator[Outcome]:
        """Evaluate by the product's executor after its worker was killed."""
        executor = LocalExecutor(evaluator, [self.device], timeouts=WorkerTimeouts(restart_first_s=0.0))
        try:
            for _ in range(self.evaluations):
                _await_worker(executor)
                _submit(executor, self.datasets / "long")
                while not (executor.collect() or any(job.stage == "train" and job.done for job in executor.running())):
                    executor.wait(0.01)
                for pid in child_processes(os.getpid()):
                    os.kill(pid, signal.SIGKILL)
                eval_config = _await_worker(executor)
                _submit(executor, self.datasets / "data")
                while not (jobs := executor.collect()):
                    executor.wait(1.0)
                dtype, result, error = str(evaluator.dtype), jobs[0].result, jobs[0].error
                if result is None:
                    yield Outcome.of_error(dtype, error or HostError("no result"))
                else:
                    yield Outcome.of_result(dtype, eval_config, result)
        finally:
            executor.close()

    def judge(self, situation: Situation, outcomes: Sequence[Outcome]) -> Row:
        verdicts, notes, ratios = [], [], []
        for outcome in outcomes:
            same = [first for first in self.reference if first.dtype == outcome.dtype]
            verdict = Verdict.REFUSED if outcome.error else _compare(outcome, same[0])
            verdicts.append(verdict)
            if verdict is Verdict.REFUSED:
                notes.append(f"{outcome.error}: {outcome.message[:90]}")
            elif verdict is not Verdict.EQUAL:
                notes.append(f"{verdict}: {_environment_difference(outcome, same[0])}")
            if outcome.seconds:
                ratios.append(outcome.seconds / statistics.median(first.seconds for first in same))
        note = "; ".join(dict.fromkeys(notes))
        return Row(situation=situation, verdicts=tuple(verdicts), slowest=max(ratios, default=None), notes=note)


@contextlib.contextmanager
def external_load(situation: Situation) -> Iterator[None]:
    """Run a situation's other processes. Raises: HostError when one does not start."""
    copies = len(os.sched_getaffinity(0)) if situation.is_per_core else 1
    with contextlib.ExitStack() as stack:
        for arguments in situation.external_load * copies:
            command = [sys.executable, "-P", "-m", "tests.campaigns.stress.external_load", *arguments]
            process = subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            if not process.stdout.readline():
                raise HostError(f"external load failed to start: {' '.join(arguments)}")
        yield


def _compare(outcome: Outcome, first: Outcome) -> Verdict:
    pairs = zip(outcome.bits, first.bits, strict=True)
    if all(ours == theirs for ours, theirs in pairs if ours and theirs):
        return Verdict.EQUAL
    return Verdict.DIFFERENT if outcome.eval_config == first.eval_config else Verdict.OTHER_CONFIG


def _environment_difference(outcome: Outcome, first: Outcome) -> str:
    """Return the difference between the environments of the receipts."""
    usual = first.environment
    values = [f"{name} {value}" for name, value in outcome.environment.items() if usual.get(name) != value]
    return ", ".join(values) or "the receipt names no difference"


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def _await_worker(executor: LocalExecutor) -> str:
    while (name := executor.start()) is None or not executor.idle_workers():
        executor.wait(1.0)
        executor.collect()
    return name


def _submit(executor: LocalExecutor, data_dir: Path) -> None:
    executor.submit(SubmissionKey("stress", str(data_dir)), data_dir, LUCKY_NUM)
