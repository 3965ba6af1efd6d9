"""Messages between validator and workers: one record per line, as strict JSON."""

import dataclasses
import json
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError, SubnetError, describe_error
from template.records import Progress, TrainResult
from template.serialization import canonical_json, read_record
from template.workers.executor import Evaluator, QuotedPath

# The longest message is a result, with some twenty bytes for every training step.
MAX_LINE_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Setup:
    """First line to a worker. `hub_token` never leaves the worker's machine."""

    evaluator: Evaluator
    log_level: str
    hub_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Dataset to evaluate, and the seed: every other line to a worker."""

    data_dir: QuotedPath
    lucky_num: int


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Ray cluster, and the number and resources of its workers."""

    address: str = "auto"  # or HOST:PORT of the head
    workers: int = 1
    gpus_per_worker: float = 1.0  # a share puts several workers on one GPU
    cpus_per_worker: int = 1  # Ray only counts them; an evaluation uses every core of its node
    accelerator_type: str | None = None  # the only kind of GPU to use, by Ray's name


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The worker has loaded the model of this name, and accepts jobs."""

    model: str
    device: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ProgressUpdate:
    """Progress of the job, and the worker's peak memory, on its GPU if it has one."""

    progress: Progress
    memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The job succeeded."""

    result: TrainResult


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The job failed or, without a job, loading did; `kind` is the error's class."""

    kind: str
    message: str
    reason: Reason | None = None
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: Exception) -> "Failed":
        """Convert an error; an unexpected one becomes a HostError."""
        if not isinstance(error, SubnetError):
            error = HostError(describe_error(error))
        return cls(
            kind=type(error).__name__,
            message=str(error),
            reason=getattr(error, "reason", None),
            retry_after_s=getattr(error, "retry_after_s", None),
        )

    def to_error(self) -> SubnetError:
        """Rebuild the error that the worker raised."""
        match self.kind:
            case "SubmissionError" if self.reason is not None:
                return SubmissionError(self.reason, self.message)
            case "RemoteError":
                return RemoteError(self.message, self.retry_after_s)
            case "ConfigError":
                return ConfigError(self.message)
            case _:
                return HostError(self.message)


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A log line of the worker."""

    level: str
    message: str


@dataclass(frozen=True, kw_only=True)
class WorkerExited:
    """The worker exited or is unreachable: its last event."""

    why: str
    is_machine_lost: bool = False  # its machine went away, which no job can cause


Command = Setup | Job | RayConfig
Event = Loaded | ProgressUpdate | Evaluated | Failed | Logged | WorkerExited

_Record = TypeVar("_Record")


def encode(record: Command | Event) -> bytes:
    """Return one line of ASCII. Raises: ValueError for a non-finite float."""
    content = dataclasses.asdict(record, dict_factory=lambda pairs: {name: _plain(value) for name, value in pairs})
    return canonical_json({"is": type(record).__name__, **content}).encode() + b"\n"


def _plain(value: Any) -> Any:
    # Python holds bytes of a file name that are not UTF-8 as lone surrogates, which are not legal in JSON. A path must
    # stay the same path; a message with a file name in it need not.
    if isinstance(value, Path):
        return quote(os.fsencode(value))
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def decode_command(line: bytes) -> Command:
    """Parse a line from the validator. Raises: HostError."""
    kinds: tuple[type[Command], ...] = (Setup, Job, RayConfig)
    return _decode(line, kinds)


def decode_event(line: bytes) -> Event:
    """Parse a line from a worker. Raises: HostError."""
    kinds: tuple[type[Event], ...] = (Loaded, ProgressUpdate, Evaluated, Failed, Logged, WorkerExited)
    return _decode(line, kinds)


def _decode(line: bytes, kinds: Sequence[type[_Record]]) -> _Record:
    try:
        content = json.loads(line)
        name = content.pop("is")
        kind = next(kind for kind in kinds if kind.__name__ == name)
        return read_record(kind, content, kind.__name__)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, StopIteration, ConfigError) as error:
        raise HostError(f"protocol error: cannot parse {reprlib.repr(line)}") from error
