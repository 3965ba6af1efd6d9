"""Rows laid out for one forward: end to end without padding, and a start that rows share written once.

Attention is causal, so what stands behind a token changes nothing for it, and rows that begin with the same tokens have
the same hidden states there: of a row, only the tokens up to the last one that predicts a target are computed, and in
an evaluation, where no dropout tells them apart, the shared start of several rows is computed for all of them at once.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from template.data.encoding import EncodedRow
from template.training.attention import PaddedBlock, VarlenSpans

# A pack's length, and that of an attention block's rows, are multiples of these. CPU kernels are compiled for each
# shape and kept: every other length would cost memory for good.
_PACK_STEP = 32
_ROW_STEP = 16

# Attention reads a shared start once for each row: keys that a pack may have, in multiples of its tokens.
_KEYS_PER_TOKEN = 8


@dataclass(frozen=True)
class Group:
    """Rows, by index, whose first `shared` tokens are the same; every one of them has a token of its own after."""

    indices: tuple[int, ...]
    shared: int


@dataclass(frozen=True)
class Pack:
    """Rows in one sequence of N tokens, the last few of which may be filling that no row sees.

    indices: of its rows. token_count: tokens of rows, N without the filling. input_ids and positions (1, N) int64.
    blocks, or spans in their place: who sees whom. sources (T,) int64: the places whose hidden states predict the
    targets (T,), row after row, `counts` of each; no place is there twice where rows share no start.
    """

    indices: tuple[int, ...]
    token_count: int
    input_ids: torch.Tensor
    positions: torch.Tensor
    blocks: tuple[PaddedBlock, ...]
    spans: VarlenSpans | None
    sources: torch.Tensor
    targets: torch.Tensor
    counts: tuple[int, ...]


def pack_rows(
    rows: Sequence[EncodedRow], indices: Sequence[int], max_tokens: int, device: torch.device, in_spans: bool = False
) -> Iterator[Pack]:
    """Packs of at most `max_tokens`, longest rows first, nothing shared; a longer row is a pack of its own.

    in_spans: attention is told who sees whom by spans, not by blocks.
    """
    if indices:
        for part in _split(Group(tuple(indices), 0), rows, max_tokens):
            yield build_pack(rows, [part], device, in_spans)


def balance_packs(
    rows: Sequence[EncodedRow],
    indices: Sequence[int],
    max_tokens: int,
    device: torch.device,
    workers: int,
    in_spans: bool = False,
) -> list[Pack]:
    """Packs of about equal size for that many workers, none above `max_tokens` but a longer row's, nothing shared.

    Their number is a multiple of `workers` where there are rows enough; the largest come first.
    """
    by_length = sorted(indices, key=lambda index: -_used(rows[index]))
    count = min(workers, len(by_length))
    while True:
        parts: list[list[int]] = [[] for _ in range(count)]
        sizes = [0] * count
        for index in by_length:
            least = sizes.index(min(sizes))
            parts[least].append(index)
            sizes[least] += _used(rows[index])
        is_within = all(size <= max_tokens or len(part) == 1 for part, size in zip(parts, sizes, strict=True))
        if is_within or count == len(by_length):
            break
        count = min(count + workers, len(by_length))
    order = sorted(range(count), key=lambda at: -sizes[at])
    return [build_pack(rows, [Group(tuple(parts[at]), 0)], device, in_spans) for at in order]


def pack_with_shared_prefix(
    rows: Sequence[EncodedRow], max_tokens: int, device: torch.device, in_spans: bool = False
) -> Iterator[Pack]:
    """Packs of at most `max_tokens` of all rows, in which those that begin alike share their start."""
    groups: list[Group] = []
    alone: list[int] = []
    for group in find_groups(rows):
        if group.shared:
            groups.extend(_split(group, rows, max_tokens))
        else:
            alone.extend(group.indices)
    for chosen in _cut(groups, rows, max_tokens):
        yield build_pack(rows, chosen, device, in_spans)
    yield from pack_rows(rows, alone, max_tokens, device, in_spans)


def find_groups(rows: Sequence[EncodedRow]) -> list[Group]:
    """All rows in groups that share their start, chosen so that few tokens are left to compute.

    In the order of their tokens, a row joins the group before it when the shorter start that they then share, once for
    each row but the first, saves no less than what the group saves without it.
    """
    order = sorted(range(len(rows)), key=lambda index: rows[index].input_ids)
    groups: list[Group] = []
    members: list[int] = []
    shared = 0
    for index in order:
        if members:
            joint = _common_start(rows[members[-1]], rows[index])
            joint = joint if len(members) == 1 else min(joint, shared)
            if joint and joint * len(members) >= shared * (len(members) - 1):
                members.append(index)
                shared = joint
                continue
            groups.append(Group(tuple(members), shared))
        members, shared = [index], 0
    return [*groups, Group(tuple(members), shared)] if members else groups


def _used(row: EncodedRow) -> int:
    """How many of a row's first tokens are computed: those before its last target."""
    return len(row.targets) - 1 - row.targets[::-1].index(True)


def _common_start(one: EncodedRow, other: EncodedRow) -> int:
    """The number of equal tokens at the start of both, of which each keeps at least one token for itself."""
    most = min(_used(one), _used(other)) - 1
    pairs = zip(one.input_ids[:most], other.input_ids[:most], strict=True)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), max(most, 0))


def _size(group: Group, rows: Sequence[EncodedRow]) -> int:
    return group.shared + sum(_used(rows[index]) - group.shared for index in group.indices)


def _split(group: Group, rows: Sequence[EncodedRow], max_tokens: int) -> Iterator[Group]:
    """The group in parts of at most `max_tokens`, each with the shared start, rows of like length together.

    A part of many rows with little of their own is cut by the keys that attention gathers for it.
    """
    by_length = sorted(group.indices, key=lambda index: -_used(rows[index]))
    part: list[int] = []
    size, keys = group.shared, 0
    for index in by_length:
        used = _used(rows[index])
        if part and (size + used - group.shared > max_tokens or keys + used > _KEYS_PER_TOKEN * max_tokens):
            yield Group(tuple(part), group.shared)
            part, size, keys = [], group.shared, 0
        part.append(index)
        size += used - group.shared
        keys += used
    yield Group(tuple(part), group.shared)


def _cut(groups: Sequence[Group], rows: Sequence[EncodedRow], max_tokens: int) -> Iterator[list[Group]]:
    """Runs of groups that together have at most `max_tokens`, and keys in proportion."""
    chosen: list[Group] = []
    total = total_keys = 0
    for group in groups:
        size, keys = _size(group, rows), sum(_used(rows[index]) for index in group.indices)
        if chosen and (total + size > max_tokens or total_keys + keys > _KEYS_PER_TOKEN * max_tokens):
            yield chosen
            chosen, total, total_keys = [], 0, 0
        chosen.append(group)
        total += size
        total_keys += keys
    if chosen:
        yield chosen


@dataclass(frozen=True)
class _Seen:
    """Rows of a pack by (first place, number of places); `shared` places from `shared_start` precede each of them."""

    begins: list[tuple[int, int]]
    shared_start: int
    shared: int


def build_pack(rows: Sequence[EncodedRow], groups: Sequence[Group], device: torch.device, in_spans: bool) -> Pack:
    """The groups one after the other: the start that is shared, then each row's own tokens."""
    ids: list[int] = []
    positions: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    seen: list[_Seen] = []
    for group in groups:
        shared, start = group.shared, len(ids)
        if shared:
            ids.extend(rows[group.indices[0]].input_ids[:shared])
            positions.extend(range(shared))
            seen.append(_Seen([(start, shared)], start, 0))
        begins: list[tuple[int, int]] = []
        for index in group.indices:
            row, used, begin = rows[index], _used(rows[index]), len(ids)
            begins.append((begin, used - shared))
            ids.extend(row.input_ids[shared:used])
            positions.extend(range(shared, used))
            wanted = [at for at, is_target in enumerate(row.targets) if is_target and at]
            sources.extend(start + at - 1 if at <= shared else begin + at - 1 - shared for at in wanted)
            targets.extend(row.input_ids[at] for at in wanted)
            counts.append(len(wanted))
        seen.append(_Seen(begins, start, shared))
    token_count = len(ids)
    filling = -token_count % _PACK_STEP
    ids.extend([0] * filling)
    positions.extend([0] * filling)
    return Pack(
        indices=tuple(index for group in groups for index in group.indices),
        token_count=token_count,
        input_ids=_int64([ids], device),
        positions=_int64([positions], device),
        blocks=() if in_spans else tuple(_make_block(part, device) for part in seen),
        spans=_make_spans(seen, token_count, filling, device) if in_spans else None,
        sources=_int64(sources, device),
        targets=_int64(targets, device),
        counts=tuple(counts),
    )


def _int64(values: list[int] | list[list[int]], device: torch.device) -> torch.Tensor:
    return _move(torch.tensor(values, dtype=torch.int64), device)


def _move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device, without waiting for what a GPU is at work on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _make_block(seen: _Seen, device: torch.device) -> PaddedBlock:
    begins = torch.tensor([begin for begin, _ in seen.begins]).unsqueeze(1)
    lengths = torch.tensor([length for _, length in seen.begins]).unsqueeze(1)
    width = int(lengths.max())
    slots = torch.arange(width + -width % _ROW_STEP).unsqueeze(0)
    queries = (begins + torch.minimum(slots, lengths - 1)).to(device)
    before = torch.arange(seen.shared_start, seen.shared_start + seen.shared, device=device)
    return PaddedBlock(
        queries=queries,
        keys=torch.cat([before.expand(len(queries), -1), queries], dim=1) if seen.shared else queries,
        offset=seen.shared,
        real=(slots < lengths).flatten().nonzero().squeeze(1).to(device),
        start=seen.begins[0][0],
    )


def _make_spans(seen: Sequence[_Seen], token_count: int, filling: int, device: torch.device) -> VarlenSpans:
    """One for each row and each shared start, and one for the filling, which sees itself."""
    queries, keys = [0], [0]
    places: list[int] = []
    for part in [*seen, *([_Seen([(token_count, filling)], 0, 0)] if filling else [])]:
        for begin, length in part.begins:
            queries.append(queries[-1] + length)
            keys.append(keys[-1] + part.shared + length)
            places.extend(range(part.shared_start, part.shared_start + part.shared))
            places.extend(range(begin, begin + length))
    return VarlenSpans(
        queries=_move(torch.tensor(queries, dtype=torch.int32), device),
        keys=_move(torch.tensor(keys, dtype=torch.int32), device),
        places=_int64(places, device) if queries != keys else None,
        longest=(_longest(queries), _longest(keys)),
    )


def _longest(begins: Sequence[int]) -> int:
    return max(end - begin for begin, end in itertools.pairwise(begins))
