"""The model configurations whose losses are known to be right; all others are refused by name."""

from collections.abc import Iterator
from typing import Any

from template.data.chat_templates import model2template, template_for
from template.errors import ConfigError

# `dynamic` changes its frequencies with the longest sequence seen so far, so a loss would depend on earlier ones.
# `longrope` chooses them by the longest row of a pack, so a loss would depend on the rows beside it.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_LAYER_TYPES = ("full_attention", "sliding_attention")


def check_config(config: Any, model_id: str, where: str) -> None:
    """Raise ConfigError unless `config` is of the family of `model_id`, without settings that are not supported.

    `config` is a transformers configuration; `where` is the model's folder or Hub id, for the message.
    """
    problem = _find_problem(config, model_id)
    if problem:
        raise ConfigError(f"{where}: config.json has {problem}")


def _find_problem(config: Any, model_id: str) -> str | None:
    supported = list(dict.fromkeys(template.model_type for template in model2template.values()))
    expected = template_for(model_id).model_type
    if config.model_type not in supported:
        return f"model_type {config.model_type!r}, which is not supported; supported are {', '.join(supported)}"
    if config.model_type != expected:
        return f"model_type {config.model_type!r}, but {model_id} in the training arguments has {expected!r}"
    for rope in _rope_types(config):
        if rope not in _ROPE_TYPES:
            return f"rope_type {rope!r}, which is not supported; supported are {', '.join(_ROPE_TYPES)}"
    for layer in getattr(config, "layer_types", None) or ():
        if layer not in _LAYER_TYPES:
            return f"a layer of type {layer!r}, which is not supported; supported are {', '.join(_LAYER_TYPES)}"
    if getattr(config, "use_bidirectional_attention", None):
        return "use_bidirectional_attention, but rows are trained with causal attention"
    for name, value in config.to_dict().items():
        if name.endswith(("dropout", "pdrop")) and value:
            return f"{name} {value}; expected 0, because the only dropout in training is that of the adapters"
    return None


def _rope_types(config: Any) -> Iterator[str]:
    """Yield the type of each rotation; a model may have another one for its windowed layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for part in [parameters] if "rope_type" in parameters else parameters.values():
        yield part["rope_type"]
