"""The score: fine-tune the base on a dataset with LoRA, then measure the loss on the evaluation set.

This is the only way to a score; validator, offline script and local network all call `train_lora` or, for the
receipt, `train_and_evaluate` below it. The files are read, checked and turned into tokens here;
`template.training.loop` trains
and
measures, `template.training.model` holds the base, `template.training.determinism` the settings that make two runs
equal to the bit.
"""

import contextlib
import gc
import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loguru import logger

from template.config import TrainingArgs, load_training_args
from template.constants import DATA_FILE
from template.data.encoding import EncodedRow, encode_row, encode_submission
from template.data.rows import EVAL_SET_LIMITS, SUBMISSION_LIMITS, Limits, parse_rows
from template.errors import ConfigError, HostError, Reason, SubmissionError, SubnetError
from template.records import TrainResult
from template.training import determinism, environment, loop
from template.training.loop import NonFiniteLoss, OnProgress
from template.training.model import ScoringModel, load_model


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a caller may choose beyond the inputs that the competition fixes.

    training_args: the model and hyperparameters; None is training_args.yaml of the repository root. model_path: a local
    folder with that model's weights instead of the Hub's. device and dtype: None is what this machine does best.
    on_progress is called as tokens are done; what it raises ends the score and nothing is kept.
    """

    training_args: TrainingArgs | None = None
    model_path: Path | None = None
    device: str | None = None
    dtype: str | None = None
    on_progress: OnProgress = loop.ignore_progress


@dataclass(frozen=True)
class _EncodedFile:
    """A data file as tokens: `rows` have targets, `skipped` had none; sha256 is of the file's bytes."""

    sha256: str
    rows: tuple[EncodedRow, ...]
    skipped: int = 0

    @property
    def tokens(self) -> int:
        return sum(len(row.input_ids) for row in self.rows)


@dataclass
class _LoadedModel:
    """The one model this process holds, what it was loaded for, and the evaluation set in its tokens."""

    key: tuple[object, ...]
    model: ScoringModel
    eval_sets: dict[str, _EncodedFile] = field(default_factory=dict)


# One score at a time per process: scores share the resident base, and torch's settings are process-wide.
_evaluation_lock = threading.RLock()
_resident: _LoadedModel | None = None


def train_lora(
    lucky_num: int,
    benchmark_loss: float,
    eval_size: int,
    cache_dir: Path | str | None = None,
    data_dir: Path | str = "data",
    eval_data_dir: Path | str = "eval_data",
    options: RunOptions = RunOptions(),
) -> float:
    """The loss of the dataset `data_dir/data.jsonl` on `eval_data_dir/data.jsonl`, in nats per target token.

    Arguments and `Raises` are those of `train_and_evaluate`, of whose result this is the loss.
    """
    return train_and_evaluate(lucky_num, benchmark_loss, eval_size, cache_dir, data_dir, eval_data_dir, options).loss


def train_and_evaluate(
    lucky_num: int,
    benchmark_loss: float,
    eval_size: int,
    cache_dir: Path | str | None = None,
    data_dir: Path | str = "data",
    eval_data_dir: Path | str = "eval_data",
    options: RunOptions = RunOptions(),
) -> TrainResult:
    """The whole result of one score.

    lucky_num seeds the adapter, the row order and the dropout, 0 <= lucky_num < 2**32. benchmark_loss is what the
    result is reported against, never returned in its place. eval_size is how many rows of the dataset count.
    cache_dir is where the Hub's model files are kept, None for the client's own cache.
    Raises: SubmissionError when the dataset is missing, malformed, without targets, or makes training diverge;
    ConfigError when the evaluation set, the model or an option is unusable; RemoteError when the Hub did not deliver
    the model; HostError when this machine failed.
    """
    if type(lucky_num) is not int or not 0 <= lucky_num < 2**32:
        raise ConfigError(f"lucky_num must be a whole number in [0, 2**32), not {lucky_num!r}")
    if eval_size < 1:
        raise ConfigError(f"eval_size must be a positive number of rows, not {eval_size}")
    args = options.training_args or load_training_args()
    with _evaluation_lock, _host_faults():
        started = time.perf_counter()
        resident = _load_resident(args, options, cache_dir)
        model = resident.model
        train_set = _encode_submission(Path(data_dir), eval_size, model)
        eval_set = _encode_eval_set(Path(eval_data_dir), resident)
        loaded = time.perf_counter()
        with determinism.deterministic_mode(model.device):
            run = _run_with_replay(model, train_set.rows, eval_set.rows, lucky_num, options.on_progress)
    logger.info(
        "evaluated loss={:.6f} benchmark={} lucky_num={} rows={} eval_rows={} train_s={:.1f} eval_s={:.1f}",
        run.loss, benchmark_loss, lucky_num, len(train_set.rows), len(eval_set.rows), run.train_seconds,
        run.eval_seconds,
    )  # fmt: skip
    return TrainResult(
        loss=run.loss,
        benchmark_loss=benchmark_loss,
        lucky_num=lucky_num,
        model_id=args.model_id,
        model_revision=model.source.revision,
        model_digest=model.source.digest,
        hyperparameters=args.hyperparameters.to_dict(),
        hyperparameters_digest=args.hyperparameters.digest,
        train_sha256=train_set.sha256,
        train_rows=len(train_set.rows),
        train_tokens=train_set.tokens,
        eval_sha256=eval_set.sha256,
        eval_rows=len(eval_set.rows),
        eval_skipped_rows=eval_set.skipped,
        eval_tokens=eval_set.tokens,
        step_losses=run.step_losses,
        environment=environment.describe_environment(model.device, model.dtype),
        load_seconds=loaded - started,
        train_seconds=run.train_seconds,
        eval_seconds=run.eval_seconds,
    )


def load_resident_model(options: RunOptions, cache_dir: Path | str | None = None) -> ScoringModel:
    """The model that scores under these options run on, loaded if this process does not hold it.

    A validator calls it before its first tick, so that a model that cannot be loaded stops it there.
    Raises: as `train_and_evaluate` does for the model.
    """
    with _evaluation_lock, _host_faults():
        return _load_resident(options.training_args or load_training_args(), options, cache_dir).model


@contextlib.contextmanager
def _host_faults() -> Iterator[None]:
    """Names faults of this machine as such; errors that already have an owner pass."""
    try:
        yield
    except SubnetError:
        raise
    except (MemoryError, RuntimeError) as error:
        # torch raises RuntimeError for an allocator, cuBLAS or cuDNN that fails; after it a CUDA context is often lost.
        raise HostError(f"the device failed while scoring: {error}") from error
    except OSError as error:
        raise HostError(f"this machine failed while scoring: {error}") from error


def _load_resident(args: TrainingArgs, options: RunOptions, cache_dir: Path | str | None) -> _LoadedModel:
    """The resident model for these arguments, loaded when the process holds another or none."""
    global _resident
    device = environment.choose_device(options.device)
    dtype = environment.choose_dtype(device, options.dtype)
    key = (args, device, dtype, options.model_path)
    if _resident is None or _resident.key != key:
        if _resident is not None:
            _resident = None  # frees the old base before the new one is read
            gc.collect()  # with recorded graphs a model refers to itself
        model = load_model(
            args,
            device=device,
            dtype=dtype,
            cache_dir=Path(cache_dir) if cache_dir else None,
            model_path=options.model_path,
        )
        _resident = _LoadedModel(key, model)
    return _resident


def _read_file(folder: Path, limits: Limits) -> bytes:
    """The bytes of the folder's data file; one byte past the limit is enough for the parser to refuse it."""
    path = folder / DATA_FILE
    try:
        with path.open("rb") as stream:
            return stream.read(limits.file_bytes + 1)
    except FileNotFoundError as error:
        raise SubmissionError(Reason.MISSING_FILE, f"{path} does not exist") from error


def _encode_submission(folder: Path, max_rows: int, model: ScoringModel) -> _EncodedFile:
    """The first `max_rows` rows of a miner's file as tokens; a row without a target is the miner's error."""
    content = _read_file(folder, SUBMISSION_LIMITS)
    encoded = encode_submission(content, model.template, model.tokenize, max_rows=max_rows)
    return _EncodedFile(hashlib.sha256(content).hexdigest(), encoded)


def _encode_eval_set(folder: Path, resident: _LoadedModel) -> _EncodedFile:
    """The evaluation set as tokens, kept beside the model while the file stays the same."""
    model = resident.model
    try:
        content = _read_file(folder, EVAL_SET_LIMITS)
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 not in resident.eval_sets:
            rows = parse_rows(content, name=f"evaluation {DATA_FILE}", limits=EVAL_SET_LIMITS)
            encoded = [encode_row(row, model.template, model.tokenize) for row in rows]
            kept = tuple(row for row in encoded if row is not None)
            resident.eval_sets = {sha256: _EncodedFile(sha256, kept, len(rows) - len(kept))}
    except SubmissionError as error:
        raise ConfigError(f"the evaluation set cannot be used: {error}") from error
    eval_set = resident.eval_sets[sha256]
    if not eval_set.rows:
        raise ConfigError(f"the evaluation set {folder / DATA_FILE} has no row with an assistant answer")
    return eval_set


@dataclass(frozen=True)
class _Run:
    """What one run of training and evaluation gave."""

    loss: float
    step_losses: tuple[float, ...]
    train_seconds: float
    eval_seconds: float


def _run_with_replay(
    model: ScoringModel,
    train_rows: Sequence[EncodedRow],
    eval_rows: Sequence[EncodedRow],
    lucky_num: int,
    on_progress: OnProgress,
) -> _Run:
    """One run; a loss that is not finite becomes an error with its owner.

    A run is deterministic, so it is replayed: if it fails at the same place again, the data did it, provided that the
    untouched base is finite on those rows. Anything else is this machine, a replay that succeeds included.
    """
    try:
        return _run_once(model, train_rows, eval_rows, lucky_num, on_progress)
    except NonFiniteLoss as failure:
        first = failure
        logger.warning("score not finite at {}; replaying", first.where)
    try:
        _run_once(model, train_rows, eval_rows, lucky_num, on_progress)
        second = "nowhere"
    except NonFiniteLoss as failure:
        second = failure.where
    if first.where != second:
        raise HostError(f"the device is not reproducible: not finite at {first.where}, then at {second}")
    suspects = eval_rows if first.where == "evaluation" else train_rows
    model.reset_adapter(lucky_num)
    try:
        loop.evaluate(model, [suspects[index] for index in first.rows])
    except NonFiniteLoss as failure:
        raise HostError(f"the untouched base is already not finite on the rows of {first.where}") from failure
    raise SubmissionError(Reason.DIVERGED, f"training on this dataset diverged: not finite at {first.where}, twice")


def _run_once(
    model: ScoringModel,
    train_rows: Sequence[EncodedRow],
    eval_rows: Sequence[EncodedRow],
    lucky_num: int,
    on_progress: OnProgress,
) -> _Run:
    """Training from the initial adapter, then the loss."""
    started = time.perf_counter()
    model.reset_adapter(lucky_num)
    order = loop.row_order(len(train_rows), model.hyperparameters.num_train_epochs, lucky_num)
    step_losses = loop.train_adapter(model, train_rows, order, on_progress=on_progress)
    trained = time.perf_counter()
    loss = loop.evaluate(model, eval_rows, on_progress=on_progress)
    return _Run(loss, tuple(step_losses), trained - started, time.perf_counter() - trained)
