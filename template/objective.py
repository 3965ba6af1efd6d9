"""The objective and the measurement: one LoRA fine-tuning run and the loss it leaves on the evaluation rows.

What is computed is the Hugging Face Trainer's objective under gradient accumulation: one optimizer step takes
`batch x accumulation` rows, and its loss is the sum of the cross-entropy over all their target tokens divided by
the number of those tokens. How the rows of a step lie in memory is free; here they are sorted by length and padded
together up to a budget of tokens, which changes rounding and nothing else.

Not covered: the base's own dropout, which stays off (the supported families have none), and quantized bases.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from template import numerics
from template.data import EncodedRow
from template.model import ScoringModel
from template.records import Progress

LEARNING_RATE = 2e-4
WARMUP_STEPS = 5
MAX_GRAD_NORM = 1.0

# Padded tokens of one forward: what bounds activation memory. A row alone may fill a training forward.
TRAIN_FORWARD_TOKENS = 2048
EVAL_FORWARD_TOKENS = 4096

# Logits of one chunk, in elements: 256 MiB in float32. A 150k vocabulary would else dominate memory.
LOGITS_CHUNK_ELEMENTS = 2**26

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
    generator = numerics.seeded_generator(lucky_num, "order")
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
    model.set_dropout(True)
    try:
        for step, group in enumerate(groups):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * _schedule(step, len(groups))
            loss = _accumulate_group(model, rows, group)
            norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            if not (math.isfinite(loss) and math.isfinite(norm.item())):
                raise NonFiniteLoss(f"training step {step + 1} of {len(groups)}", group)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step_losses.append(loss)
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


def _accumulate_group(model: ScoringModel, rows: Sequence[EncodedRow], group: Sequence[int]) -> float:
    """Adds the gradient of one group's loss to the adapter's and returns that loss, mean over its target tokens."""
    target_count = sum(rows[index].target_count for index in group)
    total = 0.0
    for batch in _batch_rows(rows, group, TRAIN_FORWARD_TOKENS):
        # Summed, then divided by the whole group's count: micro-batches of unequal size must not weigh alike.
        loss = torch.cat(target_losses(model, batch)).sum() / target_count
        torch.autograd.backward(loss)
        total += loss.item()
    return total


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
    for batch in _batch_rows(rows, range(len(rows)), EVAL_FORWARD_TOKENS):
        batch_means = torch.stack([losses.mean() for losses in target_losses(model, batch)]).tolist()
        for index, mean in zip(batch.indices, batch_means, strict=True):
            means[index] = mean
        broken = [index for index in batch.indices if not math.isfinite(means[index])]
        if broken:
            raise NonFiniteLoss("evaluation", broken)
        done_tokens += sum(len(rows[index].input_ids) for index in batch.indices)
        on_progress(Progress(stage="evaluate", done=done_tokens, total=total_tokens))
    return means


@dataclass(frozen=True)
class _Batch:
    """Rows padded together: input_ids (B, T) int64, and per row the positions of its targets, ascending, >= 1."""

    indices: tuple[int, ...]
    input_ids: torch.Tensor
    target_positions: tuple[torch.Tensor, ...]


def _batch_rows(rows: Sequence[EncodedRow], indices: Sequence[int], max_tokens: int) -> Iterator[_Batch]:
    """Batches of at most `max_tokens` padded tokens, longest rows first; a longer row is a batch of its own."""
    by_length = sorted(indices, key=lambda index: -len(rows[index].input_ids))
    start = 0
    while start < len(by_length):
        width = len(rows[by_length[start]].input_ids)
        chosen = by_length[start : start + max(1, max_tokens // width)]
        input_ids = torch.zeros(len(chosen), width, dtype=torch.int64)
        for at, index in enumerate(chosen):
            input_ids[at, : len(rows[index].input_ids)] = torch.tensor(rows[index].input_ids)
        positions = [torch.tensor([at for at, hit in enumerate(rows[index].targets) if hit and at]) for index in chosen]
        yield _Batch(tuple(chosen), input_ids, tuple(positions))
        start += len(chosen)


def target_losses(model: ScoringModel, batch: _Batch) -> list[torch.Tensor]:
    """Per row of the batch, the cross-entropy in nats (N_row,) float32 of each of its target tokens.

    The output head runs on the positions before targets alone; the token at position t is predicted from t - 1.
    """
    input_ids = batch.input_ids.to(model.device)
    hidden = model.hidden_states(input_ids)  # (B, T, H)
    width = input_ids.shape[1]
    flat = torch.cat([row * width + at for row, at in enumerate(batch.target_positions)]).to(model.device)  # (N,)
    sources = hidden.flatten(0, 1)[flat - 1]  # (N, H)
    targets = input_ids.flatten()[flat]  # (N,)
    chunk = max(1, LOGITS_CHUNK_ELEMENTS // model.vocabulary_size)
    losses = []
    for part, wanted in zip(torch.split(sources, chunk), torch.split(targets, chunk), strict=True):
        if len(flat) > chunk and torch.is_grad_enabled():
            # Recomputed in the backward pass: all chunks' logits at once would undo the chunking. The head draws no
            # random numbers, so the process's stream is left alone.
            losses.append(
                checkpoint(_cross_entropy, model, part, wanted, use_reentrant=False, preserve_rng_state=False)
            )
        else:
            losses.append(_cross_entropy(model, part, wanted))
    return list(torch.split(torch.cat(losses), [len(at) for at in batch.target_positions]))


def _cross_entropy(model: ScoringModel, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (N,) float32 of targets (N,) under the logits of hidden states (N, H)."""
    return F.cross_entropy(model.logits(hidden), targets, reduction="none")
