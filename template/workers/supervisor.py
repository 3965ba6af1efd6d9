"""Scores in processes of their own, one for each device, which can be killed whatever they are doing.

A worker that hangs, dies, or says that its device failed is killed and replaced; what it was doing ends as a HostError,
never as a score. Where the whole machine of a worker went away it is a RemoteError, as with anything that is far: the
submission is tried again for as long as it takes. Every worker has the model, the libraries and the threads of the
first of them, or is refused.
"""

import dataclasses
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import ClassVar, Protocol

from loguru import logger

from template.config import TrainingArgs
from template.errors import ConfigError, HostError, RemoteError, SubmissionError, SubnetError
from template.records import LOCATION, RunningEvaluation, SubmissionKey, TrainResult
from template.workers import messages
from template.workers.child import WorkerProcess
from template.workers.executor import CompletedJob, Evaluator
from template.workers.timeouts import StageTimer, Throughput, WorkerTimeouts, tokens_per_s

_DEFAULT_TIMEOUTS = WorkerTimeouts()


class Worker(Protocol):
    """This end of one worker. Whoever starts it tells what it says, to the end, from a thread of its own."""

    def send(self, command: messages.Command) -> None:
        """Writes the command. That nobody reads it is told as the worker's end, not here."""

    def kill(self) -> None:
        """Asks for the end, which `join` waits for."""

    def join(self) -> None:
        """Waits for the end of a killed worker, but not for ever."""


@dataclass
class _Job:
    """A score under way. started_at: POSIX seconds."""

    key: SubmissionKey
    lucky_num: int
    started_at: float
    phase: StageTimer
    memory_bytes: int | None = None


@dataclass
class _WorkerSlot:
    """One device: the worker on it, if any, and its job, if any.

    started_at, start_at: when the worker was started, and before when none is to be. failures: in a row. error: a
    failure to load that was not raised yet.
    """

    device: str | None
    child: Worker | None = None
    job: _Job | None = None
    name: str = ""
    is_loaded: bool = False
    was_loaded: bool = False
    started_at: float = 0.0
    start_at: float = 0.0
    failures: int = 0
    error: SubnetError | None = None

    def __post_init__(self) -> None:
        self.name = self.device or "default device"


class WorkerPool(ABC):
    """An `Executor` of one worker for each of `devices`, wherever `_start` starts it.

    past_results: earlier results of the same model on this machine, for the first time limits.
    clock: seconds that only go forward, also read from other threads. now: POSIX seconds. log_level: the least that
    workers pass on to this process's logs; TRACE includes what their libraries say.
    """

    kind: ClassVar[str]
    """What receipts call it."""

    def __init__(
        self,
        evaluator: Evaluator,
        devices: Sequence[str | None],
        *,
        past_results: Sequence[TrainResult] = (),
        timeouts: WorkerTimeouts = _DEFAULT_TIMEOUTS,
        log_level: str = "DEBUG",
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        if not devices:
            raise ConfigError("expected at least one device to score on")
        self._evaluator = evaluator
        self._slots = [_WorkerSlot(device) for device in devices]
        self._timeouts = timeouts
        self._log_level = log_level
        self._clock = clock
        self._now = now
        self._pace = Throughput()
        for result in past_results:
            self._pace = self._pace.updated(result)
        self._model: str | None = None
        self._environment: Mapping[str, str] = {}
        self._tokens_per_s: float | None = None
        self._finished: list[CompletedJob] = []
        self._events: SimpleQueue[tuple[Worker, float, messages.Event]] = SimpleQueue()
        self._wakeup = threading.Event()
        self._is_closed = False

    @abstractmethod
    def _start(self, setup: messages.Setup) -> Worker:
        """A new worker, which tells `_on_event` what it says. Raises: HostError when none can be started."""

    @property
    def training_args(self) -> TrainingArgs:
        return self._evaluator.training_args

    def start(self) -> str | None:
        self._poll()
        self._raise_failure()
        self._start_missing()
        return self._model if any(slot.is_loaded for slot in self._slots) else None

    def idle_workers(self) -> int:
        return sum(slot.is_loaded and slot.job is None for slot in self._slots)

    def submit(self, key: SubmissionKey, data_dir: Path, lucky_num: int) -> None:
        slot = next((slot for slot in self._slots if slot.is_loaded and slot.job is None), None)
        if slot is None or slot.child is None:
            raise RuntimeError("no worker is free")
        slot.job = _Job(key, lucky_num, self._now(), StageTimer.begin(self._clock()))
        slot.child.send(messages.Job(data_dir=str(data_dir), lucky_num=lucky_num))

    def collect(self) -> list[CompletedJob]:
        self._poll()
        self._start_missing()
        finished, self._finished = self._finished, []
        return finished

    def running(self) -> tuple[RunningEvaluation, ...]:
        return tuple(
            RunningEvaluation(
                key=job.key,
                device=slot.name,
                started_at=job.started_at,
                stage=job.phase.progress.stage,
                done=job.phase.progress.done,
                total=job.phase.progress.total,
                memory_bytes=job.memory_bytes,
            )
            for slot in self._slots
            if (job := slot.job) is not None
        )

    def tokens_per_s(self) -> float | None:
        return self._tokens_per_s

    def wait(self, timeout_s: float) -> None:
        if not self._finished:
            self._wakeup.wait(timeout_s)

    def close(self) -> None:
        self._is_closed = True
        children = [slot.child for slot in self._slots if slot.child is not None]
        for child in children:
            child.kill()
        for slot in self._slots:
            slot.child, slot.job, slot.is_loaded = None, None, False
        for child in children:
            child.join()

    def _on_event(self, child: Worker, event: messages.Event) -> None:
        """Called from the workers' threads. The time is taken here, so that a busy caller makes nobody late."""
        self._events.put((child, self._clock(), event))
        if not isinstance(event, messages.ProgressUpdate):
            self._wakeup.set()

    def _poll(self) -> None:
        """Takes in what the workers said and gives up those whose time is up."""
        self._wakeup.clear()
        while True:
            try:
                child, at, event = self._events.get_nowait()
            except Empty:
                break
            slot = next((slot for slot in self._slots if slot.child is child), None)
            if slot is not None:  # else the last words of one that was given up
                self._handle(slot, event, at)
        for slot in self._slots:
            self._enforce_limits(slot)

    def _handle(self, slot: _WorkerSlot, event: messages.Event, at: float) -> None:
        match event:
            case messages.Loaded() if not slot.is_loaded:
                self._handle_loaded(slot, event)
            case messages.ProgressUpdate() if slot.job is not None:
                slot.job.phase = slot.job.phase.advanced(event.progress, at)
                slot.job.memory_bytes = event.memory_bytes
            case messages.Evaluated(result=result) if slot.job is not None and (
                moved := self._environment_change(result)
            ):
                self._fail_slot(slot, HostError(f"{slot.name}: since the worker loaded the model it has {moved}"))
            case messages.Evaluated(result=result) if slot.job is not None and result.lucky_num == slot.job.lucky_num:
                self._pace = self._pace.updated(result)
                self._tokens_per_s = tokens_per_s(result)
                self._finish(slot, self._with_location(result, slot), None)
            case messages.Failed():
                self._handle_failure(slot, event.to_error())
            case messages.WorkerExited(why=why, is_machine_lost=is_machine_lost):
                self._fail_slot(slot, (RemoteError if is_machine_lost else HostError)(f"{slot.name}: {why}"))
            case _:
                self._fail_slot(
                    slot, HostError(f"{slot.name}: the worker said {type(event).__name__} when it could not")
                )

    def _handle_loaded(self, slot: _WorkerSlot, loaded: messages.Loaded) -> None:
        slot.name = loaded.device
        if self._model is None:
            self._evaluator = self._evaluator.with_pinned_revision(loaded.model)
        elif unlike := self._environment_mismatch(loaded):
            which = f"{slot.name} computes under {unlike}"
            is_alone = not any(other.is_loaded for other in self._slots)
            if not is_alone or loaded.model.split()[0] != self._model.split()[0]:
                wanted = "scores need devices of one kind, and a model that stays the same"
                self._fail_slot(slot, ConfigError(f"{which}: {wanted}"))
                return
            # The machine is another than before, by cores for instance, and no worker is left of what it was.
            logger.warning("{} before", which)
        self._model, self._environment = loaded.model, loaded.environment
        slot.is_loaded = slot.was_loaded = True
        slot.error = None
        seconds = self._clock() - slot.started_at
        logger.info("worker ready device={} model={} seconds={:.1f}", slot.name, loaded.model, seconds)

    def _environment_mismatch(self, loaded: messages.Loaded) -> str | None:
        """What would make this worker's losses others than those of the workers before it, None when nothing does."""
        if loaded.model != self._model:
            return f"{loaded.model}, but the others under {self._model}"
        ours, theirs = _relevant(self._environment), _relevant(loaded.environment)
        unlike = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
        return ", ".join(f"{name} {theirs.get(name)}, but the others under {ours.get(name)}" for name in unlike) or None

    def _environment_change(self, result: TrainResult) -> str | None:
        """What of that which all workers share a score was made under another of, such as cores taken away."""
        held = _relevant(self._environment)
        moved = [name for name, value in held.items() if result.environment.get(name) != value]
        return ", ".join(f"another {name}: {result.environment.get(name)}" for name in sorted(moved)) or None

    def _with_location(self, result: TrainResult, slot: _WorkerSlot) -> TrainResult:
        """The result, saying where it comes from."""
        return dataclasses.replace(result, environment={**result.environment, LOCATION: f"{self.kind} {slot.name}"})

    def _handle_failure(self, slot: _WorkerSlot, error: SubnetError) -> None:
        if isinstance(error, HostError) or (slot.job is None and isinstance(error, SubmissionError)):
            error = HostError(f"{slot.name}: {error}")
        if slot.job is None or isinstance(error, HostError):
            self._fail_slot(slot, error)
        else:
            self._finish(slot, None, error)

    def _finish(self, slot: _WorkerSlot, result: TrainResult | None, error: SubnetError | None) -> None:
        """The job's end on a worker that goes on."""
        assert slot.job is not None
        self._finished.append(CompletedJob(key=slot.job.key, result=result, error=error))
        slot.job = None
        if result is not None or isinstance(error, SubmissionError):
            slot.failures = 0

    def _enforce_limits(self, slot: _WorkerSlot) -> None:
        now = self._clock()
        if slot.job is not None:
            if why := slot.job.phase.timeout_reason(self._pace, self._timeouts, now):
                self._pace = self._pace.relaxed()
                self._fail_slot(slot, HostError(f"{slot.name}: {why}"))
        elif slot.child is not None and not slot.is_loaded and now - slot.started_at > self._timeouts.load_s:
            self._fail_slot(
                slot, HostError(f"{slot.name}: the model was not loaded within {self._timeouts.load_s:.0f} s")
            )

    def _fail_slot(self, slot: _WorkerSlot, error: SubnetError) -> None:
        """Kills the worker, ends its job with the error, and lets the device rest: longer for each failure in a row."""
        is_loading = not slot.is_loaded
        if isinstance(error, ConfigError) and (slot.was_loaded or self._tokens_per_s is not None):
            # The settings were good enough for this worker, or for a whole score, so it is not they that changed.
            error = HostError(f"{slot.name}: {error}")
        if slot.child is not None:
            slot.child.kill()
            slot.child.join()
        if slot.job is not None:
            self._finished.append(CompletedJob(key=slot.job.key, result=None, error=error))
        if is_loading:
            slot.error = error
        slot.child, slot.job, slot.is_loaded = None, None, False
        slot.failures += 1
        rest_s = self._timeouts.restart_pause_s(slot.failures)
        if isinstance(error, RemoteError):
            rest_s = max(rest_s, error.retry_after_s or 0.0)
        slot.start_at = self._clock() + rest_s
        if not isinstance(error, ConfigError):  # which ends the process, and says so itself
            logger.warning("worker lost; the next starts in {:.0f} s: {}", rest_s, error)

    def _start_missing(self) -> None:
        """Starts a worker wherever none is and none rests; the first alone, so that it settles the model for all."""
        for slot in self._slots:
            if self._is_closed or (self._model is None and any(other.child for other in self._slots)):
                return
            now = self._clock()
            if slot.child is None and now >= slot.start_at:
                slot.started_at = now
                try:
                    slot.child = self._start(self._setup(slot))
                except HostError as error:
                    self._fail_slot(slot, error)

    def _setup(self, slot: _WorkerSlot) -> messages.Setup:
        evaluator = self._evaluator
        return messages.Setup(
            competition=evaluator.competition,
            training_args=evaluator.training_args,
            eval_data_dir=str(evaluator.eval_data_dir),
            cache_dir=str(evaluator.cache_dir) if evaluator.cache_dir else None,
            model_path=str(evaluator.model_path) if evaluator.model_path else None,
            device=slot.device,
            dtype=evaluator.dtype,
            log_level=self._log_level,
        )

    def _raise_failure(self) -> None:
        """Raises what the operator has to know, and any other failure once nothing is left to hope for."""
        errors = [slot.error for slot in self._slots if slot.error is not None]
        wrong = [error for error in errors if isinstance(error, ConfigError)]
        has_hope = any(slot.child is not None or not slot.failures for slot in self._slots)
        if has_hope and not wrong:
            return
        for slot in self._slots:
            slot.error = None
        for error in wrong or errors:
            raise error


def _relevant(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what moves no number there: the CPU's threads beside a GPU."""
    is_cuda = environment.get("capability", "").startswith("cuda")
    return {name: value for name, value in environment.items() if not (is_cuda and name == "threads")}


class LocalExecutor(WorkerPool):
    """An `Executor` on this machine: a child process for each of `devices`, None being the best one here."""

    kind = "local"

    def _start(self, setup: messages.Setup) -> Worker:
        return WorkerProcess(setup, self._on_event)
