"""Fused replacements for a decoder layer's norms, attention and gated MLP.

They replace modules whose formula is known, keep their children and parameter names, and leave all other modules, and
the model around them, to transformers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from template.training.attention import packed_attention
from template.training.lora import FusedLoRALinear

# Norms with exactly the formula of `FusedRMSNorm`. Gemma's norm differs: it adds one to its weight, in float32.
_NORMS = {"LlamaRMSNorm", "Qwen2RMSNorm"}
_ATTENTIONS = {"LlamaAttention", "Qwen2Attention"}
_GATED = {"LlamaMLP", "Qwen2MLP"}


def replace_layers(network: nn.Module) -> None:
    """Replace the norms, attentions and gated MLPs of a network with adapters."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in _NORMS:
                setattr(parent, name, FusedRMSNorm(child.weight, child.variance_epsilon))  # type: ignore[arg-type]
            elif type(child).__name__ in _ATTENTIONS:
                setattr(parent, name, FusedRotaryAttention(child))
            elif type(child).__name__ in _GATED and _is_plain_silu(child):
                setattr(parent, name, FusedGatedMLP(child))


def _is_plain_silu(network: Any) -> bool:
    return network.config.hidden_act == "silu" and network.gate_proj.get_base_layer().bias is None


class _SplitRotate(torch.autograd.Function):
    """Split q, k, v (N, (H + 2G) D) into (N, H or G, D) each, and rotate q and k."""

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int, groups: int
    ) -> tuple[torch.Tensor, ...]:
        size = cos.shape[-1]
        rotated = y.new_empty(len(y), heads + groups, size)
        _rotate(y[:, : (heads + groups) * size].view(rotated.shape), cos, sin, rotated, 1.0)
        ctx.save_for_backward(cos, sin)
        return rotated[:, :heads], rotated[:, heads:], y[:, (heads + groups) * size :].view(len(y), groups, size)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (cos, sin), (dq, dk, dv) = ctx.saved_tensors, gradients
        dy = dq.new_empty(len(dq), dq.shape[1] + dk.shape[1] + dv.shape[1], dq.shape[2])
        queries, keys, values = dy.split([dq.shape[1], dk.shape[1], dv.shape[1]], dim=1)
        # The transpose of a rotation is the opposite rotation.
        _rotate(dq, cos, sin, queries, -1.0)
        _rotate(dk, cos, sin, keys, -1.0)
        values.copy_(dv)
        return dy.flatten(1), None, None, None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, sign: float) -> None:
    """Rotate the pairs (i, i + D/2) of x (N, H, D); cos and sin (N, D) repeat halves."""
    half = cos.shape[-1] // 2
    c, s = cos[:, None, :half], sin[:, None, :half]
    (x1, x2), (out1, out2) = x.split(half, dim=-1), out.split(half, dim=-1)
    torch.mul(x1, c, out=out1)
    out1.addcmul_(x2, s, value=-sign)
    torch.mul(x2, c, out=out2)
    out2.addcmul_(x1, s, value=sign)


class FusedRotaryAttention(nn.Module):
    """Llama's and Qwen2's attention with one product for q, k, v and a fused rotation."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = original.q_proj, original.k_proj, original.v_proj
        self.o_proj = original.o_proj
        self._inputs = FusedLoRALinear([self.q_proj, self.k_proj, self.v_proj])
        self._head_size = original.head_dim
        self._groups = self.k_proj.get_base_layer().out_features // self._head_size
        self._heads = self.q_proj.get_base_layer().out_features // self._head_size
        self._scaling = original.scaling
        self._window = getattr(original, "sliding_window", None)

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], **arguments: Any
    ) -> tuple[torch.Tensor, None]:
        """Map (B, N, H) to (B, N, H); `arguments` are passed to `packed_attention`."""
        batch, width = hidden_states.shape[:2]
        y = self._inputs(hidden_states.flatten(0, 1))
        # The embeddings of a batch whose rows have equal positions are (1, N, D).
        cos, sin = (part.expand(batch, -1, -1).flatten(0, 1) for part in position_embeddings)
        rotated = _SplitRotate.apply(y, cos, sin, self._heads, self._groups)  # type: ignore[no-untyped-call]
        q, k, v = (part.unflatten(0, (batch, width)).transpose(1, 2) for part in rotated)
        arguments["sliding_window"] = self._window
        attended, _ = packed_attention(
            self, q, k, v, arguments.pop("attention_mask", None), scaling=self._scaling, **arguments
        )
        result: torch.Tensor = self.o_proj(attended.flatten(2))
        return result, None


class FusedGatedMLP(nn.Module):
    """Llama's and Qwen2's gated MLP without biases, in fewer passes."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = original.gate_proj, original.up_proj, original.down_proj
        self._inputs = FusedLoRALinear([self.gate_proj, self.up_proj], is_stacked=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (..., H) to (..., H)."""
        both = self._inputs(x.flatten(0, -2))
        result: torch.Tensor = self.down_proj.forward_gated(both)
        return result.view(x.shape)


class _RMSNorm(torch.autograd.Function):
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


class FusedRMSNorm(nn.Module):
    """RMSNorm with a frozen weight (H,)."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize x (..., H)."""
        if x.is_cuda:
            return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        normed: torch.Tensor = _RMSNorm.apply(x, self.weight, self.epsilon)  # type: ignore[no-untyped-call]
        return normed
