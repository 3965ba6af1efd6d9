"""The fused parts of a decoder layer against transformers' own."""

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from template.training.attention import packed_attention
from template.training.layers import FusedGatedMLP, FusedRMSNorm, FusedRotaryAttention, replace_layers
from template.training.lora import LoRALinear
from tests.fixtures.training import draw, saved_tensors

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
ATTENTION = "packed_rows_of_a_test"


def make_network(kind: str, **changes: Any) -> nn.Module:
    """Make a random network of a family with nonzero adapters."""
    transformers.AttentionInterface.register(ATTENTION, packed_attention)
    config = transformers.AutoConfig.for_model(kind, **(SIZES | changes))
    lora = LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear")
    lora._register_custom_module({nn.Linear: LoRALinear})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        base = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
        network = get_peft_model(base, lora).eval()
        for name, parameter in network.named_parameters():
            if "lora_B" in name or name.endswith(("bias", "norm.weight")):  # which start at zero or one
                parameter.data.add_(torch.randn_like(parameter) / 4)
    return network


def modules_of(network: nn.Module, *kinds: type[nn.Module]) -> set[str]:
    return {
        name.removeprefix("base_model.model.model.")
        for name, module in network.named_modules()
        if isinstance(module, kinds)
    }


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_norms_attentions_and_mlps_are_replaced(kind: str) -> None:
    network = make_network(kind)
    replace_layers(network)
    assert modules_of(network, FusedRotaryAttention) == {"layers.0.self_attn", "layers.1.self_attn"}
    assert modules_of(network, FusedGatedMLP) == {"layers.0.mlp", "layers.1.mlp"}
    assert len(modules_of(network, FusedRMSNorm)) == 5


@pytest.mark.parametrize("changes", [{"mlp_bias": True}, {"hidden_act": "gelu"}], ids=str)
def test_mlp_of_another_formula_is_not_replaced(changes: dict[str, Any]) -> None:
    network = make_network("llama", **changes)
    replace_layers(network)
    assert not modules_of(network, FusedGatedMLP)
    assert len(modules_of(network, FusedRotaryAttention)) == 2


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
}

every_config = pytest.mark.parametrize("config", CONFIGS)


@every_config
def test_parameters_keep_names_order_and_values(config: str) -> None:
    kind, changes = CONFIGS[config]
    network = make_network(kind, **changes)
    # The adapter's initial values are drawn in this order.
    before = [(name, id(value), value.requires_grad) for name, value in network.named_parameters()]
    values = [value.detach().clone() for value in network.parameters()]
    state = list(network.state_dict())
    replace_layers(network)
    assert [(name, id(value), value.requires_grad) for name, value in network.named_parameters()] == before
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), values, strict=True))
    assert list(network.state_dict()) == state


WIDTH = 48
both_norms = pytest.mark.parametrize("family", [LlamaRMSNorm, Qwen2RMSNorm])
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def make_pair(family: type[Any], dtype: torch.dtype, epsilon: float = 1e-5) -> tuple[nn.Module, nn.Module]:
    """Make a family's norm and its replacement."""
    theirs = family(WIDTH, eps=epsilon).to(dtype).requires_grad_(False)
    theirs.weight.copy_(draw(WIDTH, seed=2))
    parent = nn.ModuleDict({"norm": theirs})
    replace_layers(parent)
    assert type(parent["norm"]) is FusedRMSNorm
    return theirs, parent["norm"]


def make_inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    """Make inputs of several shapes and of extreme sizes, and zeros."""
    x = draw(2, 33, WIDTH) * torch.logspace(-4, 3, 33).unsqueeze(1)
    return [x.to(dtype), draw(5, WIDTH).to(dtype), torch.zeros(1, WIDTH, dtype=dtype)]


@both_dtypes
@both_norms
@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_norm_equals_the_models_own_bits(family: type[Any], dtype: torch.dtype, epsilon: float) -> None:
    theirs, ours = make_pair(family, dtype, epsilon)
    for x in make_inputs(dtype):
        y = ours(x)
        assert (y.dtype, y.shape) == (dtype, x.shape)
        assert torch.equal(y, theirs(x))


@both_dtypes
@both_norms
def test_norm_gradient_equals_the_models_own(family: type[Any], dtype: torch.dtype) -> None:
    theirs, ours = make_pair(family, dtype)
    for x in make_inputs(dtype):
        dy = draw(*x.shape, seed=3).to(dtype)
        gradients = []
        for norm in (ours, theirs):
            leaf = x.clone().requires_grad_()
            gradients.append(torch.autograd.grad(norm(leaf), leaf, dy)[0])
        assert gradients[0].dtype is dtype
        # By row, because sizes differ by powers of ten.
        distance = (gradients[0] - gradients[1]).float().norm(dim=-1)
        assert (distance <= (1e-6 if dtype is torch.float32 else 0.01) * gradients[1].float().norm(dim=-1)).all()
    assert ours.weight.grad is None


@both_dtypes
def test_norm_saves_its_input_and_a_number_per_row(dtype: torch.dtype) -> None:
    _, ours = make_pair(Qwen2RMSNorm, dtype)
    x = draw(100, WIDTH).to(dtype).requires_grad_()
    saved = [(tensor.numel(), tensor.dtype) for tensor in saved_tensors(lambda: ours(x))]
    assert saved == [(100 * WIDTH, dtype), (WIDTH, dtype), (100, torch.float32)]
