"""The resident model: adapter, dropout, losses, and loading."""

import itertools
import math
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from template.training.dropout import CpuDropout
from template.training.layers import FusedRMSNorm
from template.training.lora import LoRALinear
from template.training.model import ScoringModel, load_tokenizer
from template.training.packing import pack_rows
from tests.fixtures.training import (
    CPU,
    DTYPES,
    Bench,
    base_parameters,
    digests,
    hidden_states,
    make_args,
    pack_tokens,
    row_with_targets,
    shift_adapter,
    whole_losses,
)

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def model(bench: Bench) -> ScoringModel:
    """A bfloat16 model with the subnet's dropout."""
    return bench.load("bfloat16")


def test_every_linear_layer_but_the_head_has_an_adapter(model: ScoringModel) -> None:
    adapted = {name.split(".lora_")[0].removeprefix("base_model.model.model.") for name in model.adapter_parameters}
    blocks = {name: "self_attn" if name in LINEARS[:4] else "mlp" for name in LINEARS}
    assert adapted == {f"layers.{layer}.{block}.{name}" for layer in (0, 1) for name, block in blocks.items()}
    assert len(model.adapter_parameters) == 2 * 2 * 7
    assert {min(value.shape) for value in model.adapter_parameters.values()} == {16}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_float32_on_any_base_dtype(bench: Bench, dtype: str) -> None:
    model = bench.load(dtype)
    assert {value.dtype for value in model.adapter_parameters.values()} == {torch.float32}
    assert {value.dtype for value in base_parameters(model).values()} == {DTYPES[dtype]}
    assert model.dtype is DTYPES[dtype]
    assert len(base_parameters(model)) == 26


def test_reset_has_pefts_initial_distribution(model: ScoringModel) -> None:
    model.reset_adapter(7)
    for name, value in model.adapter_parameters.items():
        if "lora_B" in name:
            assert not value.any()
            continue
        expected = torch.empty_like(value)
        torch.nn.init.kaiming_uniform_(expected, a=math.sqrt(5), generator=torch.Generator().manual_seed(1))
        bound = 1 / math.sqrt(value.shape[1])
        assert 0.98 * bound < value.abs().max().item() <= bound
        assert value.std().item() == pytest.approx(expected.std().item(), rel=0.1)
        assert abs(value.mean().item()) < 0.1 * bound


def test_reset_depends_on_the_seed_only(model: ScoringModel) -> None:
    def after(lucky_num: int) -> dict[str, str]:
        model.reset_adapter(lucky_num)
        return digests(model.adapter_parameters)

    seven = after(7)
    with torch.no_grad():
        for value in model.adapter_parameters.values():
            value.add_(1.0)
            value.grad = torch.ones_like(value)
    torch.manual_seed(5)
    torch.rand(3)
    assert after(7) == seven
    assert all(value.grad is None for value in model.adapter_parameters.values())
    eight = after(8)
    assert all(eight[name] != seven[name] for name in seven if "lora_A" in name)


def test_layers_of_equal_shape_start_differently(model: ScoringModel) -> None:
    model.reset_adapter(7)
    starts = [value for name, value in digests(model.adapter_parameters).items() if "lora_A" in name]
    assert len(set(starts)) == 14


def test_initial_values_never_change_between_versions(bench: Bench) -> None:
    # Another order or draw changes the loss of every receipt.
    model = bench.load()
    model.reset_adapter(7)
    first = next(
        value for name, value in model.adapter_parameters.items() if name.endswith("q_proj.lora_A.default.weight")
    )
    assert first[0, :3].tolist() == pytest.approx([-0.102880314, -0.046790868, 0.045098633], rel=1e-6)


def test_one_dropout_reaches_all_layers(bench: Bench) -> None:
    model = bench.load(lora_dropout=0.5)
    pack = pack_tokens(range(50))

    def run(lucky_num: int) -> torch.Tensor:
        shift_adapter(model, lucky_num)
        model.set_dropout(True)
        model.seed_dropout(lucky_num, 0, 0)
        with torch.no_grad():
            return hidden_states(model, pack)

    first = run(7)
    assert torch.equal(run(7), first)
    assert not torch.equal(run(8), first)
    layers = [module for module in model.network.modules() if isinstance(module, LoRALinear)]
    assert len(layers) == 14
    # One stream for all, so that no two layers drop the same.
    (dropout,) = {layer.dropout for layer in layers}
    assert isinstance(dropout, CpuDropout)
    assert dropout.keep_rate == 0.5
    model.set_dropout(False)
    assert not any(layer.dropout for layer in layers)


def test_dropout_differs_by_seed_step_and_pack(bench: Bench) -> None:
    model = bench.load(lora_dropout=0.5)
    assert isinstance(model.dropout, CpuDropout)
    drawn = set()
    for lucky_num in (7, 8, 71):
        model.reset_adapter(lucky_num)
        for step, pack in itertools.product((0, 1, 10, 11), repeat=2):
            model.seed_dropout(lucky_num, step, pack)
            drawn.add(tuple(model.dropout.draw(torch.Size([64])).tolist()))
    assert len(drawn) == 3 * 4 * 4


def test_zero_dropout_draws_nothing(bench: Bench) -> None:
    model = bench.load(lora_dropout=0.0)
    model.reset_adapter(7)
    model.set_dropout(True)
    model.seed_dropout(7, 0, 0)
    assert not any(layer.dropout for layer in model.network.modules() if isinstance(layer, LoRALinear))


def test_losses_of_a_pack_equal_the_plain_models(bench: Bench) -> None:
    model = bench.load()
    plain = transformers.AutoModelForCausalLM.from_pretrained(bench.model_path, dtype=torch.float32)
    rows = [row_with_targets(range(100), range(1, 100)), row_with_targets(range(200, 240), {2, 3, 39})]
    (pack,) = pack_rows(rows, [0, 1], 10**6, CPU)
    with torch.no_grad():
        ours = model.target_losses(pack)
        whole = [
            whole_losses(plain, row.input_ids)[[index - 1 for index, hit in enumerate(row.targets) if hit]]
            for row in rows
        ]
    assert ours.dtype is torch.float32
    torch.testing.assert_close(ours, torch.cat(whole), rtol=0, atol=1e-5)


def test_base_equals_the_weights_file(bench: Bench, tiny_model: Path) -> None:
    model = bench.load()
    ours = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): digest
        for name, digest in digests(base_parameters(model)).items()
    }
    assert ours == digests(load_file(tiny_model / "model.safetensors"))
    assert sum("norm" in name for name in ours) == 5
    assert sum(isinstance(module, FusedRMSNorm) for module in model.network.modules()) == 5


def test_tokenize_adds_no_tokens(model: ScoringModel) -> None:
    plain = transformers.AutoTokenizer.from_pretrained(model.tokenizer.name_or_path)
    for text in ("", "hello", "<|im_start|>user\nhi<|im_end|>\n"):
        assert model.tokenize(text) == plain.convert_tokens_to_ids(plain.tokenize(text))
        assert load_tokenizer(make_args(), model_path=Path(plain.name_or_path))(text) == model.tokenize(text)
