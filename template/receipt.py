"""The receipt every score leaves: its inputs, its environment, its loss, and the validator's signature over them.

Pure: signing and verifying are functions given by the caller, so nothing here needs a wallet or a chain.
"""

import dataclasses
import json
import reprlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from template.competition import Competition
from template.errors import ConfigError
from template.records import TrainResult

FORMAT = "dataset-score-receipt/1"

# Signatures are made over this and the content, so that no other message of a hotkey can pass for a receipt.
_DOMAIN = b"dataset-score-receipt/1\n"

_Record = TypeVar("_Record")

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
class ScoredSubmission:
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
    submission: ScoredSubmission | None
    result: TrainResult
    signer: str | None = None
    signature: str | None = None

    def message(self) -> bytes:
        """The bytes that are signed: a fixed prefix and the canonical JSON of everything but the signature."""
        content = {key: value for key, value in self._content().items() if key != "signature"}
        return _DOMAIN + json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    def signed(self, signer: str, sign: Callable[[bytes], str]) -> "Receipt":
        """This receipt signed by `signer`; sign(message) returns the signature in hex."""
        unsigned = dataclasses.replace(self, signer=signer, signature=None)
        return dataclasses.replace(unsigned, signature=sign(unsigned.message()))

    def to_json(self) -> str:
        """The receipt as indented JSON. Floats are written so that they read back to the same bits."""
        return json.dumps(self._content(), indent=2, allow_nan=False)

    def _content(self) -> dict[str, Any]:
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> "Receipt":
        """The receipt that `to_json` wrote. source is what to call the origin in an error.

        Raises: ConfigError when it is not a receipt of this format, naming the first thing that is wrong.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{source}: not JSON: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ConfigError(f"{source}: not a receipt; expected a JSON object with format {FORMAT!r}")
        sections = {key: value for key, value in content.items() if key != "format"}
        sections["competition"] = Competition.from_mapping(content.get("competition"), f"{source}: competition")
        sections["result"] = _read_record(TrainResult, content.get("result"), f"{source}: result")
        if content.get("submission") is not None:
            sections["submission"] = _read_record(ScoredSubmission, content["submission"], f"{source}: submission")
        return _read_record(cls, sections, source)


def _read_record(kind: type[_Record], values: object, where: str) -> _Record:
    """The dataclass `kind` with exactly these fields, each of the annotated type. Raises: ConfigError."""
    hints = get_type_hints(kind)
    if not isinstance(values, dict) or values.keys() != hints.keys():
        raise ConfigError(f"{where}: expected exactly the keys {', '.join(hints)}")
    for name, hint in hints.items():
        if not _fits(values[name], hint):
            raise ConfigError(f"{where}.{name} cannot be {reprlib.repr(values[name])}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _fits(value: object, hint: Any) -> bool:
    """True when a JSON value can be a field annotated with `hint`: numbers finite, a list for a tuple."""
    parts = get_args(hint)
    if get_origin(hint) is UnionType:
        return any(_fits(value, part) for part in parts)
    if get_origin(hint) is Mapping:
        return isinstance(value, dict) and all(_fits(item, parts[1]) for item in value.values())
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value)
    if hint is float:
        # A whole number may stand for a float, but it has no largest value, so isfinite would raise.
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, hint) and not isinstance(value, bool)


class Replay(StrEnum):
    """What a replay says of a receipt."""

    IDENTICAL = "identical"
    DIFFERENT = "different"
    NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A receipt against a replay. difference: replayed loss minus the receipt's; None when inputs differ."""

    verdict: Replay
    difference: float | None
    reasons: tuple[str, ...]


def compare(receipt: Receipt, replay: TrainResult) -> Comparison:
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
        return Comparison(verdict=Replay.NOT_COMPARABLE, difference=None, reasons=tuple(unequal))
    difference = replay.loss - recorded.loss
    moved = _environment_changes(recorded.environment, replay.environment)
    if difference == 0.0:
        return Comparison(verdict=Replay.IDENTICAL, difference=0.0, reasons=tuple(moved))
    verdict = Replay.NOT_COMPARABLE if moved else Replay.DIFFERENT
    return Comparison(verdict=verdict, difference=difference, reasons=tuple(moved))


def _environment_changes(recorded: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """One line per part of the environment that is not the same."""
    return [
        f"{name} differs: {recorded.get(name)} in the receipt, {here.get(name)} here"
        for name in sorted({*recorded, *here})
        if recorded.get(name) != here.get(name)
    ]
