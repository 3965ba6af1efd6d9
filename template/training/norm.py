"""RMSNorm as one operation that keeps its input alone for the backward pass.

With r = (mean(x^2) + eps)^(-1/2) and n = x r, both in float32: y = w n, and for a frozen w
dx = r (w dy - n mean(w dy n)). Source of the formula: https://arxiv.org/abs/1910.07467, section 4.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# The models' own modules of exactly this formula. Gemma's adds one to its weight, in float32, and stays as it is.
_REPLACED = {"LlamaRMSNorm", "Qwen2RMSNorm"}


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = x.float()
        rate = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(epsilon))
        ctx.save_for_backward(x, weight, rate)
        return weight * (wide * rate).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, rate = ctx.saved_tensors
        normed = x.float() * rate
        gradient = (gradients[0] * weight).float()
        mean = (gradient * normed).mean(-1, keepdim=True)
        return gradient.sub_(normed.mul_(mean)).mul_(rate).to(x.dtype), None, None


class LeanRMSNorm(nn.Module):
    """In the place of a model's RMSNorm with a frozen weight (H,): x (..., H) to the same shape and dtype."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The formula above."""
        if x.is_cuda:
            return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        normed: torch.Tensor = _Normed.apply(x, self.weight, self.epsilon)  # type: ignore[no-untyped-call]
        return normed


def replace_norms(network: nn.Module) -> None:
    """Puts a `LeanRMSNorm` with the same weight in the place of every norm that has its formula."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ in _REPLACED:
                setattr(parent, name, LeanRMSNorm(child.weight, child.variance_epsilon))  # type: ignore[arg-type]
