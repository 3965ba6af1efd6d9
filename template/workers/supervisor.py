"""Executors: a pool of replaceable workers, and its form with local processes.

A worker that hangs, dies or reports a failed device is replaced; its job ends as a HostError, without a loss. If its
whole machine went away, the job ends as a RemoteError and is retried without limit. A worker whose model, libraries or
threads differ from the first worker's is refused.
"""

import dataclasses
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import ClassVar

from loguru import logger

from template.config import TrainingArgs
from template.errors import ConfigError, HostError, RemoteError, SubmissionError, SubnetError
from template.records import LOCATION, RunningEvaluation, SubmissionKey, TrainResult
from template.workers import messages
from template.workers.child import WorkerConnection, WorkerProcess
from template.workers.executor import CompletedJob, Evaluator
from template.workers.timeouts import StageTimer, Throughput, WorkerTimeouts, tokens_per_s

DEFAULT_TIMEOUTS = WorkerTimeouts()


@dataclass
class _Job:
    key: SubmissionKey
    lucky_num: int
    started_at: float  # POSIX
    timer: StageTimer
    memory_bytes: int | None = None


@dataclass
class _WorkerSlot:
    device: str | None
    name: str
    worker: WorkerConnection | None = None
    job: _Job | None = None
    is_loaded: bool = False
    was_loaded: bool = False
    started_at: float = 0.0
    restart_at: float = 0.0  # earliest start of the next worker
    failures: int = 0  # in a row
    load_error: SubnetError | None = None  # until `start` raises it


class WorkerPool(ABC):
    """An `Executor` with one worker per device, by a monotonic clock and POSIX time."""

    kind: ClassVar[str]  # in receipts

    def __init__(
        self,
        evaluator: Evaluator,
        devices: Sequence[str | None],
        *,
        timeouts: WorkerTimeouts = DEFAULT_TIMEOUTS,
        log_level: str = "DEBUG",
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._evaluator = evaluator
        self._slots = [_WorkerSlot(device, device or "default device") for device in devices]
        self._timeouts = timeouts
        self._log_level = log_level
        self._clock = clock
        self._now = now
        self._throughput = Throughput()
        self._model: str | None = None
        self._environment: Mapping[str, str] = {}
        self._tokens_per_s: float | None = None
        self._completed: list[CompletedJob] = []
        self._events: SimpleQueue[tuple[WorkerConnection, float, messages.Event]] = SimpleQueue()
        self._wakeup = threading.Event()
        self._is_closed = False

    @abstractmethod
    def _start_worker(self, setup: messages.Setup) -> WorkerConnection:
        """Start a worker that passes its events to `_on_event`. Raises: HostError."""

    @property
    def training_args(self) -> TrainingArgs:
        return self._evaluator.training_args

    def start(self) -> str | None:
        self._poll()
        self._raise_load_error()
        self._start_missing()
        return self._model if any(slot.is_loaded for slot in self._slots) else None

    def idle_workers(self) -> int:
        return sum(slot.is_loaded and slot.job is None for slot in self._slots)

    def submit(self, key: SubmissionKey, data_dir: Path, lucky_num: int) -> None:
        slot = next((slot for slot in self._slots if slot.is_loaded and slot.job is None), None)
        if slot is None or slot.worker is None:
            raise RuntimeError("no idle worker")
        slot.job = _Job(key, lucky_num, self._now(), StageTimer.begin(self._clock()))
        slot.worker.send(messages.Job(data_dir=data_dir, lucky_num=lucky_num))

    def collect(self) -> list[CompletedJob]:
        self._poll()
        self._start_missing()
        completed, self._completed = self._completed, []
        return completed

    def running(self) -> tuple[RunningEvaluation, ...]:
        return tuple(
            RunningEvaluation(
                key=job.key,
                device=slot.name,
                started_at=job.started_at,
                **dataclasses.asdict(job.timer.progress),
                memory_bytes=job.memory_bytes,
            )
            for slot in self._slots
            if (job := slot.job) is not None
        )

    def tokens_per_s(self) -> float | None:
        return self._tokens_per_s

    def wait(self, timeout_s: float) -> None:
        if not self._completed:
            self._wakeup.wait(timeout_s)

    def close(self) -> None:
        self._is_closed = True
        workers = [slot.worker for slot in self._slots if slot.worker is not None]
        for worker in workers:
            worker.kill()
        for slot in self._slots:
            slot.worker, slot.job, slot.is_loaded = None, None, False
        for worker in workers:
            worker.join()

    def _on_event(self, worker: WorkerConnection, event: messages.Event) -> None:
        """Queue an event with its time, from the worker's thread; log a log line."""
        if isinstance(event, messages.Logged):
            name = next((slot.name for slot in self._slots if slot.worker is worker), "worker")
            try:
                logger.log(event.level, "[{}] {}", name, event.message)
            except ValueError:
                logger.warning("[{}] {}", name, event.message)  # a level that only the worker's libraries have
            return
        self._events.put((worker, self._clock(), event))
        if not isinstance(event, messages.ProgressUpdate):
            self._wakeup.set()

    def _poll(self) -> None:
        self._wakeup.clear()
        while True:
            try:
                worker, event_at, event = self._events.get_nowait()
            except Empty:
                break
            slot = next((slot for slot in self._slots if slot.worker is worker), None)
            if slot is not None:  # else from a worker that was replaced
                self._handle(slot, event, event_at)
        for slot in self._slots:
            self._enforce_timeouts(slot)

    def _handle(self, slot: _WorkerSlot, event: messages.Event, event_at: float) -> None:
        job = slot.job
        match event:
            case messages.Loaded() if not slot.is_loaded:
                self._handle_loaded(slot, event)
            case messages.ProgressUpdate() if job is not None:
                job.timer = job.timer.advanced(event.progress, event_at)
                job.memory_bytes = event.memory_bytes
            case messages.Evaluated(result=result) if job is not None and result.lucky_num == job.lucky_num:
                self._handle_result(slot, result)
            case messages.Failed():
                self._handle_failure(slot, event.to_error())
            case messages.WorkerExited(why=why, is_machine_lost=is_machine_lost):
                self._fail_slot(slot, (RemoteError if is_machine_lost else HostError)(f"{slot.name}: {why}"))
            case _:
                error = f"{slot.name}: protocol error: unexpected {type(event).__name__}"
                self._fail_slot(slot, HostError(error))

    def _handle_loaded(self, slot: _WorkerSlot, loaded: messages.Loaded) -> None:
        slot.name = loaded.device
        if self._model is None:
            self._evaluator = self._evaluator.with_pinned_revision(loaded.model)
        elif difference := self._environment_mismatch(loaded):
            is_alone = not any(other.is_loaded for other in self._slots)
            if not is_alone or loaded.model.split()[0] != self._model.split()[0]:
                rule = "all workers need equal devices, libraries, thread counts and the same model"
                self._fail_slot(slot, ConfigError(f"{slot.name} differs from the other workers: {difference}; {rule}"))
                return
            # The machine changed, e.g. its number of cores, and no worker from before is left.
            logger.warning("environment changed device={}: {}", slot.name, difference)
        self._model, self._environment = loaded.model, loaded.environment
        slot.is_loaded = slot.was_loaded = True
        slot.load_error = None
        seconds = self._clock() - slot.started_at
        logger.info("worker ready device={} model={} seconds={:.1f}", slot.name, loaded.model, seconds)

    def _environment_mismatch(self, loaded: messages.Loaded) -> str:
        if loaded.model != self._model:
            return f"model {loaded.model} instead of {self._model}"
        return _differences(self._environment, loaded.environment, {*self._environment, *loaded.environment})

    def _handle_result(self, slot: _WorkerSlot, result: TrainResult) -> None:
        if change := _differences(self._environment, result.environment, self._environment):
            self._fail_slot(slot, HostError(f"{slot.name}: environment changed since the model was loaded: {change}"))
            return
        self._throughput = self._throughput.updated(result)
        self._tokens_per_s = tokens_per_s(result)
        environment = {**result.environment, LOCATION: f"{self.kind} {slot.name}"}
        self._complete(slot, dataclasses.replace(result, environment=environment), None)

    def _handle_failure(self, slot: _WorkerSlot, error: SubnetError) -> None:
        if isinstance(error, HostError) or (slot.job is None and isinstance(error, SubmissionError)):
            error = HostError(f"{slot.name}: {error}")
        if slot.job is None or isinstance(error, HostError):
            self._fail_slot(slot, error)
        else:
            self._complete(slot, None, error)

    def _complete(self, slot: _WorkerSlot, result: TrainResult | None, error: SubnetError | None) -> None:
        """End the job of a worker that stays."""
        assert slot.job is not None
        self._completed.append(CompletedJob(key=slot.job.key, result=result, error=error))
        slot.job = None
        if result is not None or isinstance(error, SubmissionError):
            slot.failures = 0

    def _enforce_timeouts(self, slot: _WorkerSlot) -> None:
        now, load_s = self._clock(), self._timeouts.load_s
        if slot.job is not None:
            if reason := slot.job.timer.timeout_reason(self._throughput, self._timeouts, now):
                self._throughput = self._throughput.relaxed()
                self._fail_slot(slot, HostError(f"{slot.name}: {reason}"))
        elif slot.worker is not None and not slot.is_loaded and now - slot.started_at > load_s:
            self._fail_slot(slot, HostError(f"{slot.name}: timed out: model not loaded within {load_s:.0f} s"))

    def _fail_slot(self, slot: _WorkerSlot, error: SubnetError) -> None:
        if isinstance(error, ConfigError) and (slot.was_loaded or self._tokens_per_s is not None):
            # These settings have worked before, so the operator need not change them.
            error = HostError(f"{slot.name}: {error}")
        if slot.worker is not None:
            slot.worker.kill()
            slot.worker.join()
        if slot.job is not None:
            self._completed.append(CompletedJob(key=slot.job.key, result=None, error=error))
        if not slot.is_loaded:
            slot.load_error = error
        slot.worker, slot.job, slot.is_loaded = None, None, False
        slot.failures += 1
        pause_s = self._timeouts.restart_pause_s(slot.failures)
        if isinstance(error, RemoteError):
            pause_s = max(pause_s, error.retry_after_s or 0.0)
        slot.restart_at = self._clock() + pause_s
        if not isinstance(error, ConfigError):  # which ends the process with a log line of its own
            logger.warning("worker lost, next start in {:.0f} s: {}", pause_s, error)

    def _start_missing(self) -> None:
        """Start the workers that are due; the first alone, which pins the model."""
        for slot in self._slots:
            if self._is_closed or (self._model is None and any(other.worker for other in self._slots)):
                return
            now = self._clock()
            if slot.worker is None and now >= slot.restart_at:
                slot.started_at = now
                evaluator = dataclasses.replace(self._evaluator, device=slot.device)
                try:
                    slot.worker = self._start_worker(messages.Setup(evaluator=evaluator, log_level=self._log_level))
                except HostError as error:
                    self._fail_slot(slot, error)

    def _raise_load_error(self) -> None:
        """Raise a ConfigError at once, other errors when no worker may still load."""
        errors = [slot.load_error for slot in self._slots if slot.load_error is not None]
        wrong_settings = [error for error in errors if isinstance(error, ConfigError)]
        if not wrong_settings and any(slot.worker is not None or not slot.failures for slot in self._slots):
            return
        for slot in self._slots:
            slot.load_error = None
        for error in wrong_settings or errors:
            raise error


def _differences(expected: Mapping[str, str], actual: Mapping[str, str], names: Iterable[str]) -> str:
    """Describe differences that can change a loss; beside a GPU, threads cannot."""
    is_cuda = expected.get("capability", "").startswith("cuda")
    return ", ".join(
        f"{name} {actual.get(name)} instead of {expected.get(name)}"
        for name in sorted(names)
        if actual.get(name) != expected.get(name) and not (is_cuda and name == "threads")
    )


class LocalExecutor(WorkerPool):
    """An `Executor` with a child process per device; None selects the best device."""

    kind = "local"

    def pids(self) -> list[int]:
        return [slot.worker.pid for slot in self._slots if isinstance(slot.worker, WorkerProcess)]

    def _start_worker(self, setup: messages.Setup) -> WorkerConnection:
        return WorkerProcess(setup, self._on_event)
