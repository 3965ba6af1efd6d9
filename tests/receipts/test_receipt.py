"""Receipts: to JSON and back to the same bits, signed, and compared with a replay."""

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from template.chain.client import verify_signature
from template.competition import Competition
from template.errors import ConfigError
from template.receipts.receipt import EvaluatedSubmission, Receipt, ReplayVerdict, compare_receipt
from tests.fixtures.chain import make_key
from tests.fixtures.results import make_result
from tests.fixtures.rounds import JUNK, SIGNER, container_of, json_places, sign

RESULT = make_result(
    loss=math.nextafter(2.6, 3.0),
    benchmark_loss=2.6,
    lucky_num=2**32 - 1,
    model_revision="a" * 40,
    model_digest=None,
    hyperparameters={"num_train_epochs": 2, "lora_dropout": 0.1},
    step_losses=(0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308),
    environment={"torch": "2.13.0", "device": "cpu", "threads": "2"},
    load_seconds=0.1,
    train_seconds=1e-07,
    eval_seconds=12.0,
)
MINER = make_key("miner").ss58_address
SUBMISSION = EvaluatedSubmission(netuid=96, hotkey=MINER, repo="owner/näme", commit="e" * 40)
UNSIGNED = Receipt(competition=Competition.from_defaults(), submission=SUBMISSION, result=RESULT)
SIGNED = UNSIGNED.signed(SIGNER, sign)


def is_genuine(receipt: Receipt) -> bool:
    return verify_signature(receipt.signer or "", receipt.message(), receipt.signature or "")


@pytest.mark.parametrize("receipt", [SIGNED, UNSIGNED, dataclasses.replace(SIGNED, submission=None)])
@pytest.mark.parametrize("write", [Receipt.to_json, Receipt.to_line])
def test_receipt_reads_back_to_the_same_bits(receipt: Receipt, write: Callable[[Receipt], str]) -> None:
    again = Receipt.from_json(write(receipt), "receipt")
    assert again == receipt
    assert again.message() == receipt.message() and again.digest == receipt.digest
    assert [loss.hex() for loss in again.result.step_losses] == [loss.hex() for loss in RESULT.step_losses]
    assert again.result.loss.hex() == RESULT.loss.hex()


def test_receipt_digest_is_sha256_of_its_line() -> None:
    line = SIGNED.to_line()
    assert "\n" not in line and line.isascii()
    assert SIGNED.digest == hashlib.sha256(line.encode()).hexdigest()
    assert len({SIGNED.digest, UNSIGNED.digest, dataclasses.replace(SIGNED, signature="0" * 128).digest}) == 3


def test_signature_verifies_for_its_signer_only() -> None:
    assert is_genuine(SIGNED)
    assert not is_genuine(UNSIGNED)
    assert not is_genuine(dataclasses.replace(SIGNED, signer=MINER))


def test_signature_verifies_in_any_json_layout() -> None:
    content = json.loads(SIGNED.to_json())
    shuffled = json.dumps(dict(reversed(content.items())), indent=7)
    assert is_genuine(Receipt.from_json(shuffled, "receipt"))


@pytest.mark.parametrize("has_format_first", [True, False])
def test_inner_key_named_format_is_kept(has_format_first: bool) -> None:
    """Also where it is the first that is spelled as canonical JSON."""
    environment = {**RESULT.environment, "format": Receipt.FORMAT, "last": ""}
    receipt = dataclasses.replace(SIGNED, result=dataclasses.replace(RESULT, environment=environment))
    content = json.loads(receipt.to_line())
    ordered = content if has_format_first else {**{key: content[key] for key in ("result", "format")}, **content}
    text = json.dumps(ordered, separators=(",", ":"))
    assert Receipt.from_json(text, "receipt") == receipt


def edited(path: tuple[Any, ...], edit: Callable[[Any, Any], None]) -> str:
    """Return the signed receipt's JSON after edit(container, key) at `path`."""
    content = json.loads(SIGNED.to_json())
    edit(container_of(content, path), path[-1])
    return json.dumps(content)


def altered(value: Any) -> Any:
    """Another value of the same kind, as close as can be."""
    if isinstance(value, str):
        return value[:-1] + chr(ord(value[-1]) ^ 1)
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return math.nextafter(value, 0.0)
    if value is None:
        return "something"
    return value[:-1] if isinstance(value, list) else {**value, "more": 1}


PATHS = list(json_places(json.loads(SIGNED.to_json())))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_changing_any_field_breaks_the_signature(path: tuple[Any, ...]) -> None:
    def alter(container: Any, key: Any) -> None:
        container[key] = altered(container[key])

    try:
        receipt = Receipt.from_json(edited(path, alter), "receipt")
    except ConfigError:
        return
    assert not is_genuine(receipt)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_junk_in_a_field_is_refused_or_leaves_a_usable_receipt(path: tuple[Any, ...]) -> None:
    for junk in JUNK:
        for edit in (lambda container, key, junk=junk: container.__setitem__(key, copy.copy(junk)), _remove):
            try:
                receipt = Receipt.from_json(edited(path, edit), "receipt")
            except ConfigError as error:
                assert "receipt" in str(error)
                continue
            receipt.to_json()
            receipt.message()
            compare_receipt(receipt, RESULT)
            is_genuine(receipt)
            assert math.isfinite(receipt.result.loss)


def _remove(container: Any, key: Any) -> None:
    del container[key]


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "3", '"text"', "{}", '{"format": 1}', b"\xff\xfe", "[" * 100_000, "9" * 5000,
     '{"format": "dataset-score-receipt/1"}', '{"format": "dataset-score-receipt/2"}'],
)  # fmt: skip
def test_malformed_receipt_is_refused_with_its_origin(text: str | bytes) -> None:
    with pytest.raises(ConfigError, match=r"^from there"):
        Receipt.from_json(text, "from there")


@pytest.mark.parametrize("place", ["value", "key", "signer", "repo"])
def test_half_of_a_surrogate_pair_is_refused(place: str) -> None:
    """It could be neither printed nor stored."""
    text = SIGNED.to_line()
    whole = {"value": '"cpu"', "key": '"threads"', "signer": f'"{SIGNED.signer}"', "repo": '"owner/n'}[place]
    assert whole in text
    Receipt.from_json(text.replace(whole, whole[:-1] + "\\ud83d\\ude00" + whole[-1]), "whole pairs are text")
    with pytest.raises(ConfigError, match=r"^half"):
        Receipt.from_json(text.replace(whole, whole[:-1] + "\\ud800" + whole[-1]), "half")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-le", "utf-8-sig"])
def test_receipt_in_another_encoding_than_utf8_is_refused(encoding: str) -> None:
    with pytest.raises(ConfigError, match="not JSON"):
        Receipt.from_json(SIGNED.to_json().encode(encoding), "from there")


@pytest.mark.parametrize("section", [(), ("result",), ("submission",), ("competition",)])
def test_unknown_field_is_refused(section: tuple[str, ...]) -> None:
    def add(container: Any, key: Any) -> None:
        container[key] = 1

    with pytest.raises(ConfigError):
        Receipt.from_json(edited((*section, "unknown"), add), "receipt")


def within(**changes: str) -> dict[str, Any]:
    """Return the environment with changed values."""
    return {"environment": {**RESULT.environment, **changes}}


STEPS = {"step_losses": (RESULT.step_losses[0], 0.5, 0.5, 0.5)}
STEP_DIFFERS = "loss of training step 2 differs"
FEWER = "number of training steps differs: 4 in the receipt, 3 here"
ELSEWHERE = within(where="ray node 1326d1f4 gpu 3 cuda:0")
IDENTICAL, DIFFERENT, NOT_COMPARABLE = ReplayVerdict.IDENTICAL, ReplayVerdict.DIFFERENT, ReplayVerdict.NOT_COMPARABLE
COMPARED: dict[str, tuple[dict[str, Any], ReplayVerdict, str | None]] = {
    "equal losses whatever the seconds": ({"train_seconds": 5.0, "benchmark_loss": 1.0}, IDENTICAL, None),
    "one bit": ({"loss": math.nextafter(RESULT.loss, 3.0)}, DIFFERENT, None),
    "equal loss after another step": (STEPS, IDENTICAL, STEP_DIFFERS),
    "another loss after another step": ({"loss": 2.0, **STEPS}, DIFFERENT, STEP_DIFFERS),
    "equal loss after fewer steps": ({"step_losses": RESULT.step_losses[:3]}, IDENTICAL, FEWER),
    "another loss at another place": ({"loss": 2.0, **ELSEWHERE}, DIFFERENT, None),
    "another loss with another torch": ({"loss": 2.0, **within(torch="else")}, NOT_COMPARABLE, "torch differs"),
    "another loss on another device": ({"loss": 2.0, **within(device="else")}, NOT_COMPARABLE, "device differs"),
    "another loss with a new variable": ({"loss": 2.0, **within(new="else")}, NOT_COMPARABLE, "new differs"),
    "equal loss with another torch": (within(torch="else"), IDENTICAL, "torch differs"),
}


@pytest.mark.parametrize("case", COMPARED)
def test_replay_is_compared_by_loss_and_environment(case: str) -> None:
    changes, verdict, reason = COMPARED[case]
    comparison = compare_receipt(SIGNED, dataclasses.replace(RESULT, **changes))
    assert (comparison.verdict, comparison.difference) == (verdict, changes.get("loss", RESULT.loss) - RESULT.loss)
    assert len(comparison.reasons) == (reason is not None)
    assert not reason or comparison.reasons[0].startswith(reason)


def test_place_in_the_receipt_explains_no_difference() -> None:
    receipt = dataclasses.replace(SIGNED, result=dataclasses.replace(RESULT, **ELSEWHERE))
    for changes in ({}, within(where="local cpu")):
        comparison = compare_receipt(receipt, dataclasses.replace(RESULT, loss=2.0, **changes))
        assert (comparison.verdict, comparison.reasons) == (DIFFERENT, ())


@pytest.mark.parametrize(
    "changes",
    [
        {"lucky_num": 1},
        {"model_id": "another/model"},
        {"model_revision": "b" * 40},
        {"model_revision": None, "model_digest": "b" * 64},
        *({name: "f" * 64} for name in ("hyperparameters_digest", "train_sha256", "eval_sha256")),
        {"train_rows": 249},
    ],
)
def test_other_inputs_are_never_comparable(changes: dict[str, Any]) -> None:
    comparison = compare_receipt(SIGNED, dataclasses.replace(RESULT, **changes))
    assert (comparison.verdict, comparison.difference) == (NOT_COMPARABLE, None)
    assert len(comparison.reasons) == len(changes)
