"""What the benchmark of the score runs on, decided before anything is measured: model, rows, device, dtypes."""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from scripts.bench.job import Load, Shape, count_evaluation, count_training
from scripts.bench.report import OURS, REFERENCE
from scripts.bench.rows import ROW_SETS, SHAPES, RowMaker, copy_files, make_folders, make_shape
from template.config import TrainingArgs, load_training_args
from template.data.chat_templates import template_for
from template.data.encoding import EncodedRow
from template.errors import ConfigError
from template.localnet.models.download import default_model_dir
from template.localnet.models.sources import MODEL_ID
from template.training import environment
from template.training.model import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Everything that is decided before the first measurement."""

    folder: Path
    model_path: Path
    model_id: str
    device: torch.device
    dtypes: tuple[str, ...]
    runners: tuple[str, ...]
    reference_queue: int
    merges: bool
    data_dirs: list[Path]
    eval_data_dir: Path
    load: Load

    @property
    def best_dtype(self) -> str:
        """In which ours comes on this machine when nobody chooses."""
        return str(environment.choose_dtype(self.device)).removeprefix("torch.")


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """What is scored: the model, on which device, and the rows."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model_path", type=Path, metavar="DIR", help="a folder with a model (default: the quickstart's, if fetched)"
    )
    model.add_argument("--model_id", default=MODEL_ID, help="whose chat template it has (default: %(default)s)")
    model.add_argument("--shape", choices=sorted(SHAPES), help="make a model of that shape, with random weights")
    model.add_argument("--device", help="cpu, cuda or cuda:N (default: the first GPU, else the CPU)")
    rows = parser.add_argument_group("rows")
    rows.add_argument("--rows", choices=sorted(ROW_SETS), default="short", help="made rows (default: %(default)s)")
    rows.add_argument("--train_rows", type=int, help="of each dataset (default: by --rows)")
    rows.add_argument("--eval_rows", type=int, help="of the evaluation set (default: by --rows)")
    rows.add_argument("--train_file", type=Path, metavar="FILE", help="real rows, with --eval_file")
    rows.add_argument("--eval_file", type=Path, metavar="FILE", help="a real evaluation set, with --train_file")


def prepare(args: argparse.Namespace, folder: Path) -> Bench:
    """Makes or finds model and rows. Raises: ConfigError naming what is wrong."""
    device = environment.choose_device(args.device)
    if args.shape:
        model_path, model_id = folder / "model", make_shape(folder / "model", args.shape)
    else:
        model_path, model_id = (args.model_path or default_model_dir()).expanduser().resolve(), args.model_id
    if not (model_path / "config.json").is_file():
        hint = "" if args.model_path else "; run `python -m template.localnet.models.download` or give --shape"
        raise ConfigError(f"--model_path {model_path}: no model there{hint}")
    training = dataclasses.replace(load_training_args(), model_id=model_id, revision=None)
    maker = RowMaker(template_for(model_id), load_tokenizer(training, model_path=model_path))
    if args.train_file:
        sizes = args.train_rows, args.eval_rows
        data_dirs, eval_dir = copy_files(folder, args.train_file, args.eval_file, args.queue, sizes)
    else:
        chosen = ROW_SETS[args.rows]
        chosen = dataclasses.replace(
            chosen, train_rows=args.train_rows or chosen.train_rows, eval_rows=args.eval_rows or chosen.eval_rows
        )
        data_dirs, eval_dir = make_folders(folder, maker, chosen, args.queue)
    return Bench(
        folder=folder,
        model_path=model_path,
        model_id=model_id,
        device=device,
        dtypes=tuple(args.dtypes.split(",")),
        runners=(args.only,) if args.only else (OURS, REFERENCE),
        reference_queue=min(args.reference_queue, args.queue),
        merges=args.reference_eval == "merged",
        data_dirs=data_dirs,
        eval_data_dir=eval_dir,
        load=weigh(model_path, training, maker, data_dirs, eval_dir),
    )


def weigh(model_path: Path, training: TrainingArgs, maker: RowMaker, data_dirs: Sequence[Path], eval_dir: Path) -> Load:
    """What one submission is, on average over the datasets.

    Raises: ConfigError for a family of unknown work, and for files without an answer.
    """
    shape = Shape.from_config(json.loads((model_path / "config.json").read_text(encoding="utf-8")))
    hyper = training.hyperparameters
    datasets, eval_rows = [maker.encode_folder(folder) for folder in data_dirs], maker.encode_folder(eval_dir)
    if not (all(datasets) and eval_rows):
        raise ConfigError("--train_file and --eval_file: there is no row with an answer in one of them")
    epochs, rank = hyper.num_train_epochs, hyper.lora_rank
    return Load(
        submissions=len(datasets),
        train_rows=len(datasets[0]),
        train_tokens=statistics.fmean(epochs * count_tokens(rows) for rows in datasets),
        train_flops=statistics.fmean(count_training(shape, rank, rows, epochs) for rows in datasets),
        eval_rows=len(eval_rows),
        eval_tokens=count_tokens(eval_rows),
        eval_flops=count_evaluation(shape, rank, eval_rows),
        shortest_row=min(len(row.input_ids) for rows in (*datasets, eval_rows) for row in rows),
    )


def count_tokens(rows: Sequence[EncodedRow]) -> int:
    """Tokens of all the rows, targets or not."""
    return sum(len(row.input_ids) for row in rows)
