"""Scores the same dataset in every situation and holds each score against an undisturbed one, bit for bit.

Every situation has scoring processes of its own, started as the product starts its workers or, where a child is
killed, by the product's executor.
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
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from template.constants import DATA_FILE
from template.errors import HostError
from template.records import SubmissionKey
from template.workers.executor import CompletedJob, Evaluator
from template.workers.supervisor import LocalExecutor
from template.workers.timeouts import WorkerTimeouts
from tests.campaigns.stress.score import LUCKY_NUM, Job, Outcome, digest_steps
from tests.campaigns.stress.situations import Situation, Verdict

_ROOT = Path(__file__).resolve().parents[3]
_PATIENCE_S = 3600.0
HEADER = f"{'situation':<48} {'scores':>6} {'equal':>5} {'slowest':>8}  notes"

_TEXT = "the lamp keeper sea storm night bus walk home rain window letter book page smile seven days Paris river"
_WORDS = _TEXT.split()


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of one situation. slowest: of its scores, in multiples of the reference's median; None without one."""

    situation: Situation
    verdicts: tuple[Verdict, ...]
    slowest: float | None
    notes: str

    @property
    def is_as_allowed(self) -> bool:
        return bool(self.verdicts) and set(self.verdicts) <= self.situation.allowed

    def __str__(self) -> str:
        slowest = "" if self.slowest is None else f"{self.slowest:.1f}x"
        equal = self.verdicts.count(Verdict.EQUAL)
        verdict = "" if self.is_as_allowed else "NOT AS IT MUST BE: "
        line = f"{self.situation.name:<48} {len(self.verdicts):>6} {equal:>5} {slowest:>8}"
        return f"{line}  {verdict}{self.notes}".rstrip()


def make_rows(count: int, *, seed: int, words: tuple[int, int]) -> str:
    """So many rows of one or two turns, the least and most words of each text given, as a file's text."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        turns = [
            {"role": role, "content": " ".join(draw.choices(_WORDS, k=draw.randint(*words)))}
            for _ in range(draw.randint(1, 2))
            for role in ("user", "assistant")
        ]
        rows.append(json.dumps({"system": "Be brief." if number % 2 else None, "conversations": turns}))
    return "\n".join(rows)


@dataclass(frozen=True, kw_only=True)
class Datasets:
    """Folders of data files: the one to score, the evaluation set, one that takes long, and others of every shape."""

    data: Path
    evaluation: Path
    long: Path
    others: tuple[Path, ...]


def write_datasets(folder: Path, rows: int, eval_rows: int) -> Datasets:
    """The datasets in the folder. rows: of the one to score."""
    no_answer = json.dumps({"conversations": [{"role": "user", "content": "?"}]})
    others = {
        "one-row": make_rows(1, seed=11, words=(1, 3)),
        "short-rows": make_rows(9, seed=12, words=(1, 4)),
        "unlike-rows": make_rows(5, seed=13, words=(1, 90)),
        "broken": '{"conversations": 7}',
        "empty": "",
        "without-an-answer": no_answer,
        "cut": make_rows(1, seed=14, words=(400, 500)),
        "no-text": "\0\0",
    }
    files = {
        "data": make_rows(rows, seed=1, words=(3, 40)),
        "evaluation": make_rows(eval_rows, seed=2, words=(3, 40)),
        "long": make_rows(8 * rows, seed=3, words=(30, 60)),
        **others,
    }
    for name, text in files.items():
        (folder / name).mkdir(parents=True)
        (folder / name / DATA_FILE).write_text(text, encoding="utf-8")
    return Datasets(
        data=folder / "data",
        evaluation=folder / "evaluation",
        long=folder / "long",
        others=tuple(folder / name for name in others),
    )


@dataclass
class Stress:
    """The run on one model and device. scores: in each dtype. reference: the undisturbed scores, after `measure`."""

    model_id: str
    model_path: Path
    datasets: Datasets
    device: str
    dtypes: tuple[str, ...]
    scores: int
    reference: list[Outcome] = field(default_factory=list)

    def measure(self) -> Row:
        """The undisturbed scores, against which all others are held. Raises: HostError when there are none."""
        plain = Situation(name="undisturbed")
        self.reference = self._score_apart(plain)
        if failed := [outcome.said for outcome in self.reference if outcome.error]:
            raise HostError(f"there is no undisturbed score: {failed[0]}")
        return self.judge(plain, self.reference)

    def meet(self, situation: Situation) -> Row:
        """The scores in that situation beside the reference's."""
        with self._beside(situation):
            outcomes = self._score_in_children() if situation.is_child_killed else self._score_apart(situation)
        return self.judge(situation, outcomes)

    def job(self, situation: Situation) -> Job:
        """What a process of the situation is told to do."""
        return Job(
            model_id=self.model_id,
            model_path=str(self.model_path),
            data_dir=str(self.datasets.data),
            eval_data_dir=str(self.datasets.evaluation),
            device=self.device,
            dtypes=self.dtypes,
            scores=2 if situation.others else self.scores,
            disturbance=situation.disturbance,
            between=[str(folder) for folder in self.datasets.others],
            others=situation.others,
        )

    def _score_apart(self, situation: Situation) -> list[Outcome]:
        """The outcomes of a process of its own, and one more for its end when that came too early."""
        job, prelude = self.job(situation), situation.prelude
        if situation.address_share is not None:
            kib = int(self.reference[-1].address_bytes * situation.address_share) // 1024
            prelude = f"ulimit -v {kib}; {prelude}"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "job.json"
            path.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
            command = [sys.executable, "-P", "-m", "tests.campaigns.stress.score", str(path)]
            done = subprocess.run(
                ["sh", "-c", f'{prelude} "$@"', "sh", *command],
                env={**_environment(), **situation.environment},
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
            )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        outcomes = [Outcome(**json.loads(line)) for line in lines]
        if len(outcomes) < job.scores * len(job.dtypes):
            last = (done.stderr.strip().splitlines() or [""])[-1]
            said = f"ended with status {done.returncode}: {last[:60]}"
            outcomes.append(Outcome(dtype="", error="the process", said=said))
        return outcomes

    def _score_in_children(self) -> list[Outcome]:
        """Scores by the product's executor, whose worker is killed in mid-training before each of them."""
        return [
            outcome
            for dtype in self.dtypes
            for outcome in self._score_in_killed(self.job(Situation(name="")).make_evaluator(dtype))
        ]

    def _score_in_killed(self, evaluator: Evaluator) -> Iterator[Outcome]:
        executor = LocalExecutor(evaluator, [self.device], timeouts=WorkerTimeouts(restart_first_s=0.0))
        try:
            for _ in range(self.scores):
                _await_worker(executor)
                _submit(executor, self.datasets.long)
                while not (executor.collect() or any(one.stage == "train" and one.done for one in executor.running())):
                    executor.wait(0.01)
                for pid in _children("template.workers.worker"):
                    os.kill(pid, signal.SIGKILL)
                eval_config = _await_worker(executor)
                _submit(executor, self.datasets.data)
                while not (finished := executor.collect()):
                    executor.wait(1.0)
                yield _outcome_of(str(evaluator.dtype), finished[0], eval_config)
        finally:
            executor.close()

    @contextlib.contextmanager
    def _beside(self, situation: Situation) -> Iterator[None]:
        copies = len(os.sched_getaffinity(0)) if situation.is_per_core else 1
        with contextlib.ExitStack() as stack:
            for arguments in situation.beside * copies:
                command = [sys.executable, "-P", "-m", "tests.campaigns.stress.external_load", *arguments]
                hog = stack.enter_context(
                    subprocess.Popen(
                        command,
                        env=_environment(),
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                    )
                )
                stack.callback(hog.kill)
                assert hog.stdout is not None
                if not hog.stdout.readline():
                    raise HostError(f"{' '.join(arguments)}: could not be put beside the score")
            yield

    def judge(self, situation: Situation, outcomes: Sequence[Outcome]) -> Row:
        """The situation's row, from its scores and the reference's."""
        verdicts = tuple(self._verdict(outcome) for outcome in outcomes)
        ratios = [outcome.seconds / self._usual_s(outcome.dtype) for outcome in outcomes if outcome.seconds]
        notes = []
        for outcome, verdict in zip(outcomes, verdicts, strict=True):
            if verdict is Verdict.REFUSED:
                notes.append(f"{outcome.error}: {outcome.said[:90]}")
            elif verdict is not Verdict.EQUAL:
                notes.append(f"{verdict}: {self._find_unlike(outcome)}")
        return Row(
            situation=situation,
            verdicts=verdicts,
            slowest=max(ratios, default=None),
            notes="; ".join(dict.fromkeys(notes)),
        )

    def _first(self, dtype: str) -> Outcome:
        return next(outcome for outcome in self.reference if outcome.dtype == dtype)

    def _usual_s(self, dtype: str) -> float:
        return statistics.median(outcome.seconds for outcome in self.reference if outcome.dtype == dtype)

    def _verdict(self, outcome: Outcome) -> Verdict:
        if outcome.error:
            return Verdict.REFUSED
        first = self._first(outcome.dtype)
        pairs = zip(outcome.bits, first.bits, strict=True)
        if all(ours == theirs for ours, theirs in pairs if ours and theirs):
            return Verdict.EQUAL
        return Verdict.DIFFERENT if outcome.eval_config == first.eval_config else Verdict.OTHER_CONTEST

    def _find_unlike(self, outcome: Outcome) -> str:
        """What the receipt says of the difference."""
        usual = self._first(outcome.dtype).environment
        unlike = [f"{name} {value}" for name, value in outcome.environment.items() if usual.get(name) != value]
        return ", ".join(unlike) or "the receipt names no difference"


def _outcome_of(dtype: str, finished: CompletedJob, eval_config: str) -> Outcome:
    result = finished.result
    if result is None:
        assert finished.error is not None
        return Outcome.of_error(dtype, finished.error)
    return Outcome(
        dtype=dtype,
        bits=(result.loss.hex(), digest_steps(result), ""),
        eval_config=eval_config,
        environment=result.environment,
        seconds=result.load_seconds + result.train_seconds + result.eval_seconds,
    )


def _environment() -> dict[str, str]:
    """This process's own, with this tree found first."""
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def _await_worker(executor: LocalExecutor) -> str:
    """The model's name, once a worker is free."""
    while (name := executor.start()) is None or not executor.idle_workers():
        executor.wait(1.0)
        executor.collect()
    return name


def _submit(executor: LocalExecutor, data_dir: Path) -> None:
    executor.submit(SubmissionKey("stress", str(data_dir)), data_dir, LUCKY_NUM)


def _children(named: str) -> list[int]:
    """This process's children with that in their command line."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((proc / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and named in (proc / "cmdline").read_text():
                found.append(int(proc.name))
    return found
