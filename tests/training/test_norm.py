"""The lean RMSNorm against the models' own."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from template.training.layers import FusedRMSNorm, replace_norms

WIDTH = 48
THEIRS = [LlamaRMSNorm, Qwen2RMSNorm]

both_families = pytest.mark.parametrize("family", THEIRS)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_pair(family: type[Any], dtype: torch.dtype, epsilon: float = 1e-5) -> tuple[nn.Module, nn.Module]:
    """The family's own norm and what replaces it."""
    theirs = family(WIDTH, eps=epsilon).to(dtype).requires_grad_(False)
    theirs.weight.copy_(draw(WIDTH, seed=2))
    parent = nn.ModuleDict({"norm": theirs})
    replace_norms(parent)
    assert type(parent["norm"]) is FusedRMSNorm
    return theirs, parent["norm"]


def make_inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    """Of every shape, of rows far from one in size, and one of zeros, where epsilon is all there is."""
    x = draw(2, 33, WIDTH) * torch.logspace(-4, 3, 33).unsqueeze(1)
    return [x.to(dtype), draw(5, WIDTH).to(dtype), torch.zeros(1, WIDTH, dtype=dtype)]


@both_dtypes
@both_families
@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_norm_equals_the_models_own_bits(family: type[Any], dtype: torch.dtype, epsilon: float) -> None:
    theirs, ours = make_pair(family, dtype, epsilon)
    for x in make_inputs(dtype):
        y = ours(x)
        assert (y.dtype, y.shape) == (dtype, x.shape)
        assert torch.equal(y, theirs(x))


@both_dtypes
@both_families
def test_norm_gradient_equals_the_models_own(family: type[Any], dtype: torch.dtype) -> None:
    theirs, ours = make_pair(family, dtype)
    for x in make_inputs(dtype):
        dy = draw(*x.shape, seed=3).to(dtype)
        gradients = []
        for norm in (ours, theirs):
            leaf = x.clone().requires_grad_()
            gradients.append(torch.autograd.grad(norm(leaf), leaf, dy)[0])
        assert gradients[0].dtype is dtype
        # By row, because their sizes differ by powers of ten.
        distance = (gradients[0] - gradients[1]).float().norm(dim=-1)
        assert (distance <= (1e-6 if dtype is torch.float32 else 0.01) * gradients[1].float().norm(dim=-1)).all()
    assert ours.weight.grad is None


def test_norm_keeps_non_finite_rows_apart() -> None:
    _, ours = make_pair(LlamaRMSNorm, torch.float32)
    x = draw(4, WIDTH)
    whole = ours(x)
    x[2, 3] = torch.nan
    broken = ours(x)
    assert broken[2].isnan().all()
    assert torch.equal(broken[[0, 1, 3]], whole[[0, 1, 3]])


@both_dtypes
def test_norm_saves_its_input_and_a_number_per_row(dtype: torch.dtype) -> None:
    _, ours = make_pair(Qwen2RMSNorm, dtype)
    x = draw(100, WIDTH).to(dtype).requires_grad_()
    kept: list[tuple[int, torch.dtype]] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append((tensor.numel(), tensor.dtype))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        ours(x)
    assert kept == [(100 * WIDTH, dtype), (WIDTH, dtype), (100, torch.float32)]


def make_network(kind: str) -> transformers.PreTrainedModel:
    sizes: dict[str, Any] = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **sizes))
