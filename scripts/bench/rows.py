"""The rows and models that the benchmark of the score is run on, made here from a seed, or read from files.

Texts are ordinary English words in no order that means anything: the time of a score depends on lengths, not on sense.
Rows are made to a length in the model's own tokens, whatever its tokenizer.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from template.constants import DATA_FILE
from template.data.chat_templates import ChatTemplate
from template.data.encoding import EncodedRow, Tokenize, encode_row
from template.data.rows import EVAL_SET_LIMITS, parse_rows
from template.errors import ConfigError, SubmissionError
from template.localnet.models.tiny import make_tiny_model

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
_SYSTEM_SHARE = 0.4  # of the shortest row's tokens, where rows have characters


@dataclass(frozen=True, kw_only=True)
class RowSet:
    """How many rows, and the least and most tokens of one. has_characters: system prompts that several rows share."""

    train_rows: int
    eval_rows: int
    train_tokens: tuple[int, int]
    eval_tokens: tuple[int, int]
    has_characters: bool


ROW_SETS = {
    # About 2,100 and 9,250 tokens.
    "short": RowSet(train_rows=40, eval_rows=200, train_tokens=(39, 67), eval_tokens=(31, 59), has_characters=False),
    "long": RowSet(train_rows=40, eval_rows=80, train_tokens=(200, 400), eval_tokens=(200, 400), has_characters=True),
    "qwen": RowSet(
        train_rows=250, eval_rows=1000, train_tokens=(200, 400), eval_tokens=(200, 400), has_characters=True
    ),
}


class RowMaker:
    """Conversations of wanted lengths for one model's template and tokenizer."""

    def __init__(self, template: ChatTemplate, tokenize: Tokenize) -> None:
        self._template = template
        self._tokenize = tokenize
        # A word after a blank is a token or several of its own in a byte-level vocabulary.
        self._costs = [len(tokenize(f" {word}")) for word in _WORDS]

    def make(self, count: int, tokens: tuple[int, int], *, characters: int, seed: str) -> list[RowDict]:
        """`count` rows of `tokens` tokens, least and most; characters: how many share the rows, 0 for none.

        A row may be longer by a word or two where the tokenizer knows few whole words.
        """
        stream = random.Random(seed)
        return [self._make_row(stream, stream.randint(*tokens), characters, tokens) for _ in range(count)]

    def _length(self, row: RowDict) -> int:
        (parsed,) = parse_rows(json.dumps(row).encode(), name="row", limits=EVAL_SET_LIMITS)
        encoded = encode_row(parsed, self._template, self._tokenize)
        return len(encoded.input_ids) if encoded else 0

    def encode_folder(self, folder: Path) -> list[EncodedRow]:
        """The rows of the folder's data file that have a target, as a score reads them."""
        rows = parse_rows((folder / DATA_FILE).read_bytes(), name=DATA_FILE, limits=EVAL_SET_LIMITS)
        encoded = (encode_row(row, self._template, self._tokenize) for row in rows)
        return [row for row in encoded if row is not None]

    def _make_row(self, stream: random.Random, wanted: int, characters: int, tokens: tuple[int, int]) -> RowDict:
        system = None
        if characters:
            which = random.Random(f"character {stream.randrange(characters)}")
            system = f"You are the {self._words(which, int(tokens[0] * _SYSTEM_SHARE))}"
        elif stream.random() < _OWN_SYSTEM_SHARE:
            system = "Answer in one short sentence."
        free = max(2, wanted - self._length(_row(system, "The", "The")))
        question = self._words(stream, free // 3)
        return _row(system, f"The {question}", f"The {self._words(stream, free - free // 3)}")

    def _words(self, stream: random.Random, tokens: int) -> str:
        """Words of `tokens` tokens together, or up to a word more."""
        chosen: list[str] = []
        while tokens > 0:
            at = stream.randrange(len(_WORDS))
            chosen.append(_WORDS[at])
            tokens -= self._costs[at]
        return " ".join(chosen)


def _row(system: str | None, question: str, answer: str) -> RowDict:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"system": system, "conversations": turns}


def make_folders(folder: Path, maker: RowMaker, rows: RowSet, submissions: int) -> tuple[list[Path], Path]:
    """Writes the datasets of that many submissions and an evaluation set; their folders."""

    def characters(count: int) -> int:
        return -(-count // _ROWS_PER_CHARACTER) if rows.has_characters else 0

    data_dirs = []
    for number in range(submissions):
        made = maker.make(
            rows.train_rows, rows.train_tokens, characters=characters(rows.train_rows), seed=f"train {number}"
        )
        data_dirs.append(write_lines(folder / f"train-{number}", [json.dumps(row) for row in made]))
    made = maker.make(rows.eval_rows, rows.eval_tokens, characters=characters(rows.eval_rows), seed="evaluation")
    return data_dirs, write_lines(folder / "evaluation", [json.dumps(row) for row in made])


def copy_files(
    folder: Path, train_file: Path, eval_file: Path, submissions: int, sizes: tuple[int | None, int | None]
) -> tuple[list[Path], Path]:
    """Writes folders of rows drawn from files: each submission's anew, the evaluation set from the file's beginning.

    sizes: rows of a submission and of the evaluation set, None for all.
    Raises: ConfigError naming the file that cannot be read or holds no rows.
    """
    train_lines, eval_lines = read_lines(train_file, "--train_file"), read_lines(eval_file, "--eval_file")
    count = min(sizes[0] or len(train_lines), len(train_lines))
    data_dirs = [
        write_lines(folder / f"train-{number}", random.Random(f"train {number}").sample(train_lines, count))
        for number in range(submissions)
    ]
    return data_dirs, write_lines(folder / "evaluation", eval_lines[: sizes[1]])


def read_lines(path: Path, flag: str) -> list[str]:
    """The file's rows, each checked. Raises: ConfigError naming the flag."""
    try:
        content = path.expanduser().read_bytes()
        parse_rows(content, name=str(path), limits=EVAL_SET_LIMITS)
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be read: {error.strerror or error}") from error
    except SubmissionError as error:
        raise ConfigError(f"{flag}: {error}") from error
    return [line for line in content.decode().split("\n") if line.strip()]


def write_lines(folder: Path, lines: Sequence[str]) -> Path:
    """The folder, now with a data file of these lines."""
    folder.mkdir(parents=True)
    (folder / DATA_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


_QWEN_ID, _SMOLLM2_ID = "Qwen/Qwen2.5-1.5B-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"
SHAPES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "tiny": (_QWEN_ID, None),
    "smollm2-135m": (
        _SMOLLM2_ID,
        {
            "model_type": "llama",
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2.5-1.5b": (
        _QWEN_ID,
        {
            "model_type": "qwen2",
            "vocab_size": 151936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
        },
    ),
}
"""Name -> the Hub id whose chat template it has, and its configuration; None is the tiny model of the tests."""


def make_shape(folder: Path, name: str) -> str:
    """Writes a model of that shape with random weights into `folder`; the Hub id it stands for.

    Its tokenizer is the tiny model's, whose 512 tokens are the first of the shape's vocabulary: the output head has
    its full width, and rows are made to a length in tokens, so that the work is the real model's.
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
