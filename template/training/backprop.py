"""The gradient of one optimizer step's loss, pack by pack: side by side on a CPU, from recorded graphs on a GPU.

On a CPU two packs are worked on at a time, each by half of the cores: the many small operations between the products
are too short to be shared by all. Gradients are added in the order of the packs, whoever is done first.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from template.training import determinism
from template.training.cuda_graphs import TrainingGraphs
from template.training.model import ScoringModel
from template.training.packing import Pack

_LANES = 2

Accumulate = Callable[[int, Sequence[Pack], int], torch.Tensor]
"""Sets the adapter's gradients to those of a step's loss, and returns it: the mean over target tokens, in nats.

Takes the step's number, counted from 0, its packs, and the number of all their targets.
"""


def lane_count() -> int:
    """How many packs are worked on at the same time on a CPU."""
    return min(_LANES, determinism.thread_count())


@contextlib.contextmanager
def open_accumulator(model: ScoringModel) -> Iterator[Accumulate]:
    """How this model's gradients are made, for as long as a training lasts."""
    if model.graphs is not None:
        yield functools.partial(_accumulate_from_graphs, model, model.graphs)
        return
    if model.device.type != "cpu":
        yield functools.partial(_accumulate, model, map)
        return
    with determinism.lanes(lane_count()) as pool:
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
