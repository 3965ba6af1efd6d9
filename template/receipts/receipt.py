"""Receipts of evaluations, and their comparison with a replay. Pure."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Self

from template.competition import Competition
from template.records import LOCATION, TrainResult
from template.serialization import canonical_json, parse_object, read_record, without_format

# Two losses are comparable only when these are equal. The values name them in a sentence.
_INPUTS = {
    "lucky_num": "lucky_num",
    "model_id": "model",
    "model_revision": "model revision",
    "model_digest": "digest of the model folder",
    "hyperparameters_digest": "hyperparameters",
    "train_sha256": "training file",
    "train_rows": "number of training rows",
    "eval_sha256": "evaluation file",
}


class SignedRecord:
    """Base of the dataclasses that a validator signs and writes as JSON.

    signer: the validator's hotkey, None when unsigned. signature: hex over `message`.
    """

    FORMAT: ClassVar[str]
    signer: str | None
    signature: str | None
    # As it was read: a later release may know more keys, with default values, than its signer wrote.
    _read: ClassVar[dict[str, Any] | None] = None

    def message(self) -> bytes:
        """Return the bytes to sign: the format and everything but the signature."""
        content = {key: value for key, value in self._content().items() if key != "signature"}
        # The prefix keeps any other message of the hotkey from passing for this format.
        return f"{self.FORMAT}\n{canonical_json(content)}".encode()

    def signed(self, signer: str | None, sign: Callable[[bytes], str]) -> Self:
        """Return a copy signed by `signer`; sign(message) returns the signature in hex."""
        unsigned = dataclasses.replace(self, signer=signer, signature=None)  # type: ignore[type-var]
        return dataclasses.replace(unsigned, signature=sign(unsigned.message()))  # type: ignore[type-var]

    def to_line(self) -> str:
        """Return one line of canonical JSON, with the signature and without the line feed."""
        return canonical_json(self._content())

    def _content(self) -> dict[str, Any]:
        content = dataclasses.asdict(self) if self._read is None else self._read  # type: ignore[call-overload]
        return {"format": self.FORMAT, **content}

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Self:
        """Parse a record; `source` names its origin in errors. Raises: ConfigError."""
        content = parse_object(text, cls.FORMAT, source)
        record = read_record(cls, content, source, text=without_format(text, cls.FORMAT))
        object.__setattr__(record, "_read", content)
        return record


@dataclass(frozen=True, kw_only=True)
class EvaluatedSubmission:
    """The miner's hotkey on `netuid`, and the repo and commit that were evaluated."""

    netuid: int
    hotkey: str
    repo: str
    commit: str


@dataclass(frozen=True, kw_only=True)
class Receipt(SignedRecord):
    """One evaluation with all its inputs. submission: None for a local file."""

    FORMAT = "dataset-score-receipt/1"

    competition: Competition
    submission: EvaluatedSubmission | None
    result: TrainResult
    signer: str | None = None
    signature: str | None = None

    def to_json(self) -> str:
        """Return indented JSON. Floats read back to the same bits."""
        return json.dumps(self._content(), indent=2, allow_nan=False)

    @property
    def digest(self) -> str:
        """sha256 in hex over `to_line`."""
        return hashlib.sha256(self.to_line().encode()).hexdigest()


class ReplayVerdict(StrEnum):
    IDENTICAL = "identical"
    DIFFERENT = "different"
    NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True, kw_only=True)
class ReplayComparison:
    """A receipt against a replay of it.

    difference: the replayed loss minus the receipt's, None when inputs differ. reasons: what differs besides the loss:
    inputs, environment, losses of training steps.
    """

    verdict: ReplayVerdict
    difference: float | None
    reasons: tuple[str, ...]


def compare_receipt(receipt: Receipt, replay: TrainResult) -> ReplayComparison:
    """Compare a replay with the receipt, to the last bit of the loss.

    Different inputs are never comparable. On equal inputs equal losses are identical wherever they were computed, and
    different losses are not comparable when library, device, dtype or threads differ too.
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
    changes = _environment_changes(recorded.environment, replay.environment)
    verdict = ReplayVerdict.NOT_COMPARABLE if changes else ReplayVerdict.DIFFERENT
    return ReplayComparison(
        verdict=ReplayVerdict.IDENTICAL if difference == 0.0 else verdict,
        difference=difference,
        reasons=(*changes, *_step_changes(recorded.step_losses, replay.step_losses)),
    )


def _environment_changes(recorded: Mapping[str, str], replayed: Mapping[str, str]) -> list[str]:
    return [
        f"{name} differs: {recorded.get(name)} in the receipt, {replayed.get(name)} here"
        for name in sorted({*recorded, *replayed} - {LOCATION})
        if recorded.get(name) != replayed.get(name)
    ]


def _step_changes(recorded: Sequence[float], replayed: Sequence[float]) -> list[str]:
    if len(recorded) != len(replayed):
        return [f"number of training steps differs: {len(recorded)} in the receipt, {len(replayed)} here"]
    for step, (theirs, ours) in enumerate(zip(recorded, replayed, strict=True), start=1):
        if theirs != ours:
            return [f"loss of training step {step} differs: {theirs!r} in the receipt, {ours!r} here"]
    return []
