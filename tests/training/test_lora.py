"""Fused LoRA layers against PEFT's own and autograd."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import nn

from template.training.dropout import CpuDropout
from template.training.lora import FusedLoRALinear, LoRALinear
from tests.fixtures.training import draw, make_masks, saved_tensors

INPUTS, OUTPUTS, RANK = 24, 40, 4
CONFIG = LoraConfig(r=RANK, lora_alpha=12, lora_dropout=0.0)
# Output widths of fused layers: like q, k and v, and like a gated MLP's two.
WIDTHS = {"side by side": (OUTPUTS, 16, 16), "stacked": (OUTPUTS, OUTPUTS)}

every_rate = pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.97])
both_biases = pytest.mark.parametrize("bias", [False, True])
# Stacked layers have no biases.
every_kind = pytest.mark.parametrize(
    ("kind", "bias"), [("side by side", False), ("side by side", True), ("stacked", False)]
)


def make_base(bias: bool, dtype: torch.dtype = torch.float32, outputs: int = OUTPUTS, seed: int = 1) -> nn.Linear:
    stream = torch.Generator().manual_seed(seed)
    base = nn.Linear(INPUTS, outputs, bias=bias, dtype=dtype).requires_grad_(False)
    for parameter in base.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=stream) / math.sqrt(INPUTS))
    return base


def adapt(kind: type[Linear], base: nn.Linear, seed: int = 2) -> Linear:
    """Put a layer of a kind on the base, with the adapter of a seed."""
    layer = kind(base, "default", CONFIG, r=RANK, lora_alpha=12)
    stream = torch.Generator().manual_seed(seed)
    for adapter in (layer.lora_A["default"], layer.lora_B["default"]):
        adapter.weight.data = torch.randn(adapter.weight.shape, generator=stream) / 2
    return layer


def make_layers(
    kind: type[Linear], widths: Sequence[int], bias: bool, dtype: torch.dtype = torch.float32
) -> list[Linear]:
    """Make layers of these widths with different bases and adapters."""
    return [adapt(kind, make_base(bias, dtype, width, 10 + index), 20 + index) for index, width in enumerate(widths)]


def set_dropout(layers: Iterable[Linear], dropout: CpuDropout | None) -> None:
    for layer in layers:
        layer.dropout = dropout


class Drop(nn.Module):
    """A dropout of PEFT with a fixed mask."""

    def __init__(self, mask: torch.Tensor, kept_share: float) -> None:
        super().__init__()
        self.factor = (mask != 0).float() / kept_share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor.view(x.shape)


def drop_equally(ours: Sequence[Linear], theirs: Sequence[Linear], p: float) -> None:
    """Give our layers and PEFT's the same masks for 30 rows."""
    if not p:
        return
    set_dropout(ours, make_masks(p))
    masks = make_masks(p)
    for layer, mask in zip(theirs, masks.draw(torch.Size([len(theirs), 30, INPUTS])), strict=True):
        assert 0 < int((mask != 0).sum()) < mask.numel()
        layer.lora_dropout["default"] = Drop(mask, masks.keep_rate)


def run(
    compute: Callable[[torch.Tensor], torch.Tensor], layers: Sequence[Linear], x: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the result and the gradients of input and adapters for a random loss."""
    x = x.clone().requires_grad_()
    for layer in layers:
        layer.zero_grad()
    y = compute(x)
    y.backward(draw(*y.shape, seed=4).to(y.dtype))
    result = {"y": y.detach(), "dx": x.grad}
    for index, layer in enumerate(layers):
        result |= {
            f"da {index}": layer.lora_A["default"].weight.grad,
            f"db {index}": layer.lora_B["default"].weight.grad,
        }
    assert all(gradient is not None for gradient in result.values())
    return result


def run_one(layer: Linear, x: torch.Tensor) -> dict[str, torch.Tensor]:
    return run(layer, [layer], x)


def compute_separately(kind: str, layers: Sequence[Linear]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Compute `FusedLoRALinear` layer by layer."""
    if kind == "stacked":
        return lambda x: torch.stack([layer(x) for layer in layers])
    return lambda x: torch.cat([layer(x) for layer in layers], dim=-1)


def gate(both: torch.Tensor) -> torch.Tensor:
    return F.silu(both[0]) * both[1]


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Compare by norm, because sums have elements that are almost zero."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape, name
        assert (ours[name] - value).norm() < 1e-6 * value.norm(), name


def make_pair(bias: bool, p: float) -> tuple[Linear, Linear]:
    """Make our layer and PEFT's with equal weights, adapters and masks for 30 rows."""
    base = make_base(bias)
    ours, theirs = adapt(LoRALinear, base), adapt(Linear, base)
    drop_equally([ours], [theirs], p)
    return ours, theirs


@both_biases
@every_rate
@pytest.mark.parametrize("shape", [(30,), (1, 30), (2, 15)])
def test_layer_gives_pefts_result_and_gradients(bias: bool, p: float, shape: tuple[int, ...]) -> None:
    (ours, theirs), x = make_pair(bias, p), draw(*shape, INPUTS)
    result = run_one(ours, x)
    assert result["y"].shape == (*shape, OUTPUTS)
    assert_close(result, run_one(theirs, x))


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_input_without_gradient_keeps_the_adapters(p: float) -> None:
    layer, x = adapt(LoRALinear, make_base(True)), draw(30, INPUTS)
    layer.dropout = make_masks(p) if p else None
    expected = run_one(layer, x)
    layer.dropout = make_masks(p) if p else None
    layer.zero_grad()
    y = layer(x)
    assert torch.equal(y, expected["y"])
    y.backward(draw(*y.shape, seed=4))
    assert torch.equal(layer.lora_A["default"].weight.grad, expected["da 0"])
    assert torch.equal(layer.lora_B["default"].weight.grad, expected["db 0"])
    assert x.grad is None
    assert all(value.grad is None for value in layer.get_base_layer().parameters())


@every_kind
@every_rate
def test_fused_layers_give_pefts_results_and_gradients(kind: str, bias: bool, p: float) -> None:
    x = draw(30, INPUTS)
    theirs, ours = (make_layers(each, WIDTHS[kind], bias) for each in (Linear, LoRALinear))
    drop_equally(ours, theirs, p)
    assert not p or not torch.equal(*(layer.lora_dropout["default"].factor for layer in theirs[:2]))
    projections = FusedLoRALinear(ours, is_stacked=kind == "stacked")
    assert_close(run(projections, ours, x), run(compute_separately(kind, theirs), theirs, x))


@every_kind
def test_fused_weights_are_views_of_one_tensor(kind: str, bias: bool) -> None:
    layers = make_layers(LoRALinear, WIDTHS[kind], bias)
    projections = FusedLoRALinear(layers, is_stacked=kind == "stacked")
    x = draw(30, INPUTS)
    before = projections(x)
    for name in ("weight", "bias") if bias else ("weight",):
        parts = [getattr(layer.get_base_layer(), name) for layer in layers]
        assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
        assert parts[0].untyped_storage().nbytes() == sum(part.nbytes for part in parts)
        # Writing to a layer's weight changes the result, so the shared tensor is used.
        parts[1].data.zero_()
        after = projections(x)
        assert not torch.equal(after, before)
        before = after
    torch.testing.assert_close(after, compute_separately(kind, layers)(x), rtol=1e-5, atol=1e-5)


def test_layers_with_unfit_biases_are_not_fused() -> None:
    layers = [adapt(LoRALinear, make_base(bias)) for bias in (True, False)]
    for order in (layers, layers[::-1]):
        with pytest.raises(ValueError, match="bias"):
            FusedLoRALinear(order)
    assert len({layer.get_base_layer().weight.untyped_storage().data_ptr() for layer in layers}) == 2
    with pytest.raises(ValueError, match="bias"):
        FusedLoRALinear(make_layers(LoRALinear, WIDTHS["stacked"], True), is_stacked=True)


@both_biases
@every_rate
def test_gated_input_gives_pefts_result_and_gradients(bias: bool, p: float) -> None:
    (ours, theirs), both = make_pair(bias, p), 2 * draw(2, 30, INPUTS)
    assert_close(run(ours.forward_gated, [ours], both), run(lambda both: theirs(gate(both)), [theirs], both))


def choose_compute(
    kind: str, dtype: torch.dtype, p: float
) -> tuple[Callable[[torch.Tensor], torch.Tensor], list[Linear]]:
    """Return the function of a kind, with weights exact in bfloat16, and its layers."""
    layers = make_layers(LoRALinear, WIDTHS.get(kind, (OUTPUTS,)), False, torch.bfloat16)
    for layer in layers:
        layer.get_base_layer().to(dtype)
    set_dropout(layers, make_masks(p) if p else None)
    if kind in WIDTHS:
        return FusedLoRALinear(layers, is_stacked=kind == "stacked"), layers
    return layers[0].forward_gated if kind == "gated" else layers[0], layers


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["one", "gated", *WIDTHS])
def test_bfloat16_result_is_close_with_float32_adapters(kind: str, p: float) -> None:
    x = draw(*((2, 200, INPUTS) if kind == "gated" else (200, INPUTS))).bfloat16()
    compute, layers = choose_compute(kind, torch.bfloat16, p)
    ours, reference = run(compute, layers, x), run(*choose_compute(kind, torch.float32, p), x.float())
    assert {name: value.dtype for name, value in ours.items()} == {
        name: torch.bfloat16 if name in ("y", "dx") else torch.float32 for name in reference
    }
    assert {value.dtype for layer in layers for name, value in layer.named_parameters() if "lora_" in name} == {
        torch.float32
    }
    for name, value in reference.items():
        # bfloat16 has 8 bits; a wrong scale or mask differs by far more.
        assert (ours[name].float() - value).norm() < 0.01 * value.norm(), name


def count_saved(compute: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> dict[int, int]:
    """Return the bytes of every tensor saved for the backward pass, by address."""
    results: list[torch.Tensor] = []
    saved = saved_tensors(lambda: results.append(compute(x)))
    node: Any = results[0].grad_fn
    while not hasattr(node, "reapply"):
        node = node.next_functions[0][0]
    if node.reapply is not None:
        saved += inspect.getclosurevars(node.reapply).nonlocals.values()
    return {tensor.data_ptr(): tensor.nbytes for tensor in saved}


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["one", "gated", *WIDTHS])
def test_backward_saves_the_input_and_mask_bytes(kind: str, p: float) -> None:
    x = draw(*((2, 1000, INPUTS) if kind == "gated" else (1000, INPUTS))).requires_grad_()
    compute, layers = choose_compute(kind, torch.float32, p)
    saved = count_saved(compute, x)
    widths = WIDTHS.get(kind, (OUTPUTS,))
    weights = 4 * (INPUTS * sum(widths) + RANK * (INPUTS * len(layers) + sum(widths)))
    masks = 1000 * INPUTS * len(layers) if p else 0
    assert saved[x.data_ptr()] == x.nbytes
    assert sum(saved.values()) == x.nbytes + 1000 * 4 * RANK * len(layers) + masks + weights
