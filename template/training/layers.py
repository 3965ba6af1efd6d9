"""A decoder layer's parts in fewer and leaner operations than the models' own modules.

They take the place of modules whose formula they know, with the same children and parameter names, so that the model
around them stays transformers' own. Other modules are left alone.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from template.training.attention import packed_attention
from template.training.lora import FusedLoRALinear

_ATTENTIONS = {"LlamaAttention", "Qwen2Attention"}
_GATED = {"LlamaMLP", "Qwen2MLP"}


def replace_layers(network: nn.Module) -> None:
    """Puts leaner modules in the place of norms, attentions and gated networks of a network with its adapters."""
    replace_norms(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in _ATTENTIONS:
                setattr(parent, name, FusedRotaryAttention(child))
            elif type(child).__name__ in _GATED and _is_plain_silu(child):
                setattr(parent, name, FusedGatedMLP(child))


def _is_plain_silu(network: Any) -> bool:
    return network.config.hidden_act == "silu" and network.gate_proj.get_base_layer().bias is None


class _Rotated(torch.autograd.Function):
    """(N, (H + 2G) D), queries, keys and values side by side, to (N, H, D), (N, G, D) and (N, G, D)."""

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
        # The transpose of a rotation turns the other way.
        _rotate(dq, cos, sin, queries, -1.0)
        _rotate(dk, cos, sin, keys, -1.0)
        values.copy_(dv)
        return dy.flatten(1), None, None, None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, sign: float) -> None:
    """Turns the pairs (i, i + D/2) of x (N, H, D) by the angles of cos and sin (N, D), whose halves are alike."""
    half = cos.shape[-1] // 2
    c, s = cos[:, None, :half], sin[:, None, :half]
    (x1, x2), (out1, out2) = x.split(half, dim=-1), out.split(half, dim=-1)
    torch.mul(x1, c, out=out1)
    out1.addcmul_(x2, s, value=-sign)
    torch.mul(x2, c, out=out2)
    out2.addcmul_(x1, s, value=sign)


class FusedRotaryAttention(nn.Module):
    """In the place of Llama's and Qwen2's attention: the three projections are one product, the rotation one pass."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = theirs.q_proj, theirs.k_proj, theirs.v_proj, theirs.o_proj
        self._inputs = FusedLoRALinear([self.q_proj, self.k_proj, self.v_proj])
        self._head_size = theirs.head_dim
        self._groups = self.k_proj.get_base_layer().out_features // self._head_size
        self._heads = self.q_proj.get_base_layer().out_features // self._head_size
        self._scaling = theirs.scaling
        self._window = getattr(theirs, "sliding_window", None)

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], **layout: Any
    ) -> tuple[torch.Tensor, None]:
        """hidden_states (B, N, H), cosines and sines (B, N, D) to (B, N, H). layout: as `packed_attention`."""
        batch, width = hidden_states.shape[:2]
        y = self._inputs(hidden_states.flatten(0, 1))
        # The angles of one row are there once when they are all rows'.
        cos, sin = (part.expand(batch, -1, -1).flatten(0, 1) for part in position_embeddings)
        rotated = _Rotated.apply(y, cos, sin, self._heads, self._groups)  # type: ignore[no-untyped-call]
        q, k, v = (part.unflatten(0, (batch, width)).transpose(1, 2) for part in rotated)
        layout["sliding_window"] = self._window
        attended, _ = packed_attention(
            self, q, k, v, layout.pop("attention_mask", None), scaling=self._scaling, **layout
        )
        result: torch.Tensor = self.o_proj(attended.flatten(2))
        return result, None


class FusedGatedMLP(nn.Module):
    """In the place of Llama's and Qwen2's gated network, where it has no biases: fewer passes, and less is kept."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = theirs.gate_proj, theirs.up_proj, theirs.down_proj
        self._inputs = FusedLoRALinear([self.gate_proj, self.up_proj], is_stacked=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., H) to (..., H)."""
        both = self._inputs(x.flatten(0, -2))
        result: torch.Tensor = self.down_proj.forward_gated(both)
        return result.view(x.shape)


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


class FusedRMSNorm(nn.Module):
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
    """Puts a `FusedRMSNorm` with the same weight in the place of every norm that has its formula."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ in _REPLACED:
                setattr(parent, name, FusedRMSNorm(child.weight, child.variance_epsilon))  # type: ignore[arg-type]
