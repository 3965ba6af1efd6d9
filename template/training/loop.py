"""Fine-tune the adapter on a dataset, and measure the loss on the evaluation set.

The objective equals the Hugging Face Trainer's under gradient accumulation: an optimizer step takes `batch x
accumulation` rows, and its loss is the sum of the cross-entropy over their target tokens, divided by the number of
those tokens. Rows are packed end to end instead of padded, and rows of a pack that begin alike share that prefix. This
changes rounding only; but in training on a CPU, these rows also share the dropout of the prefix.

Not covered: dropout in the base (the supported families have none) and quantized bases.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from template.data.encoding import EncodedRow
from template.records import Progress
from template.training import determinism, environment
from template.training.cuda_graphs import LONGEST, TrainingGraphs
from template.training.model import ScoringModel
from template.training.packing import Pack, balance_packs, pack_with_shared_prefix

LEARNING_RATE = 2e-4
WARMUP_STEPS = 5
MAX_GRAD_NORM = 1.0

# Tokens per forward, by device type; bounds activation memory. A longer row is a forward of its own. More tokens train
# somewhat faster and take memory in proportion: see docs/internals/performance.md.
TRAIN_FORWARD_TOKENS = {"cpu": 224, "cuda": LONGEST}
EVAL_FORWARD_TOKENS = {"cpu": 2048, "cuda": 16384}

_MAX_LANES = 2

OnProgress = Callable[[Progress], None]

Accumulate = Callable[[int, Sequence[Pack], int], torch.Tensor]
"""(step from 0, packs, number of targets) -> mean loss over the targets; sets the adapter's gradients."""


class NonFiniteLoss(Exception):
    """A loss or gradient that is not finite, with its stage or step and its rows."""

    def __init__(self, where: str, rows: Sequence[int]) -> None:
        super().__init__(where)
        self.where = where
        self.rows = tuple(rows)


def ignore_progress(progress: Progress) -> None:
    """Do nothing."""


def row_order(row_count: int, epochs: int, lucky_num: int) -> list[list[int]]:
    """Shuffle the row indices anew for each epoch."""
    generator = determinism.make_generator(lucky_num, "order")
    return [torch.randperm(row_count, generator=generator).tolist() for _ in range(epochs)]


def train_adapter(
    model: ScoringModel,
    rows: Sequence[EncodedRow],
    order: Sequence[Sequence[int]],
    lucky_num: int,
    *,
    on_progress: OnProgress = ignore_progress,
) -> list[float]:
    """Train the adapter in place and return the loss of each optimizer step.

    `order` has the row indices by epoch; `lucky_num` seeds the dropout. AdamW without weight decay, linear warm-up from
    zero over `WARMUP_STEPS`, then linear decay to zero. Source: transformers.get_linear_schedule_with_warmup.
    """
    hyper = model.hyperparameters
    group_size = hyper.per_device_train_batch_size * hyper.gradient_accumulation_steps
    groups = [epoch[start : start + group_size] for epoch in order for start in range(0, len(epoch), group_size)]
    parameters = list(model.adapter_parameters.values())
    fused = True if model.device.type == "cpu" else None  # a GPU computes all tensors at once by default
    optimizer = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=fused
    )
    total_tokens = sum(len(rows[index].input_ids) for epoch in order for index in epoch)
    done_tokens = 0
    step_losses: list[float] = []

    def pack(group: Sequence[int]) -> list[Pack]:
        budget = TRAIN_FORWARD_TOKENS[model.device.type]
        lanes = lane_count() if model.device.type == "cpu" else 1
        return balance_packs(rows, group, budget, model.device, lanes, model.uses_varlen)

    model.set_dropout(True)
    try:
        with open_accumulator(model, lucky_num) as accumulate:
            packs = pack(groups[0]) if groups else []
            for step, group in enumerate(groups):
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * _schedule(step, len(groups))
                loss = accumulate(step, packs, sum(rows[index].target_count for index in group))
                norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
                optimizer.step()
                optimizer.zero_grad()
                # Pack the next rows before `item()` waits for the GPU.
                packs = pack(groups[step + 1]) if step + 1 < len(groups) else []
                step_losses.append(loss.item())
                if not (math.isfinite(step_losses[-1]) and math.isfinite(norm.item())):
                    raise NonFiniteLoss(f"training step {step + 1} of {len(groups)}", group)
                done_tokens += sum(len(rows[index].input_ids) for index in group)
                on_progress(Progress(stage="train", done=done_tokens, total=total_tokens))
    finally:
        model.set_dropout(False)
    return step_losses


def _schedule(step: int, total_steps: int) -> float:
    """Return the learning rate's factor at a step, counted from 0."""
    if step < WARMUP_STEPS:
        return step / WARMUP_STEPS
    return max(0.0, (total_steps - step) / max(1, total_steps - WARMUP_STEPS))


@torch.no_grad()
def evaluate(model: ScoringModel, rows: Sequence[EncodedRow], *, on_progress: OnProgress = ignore_progress) -> float:
    """Average over rows each row's mean cross-entropy, in nats, with dropout off.

    Equals the Hugging Face Trainer's `eval_loss` with batch size 1; it is not the mean over all tokens.
    """
    means = mean_row_losses(model, rows, on_progress)
    return math.fsum(means) / len(means)


@torch.no_grad()
def mean_row_losses(model: ScoringModel, rows: Sequence[EncodedRow], on_progress: OnProgress) -> list[float]:
    """Return the mean loss over the targets of each row, in the order of the rows."""
    means: list[float] = [math.nan] * len(rows)
    total_tokens = sum(len(row.input_ids) for row in rows)
    done_tokens = 0

    def read(indices: Sequence[int], losses: torch.Tensor) -> None:
        nonlocal done_tokens
        for index, mean in zip(indices, losses.tolist(), strict=True):
            means[index] = mean
        broken = [index for index in indices if not math.isfinite(means[index])]
        if broken:
            raise NonFiniteLoss("evaluation", broken)
        done_tokens += sum(len(rows[index].input_ids) for index in indices)
        on_progress(Progress(stage="evaluate", done=done_tokens, total=total_tokens))

    # Read each pack's losses after the next pack is launched, so that the GPU never waits.
    pending: tuple[Sequence[int], torch.Tensor] | None = None
    budget = EVAL_FORWARD_TOKENS[model.device.type]
    for pack in pack_with_shared_prefix(rows, budget, model.device, model.uses_varlen):
        by_row = torch.split(model.target_losses(pack), list(pack.counts))
        losses = torch.stack([row_losses.mean() for row_losses in by_row])
        if pending is not None:
            read(*pending)
        pending = pack.indices, losses
    if pending is not None:
        read(*pending)
    return means


def lane_count() -> int:
    """Return how many packs a CPU processes in parallel."""
    return min(_MAX_LANES, environment.thread_count())


@contextlib.contextmanager
def open_accumulator(model: ScoringModel, lucky_num: int) -> Iterator[Accumulate]:
    """Yield the function that computes a step's gradients; CPUs use parallel lanes."""
    if model.graphs is not None:
        yield functools.partial(_accumulate_from_graphs, model, model.graphs, lucky_num)
    elif model.device.type != "cpu":
        yield functools.partial(_accumulate, model, map, lucky_num)
    else:
        with determinism.thread_lanes(lane_count()) as executor:
            yield functools.partial(_accumulate, model, executor.map, lucky_num)


def _accumulate(
    model: ScoringModel,
    run: Callable[..., Iterator[Any]],
    lucky_num: int,
    step: int,
    packs: Sequence[Pack],
    targets: int,
) -> torch.Tensor:
    parameters = list(model.adapter_parameters.values())

    def differentiate(index: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        model.seed_dropout(lucky_num, step, index)
        # Divide the sum by the whole step's targets, so that packs of unequal size are weighted by their tokens.
        loss = model.target_losses(packs[index]).sum() / targets
        return loss.detach(), torch.autograd.grad(loss, parameters)

    losses: list[torch.Tensor] = []
    for loss, gradients in run(differentiate, range(len(packs))):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if losses and parameter.grad is not None:
                parameter.grad.add_(gradient)
            else:
                parameter.grad = gradient
        losses.append(loss)
    return torch.stack(losses).sum()


def _accumulate_from_graphs(
    model: ScoringModel, graphs: TrainingGraphs, lucky_num: int, step: int, packs: Sequence[Pack], targets: int
) -> torch.Tensor:
    torch._foreach_zero_(graphs.gradients)
    losses = []
    for index, pack in enumerate(packs):
        model.seed_dropout(lucky_num, step, index)
        sources = graphs.forward(pack).index_select(0, pack.sources).requires_grad_()
        loss = model.losses_at(sources, pack).sum() / targets
        graphs.backward(pack, pack.sources, *torch.autograd.grad(loss, sources))
        losses.append(loss.detach())
    for parameter, gradient in zip(model.adapter_parameters.values(), graphs.gradients, strict=True):
        parameter.grad = gradient
    return torch.stack(losses).sum()
