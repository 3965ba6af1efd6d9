"""Attention over packed rows against a plain softmax row by row."""

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from template.training.attention import QUERY_CHUNK, PaddedBlock, TokenMask, packed_attention
from template.training.packing import Pack, balance_packs, pack_rows, pack_with_shared_prefix
from tests.fixtures.training import CPU, blocks_of, real_slots, row_of, row_with_targets

SIZE = 16
SCALING = SIZE**-0.5
GRADIENTS = ("dq", "dk", "dv")


def pack_lengths(*lengths: int) -> Pack:
    """Pack rows of these lengths into one pack, longest first."""
    rows = [row_of(range(length)) for length in lengths]
    (pack,) = pack_rows(rows, range(len(rows)), sum(lengths), CPU)
    return pack


def pack_groups(*groups: tuple[int, Sequence[int]]) -> Pack:
    """Pack groups of (prefix length, the rows' further lengths) into one pack."""
    rows = [
        row_of([1000 * group + place for place in range(shared)] + [1000 * group + 500 + row] * own)
        for group, (shared, owns) in enumerate(groups)
        for row, own in enumerate(owns)
    ]
    (pack,) = pack_with_shared_prefix(rows, 10**6, CPU)
    assert sorted({block.offset for block in blocks_of(pack)}) == sorted({0, *(shared for shared, _ in groups)})
    return pack


LAYOUTS = {
    "one row": pack_lengths(37),
    "one token": pack_lengths(1),
    "equal rows": pack_lengths(20, 20, 20),
    "unequal rows": pack_lengths(5, 41, 17, 39, 1),
    "rows longer than a chunk": pack_lengths(2 * QUERY_CHUNK + 3, QUERY_CHUNK + 1, QUERY_CHUNK),
    "a shared start": pack_groups((23, [4, 19, 1])),
    "a shared start of equal rows": pack_groups((23, [6, 6])),
    "two groups": pack_groups((5, [30, 2]), (40, [3, 1, 3])),
    "a shared start longer than a chunk": pack_groups((QUERY_CHUNK + 9, [QUERY_CHUNK + 5, 7])),
}
LIMITS: dict[str, tuple[float | None, int | None]] = {
    "all before": (None, None),
    "window": (None, 7),
    "cap": (1.5, None),
    "cap and window": (1.5, 7),
}

every_layout = pytest.mark.parametrize("layout", LAYOUTS)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
every_limit = pytest.mark.parametrize("limit", LIMITS)


def draw(pack: Pack, heads: tuple[int, int] = (6, 2), dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Draw query (1, H, N, D), key and value (1, G, N, D)."""
    stream = torch.Generator().manual_seed(1)
    shapes = [(1, count, pack.input_ids.shape[1], SIZE) for count in (heads[0], heads[1], heads[1])]
    return [torch.randn(shape, generator=stream).to(dtype) for shape in shapes]


def attend(pack: Pack, inputs: Sequence[torch.Tensor], limit: str = "all before") -> torch.Tensor:
    softcap, window = LIMITS[limit]
    q, k, v = inputs
    result, weights = packed_attention(
        nn.Module(), q, k, v, None, scaling=SCALING, softcap=softcap, sliding_window=window, layout=pack.layout
    )
    assert weights is None
    assert result.shape == (1, q.shape[2], q.shape[1], SIZE)
    return result


def attend_row(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, limit: str) -> torch.Tensor:
    """Attend from the last Q positions of one row, in plain torch."""
    softcap, window = LIMITS[limit]
    shared = q.shape[0] // k.shape[0]
    results = []
    for head in range(q.shape[0]):
        scores = q[head] @ k[head // shared].t() * SCALING
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        behind = torch.arange(scores.shape[1] - scores.shape[0], scores.shape[1]).unsqueeze(1)
        behind = behind - torch.arange(scores.shape[1])
        unseen = (behind < 0) | (behind >= (window or math.inf))
        results.append(torch.softmax(scores.masked_fill(unseen, -math.inf), dim=1) @ v[head // shared])
    return torch.stack(results)


def attend_by_row(blocks: Sequence[PaddedBlock], inputs: Sequence[torch.Tensor], limit: str) -> torch.Tensor:
    """Attend row by row in float32."""
    q, k, v = (tensor[0].float() for tensor in inputs)
    places, results = [], []
    for block in blocks:
        for queries, keys, count in zip(block.query_indices, block.key_indices, real_slots(block).sum(1), strict=True):
            own, seen = queries[:count], keys[: block.offset + count]
            places.append(own)
            results.append(attend_row(q[:, own], k[:, seen], v[:, seen], limit))
    together = torch.cat(results, dim=1).transpose(0, 1)
    order = torch.cat(places)
    assert sorted(order.tolist()) == list(range(len(order)))
    filling = q.shape[1] - len(order)
    return F.pad(together[order.argsort()], (0, 0, 0, 0, 0, filling)).unsqueeze(0)


def differentiate(result: torch.Tensor, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the gradients of the inputs for a random gradient of the result."""
    seed = torch.randn(result.shape, generator=torch.Generator().manual_seed(2))
    return list(torch.autograd.grad(result, inputs, seed.to(result.dtype)))


@every_limit
@every_layout
@both_dtypes
def test_each_row_attends_as_if_alone(dtype: torch.dtype, layout: str, limit: str) -> None:
    pack = LAYOUTS[layout]
    inputs = [tensor.requires_grad_() for tensor in draw(pack, dtype=dtype)]
    ours, expected = attend(pack, inputs, limit), attend_by_row(blocks_of(pack), inputs, limit)
    assert ours.dtype is dtype
    result_error, gradient_error = (1e-5, 1e-5) if dtype is torch.float32 else (0.03, 0.02)
    torch.testing.assert_close(ours.float(), expected, rtol=0, atol=result_error)
    gradients = zip(GRADIENTS, differentiate(ours, inputs), differentiate(expected, inputs), strict=True)
    for name, value, wanted in gradients:
        distance = (value.float() - wanted.float()).norm()
        # The query of a single token has a gradient of about zero.
        assert distance <= gradient_error * wanted.float().norm() + 1e-5, (name, distance, wanted.norm())


@every_limit
@both_dtypes
def test_row_under_a_mask_attends_as_if_alone(dtype: torch.dtype, limit: str) -> None:
    # Two rows share 20 tokens, one has none in common with them.
    starts = ([1] * 20 + [2] * 9, [1] * 20 + [3] * 30, [4] * 11)
    rows = [row_with_targets([*start, 5, 6], {len(start) + 1}) for start in starts]
    (pack,) = balance_packs(rows, range(3), 10**6, CPU, workers=1)
    assert isinstance(pack.layout, TokenMask) and pack.token_count < sum(len(row.input_ids) - 1 for row in rows) - 19
    inputs = [tensor.requires_grad_() for tensor in draw(pack, dtype=dtype)]
    ours = attend(pack, inputs, limit)
    q, k, v = (tensor[0].float() for tensor in inputs)
    expected = torch.zeros(ours.shape)
    for source in pack.sources:
        places = pack.layout.visible[source].nonzero().flatten()
        alone = attend_row(q[:, places], k[:, places], v[:, places], limit)
        expected = expected.index_put((torch.tensor(0), places), alone.transpose(0, 1))
    seen = expected.detach().abs().sum((2, 3), keepdim=True) > 0  # without the padding
    result_error, gradient_error = (1e-5, 1e-5) if dtype is torch.float32 else (0.03, 0.02)
    torch.testing.assert_close(ours.float() * seen, expected, rtol=0, atol=result_error)
    gradients = zip(differentiate(ours * seen, inputs), differentiate(expected, inputs), strict=True)
    for value, wanted in gradients:
        assert (value.float() - wanted.float()).norm() <= gradient_error * wanted.float().norm()


def test_without_blocks_each_batch_row_is_a_sequence() -> None:
    q, k, v = (torch.cat([tensor, -tensor, 2 * tensor]) for tensor in draw(pack_lengths(20)))
    result, _ = packed_attention(nn.Module(), q, k, v, None, scaling=SCALING)
    expected = torch.stack([attend_row(*row, "all before").transpose(0, 1) for row in zip(q, k, v, strict=True)])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def tokens_of_row(pack: Pack, row: int) -> torch.Tensor:
    """Return the tokens of a row in a pack without prefixes."""
    rows = [queries for block in blocks_of(pack) for queries in block.query_indices]
    return rows[row].unique()


@pytest.mark.parametrize("poison", [math.inf, math.nan])
@both_dtypes
@pytest.mark.parametrize("row", [0, 1, 4])
def test_non_finite_row_changes_no_other_row(row: int, dtype: torch.dtype, poison: float) -> None:
    # The longest row, one that is padded beside it, and one of a single token beside another.
    pack = LAYOUTS["unequal rows"]
    assert [len(block.query_indices) for block in blocks_of(pack)] == [2, 1, 2]
    broken = tokens_of_row(pack, row)
    others = torch.ones(pack.input_ids.shape[1], dtype=torch.bool).index_fill(0, broken, False)

    def run(*, is_broken: bool) -> list[torch.Tensor]:
        inputs = draw(pack, dtype=dtype)
        if is_broken:
            for tensor in inputs:
                tensor[:, :, broken] = poison
        for tensor in inputs:
            tensor.requires_grad_()
        result = attend(pack, inputs)
        assert is_broken == (not result.isfinite().all())
        seen = result[:, others]
        gradients = torch.autograd.grad(seen.square().sum(), inputs)
        return [seen.detach(), *(gradient[:, :, others] for gradient in gradients)]

    for hit, whole in zip(run(is_broken=True), run(is_broken=False), strict=True):
        assert torch.equal(hit, whole)
