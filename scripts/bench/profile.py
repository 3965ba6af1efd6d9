"""Break the seconds of an evaluation down by kind of operation.

    python -m scripts.bench.profile --rows long --train_rows 8 --eval_rows 16

Trains one epoch and evaluates once under torch's profiler, which costs some microseconds per operation. Models and rows
as in scripts/bench/score.py. On a GPU, kernels are classified by name, so products are one sum. The GPU is idle for the
difference between that sum and the wall time. Exit status as in scripts/bench/score.py.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scripts.bench.flops import measure_ceiling, synchronize
from scripts.bench.inputs import add_input_arguments, prepare
from template import cli
from template.arguments import Parser
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
_OPERATIONS = {
    "attention, products": ("aten::bmm", "aten::baddbmm", "scaled_dot_product"),
    "attention, softmax": ("softmax",),
    "dropout, draws": ("aten::random_",),
    "dropout, masks": ("aten::clamp_", "aten::bitwise_and"),
    "copies and casts": ("aten::copy_", "aten::_to_copy", "aten::index_select", "aten::cat"),
}


@dataclass
class Share:
    """Seconds, calls and floating-point operations of one kind."""

    seconds: float = 0.0
    calls: int = 0
    flops: float = 0.0


def build_parser() -> Parser:
    """Build the command line."""
    parser = Parser(
        prog="python -m scripts.bench.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_input_arguments(parser)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the base (default: the fastest)")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables and return the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Profile one epoch of training and one evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = prepare(args, Path(folder), 1)
        device = environment.choose_device(args.device)
        model = load_model(
            inputs.training_args,
            device=device,
            dtype=environment.choose_dtype(device, args.dtype),
            model_path=inputs.model_path,
        )
        rows = inputs.maker.encode_folder(inputs.data_dirs[0])
        eval_rows = inputs.maker.encode_folder(inputs.eval_data_dir)
    ceiling = measure_ceiling(device, model.dtype)
    print(f"{model.dtype}, {environment.thread_count()} threads, ceiling {ceiling:.0f} GFLOP/s")
    model.reset_adapter(1)
    order = loop.row_order(len(rows), 1, 1)
    show("training", *profile(lambda: loop.train_adapter(model, rows, order, 1), model), ceiling)
    show("evaluation", *profile(lambda: loop.evaluate(model, eval_rows), model), ceiling)
    return 0


def profile(work: Callable[[], object], model: ScoringModel) -> tuple[dict[str, Share], float]:
    """Return the shares by kind, and the wall time without a profiler."""
    kinds = torch.profiler.ProfilerActivity
    is_cpu = model.device.type == "cpu"
    with determinism.deterministic_mode(model.device):
        work()
        synchronize(model.device)
        started = time.perf_counter()
        work()
        synchronize(model.device)
        wall_s = time.perf_counter() - started
        # A CPU processes packs in other threads.
        config = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
        activities = [kinds.CPU if is_cpu else kinds.CUDA]
        with torch.profiler.profile(activities=activities, record_shapes=True, experimental_config=config) as result:
            work()
            synchronize(model.device)
    shares: dict[str, Share] = {}
    for event in result.key_averages(group_by_input_shape=True):
        if is_cpu:
            kind, flops, microseconds = *classify(event, model), event.self_cpu_time_total
        elif event.device_type.name == "CUDA" and "#" not in event.key:
            kind, flops, microseconds = classify_name(event.key, _KERNELS), 0.0, event.self_device_time_total
        else:
            continue
        share = shares.setdefault(kind, Share())
        share.seconds += microseconds / 1e6
        share.calls += event.count
        share.flops += flops
    return shares, wall_s


def classify_name(name: str, kinds: dict[str, tuple[str, ...]] = _KERNELS) -> str:
    """Return the first kind of which a part is in the name."""
    matching = (kind for kind, parts in kinds.items() if any(part in name for part in parts))
    return next(matching, "everything else")


def classify(event: Any, model: ScoringModel) -> tuple[str, float]:
    """Return the kind of an operation, and the operations of its calls if a product."""
    rank = model.hyperparameters.lora_rank
    if event.key == "aten::bmm" and any(rank in shape for shape in event.input_shapes):
        (count, *left), (_, *right) = event.input_shapes[:2]
        return "adapter, products", 2.0 * count * left[0] * left[1] * right[1] * event.count
    if event.key in _PRODUCTS:
        shapes = [shape for shape in event.input_shapes if len(shape) == 2]
        left, right = shapes[:2] if event.key == "aten::mm" else shapes[-2:]  # mm(..., out=) has its result last
        kind = "base, products"
        if rank in {*left, *right}:
            kind = "adapter, products"
        elif model.vocabulary_size in {*left, *right}:
            kind = "head, products"
        return kind, 2.0 * left[0] * left[1] * right[1] * event.count
    return classify_name(event.key, _OPERATIONS), 0.0


def show(name: str, shares: dict[str, Share], wall_s: float, ceiling: float) -> None:
    """Print a table, most seconds first; `ceiling` is in GFLOP/s."""
    total = sum(share.seconds for share in shares.values())
    print(f"\n{name:<24}{'s':>8}{'share':>8}{'calls':>9}{'GFLOP/s':>9}{'ceil':>6}")
    for kind, share in sorted(shares.items(), key=lambda item: -item[1].seconds):
        rate = share.flops / share.seconds / 1e9 if share.flops else 0.0
        line = f"{kind:<24}{share.seconds:8.3f}{share.seconds / total:8.1%}{share.calls:9,}"
        print(line + (f"{rate:9.0f}{rate / ceiling:6.0%}" if share.flops else ""))
    print(f"{'together':<24}{total:8.3f}")
    print(f"{'from end to end':<24}{wall_s:8.3f}  without the profiler")


if __name__ == "__main__":
    sys.exit(main())
