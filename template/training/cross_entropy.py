"""Cross-entropy under an output head, without holding the logits of all tokens.

With z = softcap(h W^T + b) in float32, the loss of target t is logsumexp(z) - z_t, and its gradient for h is
(softmax(z) - onehot(t)) z' W. The head is frozen, so only that gradient (N, H) is kept, where autograd would keep the
logits (N, V). Source of the idea: https://arxiv.org/abs/2410.10989, section 3.2.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# Logits per matrix product, in elements: more is not faster, and takes much memory with a vocabulary of 150k. The CPU
# processes them in parts that fit into its caches.
CPU_PRODUCT_ELEMENTS = 2**23
GPU_PRODUCT_ELEMENTS = 2**26
CPU_PART_ELEMENTS = 2**19

# Rows of a matrix product are a multiple of this: CPU kernels are compiled and cached for each shape.
_ROW_STEP = 32

# Fewest rows of a matrix product: with fewer, reading the head's weights dominates.
_MIN_ROWS = 64


class _TargetLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: nn.Linear, softcap: float | None
    ) -> torch.Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if wants_gradient else None
        is_cpu = hidden.device.type == "cpu"
        rows = max(_MIN_ROWS, (CPU_PRODUCT_ELEMENTS if is_cpu else GPU_PRODUCT_ELEMENTS) // head.weight.shape[0])
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
    """Compute the losses (N,) of logits (N, V), which become their own gradient."""
    losses = []
    for part, target in zip(logits.split(rows), targets.unsqueeze(1).split(rows), strict=True):
        z = part
        if softcap is not None:
            z = torch.tanh(part.float() / softcap).mul_(softcap)
        log_probs = torch.log_softmax(z, dim=1, dtype=torch.float32)
        losses.append(-log_probs.gather(1, target))
        if wants_gradient:
            gradient = log_probs.exp_()
            gradient.scatter_(1, target, gradient.gather(1, target) - 1.0)
            if softcap is not None:
                gradient.mul_((z / softcap).square_().neg_().add_(1.0))
            part.copy_(gradient)
    return torch.cat(losses).squeeze(1)


def target_losses(
    hidden: torch.Tensor, targets: torch.Tensor, head: nn.Linear, softcap: float | None = None
) -> torch.Tensor:
    """Compute the cross-entropy (N,) float32, in nats, under a frozen output head."""
    losses: torch.Tensor = _TargetLosses.apply(hidden, targets, head, softcap)  # type: ignore[no-untyped-call]
    return losses
