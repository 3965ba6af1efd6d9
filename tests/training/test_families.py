"""Every supported model family, tiny and random, against transformers and PEFT."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from template.training.model import ScoringModel, load_model
from template.training.packing import pack_rows
from tests.fixtures.training import CPU, MODEL_ID, make_args, row_with_targets, shift_adapter, whole_losses

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
WINDOWED = {"sliding_window": 16, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
FAMILIES: dict[str, tuple[str, transformers.PreTrainedConfig]] = {
    "llama": ("meta-llama/Llama-3.2-1B-Instruct", transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama 3 rope": (
        "meta-llama/Llama-3.1-8B-Instruct",
        transformers.LlamaConfig(
            **SIZES,
            max_position_embeddings=128,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        ),
    ),
    "llama with biases": (
        "meta-llama/Llama-3.2-1B-Instruct",
        transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    ),
    "qwen2": (MODEL_ID, transformers.Qwen2Config(**SIZES)),
    "qwen2 with a window": (MODEL_ID, transformers.Qwen2Config(**SIZES, use_sliding_window=True, **WINDOWED)),
    "gemma": ("google/gemma-1.1-2b-it", transformers.GemmaConfig(**SIZES)),
    "gemma 2": (
        "google/gemma-2-2b-it",
        transformers.Gemma2Config(**SIZES, **WINDOWED, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    ),
    "gemma 3": ("google/gemma-3-270m-it", transformers.Gemma3TextConfig(**SIZES, **WINDOWED)),
}


# Longer than two windows, longer than one, and shorter.
ROWS = [torch.randint(512, (count,), generator=torch.Generator().manual_seed(count)).tolist() for count in (90, 29, 9)]


def make_transformers_model(config: transformers.PreTrainedConfig, tiny_model: Path, folder: Path) -> Any:
    """Make a random float32 model of transformers, and write it to the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        # The only attention implementation with all soft caps.
        plain = transformers.AutoModelForCausalLM.from_config(
            copy.deepcopy(config), attn_implementation="eager", dtype=torch.float32
        )
        for name, parameter in plain.named_parameters():
            if name.endswith((".bias", "norm.weight")):  # which start at zero or one
                parameter.data.add_(torch.randn_like(parameter) / 4)
    plain.save_pretrained(folder)
    for path in tiny_model.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return plain.eval()


def load(model_id: str, folder: Path) -> ScoringModel:
    args = dataclasses.replace(make_args(lora_dropout=0.0), model_id=model_id)
    return load_model(args, device=CPU, dtype=torch.float32, model_path=folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_family_has_pefts_losses_and_gradients(name: str, tiny_model: Path, tmp_path: Path) -> None:
    model_id, config = FAMILIES[name]
    plain = make_transformers_model(config, tiny_model, tmp_path)
    model = load(model_id, tmp_path)
    shift_adapter(model)
    theirs = get_peft_model(plain, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"))
    _, unexpected = theirs.load_state_dict(model.adapter_parameters, strict=False)
    assert not unexpected
    rows = [row_with_targets(row, range(1, len(row))) for row in ROWS]
    (pack,) = pack_rows(rows, range(3), 10**6, CPU)
    losses = model.target_losses(pack)

    def compute() -> torch.Tensor:
        return torch.cat([whole_losses(theirs, row) for row in ROWS])

    expected = compute()
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    losses.mean().backward()
    expected.mean().backward()
    wanted = {key: value.grad for key, value in theirs.named_parameters() if value.requires_grad}
    assert wanted.keys() == model.adapter_parameters.keys()
    for key, value in model.adapter_parameters.items():
        distance = (value.grad - wanted[key]).norm()
        assert distance < 1e-4 * wanted[key].norm(), key
    if "sliding_attention" in getattr(config, "layer_types", ()):
        plain.config.sliding_window = 1000
        assert (compute() - losses).abs().max() > 1e-2  # else equality would prove nothing
