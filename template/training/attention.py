"""Causal attention over packed rows, and which tokens attend to which.

Everything but attention treats the tokens of a pack one by one. Attention gathers rows into padded blocks and scatters
the results back, or attends within the whole pack under a mask, which takes fewer operations. On a GPU in half
precision, flash attention reads the rows in place. The other kernels are plain matrix products, faster on a CPU in
bfloat16, and torch's fused kernel.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# Queries per chunk of the plain kernel: few enough that masked keys cost little.
QUERY_CHUNK = 128


@dataclass(frozen=True)
class PaddedBlock:
    """B rows of a pack whose attention is computed together, padded on the right.

    query_indices (B, Q) and key_indices (B, K), int64, are tokens of the pack; padding repeats the last one. Query i of
    a row has position `offset` + i, key j position j. valid_slots (M,) are the query slots of the B * Q without
    padding, whose tokens are start, start + 1, ..., start + M - 1.
    """

    query_indices: torch.Tensor
    key_indices: torch.Tensor
    offset: int
    valid_slots: torch.Tensor
    start: int

    @property
    def is_full(self) -> bool:
        """Whether no row has padding."""
        return self.valid_slots.numel() == self.query_indices.numel()


@dataclass(frozen=True, eq=False)  # equal only to itself, so that it can be a key of a cache
class TokenMask:
    """Which tokens of a pack of N tokens attend to which: `visible` (N, N) bool, by query and key.

    Each token sees itself and tokens before it in the pack. positions (N,) int64 are those in the tokens' rows. Unlike
    in blocks, a value that is not finite reaches the other rows of the pack, since 0 times infinity is nan.
    """

    visible: torch.Tensor
    positions: torch.Tensor

    def within(self, window: int | None) -> torch.Tensor:
        """Return (N, N) bool, limited to the last `window` positions."""
        if window is None:
            return self.visible
        return self.visible & (self.positions.unsqueeze(1) - self.positions < window)


@dataclass(frozen=True)
class VarlenSpans:
    """S spans of a pack for flash attention's varlen kernel, causal from their ends.

    cu_seqlens_q and cu_seqlens_k (S + 1,) int32 are cumulative numbers of queries and keys, max_seqlens the most of one
    span. key_indices (K,) int64 are the keys' tokens in the pack; None if they are the queries' own.
    """

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    key_indices: torch.Tensor | None
    max_seqlens: tuple[int, int]


Layout = tuple[PaddedBlock, ...] | VarlenSpans | TokenMask
"""How attention tells the rows of a pack apart; () if each element of the batch is one sequence."""


@dataclass(frozen=True)
class _ScoreArgs:
    """Arguments of the attention scores.

    Without a mask, attention is causal and the first query has position `offset`.
    """

    scaling: float
    softcap: float | None
    window: int | None
    mask: TokenMask | None = None
    offset: int = 0

    def visible_keys(self, first: int, last: int, keys: int, device: torch.device) -> torch.Tensor:
        """Return which keys the queries `first` to `last` see, (last - first, keys) bool."""
        if self.mask is not None:
            return self.mask.within(self.window)[first:last, :keys]
        positions = torch.arange(self.offset + first, self.offset + last, device=device).unsqueeze(1)
        distance = positions - torch.arange(keys, device=device)
        causal = distance >= 0
        return causal if self.window is None else causal & (distance < self.window)


class _Pad(torch.autograd.Function):
    """Gather a block's tokens (M, C) into its query slots (B * Q, C)."""

    @staticmethod
    def forward(ctx: Any, packed: torch.Tensor, block: PaddedBlock) -> torch.Tensor:
        ctx.valid_slots = block.valid_slots
        return packed.index_select(0, block.query_indices.flatten() - block.start)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The gradient of padding is zero. Select instead of summing, whose order a GPU does not fix.
        return gradients[0].index_select(0, ctx.valid_slots), None


class _Unpad(torch.autograd.Function):
    """Select the query slots that are not padding: (B * Q, C) to (M, C)."""

    @staticmethod
    def forward(ctx: Any, padded: torch.Tensor, block: PaddedBlock) -> torch.Tensor:
        ctx.valid_slots, ctx.shape = block.valid_slots, padded.shape
        return padded.index_select(0, block.valid_slots)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        return gradient.new_zeros(ctx.shape).index_copy_(0, ctx.valid_slots, gradient), None


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
    layout: Layout = (),
    position_ids: torch.Tensor | None = None,
    past_key_values: None = None,
    use_cache: bool = False,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, None]:
    """Attend within the rows of a pack; called by transformers in every layer.

    Maps query (1, H, N, D), key and value (1, G, N, D) to (1, N, H, D). The last four arguments change nothing here.
    Source of the signature: transformers.AttentionInterface. It has no `**kwargs`, so a model whose attention needs
    another argument fails.
    """
    if isinstance(layout, VarlenSpans):
        return _attend_varlen(query, key, value, layout, scaling=scaling, window=sliding_window), None
    mask, blocks = (layout, ()) if isinstance(layout, TokenMask) else (None, layout)
    args = _ScoreArgs(scaling, softcap, sliding_window, mask)
    if not blocks:
        q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return _attend(q, k, v, args), None
    count = sum(block.valid_slots.numel() for block in blocks)
    packed = [tensor[0].transpose(0, 1)[:count] for tensor in (query, key, value)]  # (tokens of rows, H or G, D)
    results = []
    for block in blocks:
        q, k, v = _gather_rows(packed, block)
        padded = _attend(q, k, v, replace(args, offset=block.offset))
        flat = padded.flatten(0, 1).flatten(1)  # (B * Q, H * D)
        results.append(flat if block.is_full else _Unpad.apply(flat, block))  # type: ignore[no-untyped-call]
    together = results[0] if len(results) == 1 else torch.cat(results)
    whole = F.pad(together, (0, 0, 0, query.shape[2] - count))  # the padding at the pack's end
    return whole.view(1, -1, *packed[0].shape[1:]), None


def _gather_rows(packed: list[torch.Tensor], block: PaddedBlock) -> list[torch.Tensor]:
    """Gather query (B, Q, H, D), key and value (B, K, G, D) of a block."""
    gathered = []
    for number, tensor in enumerate(packed):
        indices = block.key_indices if number else block.query_indices
        flat = tensor.flatten(1)
        own = flat[block.start : block.start + block.valid_slots.numel()]
        if block.is_full and block.key_indices is block.query_indices:
            rows = own
        elif block.key_indices is block.query_indices:
            rows = _Pad.apply(own, block)  # type: ignore[no-untyped-call]
        else:
            rows = flat.index_select(0, indices.flatten())
        gathered.append(rows.view(*indices.shape, *tensor.shape[1:]))
    return gathered


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, args: _ScoreArgs) -> torch.Tensor:
    """Map query (B, Q, H, D), key and value (B, K, G, D) to (B, Q, H, D)."""
    # torch's fused kernels have no soft cap.
    if args.softcap is not None or (query.device.type == "cpu" and query.dtype == torch.bfloat16):
        return _attend_plainly(query, key, value, args)
    heads_per_key = query.shape[2] // key.shape[2]
    q, k, v = query.transpose(1, 2), *(t.transpose(1, 2).repeat_interleave(heads_per_key, 1) for t in (key, value))
    is_causal = args.mask is None and args.offset == 0 and (args.window is None or args.window >= key.shape[1])
    mask = None if is_causal else args.visible_keys(0, query.shape[1], key.shape[1], query.device)
    result = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=args.scaling)
    return result.transpose(1, 2)


def _attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: VarlenSpans,
    *,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if spans.key_indices is not None:
        k, v = k.index_select(0, spans.key_indices), v.index_select(0, spans.key_indices)
    result: torch.Tensor = torch.ops.aten._flash_attention_forward.default(
        *(q, k, v, spans.cu_seqlens_q, spans.cu_seqlens_k, *spans.max_seqlens),
        dropout_p=0.0,
        is_causal=True,
        return_debug_mask=False,
        scale=scaling,
        window_size_left=-1 if window is None else window - 1,
        window_size_right=-1 if window is None else 0,
    )[0]
    return result.unsqueeze(0)


def _attend_plainly(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, args: _ScoreArgs) -> torch.Tensor:
    """Compute softmax(q k^T) v by chunks, saving no scores for the backward pass."""
    batch, width, heads, size = query.shape
    groups, shared = key.shape[2], heads // key.shape[2]
    # Heads that share a key become one matrix, in which the heads of a position are adjacent rows.
    q = query.unflatten(2, (groups, shared)).permute(0, 2, 1, 3, 4).reshape(batch * groups, width * shared, size)
    k, v = (tensor.transpose(1, 2).reshape(batch * groups, -1, size) for tensor in (key, value))
    step = QUERY_CHUNK if args.mask is None else width  # a pack with a mask is small
    chunks = tuple(_Chunk(first, min(width, first + step), shared, args) for first in range(0, width, step))
    result: torch.Tensor = _Plain.apply(q, k, v, chunks)  # type: ignore[no-untyped-call]
    return result.view(batch, groups, width, shared, size).permute(0, 2, 1, 3, 4).reshape(batch, width, heads, size)


@dataclass(frozen=True)
class _Chunk:
    """Queries `first` to `last` of each row, with `shared` heads per key."""

    first: int
    last: int
    shared: int
    args: _ScoreArgs

    @property
    def queries(self) -> slice:
        return slice(self.first * self.shared, self.last * self.shared)

    @property
    def keys(self) -> slice:
        return slice(0, self.args.offset + self.last)

    def weights(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute the attention weights (B, Q, K), and the derivative of a soft cap."""
        args = self.args
        bias = _bias(self, query.device, query.dtype).expand(len(query), -1, -1)
        if args.softcap is None:
            return torch.softmax(torch.baddbmm(bias, query, key.transpose(1, 2), alpha=args.scaling), dim=-1), None
        capped = torch.bmm(query, key.transpose(1, 2)).float().mul_(args.scaling / args.softcap).tanh_()
        slope = capped.square().neg_().add_(1.0)
        return torch.softmax(capped.mul_(args.softcap).add_(bias), dim=-1).to(query.dtype), slope


@functools.lru_cache(maxsize=16)
def _bias(chunk: _Chunk, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask (Q, K) as 0 and -inf; adding is cheaper than a masked fill."""
    mask = chunk.args.visible_keys(chunk.first, chunk.last, chunk.keys.stop, device)
    bias = torch.zeros(mask.shape, device=device, dtype=dtype).masked_fill_(~mask, float("-inf"))
    return bias.repeat_interleave(chunk.shared, 0)


class _Plain(torch.autograd.Function):
    """Attention of query (B, Q, D), key and value (B, K, D), by chunks of queries.

    With P = softmax(scaling q k^T): dv = P^T do, dS = P (dP - rowsum(P dP)) for dP = do v^T, dq = scaling dS k,
    dk = scaling dS^T q. The backward pass computes P again.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, chunks: tuple[_Chunk, ...]
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.chunks = chunks
        result = torch.empty_like(query)
        for chunk in chunks:
            weights, _ = chunk.weights(query[:, chunk.queries], key[:, chunk.keys])
            result[:, chunk.queries] = torch.bmm(weights, value[:, chunk.keys])
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        dquery, dkey, dvalue = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for chunk in ctx.chunks:
            q, k, v = query[:, chunk.queries], key[:, chunk.keys], value[:, chunk.keys]
            upstream = gradients[0][:, chunk.queries]
            weights, slope = chunk.weights(q, k)
            dvalue[:, chunk.keys] += torch.bmm(weights.transpose(1, 2), upstream)
            dweights = torch.bmm(upstream, v.transpose(1, 2))
            scaled = torch._softmax_backward_data(dweights, weights, -1, weights.dtype).mul_(chunk.args.scaling)
            if slope is not None:
                scaled.mul_(slope)
            dquery[:, chunk.queries] = torch.bmm(scaled, k)
            dkey[:, chunk.keys] += torch.bmm(scaled.transpose(1, 2), q)
        return dquery, dkey, dvalue, None
