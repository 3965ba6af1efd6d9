"""Where the seconds of a score go: by kind of operation, beside the machine's best matrix product.

    python -m scripts.bench.profile --rows long --train_rows 8 --eval_rows 16

Takes the model and rows of `scripts/bench/score.py`, trains one epoch and evaluates once under torch's profiler, which
itself costs some microseconds an operation. On a GPU, kernels are told apart by their names, so that of products only
their sum is known, and what the GPU waits for is the difference between the sum and the wall. Exit status as there.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scripts.bench.inputs import Bench, add_input_arguments, prepare
from scripts.bench.job import measure_ceiling, synchronize
from scripts.bench.rows import RowMaker
from template import cli
from template.config import load_training_args
from template.errors import ConfigError
from template.training import determinism, environment, loop
from template.training.model import ScoringModel, load_model

_KERNELS = {
    "products": ("nvjet", "gemm", "splitKreduce", "gemv"),
    "attention": ("flash",),
    "dropout": ("dropout", "masked_scale"),
    "gates": ("silu",),
    "losses": ("SoftMax", "softmax"),
    "norms": ("layer_norm", "rms_norm", "NormForward"),
    "multiplications": ("MulFunctor", "BinaryFunctor", "addcmul"),
    "additions": ("add",),
    "copies and casts": ("copy", "Memcpy", "Memset", "Fill", "gather", "CatArray", "index"),
    "optimizer": ("multi_tensor_apply",),
}
_PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_"}
_KINDS = {
    "attention, products": ("aten::bmm", "aten::baddbmm", "scaled_dot_product"),
    "attention, softmax": ("softmax",),
    "dropout, draws": ("aten::random_",),
    "dropout, masks": ("aten::clamp_", "aten::bitwise_and"),
    "copies and casts": ("aten::copy_", "aten::_to_copy", "aten::index_select", "aten::cat"),
}


@dataclass
class Share:
    """What one kind of operation took: seconds of its own, calls, and operations where it is a product."""

    seconds: float = 0.0
    calls: int = 0
    flops: float = 0.0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_input_arguments(parser)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the base (default: the best here)")
    cli.add_logging_arguments(parser)
    parser.set_defaults(dtypes="", queue=1, only="ours", reference_queue=1, reference_eval="adapter")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Raises: SubnetError."""
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(args, Path(folder))
        model = load_model(
            dataclasses.replace(load_training_args(), model_id=bench.model_id, revision=None),
            device=bench.device,
            dtype=environment.choose_dtype(bench.device, args.dtype),
            model_path=bench.model_path,
        )
        ceiling = measure_ceiling(bench.device, model.dtype)
        print(f"{model.dtype}, {environment.thread_count()} threads, ceiling {ceiling:.0f} GFLOP/s")
        for name, work in phases(bench, model):
            shares, wall_s = profile(work, model)
            show(name, shares, wall_s, ceiling)
    return 0


def phases(bench: Bench, model: ScoringModel) -> Iterator[tuple[str, Callable[[], object]]]:
    """One epoch of training, then the evaluation."""
    maker = RowMaker(model.template, model.tokenize)
    rows, eval_rows = maker.encode_folder(bench.data_dirs[0]), maker.encode_folder(bench.eval_data_dir)
    if not rows or not eval_rows:
        raise ConfigError("--train_rows and --eval_rows must be positive")
    model.reset_adapter(1)
    order = loop.row_order(len(rows), 1, 1)
    yield "training", lambda: loop.train_adapter(model, rows, order)
    yield "evaluation", lambda: loop.evaluate(model, eval_rows)


def profile(work: Callable[[], object], model: ScoringModel) -> tuple[dict[str, Share], float]:
    """The work's seconds by kind, and from end to end without a profiler. It runs first to warm up."""
    shares: dict[str, Share] = {}
    with determinism.deterministic_mode(model.device):
        work()
        synchronize(model.device)
        started = time.perf_counter()
        work()
        synchronize(model.device)
        wall_s = time.perf_counter() - started
        # A CPU's packs are worked on by other threads.
        everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
        with torch.profiler.profile(
            activities=_activities(model.device), record_shapes=True, experimental_config=everywhere
        ) as found:
            work()
            synchronize(model.device)
    for event in found.key_averages(group_by_input_shape=True):
        if model.device.type == "cpu":
            kind, flops, microseconds = *classify(event, model), event.self_cpu_time_total
        elif event.device_type.name == "CUDA" and "#" not in event.key:
            kind, flops, microseconds = classify_kernel(event.key), 0.0, event.self_device_time_total
        else:
            continue
        share = shares.setdefault(kind, Share())
        share.seconds += microseconds / 1e6
        share.calls += event.count
        share.flops += flops
    return shares, wall_s


def _activities(device: torch.device) -> list[torch.profiler.ProfilerActivity]:
    kinds = torch.profiler.ProfilerActivity
    return [kinds.CPU] if device.type == "cpu" else [kinds.CUDA]


def classify_kernel(name: str) -> str:
    """The kind of a GPU's kernel, of which nothing but the name is known inside a recorded graph."""
    kinds = (kind for kind, parts in _KERNELS.items() if any(part in name for part in parts))
    return next(kinds, "everything else")


def classify(event: Any, model: ScoringModel) -> tuple[str, float]:
    """The kind of one profiled operation, and the operations of all its calls where it is a matrix product."""
    rank = model.hyperparameters.lora_rank
    if event.key == "aten::bmm" and any(rank in shape for shape in event.input_shapes):
        (count, *left), (_, *right) = event.input_shapes[:2]
        return "adapter, products", 2.0 * count * left[0] * left[1] * right[1] * event.count
    if event.key in _PRODUCTS:
        shapes = [shape for shape in event.input_shapes if len(shape) == 2]
        left, right = shapes[:2] if event.key == "aten::mm" else shapes[-2:]  # mm(..., out=) names its result last
        sizes = {*left, *right}
        kind = "base, products"
        if rank in sizes:
            kind = "adapter, products"
        elif model.vocabulary_size in sizes:
            kind = "head, products"
        return kind, 2.0 * left[0] * left[1] * right[1] * event.count
    kinds = (kind for kind, parts in _KINDS.items() if any(part in event.key for part in parts))
    return next(kinds, "everything else"), 0.0


def show(name: str, shares: dict[str, Share], wall_s: float, ceiling: float) -> None:
    """Prints a table, most seconds first. ceiling: in GFLOP/s."""
    total = sum(share.seconds for share in shares.values())
    print(f"\n{name:<24}{'s':>8}{'share':>8}{'calls':>9}{'GFLOP/s':>9}{'ceil':>6}")
    for kind, share in sorted(shares.items(), key=lambda item: -item[1].seconds):
        rate = f"{share.flops / share.seconds / 1e9:9.0f}{share.flops / share.seconds / 1e9 / ceiling:6.0%}"
        line = f"{kind:<24}{share.seconds:8.3f}{share.seconds / total:8.1%}{share.calls:9,}"
        print(line + (rate if share.flops else ""))
    print(f"{'together':<24}{total:8.3f}")
    print(f"{'from end to end':<24}{wall_s:8.3f}  without the profiler")


if __name__ == "__main__":
    sys.exit(main())
