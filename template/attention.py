"""Causal attention over packed rows, and which rows of a pack see which.

A pack is one long sequence of tokens without padding. All but attention treats tokens one by one; attention takes rows
out of the pack in blocks, padded together on the right, and puts the results back. Two kernels compute the same: plain
matrix products, faster on a CPU while rows are short, and torch's fused one, whose memory does not grow with the square
of a row's length.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

# Queries whose scores are held at once by the plain kernel: few enough that keys after them cost little.
QUERY_CHUNK = 128


@dataclass(frozen=True)
class Block:
    """Rows of a pack whose attention is computed together, B of them.

    queries (B, Q) and keys (B, K), int64: places in the pack, short rows filled up on the right with a place of their
    own. Query i of a row stands at position `offset` + i of it, key j at position j. real (M,), int64: the query slots
    of the B * Q that are not filling, in the order of their places, which are start, start + 1, ..., start + M - 1.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    offset: int
    real: torch.Tensor
    start: int

    @property
    def is_full(self) -> bool:
        """True when no row is filled up."""
        return self.real.numel() == self.queries.numel()


class _Pad(torch.autograd.Function):
    """(M, C), a block's own places, to (B * Q, C), its query slots."""

    @staticmethod
    def forward(ctx: Any, packed: torch.Tensor, block: Block) -> torch.Tensor:
        ctx.real = block.real
        return packed.index_select(0, block.queries.flatten() - block.start)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # What goes to filling is zero. Selected instead of added up, whose order a GPU does not promise.
        return gradients[0].index_select(0, ctx.real), None


class _Unpad(torch.autograd.Function):
    """(B * Q, C) to (M, C): the slots that are not filling."""

    @staticmethod
    def forward(ctx: Any, padded: torch.Tensor, block: Block) -> torch.Tensor:
        ctx.real, ctx.shape = block.real, padded.shape
        return padded.index_select(0, block.real)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        return gradient.new_zeros(ctx.shape).index_copy_(0, ctx.real, gradient), None


def attend_packed(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
    blocks: tuple[Block, ...] = (),
    **_: object,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for every layer: query (1, H, N, D), key and value (1, G, N, D) to (1, N, H, D).

    Without blocks, every row of the batch is one sequence. Source of the signature:
    transformers.AttentionInterface.
    """
    if not blocks:
        q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return _attend(q, k, v, offset=0, scaling=scaling, softcap=softcap, window=sliding_window), None
    count = sum(block.real.numel() for block in blocks)
    packed = [tensor[0].transpose(0, 1)[:count] for tensor in (query, key, value)]  # (tokens of rows, H or G, D)
    results = []
    for block in blocks:
        q, k, v = _take_rows(packed, block)
        padded = _attend(q, k, v, offset=block.offset, scaling=scaling, softcap=softcap, window=sliding_window)
        flat = padded.flatten(0, 1).flatten(1)  # (B * Q, H * D)
        results.append(flat if block.is_full else _Unpad.apply(flat, block))  # type: ignore[no-untyped-call]
    together = results[0] if len(results) == 1 else torch.cat(results)
    whole = F.pad(together, (0, 0, 0, query.shape[2] - count))  # the filling at the pack's end
    return whole.view(1, -1, *packed[0].shape[1:]), None


def _take_rows(packed: list[torch.Tensor], block: Block) -> list[torch.Tensor]:
    """Query (B, Q, H, D), key and value (B, K, G, D) of the block's rows."""
    taken = []
    for at, tensor in enumerate(packed):
        index = block.keys if at else block.queries
        flat = tensor.flatten(1)
        own = flat[block.start : block.start + block.real.numel()]
        if block.is_full and block.keys is block.queries:
            rows = own
        elif block.keys is block.queries:
            rows = _Pad.apply(own, block)  # type: ignore[no-untyped-call]
        else:
            rows = flat.index_select(0, index.flatten())
        taken.append(rows.view(*index.shape, *tensor.shape[1:]))
    return taken


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    offset: int,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    """Query (B, Q, H, D), key and value (B, K, G, D) to (B, Q, H, D)."""
    # The fused kernels know no cap on the scores.
    if softcap is not None or (query.device.type == "cpu" and query.dtype == torch.bfloat16):
        return _attend_plainly(query, key, value, offset=offset, scaling=scaling, softcap=softcap, window=window)
    shared = query.shape[2] // key.shape[2]
    q, k, v = query.transpose(1, 2), *(t.transpose(1, 2).repeat_interleave(shared, 1) for t in (key, value))
    is_causal = offset == 0 and (window is None or window >= key.shape[1])
    mask = None if is_causal else _make_mask(0, query.shape[1], key, offset=offset, window=window)
    result = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scaling)
    return result.transpose(1, 2)


def _make_mask(first: int, last: int, key: torch.Tensor, *, offset: int, window: int | None) -> torch.Tensor:
    """(last - first, K) bool: which keys these queries may see; those not after them, of which the last `window`."""
    positions = torch.arange(offset + first, offset + last, device=key.device).unsqueeze(1)
    behind = positions - torch.arange(key.shape[1], device=key.device)
    seen = behind >= 0
    return seen if window is None else seen & (behind < window)


def _attend_plainly(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    offset: int,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    """The textbook's formula, some queries at a time, each with the keys up to it; nothing of it is kept for later."""
    batch, width, heads, size = query.shape
    groups, shared = key.shape[2], heads // key.shape[2]
    # Heads that share a key are one matrix, the queries of one position beside each other.
    q = query.unflatten(2, (groups, shared)).permute(0, 2, 1, 3, 4).reshape(batch * groups, width * shared, size)
    k, v = (tensor.transpose(1, 2).reshape(batch * groups, -1, size) for tensor in (key, value))
    results = []
    for first in range(0, width, QUERY_CHUNK):
        last = min(width, first + QUERY_CHUNK)
        seen = offset + last
        mask = _make_mask(first, last, k[:, :seen], offset=offset, window=window)
        # Added, because a masked fill costs several times as much.
        bias = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))
        inputs = (q[:, first * shared : last * shared], k[:, :seen], v[:, :seen], bias.repeat_interleave(shared, 0))
        results.append(
            checkpoint(_weigh, *inputs, scaling, softcap, use_reentrant=False, preserve_rng_state=False)
            if torch.is_grad_enabled()
            else _weigh(*inputs, scaling, softcap)
        )
    result = results[0] if len(results) == 1 else torch.cat(results, dim=1)
    return result.view(batch, groups, width, shared, size).permute(0, 2, 1, 3, 4).reshape(batch, width, heads, size)


def _weigh(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Query (B, Q, D), key and value (B, K, D), bias (Q, K) float32 to (B, Q, D)."""
    scores = torch.bmm(query, key.transpose(1, 2)).float().mul_(scaling)
    if softcap is not None:
        # Not in place: the slope is made from the result, and checkpoints look at no version.
        scores = torch.tanh(scores / softcap) * softcap
    return torch.bmm(torch.softmax(scores.add_(bias), dim=-1).to(value.dtype), value)
