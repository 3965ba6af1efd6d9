"""Causal attention over packed rows, and which rows of a pack see which.

A pack is one long sequence of tokens without padding. All but attention treats tokens one by one; attention takes rows
out of the pack in blocks, padded together on the right, and puts the results back. On a GPU in half precision they stay
where they are, for flash attention reads rows that lie end to end. The other kernels are plain matrix products, faster
on a CPU in bfloat16, and torch's fused one.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# Queries whose scores are held at once by the plain kernel: few enough that keys after them cost little.
QUERY_CHUNK = 128


@dataclass(frozen=True)
class PaddedBlock:
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


@dataclass(frozen=True)
class VarlenSpans:
    """Rows of a pack as flash attention takes them: their queries end to end, and their keys.

    queries and keys (S + 1,) int32: where each row's begin, and at the end where the last one's end. A row's last query
    sees all of its keys, the one before all but the last, and so on. places (K,) int64: of the keys in the pack, None
    when they are where the queries are. longest: the most queries and the most keys of a row.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    places: torch.Tensor | None
    longest: tuple[int, int]


class _Pad(torch.autograd.Function):
    """(M, C), a block's own places, to (B * Q, C), its query slots."""

    @staticmethod
    def forward(ctx: Any, packed: torch.Tensor, block: PaddedBlock) -> torch.Tensor:
        ctx.real = block.real
        return packed.index_select(0, block.queries.flatten() - block.start)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # What goes to filling is zero. Selected instead of added up, whose order a GPU does not promise.
        return gradients[0].index_select(0, ctx.real), None


class _Unpad(torch.autograd.Function):
    """(B * Q, C) to (M, C): the slots that are not filling."""

    @staticmethod
    def forward(ctx: Any, padded: torch.Tensor, block: PaddedBlock) -> torch.Tensor:
        ctx.real, ctx.shape = block.real, padded.shape
        return padded.index_select(0, block.real)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        return gradient.new_zeros(ctx.shape).index_copy_(0, ctx.real, gradient), None


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
    blocks: tuple[PaddedBlock, ...] = (),
    spans: VarlenSpans | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for every layer: query (1, H, N, D), key and value (1, G, N, D) to (1, N, H, D).

    Without blocks or spans, every row of the batch is one sequence. Source of the signature:
    transformers.AttentionInterface.
    """
    if spans is not None:
        return _attend_in_place(query, key, value, spans, scaling=scaling, window=sliding_window), None
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


def _take_rows(packed: list[torch.Tensor], block: PaddedBlock) -> list[torch.Tensor]:
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
    positions = torch.arange(offset, offset + query.shape[1], device=query.device).unsqueeze(1)
    mask = None if is_causal else _is_seen(positions, key.shape[1], window)
    result = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scaling)
    return result.transpose(1, 2)


def _is_seen(positions: torch.Tensor, keys: int, window: int | None) -> torch.Tensor:
    """(Q, K) bool: which keys are seen from positions (Q, 1): those not after them, of which the last `window`."""
    behind = positions - torch.arange(keys, device=positions.device)
    seen = behind >= 0
    return seen if window is None else seen & (behind < window)


def _attend_in_place(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: VarlenSpans,
    *,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """As `packed_attention`, by flash attention over rows of any length."""
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if spans.places is not None:
        k, v = k.index_select(0, spans.places), v.index_select(0, spans.places)
    result: torch.Tensor = torch.ops.aten._flash_attention_forward.default(
        *(q, k, v, spans.queries, spans.keys, *spans.longest),
        dropout_p=0.0,
        is_causal=True,
        return_debug_mask=False,
        scale=scaling,
        window_size_left=-1 if window is None else window - 1,
        window_size_right=-1 if window is None else 0,
    )[0]
    return result.unsqueeze(0)


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
    """The textbook's formula, some queries at a time, each with the keys up to it; of scores nothing is kept."""
    batch, width, heads, size = query.shape
    groups, shared = key.shape[2], heads // key.shape[2]
    # Heads that share a key are one matrix, the queries of one position beside each other.
    q = query.unflatten(2, (groups, shared)).permute(0, 2, 1, 3, 4).reshape(batch * groups, width * shared, size)
    k, v = (tensor.transpose(1, 2).reshape(batch * groups, -1, size) for tensor in (key, value))
    chunks = tuple(
        _Chunk(first, min(width, first + QUERY_CHUNK), offset, shared, scaling, softcap, window)
        for first in range(0, width, QUERY_CHUNK)
    )
    result: torch.Tensor = _Plain.apply(q, k, v, chunks)  # type: ignore[no-untyped-call]
    return result.view(batch, groups, width, shared, size).permute(0, 2, 1, 3, 4).reshape(batch, width, heads, size)


@dataclass(frozen=True)
class _Chunk:
    """Queries `first` to `last` of each row, the first of which stands at `offset`, and what limits their scores."""

    first: int
    last: int
    offset: int
    shared: int
    scaling: float
    softcap: float | None
    window: int | None

    @property
    def queries(self) -> slice:
        """Where they are, `shared` heads of each position beside each other."""
        return slice(self.first * self.shared, self.last * self.shared)

    @property
    def keys(self) -> slice:
        """Those that the last of them sees."""
        return slice(0, self.offset + self.last)

    def weights(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The shares (B, Q, K) of each query in its keys, and the slope of the cap where there is one."""
        bias = _bias(self, query.device, query.dtype).expand(len(query), -1, -1)
        if self.softcap is None:
            return torch.softmax(torch.baddbmm(bias, query, key.transpose(1, 2), alpha=self.scaling), dim=-1), None
        capped = torch.bmm(query, key.transpose(1, 2)).float().mul_(self.scaling / self.softcap).tanh_()
        slope = capped.square().neg_().add_(1.0)
        return torch.softmax(capped.mul_(self.softcap).add_(bias), dim=-1).to(query.dtype), slope


@functools.lru_cache(maxsize=16)
def _bias(chunk: _Chunk, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """(Q, K): 0 where a query sees a key, else minus infinity. Added, for a masked fill costs several times it."""
    positions = torch.arange(chunk.offset + chunk.first, chunk.offset + chunk.last, device=device).unsqueeze(1)
    seen = _is_seen(positions, chunk.keys.stop, chunk.window)
    bias = torch.zeros(seen.shape, device=device, dtype=dtype).masked_fill_(~seen, float("-inf"))
    return bias.repeat_interleave(chunk.shared, 0)


class _Plain(torch.autograd.Function):
    """Query (B, Q, D), key and value (B, K, D) to (B, Q, D), chunk by chunk.

    With P = softmax(scaling q k^T): dv = P^T do, dS = P (dP - rowsum(P dP)) for dP = do v^T, dq = scaling dS k,
    dk = scaling dS^T q. P is made again, from scores that are made again.
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
            scaled = torch._softmax_backward_data(dweights, weights, -1, weights.dtype).mul_(chunk.scaling)
            if slope is not None:
                scaled.mul_(slope)
            dquery[:, chunk.queries] = torch.bmm(scaled, k)
            dkey[:, chunk.keys] += torch.bmm(scaled.transpose(1, 2), q)
        return dquery, dkey, dvalue, None
