"""Rows packed end to end without padding, with shared prefixes computed once.

Attention is causal, so later tokens do not change earlier hidden states, and rows with equal first tokens have equal
states there. Of a row, only the tokens before its last target are computed, and a prefix that several rows share is
computed once. In training, dropout then drops the same elements of the prefix for these rows of a pack. For each row by
itself, dropout is distributed as if the row were computed alone, so the expected gradient is the same.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from template.data.encoding import EncodedRow
from template.training.attention import Layout, PaddedBlock, TokenMask, VarlenSpans

# Lengths of packs and of the rows of a padded block are multiples of these, because bfloat16 kernels of a CPU are
# compiled and cached for each shape. On a GPU, another step would change losses.
_CPU_PACK_STEP = 8
_PACK_STEP = 32
_ROW_STEP = 16

# Of a block's width on a CPU, the padded length of each row is at least this share.
_LEAST_FILL = 0.75

# Attention reads a prefix once for each row; this bounds a pack's keys, in multiples of its tokens.
_KEYS_PER_TOKEN = 8


LayoutKind = type[PaddedBlock] | type[VarlenSpans] | type[TokenMask]


@dataclass(frozen=True)
class Group:
    """Rows, by index, with equal first `prefix` tokens and at least one more each."""

    indices: tuple[int, ...]
    prefix: int


@dataclass(frozen=True)
class Pack:
    """Rows in one sequence of N tokens, padded at the end.

    token_count is N without the padding. sources (T,) int64 are the hidden states that predict `targets` (T,), row by
    row, `counts` of each; in training they are unique.
    """

    indices: tuple[int, ...]
    token_count: int
    input_ids: torch.Tensor
    positions: torch.Tensor
    layout: Layout
    sources: torch.Tensor
    targets: torch.Tensor
    counts: tuple[int, ...]


def pack_rows(
    rows: Sequence[EncodedRow], indices: Sequence[int], max_tokens: int, device: torch.device, varlen: bool = False
) -> Iterator[Pack]:
    """Pack rows, longest first, without shared prefixes, into padded blocks or spans.

    A row above `max_tokens` is a pack of its own.
    """
    if indices:
        for part in _split(Group(tuple(indices), 0), rows, max_tokens):
            yield build_pack(rows, [part], device, _kind(varlen))


def balance_packs(
    rows: Sequence[EncodedRow],
    indices: Sequence[int],
    max_tokens: int,
    device: torch.device,
    workers: int,
    varlen: bool = False,
) -> list[Pack]:
    """Pack rows into packs of similar size, largest first, a multiple of `workers`.

    A row above `max_tokens` is a pack of its own. There may be fewer packs than workers if there are few rows. On a
    CPU, the rows of a pack share their prefixes up to the first token that predicts a target.
    """
    # A GPU would gather the keys of a prefix once for each row, and sum their gradients in no fixed order.
    shares = device.type == "cpu" and not varlen
    groups = group_by_prefix(rows, indices, first_source) if shares else [Group(tuple(indices), 0)]
    prefixes = {index: (number, group.prefix) for number, group in enumerate(groups) for index in group.indices}
    by_length = sorted(indices, key=lambda index: -_used(rows[index]))
    count = min(workers, len(by_length))
    while True:
        parts = [_Part() for _ in range(count)]
        for index in by_length:
            number, prefix = prefixes[index]
            smallest = min(parts, key=lambda part: part.size - prefix * (number in part.groups))
            smallest.add(index, _used(rows[index]), number, prefix)
        if all(part.size <= max_tokens or part.count == 1 for part in parts) or count == len(by_length):
            break
        count = min(count + workers, len(by_length))
    parts.sort(key=lambda part: -part.size)
    return [
        build_pack(rows, part.as_groups(), device, TokenMask if shares and part.count > 1 else _kind(varlen))
        for part in parts
    ]


@dataclass
class _Part:
    """Rows of one pack: by number of their group, their indices and their prefix."""

    groups: dict[int, tuple[list[int], int]] = field(default_factory=dict)
    size: int = 0
    count: int = 0

    def add(self, index: int, used: int, number: int, prefix: int) -> None:
        self.size += used - prefix * (number in self.groups)
        self.count += 1
        self.groups.setdefault(number, ([], prefix))[0].append(index)

    def as_groups(self) -> list[Group]:
        return [Group(tuple(members), prefix if len(members) > 1 else 0) for members, prefix in self.groups.values()]


def pack_with_shared_prefix(
    rows: Sequence[EncodedRow], max_tokens: int, device: torch.device, varlen: bool = False
) -> Iterator[Pack]:
    """Pack all rows, sharing the prefixes of rows that begin alike."""
    groups: list[Group] = []
    alone: list[int] = []
    for group in group_by_prefix(rows, range(len(rows)), last_source):
        if group.prefix:
            groups.extend(_split(group, rows, max_tokens))
        else:
            alone.extend(group.indices)
    for chosen in _cut(groups, rows, max_tokens):
        yield build_pack(rows, chosen, device, _kind(varlen))
    yield from pack_rows(rows, alone, max_tokens, device, varlen)


def group_by_prefix(
    rows: Sequence[EncodedRow], indices: Sequence[int], most: Callable[[EncodedRow], int]
) -> list[Group]:
    """Group the rows of `indices` by shared prefixes, so that few tokens remain to be computed.

    `most` limits the prefix of a row. Greedy, in lexicographic order of the tokens: a row joins the previous group
    unless the shorter prefix that they then share saves fewer tokens than the group saves without the row.
    """
    order = sorted(indices, key=lambda index: rows[index].input_ids)
    groups: list[Group] = []
    members: list[int] = []
    prefix = 0
    for index in order:
        if members:
            previous = rows[members[-1]]
            joint = _common_prefix(previous, rows[index], min(most(previous), most(rows[index])))
            joint = joint if len(members) == 1 else min(joint, prefix)
            if joint and joint * len(members) >= prefix * (len(members) - 1):
                members.append(index)
                prefix = joint
                continue
            groups.append(Group(tuple(members), prefix))
        members, prefix = [index], 0
    return [*groups, Group(tuple(members), prefix)] if members else groups


def _kind(varlen: bool) -> LayoutKind:
    """Return the layout of packs without a mask."""
    return VarlenSpans if varlen else PaddedBlock


def _used(row: EncodedRow) -> int:
    """Return how many tokens of a row are computed: those before its last target."""
    return len(row.targets) - 1 - row.targets[::-1].index(True)


def last_source(row: EncodedRow) -> int:
    """Return the position of the token that predicts a row's last target."""
    return _used(row) - 1


def first_source(row: EncodedRow) -> int:
    """Return the position of the token that predicts a row's first target.

    A prefix that ends before it has no state that predicts a target.
    """
    return row.targets.index(True, 1) - 1


def _common_prefix(row: EncodedRow, other: EncodedRow, most: int) -> int:
    """Count the equal first tokens of two rows, up to `most`."""
    pairs = zip(row.input_ids[:most], other.input_ids[:most], strict=True)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), most)


def _split(group: Group, rows: Sequence[EncodedRow], max_tokens: int) -> Iterator[Group]:
    """Split a group into parts of at most `max_tokens` that each repeat the prefix.

    A bound on the keys applies, too: many short rows would share a long prefix.
    """
    by_length = sorted(group.indices, key=lambda index: -_used(rows[index]))
    part: list[int] = []
    size, keys = group.prefix, 0
    for index in by_length:
        used = _used(rows[index])
        if part and (size + used - group.prefix > max_tokens or keys + used > _KEYS_PER_TOKEN * max_tokens):
            yield Group(tuple(part), group.prefix)
            part, size, keys = [], group.prefix, 0
        part.append(index)
        size += used - group.prefix
        keys += used
    yield Group(tuple(part), group.prefix)


def _cut(groups: Sequence[Group], rows: Sequence[EncodedRow], max_tokens: int) -> Iterator[list[Group]]:
    """Collect consecutive groups up to `max_tokens` and the bound on the keys."""
    chosen: list[Group] = []
    total = total_keys = 0
    for group in groups:
        keys = sum(_used(rows[index]) for index in group.indices)
        size = keys - group.prefix * (len(group.indices) - 1)
        if chosen and (total + size > max_tokens or total_keys + keys > _KEYS_PER_TOKEN * max_tokens):
            yield chosen
            chosen, total, total_keys = [], 0, 0
        chosen.append(group)
        total += size
        total_keys += keys
    if chosen:
        yield chosen


@dataclass(frozen=True)
class _Segments:
    """Parts (start, length) that attend to themselves and to a prefix before them."""

    parts: list[tuple[int, int]]
    prefix_start: int
    prefix: int


def build_pack(
    rows: Sequence[EncodedRow],
    groups: Sequence[Group],
    device: torch.device,
    kind: LayoutKind,
) -> Pack:
    """Lay out groups one after the other, for a kind of layout: the prefix, then each row's other tokens."""
    ids: list[int] = []
    positions: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    segments: list[_Segments] = []
    for group in groups:
        prefix, prefix_start = group.prefix, len(ids)
        if prefix:
            ids.extend(rows[group.indices[0]].input_ids[:prefix])
            positions.extend(range(prefix))
            segments.append(_Segments([(prefix_start, prefix)], prefix_start, 0))
        parts: list[tuple[int, int]] = []
        for index in group.indices:
            row, used, start = rows[index], _used(rows[index]), len(ids)
            parts.append((start, used - prefix))
            ids.extend(row.input_ids[prefix:used])
            positions.extend(range(prefix, used))
            predicted = [position for position, is_target in enumerate(row.targets) if is_target and position]
            sources.extend(
                (prefix_start if position <= prefix else start - prefix) + position - 1 for position in predicted
            )
            targets.extend(row.input_ids[position] for position in predicted)
            counts.append(len(predicted))
        segments.append(_Segments(parts, prefix_start, prefix))
    token_count = len(ids)
    padding = -token_count % (_CPU_PACK_STEP if device.type == "cpu" else _PACK_STEP)
    # Under a mask, a value that is not finite reaches all tokens. So the padding repeats a token of a row, whose states
    # it has, too: it is not finite only if the row is not.
    ids.extend([ids[0] if kind is TokenMask else 0] * padding)
    positions.extend([0] * padding)
    layout: Layout
    if kind is TokenMask:
        layout = _make_mask(segments, token_count, positions, device)
    elif kind is VarlenSpans:
        layout = _make_spans(segments, token_count, padding, device)
    else:
        layout = tuple(_make_block(part, device) for segment in segments for part in _split_by_length(segment, device))
    return Pack(
        indices=tuple(index for group in groups for index in group.indices),
        token_count=token_count,
        input_ids=_int64([ids], device),
        positions=_int64([positions], device),
        layout=layout,
        sources=_int64(sources, device),
        targets=_int64(targets, device),
        counts=tuple(counts),
    )


def _int64(values: list[int] | list[list[int]], device: torch.device) -> torch.Tensor:
    return _move(torch.tensor(values, dtype=torch.int64), device)


def _move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to the device without waiting for the GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _split_by_length(segments: _Segments, device: torch.device) -> Iterator[_Segments]:
    """Split parts, longest first, by their lengths on a CPU, so that little of a block is padding."""
    block: list[tuple[int, int]] = []
    for part in segments.parts:
        if block and device.type == "cpu" and _width(part) < _LEAST_FILL * _width(block[0]):
            yield replace(segments, parts=block)
            block = []
        block.append(part)
    yield replace(segments, parts=block)


def _width(part: tuple[int, int]) -> int:
    """Return the padded length of a part (start, length)."""
    return part[1] + -part[1] % _ROW_STEP


def _make_block(segments: _Segments, device: torch.device) -> PaddedBlock:
    starts = torch.tensor([start for start, _ in segments.parts]).unsqueeze(1)
    lengths = torch.tensor([length for _, length in segments.parts]).unsqueeze(1)
    slots = torch.arange(max(map(_width, segments.parts))).unsqueeze(0)
    queries = (starts + torch.minimum(slots, lengths - 1)).to(device)
    before = torch.arange(segments.prefix_start, segments.prefix_start + segments.prefix, device=device)
    return PaddedBlock(
        query_indices=queries,
        key_indices=torch.cat([before.expand(len(queries), -1), queries], dim=1) if segments.prefix else queries,
        offset=segments.prefix,
        valid_slots=(slots < lengths).flatten().nonzero().squeeze(1).to(device),
        start=segments.parts[0][0],
    )


def _make_mask(
    segments: Sequence[_Segments], token_count: int, positions: list[int], device: torch.device
) -> TokenMask:
    """Make the mask of a pack, in whose padding each token sees itself only."""
    visible = torch.zeros(len(positions), len(positions), dtype=torch.bool)
    for segment in segments:
        for start, length in segment.parts:
            own = slice(start, start + length)
            visible[own, segment.prefix_start : segment.prefix_start + segment.prefix] = True
            visible[own, own] = torch.ones(length, length, dtype=torch.bool).tril()
    visible[token_count:, token_count:].fill_diagonal_(True)
    return TokenMask(visible.to(device), torch.tensor(positions, device=device))


def _make_spans(segments: Sequence[_Segments], token_count: int, padding: int, device: torch.device) -> VarlenSpans:
    """Make a span per row, per prefix and for the padding, which attends to itself."""
    cu_seqlens_q, cu_seqlens_k = [0], [0]
    indices: list[int] = []
    for segment in [*segments, *([_Segments([(token_count, padding)], 0, 0)] if padding else [])]:
        for start, length in segment.parts:
            cu_seqlens_q.append(cu_seqlens_q[-1] + length)
            cu_seqlens_k.append(cu_seqlens_k[-1] + segment.prefix + length)
            indices.extend(range(segment.prefix_start, segment.prefix_start + segment.prefix))
            indices.extend(range(start, start + length))
    return VarlenSpans(
        cu_seqlens_q=_move(torch.tensor(cu_seqlens_q, dtype=torch.int32), device),
        cu_seqlens_k=_move(torch.tensor(cu_seqlens_k, dtype=torch.int32), device),
        key_indices=_int64(indices, device) if cu_seqlens_q != cu_seqlens_k else None,
        max_seqlens=(_longest(cu_seqlens_q), _longest(cu_seqlens_k)),
    )


def _longest(cu_seqlens: Sequence[int]) -> int:
    return max(end - start for start, end in itertools.pairwise(cu_seqlens))
