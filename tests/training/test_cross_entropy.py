"""The fused loss against torch's own over all logits at once."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from template.training import cross_entropy
from template.training.cross_entropy import target_losses
from tests.fixtures.training import saved_tensors

WIDTH, VOCABULARY = 24, 70

# Rows of a matrix product, and of one part of it.
CHUNKS = [(1, 1), (3, 2), (4, 4), (4, 9), (100, 3)]

every_head = pytest.mark.parametrize("bias", [False, True])
every_cap = pytest.mark.parametrize("softcap", [None, 2.5])


def make_head(*, bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.Linear:
    stream = torch.Generator().manual_seed(1)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=dtype).requires_grad_(False)
    for parameter in head.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=stream) / 2)
    return head


def draw(count: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw hidden states and targets."""
    stream = torch.Generator().manual_seed(2)
    hidden = torch.randn(count, WIDTH, generator=stream).to(dtype)
    return hidden, torch.randint(VOCABULARY, (count,), generator=stream)


def torch_losses(
    hidden: torch.Tensor, targets: torch.Tensor, head: nn.Linear, softcap: float | None = None
) -> torch.Tensor:
    logits = head(hidden).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, reduction="none")


def differentiate(losses: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the hidden states for weighted losses."""
    (gradient,) = torch.autograd.grad((losses * torch.linspace(-1, 2, len(losses))).sum(), hidden)
    return gradient


def set_chunks(monkeypatch: pytest.MonkeyPatch, chunks: tuple[int, int] | None) -> None:
    if chunks is None:
        return
    product_rows, part_rows = chunks
    monkeypatch.setattr(cross_entropy, "_MIN_ROWS", 1)
    monkeypatch.setattr(cross_entropy, "CPU_PRODUCT_ELEMENTS", product_rows * VOCABULARY + 1)
    monkeypatch.setattr(cross_entropy, "CPU_PART_ELEMENTS", part_rows * VOCABULARY + 1)


@every_cap
@every_head
@pytest.mark.parametrize("chunks", [None, *CHUNKS])
def test_losses_and_gradients_equal_torchs(
    monkeypatch: pytest.MonkeyPatch, chunks: tuple[int, int] | None, bias: bool, softcap: float | None
) -> None:
    head = make_head(bias=bias)
    set_chunks(monkeypatch, chunks)
    for count in (1, 3, 4, 5, 13):
        hidden, targets = draw(count)
        hidden.requires_grad_()
        ours, theirs = (losses(hidden, targets, head, softcap) for losses in (target_losses, torch_losses))
        assert ours.shape == (count,)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        gradients = [differentiate(losses, hidden) for losses in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    assert all(parameter.grad is None for parameter in head.parameters())


@every_cap
@pytest.mark.parametrize("chunks", [None, (3, 2)])
def test_bfloat16_losses_are_float32_and_close(
    monkeypatch: pytest.MonkeyPatch, chunks: tuple[int, int] | None, softcap: float | None
) -> None:
    set_chunks(monkeypatch, chunks)
    head = make_head(bias=True, dtype=torch.bfloat16)
    exact = make_head(bias=True)
    exact.load_state_dict(head.state_dict())
    hidden, targets = draw(200, torch.bfloat16)
    hidden.requires_grad_()
    wide = hidden.detach().float().requires_grad_()
    ours, reference = target_losses(hidden, targets, head, softcap), torch_losses(wide, targets, exact, softcap)
    assert ours.dtype is torch.float32
    torch.testing.assert_close(ours, reference, rtol=0, atol=0.05)
    # Equal logits have the exact loss; a product of another shape may round some logits differently.
    same_logits = torch_losses(hidden.detach(), targets, head, softcap)
    assert (ours - same_logits).abs().median() < 1e-5
    gradient, wanted = differentiate(ours, hidden), differentiate(reference, wide)
    assert gradient.dtype is torch.bfloat16
    assert (gradient.float() - wanted).norm() < 0.01 * wanted.norm()


@every_cap
@pytest.mark.parametrize("scale", [1e3, 1e20])
def test_huge_logits_have_finite_loss_and_gradient(scale: float, softcap: float | None) -> None:
    head = make_head()
    hidden, targets = draw(8)
    hidden[3] *= scale
    hidden.requires_grad_()
    ours, theirs = (losses(hidden, targets, head, softcap) for losses in (target_losses, torch_losses))
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    gradient = differentiate(ours, hidden)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient, differentiate(theirs, hidden), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("broken", "softcap"), [(math.nan, None), (math.nan, 2.5), (math.inf, None)])
def test_non_finite_state_changes_no_other_loss(broken: float, softcap: float | None) -> None:
    head = make_head()
    hidden, targets = draw(8)
    whole = target_losses(hidden, targets, head, softcap)
    hidden[3, 5] = broken
    losses = target_losses(hidden, targets, head, softcap)
    others = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(losses[others], whole[others])
    assert losses[3].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_without_gradient_have_the_same_bits(dtype: torch.dtype) -> None:
    head = make_head(dtype=dtype)
    hidden, targets = draw(13, dtype)
    unwanted = target_losses(hidden, targets, head)
    assert not unwanted.requires_grad
    hidden.requires_grad_()
    wanted = target_losses(hidden, targets, head)
    assert wanted.requires_grad
    assert torch.equal(unwanted, wanted)
    with torch.no_grad():
        assert torch.equal(target_losses(hidden, targets, head), wanted)


def test_backward_saves_nothing_of_vocabulary_size() -> None:
    head = make_head()
    hidden, targets = draw(50)
    hidden.requires_grad_()
    saved = saved_tensors(lambda: target_losses(hidden, targets, head))
    assert [tensor.shape for tensor in saved] == [hidden.shape]
