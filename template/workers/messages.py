"""What a validator and its workers say to each other: one record a line, as JSON.

Pure, and strict: what a broken worker wrote is refused, never guessed at. Floats read back to the same bits.
"""

import dataclasses
import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from template.competition import Competition
from template.config import TrainingArgs
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError, SubnetError
from template.records import Progress, TrainResult
from template.serialization import canonical_json, read_record

# Bytes of one line. A result is the longest, by some twenty for every training step.
MAX_LINE_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The first line to a worker: the fields of `template.workers.executor.Evaluator`, paths as text, and the log level
    it uses.

    hub_token: what the worker fetches the model with, of the machine it runs on, so it never crosses a network.
    """

    competition: Competition
    training_args: TrainingArgs
    eval_data_dir: str
    cache_dir: str | None
    model_path: str | None
    device: str | None
    dtype: str | None
    log_level: str
    hub_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Every other line to a worker: the dataset to score and the seed."""

    data_dir: str
    lucky_num: int


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """The first line to the process that speaks to Ray: where the cluster is, and what each worker needs of it.

    address: of the cluster's head, HOST:PORT, or "auto" for the one that this machine is a node of. gpus: of one
    worker, a share where several are to have the same. accelerator_type: the only kind of GPU, as Ray names it.
    """

    address: str
    gpus: float
    cpus: int
    accelerator_type: str | None


@dataclass(frozen=True, kw_only=True)
class StopWorker:
    """To that process: ends one worker, whatever it is doing."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The worker holds the model and takes jobs. model: as `Evaluator.load_model` names it. device: the one it is on.

    environment: what can move the number there, as in a result.
    """

    model: str
    device: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ProgressUpdate:
    """The job in hand is this far. memory_bytes: the most the worker had in use, of the GPU, else of the machine."""

    progress: Progress
    memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The job in hand is done."""

    result: TrainResult


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The job in hand ended with an error; so did loading, when there is no job. kind: the error's class."""

    kind: str
    message: str
    reason: Reason | None = None
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: Exception) -> "Failed":
        """The error for the wire. What nobody meant to raise is this machine's."""
        if not isinstance(error, SubnetError):
            return cls(kind=HostError.__name__, message=f"{type(error).__name__}: {error}")
        return cls(
            kind=type(error).__name__,
            message=str(error),
            reason=error.reason if isinstance(error, SubmissionError) else None,
            retry_after_s=error.retry_after_s if isinstance(error, RemoteError) else None,
        )

    def to_error(self) -> SubnetError:
        """The error as it was raised in the worker."""
        if self.kind == SubmissionError.__name__ and self.reason is not None:
            return SubmissionError(self.reason, self.message)
        if self.kind == RemoteError.__name__:
            return RemoteError(self.message, self.retry_after_s)
        if self.kind == ConfigError.__name__:
            return ConfigError(self.message)
        return HostError(self.message)


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A line of the worker's log."""

    level: str
    message: str


@dataclass(frozen=True, kw_only=True)
class WorkerExited:
    """The worker is gone, or as good as gone, and the last that is heard of it.

    is_machine_lost: what held it went away, which nothing that it was doing can have caused.
    """

    why: str
    is_machine_lost: bool = False


Command = Setup | Job | RayConfig | StopWorker
Event = Loaded | ProgressUpdate | Evaluated | Failed | Logged | WorkerExited

_Record = TypeVar("_Record")


def encode(record: Command | Event) -> bytes:
    """The record as one line of ASCII, its end included. Raises: ValueError for a number that is not finite."""
    content = dataclasses.asdict(record, dict_factory=_with_valid_text)
    return canonical_json({"is": type(record).__name__, **content}).encode() + b"\n"


def _with_valid_text(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # A file name in a log line or an error may not be UTF-8; Python holds its bytes as lone surrogates.
    return {
        name: value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
        for name, value in pairs
    }


def decode_command(line: bytes) -> Command:
    """The record that a validator wrote to a worker. Raises: HostError when it is none."""
    kinds: tuple[type[Command], ...] = (Setup, Job, RayConfig, StopWorker)
    return _decode(line, kinds)


def decode_event(line: bytes) -> Event:
    """The record that a worker wrote. Raises: HostError when it is none."""
    kinds: tuple[type[Event], ...] = (Loaded, ProgressUpdate, Evaluated, Failed, Logged, WorkerExited)
    return _decode(line, kinds)


def _decode(line: bytes, kinds: Sequence[type[_Record]]) -> _Record:
    try:
        content = json.loads(line)
        name = content.pop("is")
        kind = next(kind for kind in kinds if kind.__name__ == name)
        return read_record(kind, content, kind.__name__)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, StopIteration, ConfigError) as error:
        raise HostError(f"what it wrote is no record: {reprlib.repr(line)}") from error
