"""The leaner parts of a decoder layer against transformers' own, and which modules they take the place of."""

import copy
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from template.training.attention import packed_attention
from template.training.layers import FusedGatedMLP, FusedRMSNorm, FusedRotaryAttention, _SplitRotate, replace_layers
from template.training.lora import LoRALinear

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
REPLACED = ["llama", "qwen2"]
GEMMAS = ["gemma", "gemma2", "gemma3_text"]
ATTENTION = "packed_rows_of_a_test"

both_families = pytest.mark.parametrize("kind", REPLACED)


def make_network(kind: str, **changes: Any) -> nn.Module:
    """A random network of the family with adapters that are felt, as PEFT makes it of our adapted layers."""
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


# What is replaced.


@both_families
def test_norms_attentions_and_mlps_are_replaced(kind: str) -> None:
    network = make_network(kind)
    replace_layers(network)
    assert modules_of(network, FusedRotaryAttention) == {"layers.0.self_attn", "layers.1.self_attn"}
    assert modules_of(network, FusedGatedMLP) == {"layers.0.mlp", "layers.1.mlp"}
    assert len(modules_of(network, FusedRMSNorm)) == 5


@pytest.mark.parametrize("kind", GEMMAS)
def test_gemma_is_not_replaced(kind: str) -> None:
    network = make_network(kind)
    before = [(name, id(module)) for name, module in network.named_modules()]
    replace_layers(network)
    assert [(name, id(module)) for name, module in network.named_modules()] == before


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


# What they compute.


def run(network: nn.Module, ids: torch.Tensor, positions: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The logits, and the gradients that some loss gives to every adapter."""
    network.zero_grad()
    logits = network(input_ids=ids, position_ids=positions, use_cache=False).logits
    logits.backward(torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)))
    gradients = {name: value.grad for name, value in network.named_parameters() if value.requires_grad}
    assert all(value is not None and value.any() for value in gradients.values())
    return {"logits": logits.detach(), **gradients}


# One row's positions for all, or for each row its own, of unlike steps, which turns its queries and keys apart.
POSITIONS = {
    "as they come": None,
    "of one row": torch.arange(0, 60, 3).unsqueeze(0),
    "of each row": torch.arange(20) * torch.tensor([[1], [4], [9]]),
}


@pytest.mark.parametrize("positions", POSITIONS)
@every_config
def test_logits_and_gradients_equal_transformers(config: str, positions: str) -> None:
    kind, changes = CONFIGS[config]
    theirs = make_network(kind, **changes)
    ours = copy.deepcopy(theirs)
    replace_layers(ours)
    assert len(modules_of(ours, FusedRotaryAttention)) == 2
    ids = torch.randint(1, 64, (3, 20), generator=torch.Generator().manual_seed(3))
    wanted = run(theirs, ids, POSITIONS[positions])
    for name, value in run(ours, ids, POSITIONS[positions]).items():
        assert (value - wanted[name]).norm() < 1e-5 * wanted[name].norm(), name


# The rotation.

HEADS, GROUPS, SIZE, COUNT = 4, 2, 8, 13


def make_angles(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (N, D) as transformers' rotary embeddings make them: both halves alike."""
    angles = torch.rand(COUNT, SIZE // 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 100
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate_theirs(y: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What `_SplitRotate` computes, by transformers' function."""
    q, k, v = y.unflatten(1, (-1, SIZE)).split([HEADS, GROUPS, GROUPS], dim=1)
    q, k = apply_rotary_pos_emb(*(part.transpose(0, 1).unsqueeze(0) for part in (q, k)), cos[None], sin[None])
    return q[0].transpose(0, 1), k[0].transpose(0, 1), v


def draw_projected(dtype: torch.dtype) -> torch.Tensor:
    stream = torch.Generator().manual_seed(4)
    y = torch.randn(COUNT, (HEADS + 2 * GROUPS) * SIZE, generator=stream, dtype=torch.float64)
    return y.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rotation_and_its_backward_equal_transformers(dtype: torch.dtype) -> None:
    y, (cos, sin) = draw_projected(dtype), make_angles(dtype)
    stream = torch.Generator().manual_seed(6)
    ours, theirs = _SplitRotate.apply(y, cos, sin, HEADS, GROUPS), rotate_theirs(y, cos, sin)
    upstream = [torch.randn(part.shape, generator=stream, dtype=torch.float64).to(dtype) for part in theirs]
    precision = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 0.01}[dtype]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.shape, one.dtype) == (other.shape, dtype)
        assert (one - other).norm() < precision * other.norm()
    gradients = [torch.autograd.grad(parts, y, upstream)[0] for parts in (ours, theirs)]
    assert gradients[0].dtype is dtype
    assert (gradients[0] - gradients[1]).norm() < precision * gradients[1].norm()
