"""Evaluate a dataset: fine-tune the base on it, then measure the loss.

Validator and offline script both call `train_lora`, or `train_and_evaluate` for the whole result. Files
are read and encoded here; `template.training` has the loop, the model and the settings that make runs bit-identical.
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
from template.training.row_features import RowFeatures, gradient_features


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options beyond the competition's inputs; None for the default.

    `model_path` is a local folder with the weights instead of the Hub's, relative to the working directory at this
    moment. An exception of `on_progress` aborts the run.
    """

    training_args: TrainingArgs | None = None
    model_path: Path | None = None
    device: str | None = None
    dtype: str | None = None
    on_progress: OnProgress = loop.ignore_progress

    def __post_init__(self) -> None:
        if self.model_path is not None:
            object.__setattr__(self, "model_path", Path(self.model_path).absolute())


@dataclass(frozen=True)
class _EncodedFile:
    sha256: str
    rows: tuple[EncodedRow, ...]
    skipped: int = 0  # rows without a target

    @property
    def tokens(self) -> int:
        return sum(len(row.input_ids) for row in self.rows)


@dataclass
class _LoadedModel:
    key: tuple[object, ...]
    model: ScoringModel
    eval_sets: dict[str, _EncodedFile] = field(default_factory=dict)  # by sha256


# One evaluation at a time: the model is shared, and torch's settings are process-wide.
_evaluation_lock = threading.RLock()
_resident: _LoadedModel | None = None


def train_lora(
    lucky_num: int,
    benchmark_loss: float,
    eval_size: int,
    cache_dir: Path | str | None = None,
    data_dir: Path | str = "data",
    eval_data_dir: Path | str = "eval_data",
    options: RunOptions | None = None,
) -> float:
    """Return the loss of `data_dir/data.jsonl` in nats per target token.

    Args and Raises: see train_and_evaluate, which also returns what a receipt needs.
    """
    return train_and_evaluate(lucky_num, benchmark_loss, eval_size, cache_dir, data_dir, eval_data_dir, options).loss


def train_and_evaluate(
    lucky_num: int,
    benchmark_loss: float,
    eval_size: int,
    cache_dir: Path | str | None = None,
    data_dir: Path | str = "data",
    eval_data_dir: Path | str = "eval_data",
    options: RunOptions | None = None,
) -> TrainResult:
    """Fine-tune on `data_dir/data.jsonl` and measure the loss on `eval_data_dir/data.jsonl`.

    Args:
        lucky_num: Seed of the adapter, the row order and the dropout.
        benchmark_loss: Reported beside the loss; it does not change it.
        eval_size: Number of the dataset's rows that are trained on.

    Raises:
        SubmissionError: The dataset is at fault, or training diverges.
    """
    _check_numbers(lucky_num, benchmark_loss, eval_size)
    options = options or RunOptions()
    args = options.training_args or load_training_args()
    with _evaluation_lock, _translate_host_errors():
        started = time.perf_counter()
        resident = _load_resident(args, options, cache_dir)
        model = resident.model
        content = _read_file(Path(data_dir), SUBMISSION_LIMITS)
        encoded = encode_submission(content, model.template, model.tokenize, max_rows=eval_size)
        train_set = _EncodedFile(hashlib.sha256(content).hexdigest(), encoded)
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
        **vars(run),
        benchmark_loss=float(benchmark_loss),
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
        environment=environment.describe_environment(model.device, model.dtype),
        load_seconds=loaded - started,
    )


def _check_numbers(lucky_num: object, benchmark_loss: object, eval_size: object) -> None:
    if type(lucky_num) is not int or not 0 <= lucky_num < 2**32:
        raise ConfigError(f"lucky_num must be an integer in [0, 2**32), not {lucky_num!r}")
    if type(eval_size) is not int or eval_size < 1:
        raise ConfigError(f"eval_size must be a positive integer, a number of rows, not {eval_size!r}")
    if isinstance(benchmark_loss, bool) or not isinstance(benchmark_loss, int | float):
        raise ConfigError(f"benchmark_loss must be a number, not {benchmark_loss!r}")


def load_resident_model(options: RunOptions, cache_dir: Path | str | None = None) -> ScoringModel:
    """Return the model of these options; loads it if needed."""
    with _evaluation_lock, _translate_host_errors():
        return _load_resident(options.training_args or load_training_args(), options, cache_dir).model


def compute_gradient_features(
    content: bytes, lucky_num: int, cache_dir: Path | str | None = None, options: RunOptions | None = None
) -> RowFeatures:
    """Return the features of a pool's rows by the gradients of an untrained adapter.

    Args:
        content: The pool, with a target in every row.
        lucky_num: Seed of the adapter.
    """
    options = options or RunOptions()
    with _evaluation_lock, _translate_host_errors():
        model = _load_resident(options.training_args or load_training_args(), options, cache_dir).model
        rows = parse_rows(content, name="the pool", limits=EVAL_SET_LIMITS)
        encoded = [encode_row(row, model.template, model.tokenize) for row in rows]
        with determinism.deterministic_mode(model.device):
            model.reset_adapter(lucky_num)
            return gradient_features(model, [row for row in encoded if row is not None], options.on_progress)


@contextlib.contextmanager
def _translate_host_errors() -> Iterator[None]:
    try:
        yield
    except SubnetError:
        raise
    except (MemoryError, RuntimeError) as error:
        # torch raises RuntimeError when an allocator, cuBLAS or cuDNN fails.
        raise HostError(f"the device failed during an evaluation: {error}") from error
    except OSError as error:
        raise HostError(f"this machine failed during an evaluation: {error}") from error


def _load_resident(args: TrainingArgs, options: RunOptions, cache_dir: Path | str | None) -> _LoadedModel:
    global _resident
    device = environment.choose_device(options.device)
    dtype = environment.choose_dtype(device, options.dtype or args.dtype)
    key = (args, device, dtype, options.model_path)
    if _resident is None or _resident.key != key:
        if _resident is not None:
            _resident = None  # free the old base before loading the new one
            gc.collect()  # a model with CUDA graphs is in a reference cycle
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
    path = folder / DATA_FILE
    if folder.is_file():
        raise ConfigError(f"expected a folder with a {DATA_FILE}, not the file {folder}; pass {folder.parent}")
    try:
        with path.open("rb") as stream:
            return stream.read(limits.file_bytes + 1)  # one byte above the limit makes the parser reject it
    except FileNotFoundError as error:
        raise SubmissionError(Reason.MISSING_FILE, f"{path} does not exist") from error


def _encode_eval_set(folder: Path, resident: _LoadedModel) -> _EncodedFile:
    """Encode the evaluation set; cached while the file is unchanged."""
    model = resident.model
    try:
        content = _read_file(folder, EVAL_SET_LIMITS)
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 not in resident.eval_sets:
            rows = parse_rows(content, name=f"evaluation {DATA_FILE}", limits=EVAL_SET_LIMITS)
            encoded = [encode_row(row, model.template, model.tokenize) for row in rows]
            usable = tuple(row for row in encoded if row is not None)
            resident.eval_sets = {sha256: _EncodedFile(sha256, usable, len(rows) - len(usable))}
    except SubmissionError as error:
        raise ConfigError(f"the evaluation set cannot be used: {error}") from error
    eval_set = resident.eval_sets[sha256]
    if not eval_set.rows:
        raise ConfigError(f"the evaluation set {folder / DATA_FILE} has no row with an assistant answer")
    return eval_set


@dataclass(frozen=True)
class _Run:
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
    """Run once, and again if a loss is not finite, to find out whose fault it is.

    A run is deterministic. If it fails twice at the same place, the data is at fault, provided that the untouched base
    is finite on those rows. In all other cases this machine is.
    """
    try:
        return _run_once(model, train_rows, eval_rows, lucky_num, on_progress)
    except NonFiniteLoss as failure:
        first = failure
        logger.warning("loss not finite at {}, replaying", first.where)
    try:
        _run_once(model, train_rows, eval_rows, lucky_num, on_progress)
        second = "nowhere"
    except NonFiniteLoss as failure:
        second = failure.where
    if first.where != second:
        raise HostError(f"the device is not reproducible: loss not finite at {first.where}, then at {second}")
    suspects = eval_rows if first.where == "evaluation" else train_rows
    model.reset_adapter(lucky_num)
    try:
        loop.evaluate(model, [suspects[index] for index in first.rows])
    except NonFiniteLoss as failure:
        raise HostError(f"the loss of the untouched base is not finite on the rows of {first.where}") from failure
    raise SubmissionError(Reason.DIVERGED, f"training on this dataset diverged: not finite at {first.where}, twice")


def _run_once(
    model: ScoringModel,
    train_rows: Sequence[EncodedRow],
    eval_rows: Sequence[EncodedRow],
    lucky_num: int,
    on_progress: OnProgress,
) -> _Run:
    started = time.perf_counter()
    model.reset_adapter(lucky_num)
    order = loop.row_order(len(train_rows), model.hyperparameters.num_train_epochs, lucky_num)
    step_losses = loop.train_adapter(model, train_rows, order, lucky_num, on_progress=on_progress)
    trained = time.perf_counter()
    loss = loop.evaluate(model, eval_rows, on_progress=on_progress)
    return _Run(loss, tuple(step_losses), trained - started, time.perf_counter() - trained)
