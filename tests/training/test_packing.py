"""Packs of rows: complete, within the budget, with shared prefixes."""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest
import torch

from template.data.encoding import EncodedRow
from template.training.attention import TokenMask, VarlenSpans
from template.training.packing import (
    Group,
    Pack,
    balance_packs,
    first_source,
    group_by_prefix,
    last_source,
    pack_rows,
    pack_with_shared_prefix,
)
from tests.fixtures.training import CPU, blocks_of, real_slots, row_of, row_with_targets

SEEDS = range(20)


def make_random_rows(seed: int) -> list[EncodedRow]:
    """Make rows that begin alike or not, some equal, with targets anywhere."""
    stream = random.Random(seed)
    tokens = range(stream.choice([2, 5, 500]))
    starts = [stream.choices(tokens, k=stream.choice([1, 8, 40])) for _ in range(stream.randint(1, 4))]
    rows: list[EncodedRow] = []
    for _ in range(stream.randint(1, 25)):
        if rows and stream.random() < 0.1:
            rows.append(stream.choice(rows))
            continue
        start = stream.choice(starts)
        shared = start if stream.random() < 0.7 else start[: stream.randrange(len(start))]
        ids = [*shared, *stream.choices(tokens, k=stream.choice([2, 3, 10, 60]))]
        count = stream.randint(1, len(ids) - 1)
        rows.append(
            row_with_targets(ids, {*stream.sample(range(1, len(ids)), count), *stream.sample([0], k=count % 2)})
        )
    return rows


def count_used(row: EncodedRow) -> int:
    return max(place for place, is_target in enumerate(row.targets) if is_target)


def pack_all(rows: Sequence[EncodedRow], max_tokens: int, varlen: bool = False) -> list[Pack]:
    return list(pack_rows(rows, range(len(rows)), max_tokens, CPU, varlen))


def share_all(rows: Sequence[EncodedRow], max_tokens: int, varlen: bool = False) -> list[Pack]:
    return list(pack_with_shared_prefix(rows, max_tokens, CPU, varlen))


def balance_all(rows: Sequence[EncodedRow], max_tokens: int, varlen: bool = False, workers: int = 2) -> list[Pack]:
    return balance_packs(rows, range(len(rows)), max_tokens, CPU, workers, varlen)


every_way = pytest.mark.parametrize("pack_rows", [pack_all, share_all, balance_all])
in_blocks = pytest.mark.parametrize("pack_rows", [pack_all, share_all])
Packing = Callable[..., list[Pack]]


def group_all(rows: Sequence[EncodedRow]) -> list[Group]:
    return group_by_prefix(rows, range(len(rows)), last_source)


Seen = dict[int, list[int]]
"""For each place of a pack the places of the keys that it sees, in the order of their positions."""


def keys_by_place(pack: Pack) -> Seen:
    if isinstance(pack.layout, TokenMask):
        visible = pack.layout.within(None)[: pack.token_count]
        return {place: row.nonzero().flatten().tolist() for place, row in enumerate(visible)}
    return keys_by_blocks(pack)


def tokens_by_row(pack: Pack) -> Iterator[list[int]]:
    """Yield the tokens in the pack of each row, in order: all that its last token sees."""
    seen = keys_by_place(pack)
    for sources in pack.sources.split(list(pack.counts)):
        yield seen[int(sources[-1])]


def sizes(packs: Iterable[Pack]) -> list[int]:
    return [pack.token_count for pack in packs]


@every_way
@pytest.mark.parametrize("max_tokens", [1, 64, 10**6])
def test_every_row_is_whole_in_one_pack(pack_rows: Packing, max_tokens: int) -> None:
    for seed in SEEDS:
        rows = make_random_rows(seed)
        packs = pack_rows(rows, max_tokens)
        assert sorted(index for pack in packs for index in pack.indices) == list(range(len(rows)))
        for pack in packs:
            ids, positions = pack.input_ids[0].tolist(), pack.positions[0].tolist()
            sources, targets = (values.split(list(pack.counts)) for values in (pack.sources, pack.targets))
            for index, places, own_sources, own_targets in zip(
                pack.indices, tokens_by_row(pack), sources, targets, strict=True
            ):
                row = rows[index]
                used = count_used(row)
                assert [ids[place] for place in places] == list(row.input_ids[:used])
                assert [positions[place] for place in places] == list(range(used))
                # A target is predicted by the token before it.
                wanted = [place for place in range(1, len(row.targets)) if row.targets[place]]
                assert own_sources.tolist() == [places[place - 1] for place in wanted]
                assert own_targets.tolist() == [row.input_ids[place] for place in wanted]
                assert len(wanted) == row.target_count


@in_blocks
@pytest.mark.parametrize("max_tokens", [64, 10**6])
def test_blocks_cover_the_pack_with_right_padding(pack_rows: Packing, max_tokens: int) -> None:
    for seed in SEEDS:
        for pack in pack_rows(make_random_rows(seed), max_tokens):
            start = 0
            for block in blocks_of(pack):
                flat = block.query_indices.flatten()
                real = flat[block.valid_slots]
                # In order, after the tokens of the block before.
                assert block.start == start
                assert torch.equal(real, torch.arange(start, start + len(real)))
                start += len(real)
                assert torch.equal(block.key_indices[:, block.offset :], block.query_indices)
                assert block.is_full == (len(real) == flat.numel())
                # Attention takes identity as proof that no token is repeated.
                assert (block.key_indices is block.query_indices) == (block.offset == 0)
                # Padding is on the right, and repeats a token of the row.
                for queries, mine in zip(block.query_indices, real_slots(block), strict=True):
                    assert mine.sort(descending=True, stable=True).values.equal(mine)
                    assert mine[0]
                    assert set(queries.tolist()) == set(queries[mine].tolist())
            assert start == pack.token_count
            # Few lengths, because kernels are compiled and cached for each.
            assert pack.input_ids.shape[1] == pack.positions.shape[1] == start + -start % 8
            assert all(block.query_indices.shape[1] % 16 == 0 for block in blocks_of(pack))


@every_way
@pytest.mark.parametrize("max_tokens", [1, 30, 64, 200])
def test_pack_is_within_the_budget_or_a_single_row(pack_rows: Packing, max_tokens: int) -> None:
    for seed in SEEDS:
        rows = make_random_rows(seed)
        for pack in pack_rows(rows, max_tokens):
            size = pack.token_count
            assert size <= max_tokens or (len(pack.indices) == 1 and size == count_used(rows[pack.indices[0]]))


def test_packs_are_filled_up_to_the_budget() -> None:
    rows = [row_of([row] * 10) for row in range(7)]
    assert sizes(pack_all(rows, 30)) == [30, 30, 10]
    assert sizes(pack_all(rows, 29)) == [20, 20, 20, 10]
    alike = [row_of([500] * 20 + [row] * 10) for row in range(7)]
    assert sizes(share_all(alike, 50)) == [50, 50, 30]
    assert sizes(share_all(alike, 49)) == [40, 40, 40, 30]


def test_rows_of_similar_length_are_packed_together() -> None:
    rows = [row_of([row] * length) for row, length in enumerate([3, 40, 5, 38])]
    assert [pack.indices for pack in pack_all(rows, 80)] == [(1, 3), (2, 0)]


def test_only_chosen_rows_are_packed() -> None:
    rows = [row_of([row, row]) for row in range(6)]
    (pack,) = pack_rows(rows, [4, 1], 10**6, CPU)
    assert sorted(pack.indices) == [1, 4]
    assert list(pack_rows(rows, [], 10**6, CPU)) == []


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("max_tokens", [1, 64, 200, 10**6])
def test_balanced_packs_are_a_multiple_of_the_workers(workers: int, max_tokens: int) -> None:
    counts = set()
    for seed in SEEDS:
        rows = make_random_rows(seed)
        packs = balance_all(rows, max_tokens, workers=workers)
        assert len(packs) % workers == 0 or [len(pack.indices) for pack in packs] == [1] * len(rows)
        counts.add(len(packs))
    assert len(counts) > 2 or max_tokens == 10**6


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("max_tokens", [64, 10**6])
def test_balanced_packs_differ_by_a_row_largest_first(workers: int, max_tokens: int) -> None:
    for seed in SEEDS:
        rows = make_random_rows(seed)
        result = sizes(balance_all(rows, max_tokens, workers=workers))
        assert result == sorted(result, reverse=True)
        assert result[0] - result[-1] <= max(count_used(row) for row in rows)


def test_balanced_packs_are_as_few_as_possible() -> None:
    rows = [row_of([row] * 10) for row in range(8)]
    assert sizes(balance_all(rows, 80)) == sizes(balance_all(rows, 40)) == [40, 40]
    assert sizes(balance_all(rows, 39)) == [20, 20, 20, 20]
    assert sizes(balance_all(rows, 80, workers=3)) == [30, 30, 20]
    assert sizes(balance_all(rows, 10)) == sizes(balance_all(rows, 9)) == [10] * 8
    assert sizes(balance_all(rows[:1], 80)) == [10]
    assert balance_all([], 80) == []


def keys_by_blocks(pack: Pack) -> Seen:
    result: Seen = {}
    for block in blocks_of(pack):
        for queries, keys, mine in zip(block.query_indices, block.key_indices, real_slots(block), strict=True):
            for index, place in enumerate(queries[mine].tolist()):
                result[place] = keys[: block.offset + index + 1].tolist()
    return result


def keys_by_spans(spans: VarlenSpans, length: int) -> Seen:
    places = list(range(length)) if spans.key_indices is None else spans.key_indices.tolist()
    queries, keys = spans.cu_seqlens_q.tolist(), spans.cu_seqlens_k.tolist()
    assert (queries[0], queries[-1], keys[0], keys[-1]) == (0, length, 0, len(places))
    assert spans.cu_seqlens_q.dtype is spans.cu_seqlens_k.dtype is torch.int32
    assert spans.max_seqlens == tuple(max(b - a for a, b in itertools.pairwise(ends)) for ends in (queries, keys))
    assert (spans.key_indices is None) == (queries == keys)
    result: Seen = {}
    for (first, last), (start, end) in zip(itertools.pairwise(queries), itertools.pairwise(keys), strict=True):
        for place in range(first, last):
            result[place] = places[start : end - (last - 1 - place)]
    return result


@in_blocks
@pytest.mark.parametrize("max_tokens", [1, 64, 10**6])
def test_pack_with_spans_equals_that_with_blocks(pack_rows: Packing, max_tokens: int) -> None:
    for seed in SEEDS:
        rows = make_random_rows(seed)
        spans, blocks = pack_rows(rows, max_tokens, varlen=True), pack_rows(rows, max_tokens)
        for ours, theirs in zip(spans, blocks, strict=True):
            assert (ours.indices, ours.token_count, ours.counts) == (theirs.indices, theirs.token_count, theirs.counts)
            for name in ("input_ids", "positions", "sources", "targets"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
            length, count = ours.input_ids.shape[1], ours.token_count
            assert isinstance(ours.layout, VarlenSpans)
            seen = keys_by_spans(ours.layout, length)
            assert {place: keys for place, keys in seen.items() if place < count} == keys_by_blocks(theirs)
            # Padding attends to padding only.
            assert all(min(seen[place]) >= count for place in range(count, length))


@pytest.mark.parametrize("max_tokens", [64, 10**6])
def test_mask_shows_a_token_its_row_up_to_itself(max_tokens: int) -> None:
    kinds = set()
    for seed in SEEDS:
        for pack in balance_all(make_random_rows(seed), max_tokens):
            kinds.add(type(pack.layout))
            if not isinstance(pack.layout, TokenMask):
                assert len(blocks_of(pack)) == len(pack.indices) == 1
                continue
            length, count = pack.input_ids.shape[1], pack.token_count
            assert length == count + -count % 8
            # Only padding is of no row, and each of its tokens sees itself alone.
            rows = [set(places) for places in tokens_by_row(pack)]
            assert set().union(*rows) == set(range(count))
            assert torch.equal(pack.layout.visible[count:], torch.eye(length, dtype=torch.bool)[count:])
            # It repeats the first token of a row, so it is finite where the row is.
            assert pack.input_ids[0, count:].unique().tolist() in ([], [pack.input_ids[0, 0]])
            assert pack.positions[0, count:].count_nonzero() == 0
            for place, seen in keys_by_place(pack).items():
                mine = [row for row in rows if place in row]
                assert all(set(seen) == {other for other in row if other <= place} for row in mine)
                assert pack.positions[0, seen].tolist() == list(range(len(seen)))
    assert kinds == {TokenMask, tuple} or max_tokens == 10**6


def test_window_hides_the_keys_of_earlier_positions() -> None:
    rows = [row_with_targets([1, 2, 3, 4, 5 + row, 6], {5}) for row in range(2)]
    (pack,) = balance_all(rows, 10**6, workers=1)
    assert isinstance(pack.layout, TokenMask)
    # The first row's last token, at position 4, sees positions 2 to 4, of which the prefix has two.
    assert pack.positions[0].tolist()[:6] == [0, 1, 2, 3, 4, 4]
    assert pack.layout.within(3)[5].nonzero().flatten().tolist() == [2, 3, 5]


def test_balanced_packs_share_prefixes_before_targets() -> None:
    saved = 0
    for seed in SEEDS:
        rows = make_random_rows(seed)
        apart = sum(count_used(row) for row in rows)
        for pack in balance_all(rows, 10**6):
            # One hidden state predicts one target, so its gradient needs no sum.
            assert len(set(pack.sources.tolist())) == len(pack.sources)
        assert sum(sizes(balance_all(rows, 10**6, varlen=True))) == apart
        groups = group_by_prefix(rows, range(len(rows)), first_source)
        fewest = apart - sum(group.prefix * (len(group.indices) - 1) for group in groups)
        assert sum(sizes(balance_all(rows, 10**6, workers=1))) == fewest
        saved += apart - fewest
    assert saved > 100


def test_other_devices_share_nothing_and_use_one_block() -> None:
    rows = [row_with_targets([1] * 30 + [row, 9], {31}) for row in range(5)]
    packs = balance_packs(rows, range(5), 10**6, torch.device("meta"), 2)
    assert sizes(packs) == [93, 62]
    assert [len(blocks_of(pack)) for pack in packs] == [1, 1]


def test_rows_of_a_cpus_block_have_similar_lengths() -> None:
    rows = [row_of([1] * 30 + [2 + row] * length) for row, length in enumerate([96, 80, 72, 66, 50, 48, 20, 4])]
    (pack,) = share_all(rows, 10**6)
    # The prefix, then the tokens between it and the last target, padded to multiples of 16.
    assert [tuple(block.query_indices.shape) for block in blocks_of(pack)] == [
        (1, 32),
        (4, 96),
        (2, 64),
        (1, 32),
        (1, 16),
    ]


def test_lane_with_a_rows_prefix_takes_the_row() -> None:
    # By length alone, the third row would go beside the second.
    prefixes = ([1] * 30, [2] * 30, [1] * 30)
    rows = [row_with_targets([*prefix, row, 9, 9], {32}) for row, prefix in enumerate(prefixes, start=3)]
    assert [set(pack.indices) for pack in balance_all(rows, 10**6)] == [{0, 2}, {1}]


def test_groups_partition_rows_by_common_prefix() -> None:
    shares = set()
    for seed in SEEDS:
        rows = make_random_rows(seed)
        groups = group_all(rows)
        assert sorted(index for group in groups for index in group.indices) == list(range(len(rows)))
        for group in groups:
            assert len({rows[index].input_ids[: group.prefix] for index in group.indices}) == 1
            assert all(group.prefix <= count_used(rows[index]) - 1 for index in group.indices)
            assert len(group.indices) > 1 or not group.prefix
            shares.add(group.prefix)
    assert len(shares) > 5


def test_shared_prefixes_never_add_tokens() -> None:
    saved = 0
    for seed in SEEDS:
        rows = make_random_rows(seed)
        apart = sum(count_used(row) for row in rows)
        assert sum(sizes(pack_all(rows, 64))) == apart
        for max_tokens in (1, 64, 10**6):
            shared = sum(sizes(share_all(rows, max_tokens)))
            assert shared <= apart
            saved += apart - shared
        # In a single pack, each row of a group but the first saves the prefix.
        assert apart - shared == sum(group.prefix * (len(group.indices) - 1) for group in group_all(rows))
    assert saved > 1000


def test_group_rejects_a_row_with_a_short_prefix() -> None:
    rows = [row_of([1, *[3] * 40, 10 + row]) for row in range(4)] + [row_of([1, 4, 5, 6])]
    assert group_all(rows) == [Group((0, 1, 2, 3), 41), Group((4,), 0)]
    # A row with a long enough prefix joins.
    rows = [row_of([1] * 10 + [2, row]) for row in range(2)] + [row_of([1] * 9 + [3, 4])]
    assert group_all(rows) == [Group((0, 1, 2), 9)]


def test_equal_rows_share_all_but_the_last_token() -> None:
    rows = [row_of([1, 2, 3, 4])] * 5
    assert group_all(rows) == [Group((0, 1, 2, 3, 4), 3)]
    (pack,) = share_all(rows, 10**6)
    assert pack.input_ids.tolist() == [[1, 2, 3] + [4] * 5]
    assert pack.positions.tolist() == [[0, 1, 2] + [3] * 5]


def test_single_row_is_a_pack_and_no_rows_are_none() -> None:
    (pack,) = share_all([row_with_targets([5, 6, 7, 8, 9], {1, 3})], 10**6)
    # Tokens after the last target are not computed, nor is the last target itself.
    assert pack.input_ids.tolist() == [[5, 6, 7] + [0] * 5]
    assert (pack.sources.tolist(), pack.targets.tolist(), pack.counts) == ([0, 2], [6, 8], (2,))
    assert share_all([], 64) == pack_all([], 64) == group_all([]) == []


def test_row_of_one_computed_token_shares_nothing() -> None:
    rows = [row_with_targets([1, 2, 3], {1}), row_of([1, 2, 3]), row_of([1, 2, 4])]
    assert group_all(rows) == [Group((0,), 0), Group((1, 2), 2)]
    assert sizes(share_all(rows, 10**6)) == [4, 1]


def test_long_prefix_of_many_rows_is_split_by_keys() -> None:
    # By tokens, all rows would fit into two packs, with 30 times as many keys.
    rows = [row_of([1] * 1500 + [2 + row] * 20) for row in range(1000)]
    packs = list(pack_with_shared_prefix(rows, 16384, CPU, True))
    assert sorted(index for pack in packs for index in pack.indices) == list(range(1000))
    for pack in packs:
        assert isinstance(pack.layout, VarlenSpans) and pack.layout.key_indices is not None
        # Plus the keys of the prefix itself and of the padding.
        assert len(pack.layout.key_indices) <= 8 * 16384 + 1500 + 32
    assert len(packs) == 12
