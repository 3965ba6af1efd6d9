"""Every supported model family, tiny and random, against transformers and PEFT."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from template.errors import ConfigError
from template.training import model as model_module
from template.training.model import ScoringModel, load_model
from tests.fixtures.families import (
    FAMILIES,
    PACKS,
    SIZES,
    WINDOWED,
    YARN,
    losses_by_row,
    make_transformers_model,
)
from tests.fixtures.training import CPU, MODEL_ID, make_args, shift_adapter

# Setting of config.json -> part of the message.
REFUSED: dict[str, tuple[transformers.PreTrainedConfig, str]] = {
    "another family": (transformers.GPT2Config(n_embd=64, n_layer=1, n_head=4), "'gpt2', which is not supported"),
    "the family of another model": (transformers.LlamaConfig(**SIZES), "'llama', but Qwen/Qwen2.5-1.5B-Instruct"),
    "dynamic rope": (
        transformers.Qwen2Config(**SIZES, rope_parameters={**YARN, "rope_type": "dynamic"}),
        "rope_type 'dynamic'",
    ),
    "longrope": (
        transformers.Qwen2Config(
            **SIZES,
            rope_parameters={**YARN, "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
        ),
        "rope_type 'longrope'",
    ),
    "chunked layers": (transformers.Qwen2Config(**SIZES, layer_types=["chunked_attention"] * 3), "chunked_attention"),
    "dropout in attention": (transformers.Qwen2Config(**SIZES, attention_dropout=0.1), "attention_dropout 0.1"),
}


def load(model_id: str, folder: Path) -> ScoringModel:
    args = dataclasses.replace(make_args(lora_dropout=0.0), model_id=model_id)
    return load_model(args, device=CPU, dtype=torch.float32, model_path=folder)


@pytest.mark.parametrize("kind", PACKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_family_has_pefts_losses_and_gradients(name: str, kind: str, tiny_model: Path, tmp_path: Path) -> None:
    model_id, config = FAMILIES[name]
    plain = make_transformers_model(config, tiny_model, tmp_path)
    model = load(model_id, tmp_path)
    shift_adapter(model)
    theirs = get_peft_model(plain, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"))
    _, unexpected = theirs.load_state_dict(model.adapter_parameters, strict=False)
    assert not unexpected
    rows, pack = PACKS[kind]
    losses, expected = model.target_losses(pack), losses_by_row(theirs, rows, pack)
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
        assert (losses_by_row(theirs, rows, pack) - losses).abs().max() > 1e-2  # else equality would prove nothing


@pytest.mark.parametrize("name", REFUSED)
def test_setting_without_support_is_named(name: str, tiny_model: Path, tmp_path: Path) -> None:
    config, message = REFUSED[name]
    config.save_pretrained(tmp_path)  # without weights, since nothing else is read
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load(MODEL_ID, tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_window_of_another_kind_of_layer_is_checked_too(tmp_path: Path) -> None:
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    rope["sliding_attention"] = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    config = transformers.Gemma3TextConfig(**SIZES, **WINDOWED, rope_parameters=rope)
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="rope_type 'dynamic'"):
        load("google/gemma-3-270m-it", tmp_path)


def test_bidirectional_attention_is_refused_by_name(tiny_model: Path, tmp_path: Path) -> None:
    config = transformers.Gemma3TextConfig(**SIZES, **WINDOWED, use_bidirectional_attention=True)
    make_transformers_model(config, tiny_model, tmp_path)
    with pytest.raises(ConfigError, match="use_bidirectional_attention"):
        load("google/gemma-3-270m-it", tmp_path)


@pytest.mark.parametrize("kind", ["bidirectional", "attention sinks"])
def test_other_attention_is_refused_whatever_its_name(
    kind: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: dict[str, Any] = {
        "bidirectional": transformers.Gemma3TextConfig(**SIZES, **WINDOWED, use_bidirectional_attention=True),
        "attention sinks": transformers.GptOssConfig(**SIZES, num_local_experts=2, layer_types=["full_attention"] * 3),
    }
    make_transformers_model(configs[kind], tiny_model, tmp_path)
    monkeypatch.setattr(model_module, "check_config", lambda *_: None)
    messages = {"bidirectional": "other losses than transformers", "attention sinks": "unexpected keyword argument"}
    with pytest.raises(ConfigError, match=messages[kind]):
        load("google/gemma-3-270m-it", tmp_path)
