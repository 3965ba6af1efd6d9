"""The adapted linear layer against PEFT's own and autograd, and the dropout that is drawn for it."""

import math

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import nn

from template.adapter import AdaptedLinear, DropoutMasks, _AdaptedProduct, _mask

INPUTS, OUTPUTS, RANK = 24, 40, 4
CONFIG = LoraConfig(r=RANK, lora_alpha=12, lora_dropout=0.0)

both_biases = pytest.mark.parametrize("bias", [False, True])


def make_base(bias: bool, dtype: torch.dtype = torch.float32) -> nn.Linear:
    stream = torch.Generator().manual_seed(1)
    base = nn.Linear(INPUTS, OUTPUTS, bias=bias, dtype=dtype).requires_grad_(False)
    for parameter in base.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=stream) / math.sqrt(INPUTS))
    return base


def adapt(kind: type[Linear], base: nn.Linear) -> Linear:
    """A layer of this kind on the base, with the same float32 adapter every time."""
    layer = kind(base, "default", CONFIG, r=RANK, lora_alpha=12)
    stream = torch.Generator().manual_seed(2)
    for adapter in (layer.lora_A["default"], layer.lora_B["default"]):
        adapter.weight.data = torch.randn(adapter.weight.shape, generator=stream) / 2
    return layer


def draw(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_masks(p: float, seed: int = 1) -> DropoutMasks:
    return DropoutMasks(p, torch.Generator().manual_seed(seed))


class Drop(nn.Module):
    """PEFT's dropout, but for the mask, which is given, and the probability, which is what the mask's own is."""

    def __init__(self, mask: torch.Tensor, kept_share: float) -> None:
        super().__init__()
        self.factor = (mask != 0).float() / kept_share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor.view(x.shape)


def run(layer: Linear, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The layer's result, and the gradients that some loss gives to its input and its adapter."""
    x = x.clone().requires_grad_()
    for parameter in layer.parameters():
        parameter.grad = None
    y = layer(x)
    y.backward(draw(*y.shape, seed=4).to(y.dtype))
    gradients = {"dx": x.grad, "da": layer.lora_A["default"].weight.grad, "db": layer.lora_B["default"].weight.grad}
    assert all(gradient is not None for gradient in gradients.values())
    return {"y": y.detach(), **gradients}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: name + text)


# The layer.


@both_biases
@pytest.mark.parametrize("shape", [(30,), (1, 30), (2, 15)])
def test_result_and_gradients_are_those_of_peft(bias: bool, shape: tuple[int, ...]) -> None:
    base, x = make_base(bias), draw(*shape, INPUTS)
    ours = run(adapt(AdaptedLinear, base), x)
    assert ours["y"].shape == (*shape, OUTPUTS)
    assert_same(ours, run(adapt(Linear, base), x))


@both_biases
@pytest.mark.parametrize("p", [0.1, 0.5, 0.97])
def test_with_a_mask_result_and_gradients_are_those_of_peft_with_that_mask(bias: bool, p: float) -> None:
    base, x = make_base(bias), draw(30, INPUTS)
    ours, theirs = adapt(AdaptedLinear, base), adapt(Linear, base)
    ours.masks = make_masks(p)
    mask = make_masks(p).draw(x.shape)
    assert 0 < int((mask != 0).sum()) < mask.numel()
    theirs.lora_dropout["default"] = Drop(mask, ours.masks.kept_share)
    assert_same(run(ours, x), run(theirs, x))


@both_biases
def test_the_gradients_pass_torchs_numerical_check(bias: bool) -> None:
    base = make_base(bias, torch.float64)
    x, a, b = (draw(*shape).double().requires_grad_() for shape in ((5, INPUTS), (RANK, INPUTS), (OUTPUTS, RANK)))
    # Those of the adapter are made float32, which is what it is held in.
    assert torch.autograd.gradcheck(
        lambda x, a, b: _AdaptedProduct.apply(x, base.weight, base.bias, a, b, None, 1.7), (x, a, b), rtol=1e-4
    )


def test_without_dropout_no_mask_is_drawn_and_the_result_is_the_same_twice() -> None:
    layer, x = adapt(AdaptedLinear, make_base(True)), draw(30, INPUTS)
    before = torch.random.get_rng_state()
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(torch.random.get_rng_state(), before)
    layer.masks = make_masks(0.5)
    assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_an_input_that_needs_no_gradient_changes_nothing_for_the_adapter(p: float) -> None:
    layer, x = adapt(AdaptedLinear, make_base(True)), draw(30, INPUTS)
    layer.masks = make_masks(p) if p else None
    expected = run(layer, x)
    layer.masks = make_masks(p) if p else None
    layer.zero_grad()
    y = layer(x)
    assert torch.equal(y, expected["y"])
    y.backward(draw(*y.shape, seed=4))
    assert torch.equal(layer.lora_A["default"].weight.grad, expected["da"])
    assert torch.equal(layer.lora_B["default"].weight.grad, expected["db"])
    assert x.grad is None
    assert all(value.grad is None for value in layer.get_base_layer().parameters())


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_in_bfloat16_adapters_stay_float32_and_the_result_is_close(p: float) -> None:
    rounded = make_base(True, torch.bfloat16)
    exact = make_base(True)
    exact.load_state_dict(rounded.state_dict())
    layers = adapt(AdaptedLinear, rounded), adapt(AdaptedLinear, exact)
    for layer in layers:
        layer.masks = make_masks(p) if p else None
    x = draw(200, INPUTS).bfloat16()
    ours, reference = run(layers[0], x), run(layers[1], x.float())
    assert {name: value.dtype for name, value in ours.items()} == {
        "y": torch.bfloat16,
        "dx": torch.bfloat16,
        "da": torch.float32,
        "db": torch.float32,
    }
    assert {value.dtype for value in (layers[0].lora_A["default"].weight, layers[0].lora_B["default"].weight)} == {
        torch.float32
    }
    for name, value in reference.items():
        # bfloat16 has 8 bits; a wrong scale or a wrong mask would be far outside.
        assert (ours[name].float() - value).norm() < 0.01 * value.norm(), name


def test_what_is_kept_for_the_backward_pass_is_the_input_and_a_byte_of_each_masks_element() -> None:
    layer, x = adapt(AdaptedLinear, make_base(True)), draw(1000, INPUTS).requires_grad_()
    layer.masks = make_masks(0.1)
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        layer(x)
    weights = 4 * (INPUTS * OUTPUTS + RANK * (INPUTS + OUTPUTS))
    assert sum(kept.values()) == 1000 * (4 * INPUTS + 4 * RANK + INPUTS) + weights


# The masks.


def test_a_mask_keeps_its_share_in_every_row_and_column() -> None:
    mask = make_masks(0.1).draw(torch.Size([1000, 200]))
    assert mask.dtype is torch.int16
    assert set(mask.unique().tolist()) == {-1, 0}
    dropped = (mask == 0).float()
    assert dropped.mean().item() == pytest.approx(0.1, abs=0.005)
    # No pattern: rows and columns alike, and neighbours independent, within a word of 64 bits as across.
    assert dropped.mean(0).max().item() < 0.2
    assert dropped.mean(1).max().item() < 0.2
    flat = dropped.flatten()
    for distance in (1, 2, 3, 4, 8):
        both = (flat[distance:] * flat[:-distance]).mean().item()
        assert both == pytest.approx(0.01, abs=0.0015)


@pytest.mark.parametrize("p", [0.1, 0.5, 1 / 3, 0.9999])
def test_the_share_by_which_results_are_scaled_is_the_nearest_that_16_bits_have(p: float) -> None:
    share = make_masks(p).kept_share
    assert (share * 2**16).is_integer()
    assert abs(share - (1 - p)) <= 2**-17


@pytest.mark.parametrize("rare", [0, -1])
def test_masks_keep_exactly_the_share_by_which_results_are_scaled(rare: int) -> None:
    # One wrong value at the threshold would be a third of what is rare here, or nine standard deviations.
    p = 3 / 2**16 if rare == 0 else 1 - 3 / 2**16
    masks = make_masks(p)
    assert masks.kept_share == 1 - p
    count = int((masks.draw(torch.Size([2**24])) == rare).sum())
    assert abs(count - 3 * 2**8) < 5 * math.sqrt(3 * 2**8)


def test_masks_neither_read_nor_move_the_global_generator() -> None:
    shape = torch.Size([100])
    torch.manual_seed(1)
    first = make_masks(0.5).draw(shape)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert torch.equal(make_masks(0.5).draw(shape), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(make_masks(0.5, seed=2).draw(shape), first)


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 1), (5, 13), (4, 8)])
def test_every_element_of_any_shape_is_drawn_afresh_at_every_call(shape: tuple[int, ...]) -> None:
    masks = make_masks(0.5)
    drawn = torch.stack([masks.draw(torch.Size(shape)) for _ in range(64)])
    assert drawn.shape == (64, *shape)
    assert set(drawn.unique().tolist()) == {-1, 0}
    kept = (drawn != 0).sum(0)
    assert kept.min().item() > 10
    assert kept.max().item() < 54


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_dropped_is_zero_whatever_it_was_and_the_rest_keeps_its_bits(dtype: torch.dtype) -> None:
    bits = torch.int16 if dtype is torch.bfloat16 else torch.int32
    x = torch.tensor([math.inf, -math.inf, math.nan, -0.0, 1.5, -3e38, 1e-40, 0.0], dtype=dtype)
    dropped = _mask(x, torch.zeros(8, dtype=torch.int16))
    assert not dropped.view(bits).any()  # +0.0, not -0.0
    assert dropped.dtype is dtype
    assert torch.equal(_mask(x, torch.full((8,), -1, dtype=torch.int16)).view(bits), x.view(bits))
    assert torch.equal(_mask(x, torch.full((8,), -1, dtype=torch.int8)).view(bits), x.view(bits))
    assert _mask(x, None) is x


@pytest.mark.parametrize("p", [1e-9, 1.0 - 1e-9])
def test_a_probability_beyond_what_16_bits_can_have_is_the_nearest_that_is_neither_0_nor_1(p: float) -> None:
    masks = DropoutMasks(p, torch.Generator().manual_seed(1))
    assert masks.kept_share == (1 - 2**-16 if p < 0.5 else 2**-16)
    kept = masks.draw(torch.Size([2**20])).ne(0).double().mean().item()
    assert kept == pytest.approx(masks.kept_share, abs=5e-5)
