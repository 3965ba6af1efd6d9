"""What the benchmark of the score counts and times: jobs for its child processes, useful work, and the ceiling.

Useful work is what the plain way must compute on the tokens themselves, without padding, and the same count stands
for both runners, whatever they really execute. For a row of n tokens, m of them targets, and a linear layer (i, o):

    base layer       forward 2ion; backward 2ion for its input's gradient; none for the frozen weight
    LoRA of rank r   forward 2r(i+o)n; backward the same for its two weights and again for its input
    attention        forward 2 products over n(n+1)/2 pairs: 2dn(n+1) for d = heads x head size; backward twice that
    output head      forward 2hvm, at the positions before targets alone; backward 2hvm for its input

The first layer's query, key and value read the embedding, which needs no gradient, so none is counted there.
Not counted: norms, activations, softmax, dropout, the optimizer; together under a hundredth.
"""

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from template import cli
from template.data.encoding import EncodedRow
from template.errors import ConfigError
from template.telemetry import logging
from template.training import determinism

_SQUARES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
_PRODUCTS = 5
_FAMILIES = ("llama", "qwen2")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one child process scores: dataset i with seed i, one after another, and where it writes the `Outcome`."""

    model_path: str
    model_id: str
    device: str
    dtype: str
    data_dirs: list[str]
    lucky_nums: list[int]
    eval_data_dir: str
    merges: bool
    out: str


@dataclass(frozen=True, kw_only=True)
class Score:
    """One submission's seconds, loss and optimizer steps. total_s is from end to end, all loading included."""

    load_s: float
    train_s: float
    eval_s: float
    total_s: float
    loss: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one child process measured. peak_mib: of the process on a CPU, of what torch holds on a GPU."""

    scores: list[Score]
    peak_mib: float


def run_job(score: Callable[[Job, str, int], Score]) -> int:
    """A child process's whole life: scores what the job file named on the command line asks for, writes the outcome.

    score: takes the job, a dataset's folder and its seed.
    """

    def work() -> int:
        job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
        pairs = zip(job.data_dirs, job.lucky_nums, strict=True)
        scores = [score(job, data_dir, lucky_num) for data_dir, lucky_num in pairs]
        outcome = Outcome(scores=scores, peak_mib=_peak_mib(job.device))
        Path(job.out).write_text(json.dumps(dataclasses.asdict(outcome)), encoding="utf-8")
        return 0

    logging.quiet_libraries()
    return cli.run_entry_point(work)


def read_outcome(path: Path) -> Outcome:
    """What `run_job` wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return Outcome(scores=[Score(**score) for score in values["scores"]], peak_mib=values["peak_mib"])


def _peak_mib(device: str) -> float:
    if device != "cpu":
        # Not what is allocated: memory that recorded graphs work in is no longer, and held all the same.
        return torch.cuda.max_memory_reserved() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its peak begins with that of the process that started this one.
        (line,) = [line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is scored, on average over the submissions: rows, tokens and useful operations, all epochs together."""

    submissions: int
    train_rows: int
    train_tokens: float
    train_flops: float
    eval_rows: int
    eval_tokens: float
    eval_flops: float
    shortest_row: int


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a model's configuration the work depends on. linears: (in, out) per layer; query, key, value first."""

    layers: int
    linears: tuple[tuple[int, int], ...]
    attention_width: int
    hidden: int
    vocabulary: int

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Shape":
        """Of a config.json. Raises: ConfigError for a family whose layers are not known here."""
        if config.get("model_type") not in _FAMILIES:
            raise ConfigError(
                f"--model_path: the work of a {config.get('model_type')!r} is not known, only {_FAMILIES}"
            )
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
    """Floating-point operations by where they arise; a multiplication with its addition is two."""

    linear: int = 0
    lora: int = 0
    attention: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear + self.lora + self.attention + self.head


def count_forward(shape: Shape, rank: int, row: EncodedRow) -> Work:
    """The work of one row's forward pass, its adapter included."""
    tokens = len(row.input_ids)
    return Work(
        linear=2 * tokens * shape.layers * sum(i * o for i, o in shape.linears),
        lora=2 * tokens * shape.layers * rank * sum(i + o for i, o in shape.linears),
        attention=2 * shape.layers * shape.attention_width * tokens * (tokens + 1),
        head=2 * row.target_count * shape.hidden * shape.vocabulary,
    )


def count_backward(shape: Shape, rank: int, row: EncodedRow) -> Work:
    """The work of one row's backward pass."""
    forward, tokens = count_forward(shape, rank, row), len(row.input_ids)
    first = shape.linears[:3]
    return Work(
        linear=forward.linear - 2 * tokens * sum(i * o for i, o in first),
        lora=2 * forward.lora - 2 * tokens * rank * sum(i for i, _ in first),
        attention=2 * forward.attention,
        head=forward.head,
    )


def count_training(shape: Shape, rank: int, rows: Sequence[EncodedRow], epochs: int) -> int:
    """Operations of a whole training."""
    return epochs * sum(count_forward(shape, rank, row).total + count_backward(shape, rank, row).total for row in rows)


def count_evaluation(shape: Shape, rank: int, rows: Sequence[EncodedRow]) -> int:
    """Operations of one evaluation."""
    return sum(count_forward(shape, rank, row).total for row in rows)


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of the best of several large square matrix products, with a score's own threads and precision."""
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
    """Waits for a GPU to be done with what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
