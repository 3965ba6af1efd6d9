"""One causal language model class after the other: what loading it here ends in."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from scripts.bench.tiny_model import make_tiny_tokenizer
from template.data.chat_templates import model2template
from template.errors import ConfigError
from template.training import model as model_module
from template.training.model import ScoringModel, load_model
from tests.fixtures.families import FAMILIES, PACKS, losses_by_row, make_transformers_model
from tests.fixtures.training import CPU, MODEL_ID, make_args

KINDS: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""`model_type` of every causal language model of the installed transformers."""

# In nats, in float32.
PARITY = 1e-5
# Of what a class keeps large whatever its configuration says.
_MOST_PARAMETERS = 50_000_000
_SHORT_WINDOW = 16
# The names that configurations have for sizes; a class takes those that it knows.
_SIZES: Mapping[str, float] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 64),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "decoder_ffn_dim", "encoder_ffn_dim"), 128),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 3),
    **dict.fromkeys(("decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **{"vocab_size": 512, "num_key_value_heads": 2, "head_dim": 16, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 32, "sliding_window": _SHORT_WINDOW},
    # So large that attention to wrong tokens shows.
    **dict.fromkeys(("initializer_range", "init_std"), 0.2),
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}


@dataclass(frozen=True)
class Outcome:
    """End of one class.

    Attributes:
        loaded: What the product says: parity with the difference, or a refusal.
        is_allowed: Whether it is one of these two.
        unlisted: What the comparison at load says alone, without the list of supported families.
    """

    name: str
    loaded: str
    is_allowed: bool
    unlisted: str


def play_kind(kind: str, folder: Path) -> Outcome:
    """Load a tiny model of a class in an empty folder."""
    config = _make_tiny(kind)
    model_id = next((id for id, template in model2template.items() if template.model_type == kind), None)
    make_tiny_tokenizer().save_pretrained(folder)
    plain = None
    if config is not None and _count_parameters(config) <= _MOST_PARAMETERS:
        try:
            plain = make_transformers_model(config, folder, folder)
        except Exception:
            plain = None
    if plain is None:
        (folder / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    loaded, is_allowed = _load(model_id or MODEL_ID, folder, plain)
    unlisted = "cannot be made tiny"
    if plain is not None:
        with mock.patch.object(model_module, "check_config", lambda *_: None):
            unlisted, _ = _load(MODEL_ID, folder, plain)
    return Outcome(kind, loaded, is_allowed, unlisted)


def play_variant(name: str, folder: Path) -> Outcome:
    """Load a tiny model of a supported family with settings of its own."""
    model_id, config = FAMILIES[name]
    make_tiny_tokenizer().save_pretrained(folder)
    loaded, is_allowed = _load(model_id, folder, make_transformers_model(config, folder, folder))
    return Outcome(name, loaded, is_allowed, "")


def _make_tiny(kind: str) -> Any | None:
    """Return a configuration of a few thousand weights, or None where a class has no such one."""
    maker: Any = CONFIG_MAPPING[kind]
    try:
        known = {name: size for name, size in _SIZES.items() if name in maker().to_dict()}
    except Exception:
        return None
    for left_out in ((), ("head_dim",), ("sliding_window",), ("head_dim", "sliding_window")):
        try:
            return maker(**{name: size for name, size in known.items() if name not in left_out})
        except Exception:
            continue
    return None


def _count_parameters(config: Any) -> float:
    try:
        with torch.device("meta"):
            model: Any = transformers.AutoModelForCausalLM.from_config(config)
    except Exception:
        return float("inf")
    return float(sum(parameter.numel() for parameter in model.parameters()))


def _load(model_id: str, folder: Path, plain: Any) -> tuple[str, bool]:
    """Return what loading the folder ends in, and whether it is parity or a refusal."""
    args = dataclasses.replace(make_args(lora_dropout=0.0), model_id=model_id)
    try:
        model = load_model(args, device=CPU, dtype=torch.float32, model_path=folder)
    except ConfigError as refusal:
        return f"refused: {str(refusal).removeprefix(f'{folder}: ')}", True
    except Exception as error:
        return f"{type(error).__name__}: {error}", False
    difference = _compare(model, plain)
    return f"parity, {difference:.1e}", difference <= PARITY


def _compare(model: ScoringModel, plain: Any) -> float:
    """Return the largest difference in nats between packed rows and transformers' own forward."""
    model.reset_adapter(7)
    with torch.no_grad():
        differences = [model.target_losses(pack) - losses_by_row(plain, rows, pack) for rows, pack in PACKS.values()]
    return float(torch.cat(differences).abs().max())


def play_all(kinds: tuple[str, ...], folder: Path) -> Iterator[Outcome]:
    """Play these classes, then the variants of the supported families."""
    for number, kind in enumerate(kinds):
        (place := folder / f"kind-{number}").mkdir()
        yield play_kind(kind, place)
    for number, name in enumerate(FAMILIES):
        (place := folder / f"variant-{number}").mkdir()
        yield play_variant(name, place)
