"""The receipt every score leaves: its inputs, its environment, its loss, and the validator's signature over them.

Pure: signing and verifying are functions given by the caller, so nothing here needs a wallet or a chain.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from template.competition import Competition
from template.records import LOCATION, TrainResult
from template.serialization import canonical_json, parse_object, read_record

FORMAT = "dataset-score-receipt/1"

# Signatures are made over this and the content, so that no other message of a hotkey can pass for a receipt.
_DOMAIN = b"dataset-score-receipt/1\n"

# What must be equal for two losses to be about the same thing, and what each is called in a sentence.
_INPUTS = {
    "lucky_num": "the lucky_num",
    "model_id": "the model",
    "model_revision": "the model's revision",
    "model_digest": "the model folder's digest",
    "hyperparameters_digest": "the hyperparameters",
    "train_sha256": "the training file",
    "train_rows": "the number of training rows",
    "eval_sha256": "the evaluation file",
}


@dataclass(frozen=True, kw_only=True)
class EvaluatedSubmission:
    """Whose dataset was scored: the miner's hotkey on `netuid` and the repo and commit it published."""

    netuid: int
    hotkey: str
    repo: str
    commit: str


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """One score, ready to be replayed by anyone.

    submission is None for a score of a local file. signer is the validator's hotkey, None when nobody signs.
    signature is hex over `message`, None while unsigned.
    """

    competition: Competition
    submission: EvaluatedSubmission | None
    result: TrainResult
    signer: str | None = None
    signature: str | None = None

    def message(self) -> bytes:
        """The bytes that are signed: a fixed prefix and the canonical JSON of everything but the signature."""
        content = {key: value for key, value in self._content().items() if key != "signature"}
        return _DOMAIN + canonical_json(content).encode()

    def signed(self, signer: str, sign: Callable[[bytes], str]) -> "Receipt":
        """This receipt signed by `signer`; sign(message) returns the signature in hex."""
        unsigned = dataclasses.replace(self, signer=signer, signature=None)
        return dataclasses.replace(unsigned, signature=sign(unsigned.message()))

    def to_json(self) -> str:
        """The receipt as indented JSON. Floats are written so that they read back to the same bits."""
        return json.dumps(self._content(), indent=2, allow_nan=False)

    def to_line(self) -> str:
        """The receipt as one line of canonical JSON, signature and all, without the line's end."""
        return canonical_json(self._content())

    @property
    def digest(self) -> str:
        """sha256 in hex over `to_line`."""
        return hashlib.sha256(self.to_line().encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> "Receipt":
        """The receipt that `to_json` or `to_line` wrote. source is what to call the origin in an error.

        Raises: ConfigError when it is not a receipt of this format, naming the first thing that is wrong.
        """
        return read_record(cls, parse_object(text, FORMAT, source), source)


class ReplayVerdict(StrEnum):
    """What a replay says of a receipt."""

    IDENTICAL = "identical"
    DIFFERENT = "different"
    NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True, kw_only=True)
class ReplayComparison:
    """A receipt against a replay. difference: replayed loss minus the receipt's; None when inputs differ.

    reasons: what is not the same beside the loss, of inputs, environment and the losses of training steps.
    """

    verdict: ReplayVerdict
    difference: float | None
    reasons: tuple[str, ...]


def compare_receipt(receipt: Receipt, replay: TrainResult) -> ReplayComparison:
    """Says whether `replay` reproduced the receipt to the last bit, and if not, what may explain it.

    Unequal inputs are never comparable. On equal inputs equal losses are identical wherever they were computed; unequal
    losses are different, or not comparable when library, device, dtype or threads differ too.
    """
    recorded = receipt.result
    unequal = [
        f"{words} differs: {getattr(recorded, name)!r} in the receipt, {getattr(replay, name)!r} here"
        for name, words in _INPUTS.items()
        if getattr(recorded, name) != getattr(replay, name)
    ]
    if unequal:
        return ReplayComparison(verdict=ReplayVerdict.NOT_COMPARABLE, difference=None, reasons=tuple(unequal))
    difference = replay.loss - recorded.loss
    moved = _environment_changes(recorded.environment, replay.environment)
    reasons = (*moved, *_step_changes(recorded.step_losses, replay.step_losses))
    if difference == 0.0:
        return ReplayComparison(verdict=ReplayVerdict.IDENTICAL, difference=0.0, reasons=reasons)
    verdict = ReplayVerdict.NOT_COMPARABLE if moved else ReplayVerdict.DIFFERENT
    return ReplayComparison(verdict=verdict, difference=difference, reasons=reasons)


def _environment_changes(recorded: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """One line per part of the environment that is not the same."""
    return [
        f"{name} differs: {recorded.get(name)} in the receipt, {here.get(name)} here"
        for name in sorted({*recorded, *here} - {LOCATION})
        if recorded.get(name) != here.get(name)
    ]


def _step_changes(recorded: Sequence[float], here: Sequence[float]) -> list[str]:
    """A line on where training first went another way; none when the losses of all steps are the same."""
    if len(recorded) != len(here):
        return [f"the number of training steps differs: {len(recorded)} in the receipt, {len(here)} here"]
    for step, (theirs, ours) in enumerate(zip(recorded, here, strict=True), start=1):
        if theirs != ours:
            return [f"the loss of training step {step} differs: {theirs!r} in the receipt, {ours!r} here"]
    return []
