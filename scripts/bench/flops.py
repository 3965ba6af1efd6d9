"""Useful operations of an evaluation, and the machine's matrix-product ceiling.

Useful are the operations of the plain computation on the tokens themselves, without padding. For a row of n tokens, m
of them targets, and a linear layer (i, o):

    base layer       forward 2ion; backward 2ion for its input's gradient; none for the frozen weight
    LoRA of rank r   forward 2r(i+o)n; backward the same for its two weights and again for its input
    attention        forward 2 products over n(n+1)/2 pairs: 2dn(n+1) for d = heads x head size; backward twice that
    output head      forward 2hvm, at the positions before targets only; backward 2hvm for its input

The first layer's query, key and value read the embedding, which needs no gradient. Not counted: norms, activations,
softmax, dropout and the optimizer, together below a hundredth.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from template.data.encoding import EncodedRow
from template.errors import ConfigError
from template.training import determinism

_SQUARES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
_PRODUCTS = 5
_FAMILIES = ("llama", "qwen2")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model; `linears` are (in, out) of a layer, query, key, value first."""

    layers: int
    linears: tuple[tuple[int, int], ...]
    attention_width: int
    hidden: int
    vocabulary: int

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Shape":
        """Read the sizes from a config.json; ConfigError for an unsupported family."""
        if config.get("model_type") not in _FAMILIES:
            raise ConfigError(f"--model_path: expected a model_type of {_FAMILIES}, not {config.get('model_type')!r}")
        hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
        head_dim = config.get("head_dim") or hidden // heads
        queries, keys = heads * head_dim, config["num_key_value_heads"] * head_dim
        attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
        return cls(
            layers=config["num_hidden_layers"],
            linears=(*attention, (hidden, inner), (hidden, inner), (inner, hidden)),
            attention_width=queries,
            hidden=hidden,
            vocabulary=config["vocab_size"],
        )


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations by kind; a multiply-add counts as two."""

    linear: int = 0
    lora: int = 0
    attention: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        """Sum of all kinds."""
        return self.linear + self.lora + self.attention + self.head


def count_forward(shape: Shape, rank: int, row: EncodedRow) -> Work:
    """Count one row's forward pass, adapter included."""
    tokens = len(row.input_ids)
    return Work(
        linear=2 * tokens * shape.layers * sum(i * o for i, o in shape.linears),
        lora=2 * tokens * shape.layers * rank * sum(i + o for i, o in shape.linears),
        attention=2 * shape.layers * shape.attention_width * tokens * (tokens + 1),
        head=2 * row.target_count * shape.hidden * shape.vocabulary,
    )


def count_backward(shape: Shape, rank: int, row: EncodedRow) -> Work:
    """Count one row's backward pass."""
    forward, tokens = count_forward(shape, rank, row), len(row.input_ids)
    first = shape.linears[:3]
    return Work(
        linear=forward.linear - 2 * tokens * sum(i * o for i, o in first),
        lora=2 * forward.lora - 2 * tokens * rank * sum(i for i, _ in first),
        attention=2 * forward.attention,
        head=forward.head,
    )


def count_training(shape: Shape, rank: int, rows: Sequence[EncodedRow], epochs: int) -> int:
    """Count the operations of a training."""
    return epochs * sum(count_forward(shape, rank, row).total + count_backward(shape, rank, row).total for row in rows)


def count_evaluation(shape: Shape, rank: int, rows: Sequence[EncodedRow]) -> int:
    """Count the operations of a measurement on the evaluation set."""
    return sum(count_forward(shape, rank, row).total for row in rows)


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the GFLOP/s of the fastest large square matrix product."""
    best = 0.0
    with determinism.deterministic_mode(device):
        for size in _SQUARES[device.type]:
            left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            seconds = [_time_product(left, right) for _ in range(_PRODUCTS + 1)][1:]  # the first one warms up
            best = max(best, 2 * size**3 / min(seconds) / 1e9)
    return best


def _time_product(left: torch.Tensor, right: torch.Tensor) -> float:
    synchronize(left.device)
    started = time.perf_counter()
    torch.matmul(left, right)
    synchronize(left.device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
