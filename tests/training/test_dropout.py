"""Dropout on a CPU: rates, streams and masks."""

import math
import threading

import pytest
import torch

from template.training.dropout import apply_mask
from tests.fixtures.training import draw, make_masks


def test_mask_has_no_pattern() -> None:
    mask = make_masks(0.1).draw(torch.Size([1000, 200]))
    assert mask.dtype is torch.int16
    assert set(mask.unique().tolist()) == {-1, 0}
    dropped = (mask == 0).float()
    assert dropped.mean().item() == pytest.approx(0.1, abs=0.005)
    # Neighbours are independent, within a word of 64 bits and across words.
    assert dropped.mean(0).max().item() < 0.2
    assert dropped.mean(1).max().item() < 0.2
    flat = dropped.flatten()
    for distance in (1, 2, 3, 4, 8):
        both = (flat[distance:] * flat[:-distance]).mean().item()
        assert both == pytest.approx(0.01, abs=0.0015)


@pytest.mark.parametrize(
    ("p", "parts"), [(0.1, 58982), (0.5, 32768), (1 / 3, 43691), (0.9999, 7), (1e-9, 65535), (1 - 1e-9, 1)]
)
def test_keep_rate_is_a_multiple_of_16_bits_but_not_0_or_1(p: float, parts: int) -> None:
    masks = make_masks(p)
    assert masks.keep_rate == parts / 2**16
    assert masks.scale == 1 / masks.keep_rate


@pytest.mark.parametrize("rare", [0, -1])
def test_masks_keep_exactly_the_keep_rate(rare: int) -> None:
    # One wrong value at the threshold is nine standard deviations here.
    p = 3 / 2**16 if rare == 0 else 1 - 3 / 2**16
    masks = make_masks(p)
    assert masks.keep_rate == 1 - p
    count = int((masks.draw(torch.Size([2**24])) == rare).sum())
    assert abs(count - 3 * 2**8) < 5 * math.sqrt(3 * 2**8)


def test_masks_depend_on_the_seed_only() -> None:
    shape = torch.Size([100])
    masks = make_masks(0.5, seed=2**63 - 1)
    first = masks.draw(shape)
    assert not torch.equal(masks.draw(shape), first)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    masks.seed(2**63 - 1)
    assert torch.equal(masks.draw(shape), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(make_masks(0.5, seed=2).draw(shape), first)


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 1), (5, 13), (4, 8)])
def test_every_element_is_drawn_at_every_call(shape: tuple[int, ...]) -> None:
    masks = make_masks(0.5)
    drawn = torch.stack([masks.draw(torch.Size(shape)) for _ in range(64)])
    assert drawn.shape == (64, *shape)
    assert set(drawn.unique().tolist()) == {-1, 0}
    saved = (drawn != 0).sum(0)
    assert saved.min().item() > 10
    assert saved.max().item() < 54


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_is_zero_and_the_rest_keeps_its_bits(dtype: torch.dtype) -> None:
    bits = torch.int16 if dtype is torch.bfloat16 else torch.int32
    x = torch.tensor([math.inf, -math.inf, math.nan, -0.0, 1.5, -3e38, 1e-40, 0.0], dtype=dtype)
    dropped = apply_mask(x, torch.zeros(8, dtype=torch.int16))
    assert not dropped.view(bits).any()  # +0.0, not -0.0
    assert dropped.dtype is dtype
    assert torch.equal(apply_mask(x, torch.full((8,), -1, dtype=torch.int16)).view(bits), x.view(bits))
    assert torch.equal(apply_mask(x, torch.full((8,), -1, dtype=torch.int8)).view(bits), x.view(bits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_masks_differ(dtype: torch.dtype) -> None:
    x = draw(40, 25).to(dtype)
    dropped, _ = make_masks(0.5).drop(x, 3)
    masks = make_masks(0.5).draw(torch.Size([3, 40, 25]))
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 3
    assert torch.equal(dropped, torch.where(masks != 0, x, 0.0))


def test_reapply_uses_the_same_masks() -> None:
    x, others = draw(40, 25), draw(3, 40, 25)
    masks = make_masks(0.5)
    dropped, reapply = masks.drop(x, 3)
    masks.drop(x, 3)
    masks.seed(2)
    assert torch.equal(reapply(x), dropped)
    assert torch.equal(reapply(others), torch.where(dropped != 0, others, 0.0))


def test_stream_belongs_to_its_thread() -> None:
    shape = torch.Size([100])
    expected = [make_masks(0.5, seed).draw(shape) for seed in (1, 2)]
    masks = make_masks(0.5, seed=1)
    drawn: list[torch.Tensor] = []

    def draw_elsewhere() -> None:
        masks.seed(2)
        drawn.append(masks.draw(shape))

    other = threading.Thread(target=draw_elsewhere)
    other.start()
    other.join()
    assert torch.equal(drawn[0], expected[1])
    assert torch.equal(masks.draw(shape), expected[0])
