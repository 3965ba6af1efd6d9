"""Linear layers and their LoRA adapters, fused into one forward and one backward.

With x (N, I) the input, W (O, I) and b (O,) frozen, A (R, I) and B (O, R) trained, m (N, I) the dropout's mask of zeros
and ones, and c = scaling / (1 - p):

    y  = x W^T + b + c (x m) A^T B^T
    dx = dy W + c m (dy B A)      dA = c (dy B)^T (x m)      dB = c dy^T ((x m) A^T)

Layers with the same input share one matrix W, of which each has its own rows; A, B and m are separate. Products are in
the base's dtype and accumulate in float32, as under torch's autocast; A, B, their gradients and the optimizer's state
are float32. Source of the formula: https://arxiv.org/abs/2106.09685, section 4.1.
"""

from collections.abc import Sequence
from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import nn

from template.training.dropout import Dropout


class _AdaptedProduct(torch.autograd.Function):
    """The module's formula for G layers.

    x is (N, I), or with `is_gated` (2, N, I) for the input silu(x[0]) x[1]. weight (O, I) returns (N, O), weight
    (G, O, I) returns (G, N, O). bias is (O,) or None. adapters are G times A, then G times B.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        is_gated: bool,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        scale: float,
        dropout: Dropout | None,
        *adapters: torch.Tensor,
    ) -> torch.Tensor:
        count = len(adapters) // 2
        a = torch.stack(adapters[:count]).to(x.dtype)  # (G, R, I)
        b = [tensor.to(x.dtype) for tensor in adapters[count:]]
        inputs = F.silu(x[0]).mul_(x[1]) if is_gated else x
        if dropout is None:
            reapply = None
            low = F.linear(inputs, a.flatten(0, 1)).unflatten(1, (count, -1)).unbind(1)  # G times (N, R)
        else:
            dropped, reapply = dropout.drop(inputs, count)
            low = torch.bmm(dropped, a.transpose(1, 2)).unbind()
        if weight.dim() == 2:
            y = F.linear(inputs, weight, bias)
        else:
            y = inputs.new_empty(count, len(inputs), weight.shape[1])
            for result, part in zip(y, weight, strict=True):
                torch.mm(inputs, part.t(), out=result)
        for result, narrow, wide in zip(_parts(y, b), low, b, strict=True):
            result.addmm_(narrow, wide.t(), alpha=scale)
        ctx.save_for_backward(x, weight, a, *b, *low)
        ctx.is_gated, ctx.scale, ctx.reapply = is_gated, scale, reapply
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, *rest = ctx.saved_tensors
        b, low = rest[: len(a)], rest[len(a) :]
        gate = F.silu(x[0]) if ctx.is_gated else None
        inputs = x if gate is None else gate * x[1]
        dy = gradients[0].contiguous()
        parts = _parts(dy, b)
        dlow = torch.stack([part @ wide for part, wide in zip(parts, b, strict=True)]).mul_(ctx.scale)  # (G, N, R)
        db = [(part.t() @ narrow).float().mul_(ctx.scale) for part, narrow in zip(parts, low, strict=True)]
        if ctx.reapply is None:
            da = (dlow.transpose(0, 1).flatten(1).t() @ inputs).float().view(a.shape)
        else:
            da = torch.bmm(dlow.transpose(1, 2), ctx.reapply(inputs)).float()
        dx = None
        if ctx.needs_input_grad[0]:
            dinputs = _times(dy, weight)
            through = torch.bmm(dlow, a)  # (G, N, I)
            for part in through if ctx.reapply is None else ctx.reapply(through):
                dinputs.add_(part)
            dx = dinputs if gate is None else _through_gate(dinputs, x, gate)
        return dx, None, None, None, None, None, *da, *db


def _parts(y: torch.Tensor, b: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Split y (N, O) or (G, N, O) by layer."""
    return y.split([len(wide) for wide in b], dim=1) if y.dim() == 2 else y.unbind()


def _times(dy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute dy W (N, I), summed over stacked layers."""
    if weight.dim() == 2:
        return dy @ weight
    result = dy[0] @ weight[0]
    for gradient, part in zip(dy[1:], weight[1:], strict=True):
        result.addmm_(gradient, part)
    return result


def _through_gate(gradient: torch.Tensor, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Compute the gradient of x (2, N, I) from the gradient of silu(x[0]) x[1]."""
    result = torch.empty_like(x)
    torch.mul(gate, gradient, out=result[1])
    torch.ops.aten.silu_backward.grad_input(gradient.mul_(x[1]), x[0], grad_input=result[0])
    return result


class LoRALinear(peft.tuners.lora.Linear):  # type: ignore[misc]  # peft carries no types
    """PEFT's LoRA layer with the fused computation; drops only if `dropout` is set."""

    dropout: Dropout | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (..., in_features) to (..., out_features)."""
        base: nn.Linear = self.get_base_layer()
        y = _apply([self], base.weight, base.bias, x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], -1)

    def forward_gated(self, both: torch.Tensor) -> torch.Tensor:
        """Map silu(gate) * up, stacked as (2, N, in), to (N, out), saving `both` only."""
        base: nn.Linear = self.get_base_layer()
        return _apply([self], base.weight, base.bias, both, is_gated=True)


def _apply(
    layers: Sequence[LoRALinear],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    x: torch.Tensor,
    *,
    is_gated: bool = False,
) -> torch.Tensor:
    (name,) = layers[0].lora_A
    dropout = layers[0].dropout
    scale = layers[0].scaling[name] * (1.0 if dropout is None else dropout.scale)
    adapters = [layer.lora_A[name].weight for layer in layers] + [layer.lora_B[name].weight for layer in layers]
    y: torch.Tensor = _AdaptedProduct.apply(  # type: ignore[no-untyped-call]
        x, is_gated, weight, bias, scale, dropout, *adapters
    )
    return y


class FusedLoRALinear:
    """Adapted layers with one input, computed as one; their weights share a tensor."""

    def __init__(self, layers: Sequence[LoRALinear], *, is_stacked: bool = False) -> None:
        self._layers = list(layers)
        bases = [layer.get_base_layer() for layer in layers]
        if len({base.bias is None for base in bases}) > 1 or (is_stacked and bases[0].bias is not None):
            raise ValueError("expected a bias in all layers or in no layer, and no bias in stacked layers")
        if is_stacked and len({base.weight.shape for base in bases}) > 1:
            raise ValueError("expected stacked layers of equal shape")
        weight = _join([base.weight for base in bases])
        self._weight = weight.unflatten(0, (len(bases), -1)) if is_stacked else weight
        self._bias = None if bases[0].bias is None else _join([base.bias for base in bases])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (N, in) to (N, sum of outs), or stacked to (G, N, out)."""
        return _apply(self._layers, self._weight, self._bias, x)


def _join(parts: Sequence[nn.Parameter]) -> torch.Tensor:
    """Concatenate the parts by rows and make each part a view of the result."""
    whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    return whole
