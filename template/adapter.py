"""One linear layer with its LoRA adapter, forward and backward as one operation, and the dropout of all of them.

With x (N, I) the input, W (O, I) and b (O,) frozen, A (R, I) and B (O, R) trained, m (N, I) the dropout's mask of zeros
and ones, and c = scaling / (1 - p):

    y  = x W^T + b + c (x m) A^T B^T
    dx = dy W + c m (dy B A)      dA = c (dy B)^T (x m)      dB = c dy^T ((x m) A^T)

Products are made in the base's dtype and added up in float32 by the kernels, as under torch's autocast; A, B, their
gradients and the optimizer stay in float32. Source of the formula: https://arxiv.org/abs/2106.09685, section 4.1.
"""

from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import nn

# The dropout compares 16 random bits of each element with a threshold.
_DRAWS = 2**16


class DropoutMasks:
    """A stream of dropout masks from a generator of its own, because the global stream belongs to the process.

    An element is dropped with the probability nearest to 0 < `p` < 1 that 16 bits can have, never 0 nor 1; `kept_share`
    is what remains.
    """

    def __init__(self, p: float, generator: torch.Generator) -> None:
        self.kept_share = min(max(round((1.0 - p) * _DRAWS), 1), _DRAWS - 1) / _DRAWS
        self._generator = generator

    def draw(self, shape: torch.Size) -> torch.Tensor:
        """A fresh mask: int16, -1 (all bits set) where an element is kept and 0 where it is dropped."""
        count = shape.numel()
        words = torch.empty(-(-count // 4), dtype=torch.int64, device=self._generator.device)
        bits = words.random_(-(2**63), None, generator=self._generator).view(torch.int16)[:count]
        first_dropped = round(self.kept_share * _DRAWS) - _DRAWS // 2
        # Clamped to the two numbers at the threshold, then moved to -1 and 0: cheaper than to compare and to convert.
        return bits.clamp_(first_dropped - 1, first_dropped).sub_(first_dropped).view(shape)


def _mask(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """`x` with exact zeros where the mask has them. By its bits, because that is the cheapest way to multiply by 0."""
    if mask is None:
        return x
    bits = torch.int16 if x.element_size() == 2 else torch.int32
    return (x.view(bits) & mask.to(bits)).view(x.dtype)


class _AdaptedProduct(torch.autograd.Function):
    """The module's formula. x (N, I), weight (O, I), bias (O,) or None, a (R, I), b (O, R), mask (N, I) or None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        a, b = a.to(x.dtype), b.to(x.dtype)
        low = _mask(x, mask) @ a.t()
        y = F.linear(x, weight, bias)
        y.addmm_(low, b.t(), alpha=scale)
        # One byte of each element is enough to keep: all its bits are the same.
        ctx.save_for_backward(x, weight, a, b, low, None if mask is None else mask.to(torch.int8))
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (dy,) = gradients
        x, weight, a, b, low, mask = ctx.saved_tensors
        dy = dy.contiguous()
        dlow = (dy @ b).mul_(ctx.scale)
        db = (dy.t() @ low).float().mul_(ctx.scale)
        da = (dlow.t() @ _mask(x, mask)).float()
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight).add_(_mask(dlow @ a, mask))
        return dx, None, None, da, db, None, None


class AdaptedLinear(peft.tuners.lora.Linear):  # type: ignore[misc]  # peft carries no types
    """PEFT's LoRA layer, with its parameters and their names, computed by the formula above.

    masks: where the dropout of a training comes from; None when there is none.
    """

    masks: DropoutMasks | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in_features) to (..., out_features)."""
        (name,) = self.lora_A
        base: nn.Linear = self.get_base_layer()
        flat = x.reshape(-1, x.shape[-1])
        mask = None if self.masks is None else self.masks.draw(flat.shape)
        scale = self.scaling[name] / (1.0 if self.masks is None else self.masks.kept_share)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        inputs = (flat, base.weight, base.bias, a, b, mask, scale)
        y: torch.Tensor = _AdaptedProduct.apply(*inputs)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], y.shape[-1])
