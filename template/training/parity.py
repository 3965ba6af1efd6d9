"""Compare a model's packed rows with transformers' own forward, before it is used.

A list of supported families cannot know every setting of a configuration. So the first layers of each loaded model
compute two rows both ways, in float32.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from transformers import initialization

from template.data.encoding import EncodedRow
from template.errors import ConfigError
from template.training.packing import balance_packs, pack_rows

# The token ids of both rows are below it.
_VOCABULARY = 256
# The first row is longer than two windows, the second is shorter than two and longer than one.
_WINDOW, _LENGTHS = 8, (20, 11)
# In nats. Rounding gave 4e-6 in all supported families.
_TOLERANCE = 1e-4


def check_parity(base: Any, wrap: Callable[[Any], Any], where: str) -> None:
    """Raise ConfigError unless packed rows have the losses of transformers' forward, alone and together.

    `base` is the loaded model, which is not changed; `wrap` makes a ScoringModel of a base on the CPU. `where` is the
    model's folder or Hub id, for the message.
    """
    config = _first_layers(base.config)
    plain = _build(config, "eager", base.state_dict())
    ours = wrap(_build(config, base.config._attn_implementation, plain.state_dict()))
    rows = [_make_row(length, first) for length, first in zip(_LENGTHS, (3, 100), strict=True)]
    with torch.no_grad():
        expected = [_plain_losses(plain, row) for row in rows]
        cpu = torch.device("cpu")
        packs = [pack for chosen in ([0], [1], [0, 1]) for pack in pack_rows(rows, chosen, 10**6, cpu)]
        for pack in packs + balance_packs(rows, [0, 1], 10**6, cpu, workers=1):
            difference = ours.target_losses(pack) - torch.cat([expected[index] for index in pack.indices])
            largest = difference.abs().max().item()
            if not largest <= _TOLERANCE:  # nan too
                raise ConfigError(
                    f"{where}: its packed rows have other losses than transformers' forward (by up to {largest:.2g} "
                    "nats in float32), so this model is not supported"
                )


def _first_layers(config: Any) -> Any:
    """Return the configuration of the fewest first layers that have every kind of layer, and of the first tokens."""
    short = copy.deepcopy(config)
    count = short.num_hidden_layers
    per_layer = {
        key: value for key, value in short.to_dict().items() if isinstance(value, list) and len(value) == count
    }
    kept = max((1 + value.index(kind) for value in per_layer.values() for kind in value), default=1)
    for name, value in per_layer.items():
        setattr(short, name, value[:kept])
    short.num_hidden_layers = kept
    short.vocab_size = min(_VOCABULARY, short.vocab_size)
    short.pad_token_id = None
    if getattr(short, "sliding_window", None):
        short.sliding_window = _WINDOW
    return short


def _build(config: Any, attention: str, weights: Mapping[str, torch.Tensor]) -> Any:
    """Build a float32 model of the configuration, with the first rows of the weights."""
    with initialization.no_init_weights():
        model: Any = transformers.AutoModelForCausalLM.from_config(
            copy.deepcopy(config), attn_implementation=attention, dtype=torch.float32
        )
    chosen = {name: weights[name][: len(value)].float() for name, value in model.state_dict().items()}
    model.load_state_dict(chosen, assign=True)
    model.tie_weights()
    return model.eval()


def _make_row(length: int, first: int) -> EncodedRow:
    return EncodedRow(tuple(range(first, first + length)), (False,) + (True,) * (length - 1), line=1)


def _plain_losses(model: Any, row: EncodedRow) -> torch.Tensor:
    ids = torch.tensor([row.input_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    return F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
