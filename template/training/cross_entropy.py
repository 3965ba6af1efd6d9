"""Cross-entropy under an output head, without ever holding the logits of all tokens.

With z = softcap(h W^T + b) in float32, the loss of target t is logsumexp(z) - z_t, and its gradient for h is
(softmax(z) - onehot(t)) z' W. The head is frozen, so that gradient is all there is to keep: (N, H) in place of the
(N, V) that autograd would save. Source of the idea: https://arxiv.org/abs/2410.10989, section 3.2.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# Logits that one matrix product makes, in elements: more do not make it faster, and a 150k vocabulary would dominate
# memory. On a CPU they are worked on in parts that its caches hold.
CPU_PRODUCT_ELEMENTS = 2**23
GPU_PRODUCT_ELEMENTS = 2**26
CPU_PART_ELEMENTS = 2**19

# Rows of a matrix product are a multiple of this: CPU kernels are compiled for each shape and kept.
_ROW_STEP = 32

# Rows of a matrix product at least: fewer do not pay for reading the head's weights.
_FEWEST_ROWS = 64


class _TargetLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: nn.Linear, softcap: float | None
    ) -> torch.Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if wants_gradient else None
        is_cpu = hidden.device.type == "cpu"
        rows = max(_FEWEST_ROWS, (CPU_PRODUCT_ELEMENTS if is_cpu else GPU_PRODUCT_ELEMENTS) // head.weight.shape[0])
        part_rows = max(1, CPU_PART_ELEMENTS // head.weight.shape[0]) if is_cpu else rows
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            count = len(targets[part])
            logits = head(F.pad(hidden[part], (0, 0, 0, -count % _ROW_STEP)))
            losses[part] = _losses_in_place(logits[:count], targets[part], softcap, part_rows, wants_gradient)
            if gradient is not None:
                gradient[part] = (logits @ head.weight)[:count]
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * gradients[0].unsqueeze(1)).to(gradient.dtype), None, None, None


def _losses_in_place(
    logits: torch.Tensor, targets: torch.Tensor, softcap: float | None, rows: int, wants_gradient: bool
) -> torch.Tensor:
    """The losses (N,) of logits (N, V), `rows` at a time; with `wants_gradient` their gradient takes their place."""
    losses = []
    for part, wanted in zip(logits.split(rows), targets.unsqueeze(1).split(rows), strict=True):
        z = part
        if softcap is not None:
            z = torch.tanh(part.float() / softcap).mul_(softcap)
        log_share = torch.log_softmax(z, dim=1, dtype=torch.float32)
        losses.append(-log_share.gather(1, wanted))
        if wants_gradient:
            gradient = log_share.exp_()
            gradient.scatter_(1, wanted, gradient.gather(1, wanted) - 1.0)
            if softcap is not None:
                gradient.mul_((z / softcap).square_().neg_().add_(1.0))
            part.copy_(gradient)
    return torch.cat(losses).squeeze(1)


def target_losses(
    hidden: torch.Tensor, targets: torch.Tensor, head: nn.Linear, softcap: float | None = None
) -> torch.Tensor:
    """Cross-entropy in nats (N,) float32 of targets (N,) under hidden states (N, H) and a frozen head of V rows."""
    losses: torch.Tensor = _TargetLosses.apply(hidden, targets, head, softcap)  # type: ignore[no-untyped-call]
    return losses
