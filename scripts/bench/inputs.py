"""Models and rows of the benchmarks, made from a seed.

Texts are English words in random order, because the time of an evaluation depends on lengths only. Rows are made to a
length in the model's own tokens.
"""

import argparse
import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from scripts.bench.tiny_model import make_tiny_model
from template.config import TrainingArgs, load_training_args
from template.constants import DATA_FILE
from template.data.chat_templates import ChatTemplate, template_for
from template.data.encoding import EncodedRow, Tokenize, encode_row
from template.data.rows import EVAL_SET_LIMITS, parse_rows
from template.errors import ConfigError
from template.localnet.models.download import default_model_dir
from template.localnet.models.sources import MODEL_ID
from template.training import environment
from template.training.model import load_tokenizer

RowDict = dict[str, Any]

_TEXT = """
the a an of to in and that it is was for on with as he she they be at by had not are but from or have his her which one
we all there been who so if out up said what when into some could them time then my about man day made over down only
way find house water long light little good night old year small right hand home read big work letter river garden
winter morning table story friend window sailor lantern harbour kitchen market teacher mountain
"""
_WORDS = _TEXT.split()
_ROWS_PER_CHARACTER = 8
_OWN_SYSTEM_SHARE = 0.1  # of the rows of a set without characters
_SYSTEM_SHARE = 0.4  # of the shortest row's tokens, in a set with characters


@dataclass(frozen=True, kw_only=True)
class RowSet:
    """Numbers of rows, and ranges of tokens; characters share system prompts."""

    train_rows: int
    eval_rows: int
    train_tokens: tuple[int, int] = (200, 400)
    eval_tokens: tuple[int, int] = (200, 400)
    has_characters: bool = True


ROW_SETS = {
    "short": RowSet(train_rows=40, eval_rows=200, train_tokens=(39, 67), eval_tokens=(31, 59), has_characters=False),
    "long": RowSet(train_rows=40, eval_rows=80),
    "qwen": RowSet(train_rows=250, eval_rows=1000),
}

_SMOLLM2 = {
    **{"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536},
    **{"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    **{"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0},
}
_QWEN2 = {
    **{"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960},
    **{"num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True},
    **{"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0},
}
SHAPES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "tiny": ("Qwen/Qwen2.5-1.5B-Instruct", None),
    "smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", _SMOLLM2),
    "qwen2.5-1.5b": ("Qwen/Qwen2.5-1.5B-Instruct", _QWEN2),
}
"""Name -> Hub id of the chat template, and model configuration; None for the tiny model of the tests."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A model with datasets and an evaluation set."""

    model_path: Path
    training_args: TrainingArgs
    data_dirs: list[Path]
    eval_data_dir: Path
    maker: "RowMaker"


class RowMaker:
    """Makes and encodes conversations for one model's template and tokenizer."""

    def __init__(self, template: ChatTemplate, tokenize: Tokenize) -> None:
        self._template = template
        self._tokenize = tokenize
        self._costs = [len(tokenize(f" {word}")) for word in _WORDS]

    def make(self, count: int, tokens: tuple[int, int], *, characters: int, seed: str) -> list[RowDict]:
        """Make rows of least to most `tokens` that share `characters` system prompts.

        A row may be a word or two longer where the tokenizer has few whole words.
        """
        stream = random.Random(seed)
        return [self._make_row(stream, stream.randint(*tokens), characters, tokens) for _ in range(count)]

    def encode_folder(self, folder: Path) -> list[EncodedRow]:
        """Encode the rows of a folder's data file that have a target."""
        return self._encode((folder / DATA_FILE).read_bytes())

    def _encode(self, content: bytes) -> list[EncodedRow]:
        rows = parse_rows(content, name=DATA_FILE, limits=EVAL_SET_LIMITS)
        encoded = (encode_row(row, self._template, self._tokenize) for row in rows)
        return [row for row in encoded if row is not None]

    def _make_row(self, stream: random.Random, length: int, characters: int, tokens: tuple[int, int]) -> RowDict:
        system = None
        if characters:
            character = random.Random(f"character {stream.randrange(characters)}")
            system = f"You are the {self._words(character, int(tokens[0] * _SYSTEM_SHARE))}"
        elif stream.random() < _OWN_SYSTEM_SHARE:
            system = "Answer in one short sentence."
        (shortest,) = self._encode(json.dumps(_row(system, "The", "The")).encode())
        free = max(2, length - len(shortest.input_ids))
        question = self._words(stream, free // 3)
        return _row(system, f"The {question}", f"The {self._words(stream, free - free // 3)}")

    def _words(self, stream: random.Random, tokens: int) -> str:
        chosen: list[str] = []
        while tokens > 0:
            index = stream.randrange(len(_WORDS))
            chosen.append(_WORDS[index])
            tokens -= self._costs[index]
        return " ".join(chosen)


def _row(system: str | None, question: str, answer: str) -> RowDict:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"system": system, "conversations": turns}


def positive(text: str) -> int:
    """Parse a positive integer argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, not {text!r}")
    return int(text)


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `prepare`: model, device and rows."""
    model = parser.add_argument_group("model")
    model.add_argument("--model_path", type=Path, metavar="DIR", help="model folder (default: the quickstart's)")
    model.add_argument("--model_id", default=MODEL_ID, help="Hub id of its chat template (default: %(default)s)")
    model.add_argument("--shape", choices=sorted(SHAPES), help="make a model of this shape with random weights")
    model.add_argument("--device", help="cpu, cuda or cuda:N (default: the first GPU, else the CPU)")
    rows = parser.add_argument_group("rows")
    rows.add_argument("--rows", choices=sorted(ROW_SETS), default="short", help="made rows (default: %(default)s)")
    rows.add_argument("--train_rows", type=positive, help="rows of a dataset (default: by --rows)")
    rows.add_argument("--eval_rows", type=positive, help="rows of the evaluation set (default: by --rows)")


def prepare(args: argparse.Namespace, folder: Path, datasets: int) -> Inputs:
    """Make or find the model and the rows; ConfigError names an invalid argument."""
    environment.choose_device(args.device)
    if args.shape and args.model_path:
        raise ConfigError("--shape makes a model and --model_path names one: pass one of them")
    if args.shape:
        model_path, model_id = folder / "model", make_shape(folder / "model", args.shape)
    else:
        model_path, model_id = (args.model_path or default_model_dir()).resolve(), args.model_id
    if not (model_path / "config.json").is_file():
        hint = "" if args.model_path else "; run `python -m template.localnet.models.download` or give --shape"
        raise ConfigError(f"--model_path {model_path}: no model found{hint}")
    training_args = dataclasses.replace(load_training_args(), model_id=model_id, revision=None)
    maker = RowMaker(template_for(model_id), load_tokenizer(training_args, model_path=model_path))
    changes = {name: getattr(args, name) for name in ("train_rows", "eval_rows") if getattr(args, name)}
    data_dirs, eval_dir = make_folders(folder, maker, dataclasses.replace(ROW_SETS[args.rows], **changes), datasets)
    return Inputs(
        model_path=model_path, training_args=training_args, data_dirs=data_dirs, eval_data_dir=eval_dir, maker=maker
    )


def make_folders(folder: Path, maker: RowMaker, rows: RowSet, datasets: int) -> tuple[list[Path], Path]:
    """Write the folders of that many datasets and of an evaluation set."""

    def write(name: str, count: int, tokens: tuple[int, int], seed: str) -> Path:
        characters = -(-count // _ROWS_PER_CHARACTER) if rows.has_characters else 0
        made = maker.make(count, tokens, characters=characters, seed=seed)
        (folder / name).mkdir(parents=True)
        (folder / name / DATA_FILE).write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        return folder / name

    numbers = range(datasets)
    data_dirs = [write(f"train-{number}", rows.train_rows, rows.train_tokens, f"train {number}") for number in numbers]
    return data_dirs, write("evaluation", rows.eval_rows, rows.eval_tokens, "evaluation")


def make_shape(folder: Path, name: str) -> str:
    """Write a model of a shape with random weights; returns its Hub id.

    Its tokenizer is the tiny model's, whose 512 tokens are the first of the vocabulary. The output head is full width
    and rows are made to a length in tokens, so that the work is the real model's.
    """
    model_id, values = SHAPES[name]
    transformers.utils.logging.disable_progress_bar()
    make_tiny_model(folder)
    if values is not None:
        for weights in folder.glob("*.safetensors"):
            weights.unlink()
        tiny = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tokens = {key: tiny[key] for key in ("eos_token_id", "pad_token_id")}
        config: Any = transformers.AutoConfig.for_model(**values, **tokens)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
    return model_id
