"""Rows, files, training arguments and scores of the tiny model, for every test that meets the score."""

import hashlib
import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from template import objective
from template.data import SUBMISSION_LIMITS, EncodedRow, encode_row, parse_rows
from template.model import ScoringModel, load_model
from template.objective import OnProgress
from template.packing import Pack, pack_apart
from template.records import TrainResult
from template.settings import Hyperparameters, TrainingArgs
from template.train import RunOptions, run_lora

ROOT = Path(__file__).resolve().parent.parent
MODEL_ID = "Qwen/Qwen2.5-1.5B-Instruct"
BENCH_LOSS = 2.6
CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_TEXT = "the lamp keeper sea storm night bus walk home rain window letter book page smile seven days Paris"
_WORDS = _TEXT.split()


def make_rows(count: int, *, seed: int) -> list[dict[str, Any]]:
    """Conversations of one to three turns whose lengths and numbers of targets differ widely."""
    stream = random.Random(seed)
    return [_make_row(stream, "Be brief." if index % 2 else None) for index in range(count)]


def _make_row(stream: random.Random, system: str | None) -> dict[str, Any]:
    turns = []
    for _ in range(stream.randint(1, 3)):
        turns.append({"role": "user", "content": " ".join(stream.choices(_WORDS, k=stream.randint(2, 30)))})
        turns.append({"role": "assistant", "content": " ".join(stream.choices(_WORDS, k=stream.randint(1, 40)))})
    return {"system": system, "conversations": turns}


def make_row(question: str, answer: str) -> dict[str, Any]:
    """A conversation of one turn."""
    return {"conversations": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The folder, now with a data.jsonl of these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def make_args(**changes: int | float) -> TrainingArgs:
    """The subnet's own arguments, but for what is named."""
    values: dict[str, Any] = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "num_train_epochs": 2,
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
    }
    return TrainingArgs(model_id=MODEL_ID, revision=None, hyperparameters=Hyperparameters(**(values | changes)))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a score needs, by default: all of it may be replaced in one run."""

    model_path: Path
    data_dir: Path
    eval_data_dir: Path

    def options(
        self,
        dtype: str = "float32",
        *,
        model_path: Path | None = None,
        on_progress: OnProgress = objective.ignore_progress,
        **hyperparameters: int | float,
    ) -> RunOptions:
        return RunOptions(
            training_args=make_args(**hyperparameters),
            model_path=model_path or self.model_path,
            device="cpu",
            dtype=dtype,
            on_progress=on_progress,
        )

    def run(
        self,
        dtype: str = "float32",
        *,
        lucky_num: int = 7,
        rows: int = 250,
        data_dir: Path | None = None,
        eval_data_dir: Path | None = None,
        **options: Any,
    ) -> TrainResult:
        return run_lora(
            lucky_num,
            BENCH_LOSS,
            rows,
            data_dir=data_dir or self.data_dir,
            eval_data_dir=eval_data_dir or self.eval_data_dir,
            options=self.options(dtype, **options),
        )

    def load(self, dtype: str = "float32", **hyperparameters: int | float) -> ScoringModel:
        """A model of its own, not the resident one."""
        return load_model(make_args(**hyperparameters), device=CPU, dtype=DTYPES[dtype], model_path=self.model_path)


def encode(model: ScoringModel, rows: Sequence[Mapping[str, Any]]) -> list[EncodedRow]:
    """The rows as the model reads them, all with targets."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    encoded = [
        encode_row(row, model.template, model.tokenize)
        for row in parse_rows(content, name="rows", limits=SUBMISSION_LIMITS)
    ]
    return [row for row in encoded if row is not None]


def place_targets(ids: Sequence[int], targets: Collection[int]) -> EncodedRow:
    """A row of these tokens, with those at the places `targets` to be predicted."""
    return EncodedRow(tuple(ids), tuple(place in targets for place in range(len(ids))), line=1)


def read_whole(ids: Sequence[int]) -> EncodedRow:
    """A row of which exactly the tokens `ids` are computed: what they predict is one more, its only target."""
    return place_targets([*ids, 0], {len(ids)})


def lay_out(*rows: Sequence[int]) -> Pack:
    """One pack of the rows, all tokens of which are computed, longest first."""
    whole = [read_whole(row) for row in rows]
    (pack,) = pack_apart(whole, range(len(rows)), 10**6, CPU)
    return pack


def shift_adapter(model: ScoringModel) -> None:
    """Makes the adapter felt: as it starts, lora_B is zero."""
    for name, parameter in model.adapter_parameters.items():
        if "lora_B" in name:
            parameter.data.fill_(0.01)


def whole_losses(network: Any, ids: Sequence[int]) -> torch.Tensor:
    """The cross-entropy (T - 1,) of every token but the first under the model's own forward."""
    logits = network(input_ids=torch.tensor([ids])).logits[0].float()
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """sha256 of every tensor's bytes."""
    return {
        name: hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()
    }
