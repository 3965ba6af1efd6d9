"""The objective and the measurement: one LoRA fine-tuning run and the loss it leaves on the evaluation rows.

What is computed is the Hugging Face Trainer's objective under gradient accumulation: one optimizer step takes
`batch x accumulation` rows, and its loss is the sum of the cross-entropy over all their target tokens divided by
the number of those tokens. How the rows of a step lie in memory is free; here they are packed end to end up to a
budget of tokens, and evaluation rows that begin alike share that start, which changes rounding and nothing else.

Not covered: the base's own dropout, which stays off (the supported families have none), and quantized bases.
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

# Tokens of one forward, by kind of device: what bounds activation memory. A row alone may be longer. More of them in
# training are somewhat faster and cost memory in proportion, see docs/performance.md.
TRAIN_FORWARD_TOKENS = {"cpu": 224, "cuda": LONGEST}
EVAL_FORWARD_TOKENS = {"cpu": 2048, "cuda": 16384}

OnProgress = Callable[[Progress], None]


class NonFiniteLoss(Exception):
    """A loss or gradient stopped being a number: where, and the indices of the rows it came from."""

    def __init__(self, where: str, rows: Sequence[int]) -> None:
        super().__init__(where)
        self.where = where
        self.rows = tuple(rows)


def ignore_progress(progress: Progress) -> None:
    """Progress that nobody watches."""


def row_order(row_count: int, epochs: int, lucky_num: int) -> list[list[int]]:
    """For each epoch a fresh shuffle of the row indices, from the seed alone."""
    generator = determinism.make_generator(lucky_num, "order")
    return [torch.randperm(row_count, generator=generator).tolist() for _ in range(epochs)]


def train_adapter(
    model: ScoringModel,
    rows: Sequence[EncodedRow],
    order: Sequence[Sequence[int]],
    *,
    on_progress: OnProgress = ignore_progress,
) -> list[float]:
    """Trains the adapter in place over `order`, row indices by epoch; returns the loss of each optimizer step.

    AdamW at 2e-4 without decay, `WARMUP_STEPS` of linear warm-up from zero, then linear to zero, gradient norm
    clipped at 1. Source: transformers.get_linear_schedule_with_warmup, whose first step has learning rate 0.
    """
    hyper = model.hyperparameters
    group_size = hyper.per_device_train_batch_size * hyper.gradient_accumulation_steps
    groups = [epoch[at : at + group_size] for epoch in order for at in range(0, len(epoch), group_size)]
    parameters = list(model.adapter_parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    total_tokens = sum(len(rows[index].input_ids) for epoch in order for index in epoch)
    done_tokens = 0
    step_losses: list[float] = []

    def pack(group: Sequence[int]) -> list[Pack]:
        budget = TRAIN_FORWARD_TOKENS[model.device.type]
        lanes = lane_count() if model.device.type == "cpu" else 1
        return balance_packs(rows, group, budget, model.device, lanes, model.attends_in_place)

    model.set_dropout(True)
    try:
        with open_accumulator(model) as accumulate:
            packs = pack(groups[0]) if groups else []
            for step, group in enumerate(groups):
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * _schedule(step, len(groups))
                loss = accumulate(step, packs, sum(rows[index].target_count for index in group))
                norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
                optimizer.step()
                optimizer.zero_grad()
                # A GPU is still at work on all of that: meanwhile the next rows are laid out, then it is waited for.
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
    """The learning rate's factor at a step counted from 0."""
    if step < WARMUP_STEPS:
        return step / WARMUP_STEPS
    return max(0.0, (total_steps - step) / max(1, total_steps - WARMUP_STEPS))


@torch.no_grad()
def evaluate(model: ScoringModel, rows: Sequence[EncodedRow], *, on_progress: OnProgress = ignore_progress) -> float:
    """Mean over rows of (the mean cross-entropy over that row's target tokens), in nats, adapter on, dropout off.

    This is what the Hugging Face Trainer reports with evaluation batch size 1; it is not the mean over tokens.
    """
    means = mean_row_losses(model, rows, on_progress)
    return math.fsum(means) / len(means)


@torch.no_grad()
def mean_row_losses(model: ScoringModel, rows: Sequence[EncodedRow], on_progress: OnProgress) -> list[float]:
    """The mean loss of each row, in the rows' order."""
    means: list[float] = [math.nan] * len(rows)
    total_tokens = sum(len(row.input_ids) for row in rows)
    done_tokens = 0

    def read(indices: Sequence[int], found: torch.Tensor) -> None:
        nonlocal done_tokens
        for index, mean in zip(indices, found.tolist(), strict=True):
            means[index] = mean
        broken = [index for index in indices if not math.isfinite(means[index])]
        if broken:
            raise NonFiniteLoss("evaluation", broken)
        done_tokens += sum(len(rows[index].input_ids) for index in indices)
        on_progress(Progress(stage="evaluate", done=done_tokens, total=total_tokens))

    # Read one pack late: the next is laid out and begun while a GPU is at work on it.
    waiting: tuple[Sequence[int], torch.Tensor] | None = None
    for pack in pack_with_shared_prefix(
        rows, EVAL_FORWARD_TOKENS[model.device.type], model.device, model.attends_in_place
    ):
        by_row = torch.split(model.target_losses(pack), list(pack.counts))
        found = torch.stack([losses.mean() for losses in by_row])
        if waiting is not None:
            read(*waiting)
        waiting = pack.indices, found
    if waiting is not None:
        read(*waiting)
    return means


_LANES = 2


Accumulate = Callable[[int, Sequence[Pack], int], torch.Tensor]
"""Sets the adapter's gradients to those of a step's loss, and returns it: the mean over target tokens, in nats.

Takes the step's number, counted from 0, its packs, and the number of all their targets.
"""


def lane_count() -> int:
    """How many packs are worked on at the same time on a CPU."""
    return min(_LANES, environment.thread_count())


@contextlib.contextmanager
def open_accumulator(model: ScoringModel) -> Iterator[Accumulate]:
    """How this model's gradients are made, for as long as a training lasts."""
    if model.graphs is not None:
        yield functools.partial(_accumulate_from_graphs, model, model.graphs)
        return
    if model.device.type != "cpu":
        yield functools.partial(_accumulate, model, map)
        return
    with determinism.thread_lanes(lane_count()) as pool:
        yield functools.partial(_accumulate, model, pool.map)


def _accumulate(
    model: ScoringModel, run: Callable[..., Iterator[Any]], step: int, packs: Sequence[Pack], targets: int
) -> torch.Tensor:
    parameters = list(model.adapter_parameters.values())

    def differentiate(at: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        model.seed_dropout(step, at)
        # Summed, then divided by the whole step's count: packs of unequal size must not weigh alike.
        loss = model.target_losses(packs[at]).sum() / targets
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
    model: ScoringModel, graphs: TrainingGraphs, step: int, packs: Sequence[Pack], targets: int
) -> torch.Tensor:
    torch._foreach_zero_(graphs.gradients)
    losses = []
    for at, pack in enumerate(packs):
        model.seed_dropout(step, at)
        sources = graphs.forward(pack).index_select(0, pack.sources).requires_grad_()
        loss = model.losses_at(sources, pack).sum() / targets
        graphs.backward(pack, pack.sources, *torch.autograd.grad(loss, sources))
        losses.append(loss.detach())
    for parameter, gradient in zip(model.adapter_parameters.values(), graphs.gradients, strict=True):
        parameter.grad = gradient
    return torch.stack(losses).sum()
