"""The receipt: to JSON and back to the same bits, signed with a real key, and held against a replay."""

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from template.chain.client import verify_signature
from template.competition import Competition
from template.errors import ConfigError
from template.receipts.receipt import EvaluatedSubmission, Receipt, ReplayVerdict, compare_receipt
from template.records import TrainResult
from tests.fixtures.chain import make_key

RESULT = TrainResult(
    loss=math.nextafter(2.6, 3.0),
    benchmark_loss=2.6,
    lucky_num=2**32 - 1,
    model_id="Qwen/Qwen2.5-1.5B-Instruct",
    model_revision="a" * 40,
    model_digest=None,
    hyperparameters={"num_train_epochs": 2, "lora_dropout": 0.1},
    hyperparameters_digest="b" * 64,
    train_sha256="c" * 64,
    train_rows=250,
    train_tokens=60_000,
    eval_sha256="d" * 64,
    eval_rows=900,
    eval_skipped_rows=1,
    eval_tokens=200_000,
    step_losses=(0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308),
    environment={"torch": "2.13.0", "device": "cpu", "threads": "2"},
    load_seconds=0.1,
    train_seconds=1e-07,
    eval_seconds=12.0,
)
VALIDATOR = make_key("validator")
UNSIGNED = Receipt(
    competition=Competition.from_defaults(),
    submission=EvaluatedSubmission(
        netuid=96, hotkey=make_key("miner").ss58_address, repo="owner/näme", commit="e" * 40
    ),
    result=RESULT,
)


def sign(message: bytes) -> str:
    return str(VALIDATOR.sign(message).hex())


SIGNED = UNSIGNED.signed(VALIDATOR.ss58_address, sign)


def is_genuine(receipt: Receipt) -> bool:
    return verify_signature(receipt.signer or "", receipt.message(), receipt.signature or "")


def test_json_reads_back_to_the_same_receipt_and_the_same_bits() -> None:
    for receipt in (SIGNED, UNSIGNED, dataclasses.replace(SIGNED, submission=None)):
        again = Receipt.from_json(receipt.to_json(), "receipt")
        assert again == receipt
        assert again.message() == receipt.message()
        assert again.to_json() == receipt.to_json()
        assert [loss.hex() for loss in again.result.step_losses] == [loss.hex() for loss in RESULT.step_losses]
        assert again.result.loss.hex() == RESULT.loss.hex()
    assert Receipt.from_json(SIGNED.to_json().encode(), "receipt") == SIGNED


def test_the_one_line_form_is_the_same_receipt_and_its_digest_is_the_lines() -> None:
    line = SIGNED.to_line()
    assert "\n" not in line and line.isascii()
    assert Receipt.from_json(line, "receipt") == SIGNED == Receipt.from_json(SIGNED.to_json(), "receipt")
    assert SIGNED.digest == hashlib.sha256(line.encode()).hexdigest()
    assert Receipt.from_json(SIGNED.to_json(), "receipt").digest == SIGNED.digest
    assert len({SIGNED.digest, UNSIGNED.digest, dataclasses.replace(SIGNED, signature="0" * 128).digest}) == 3


def test_a_signature_verifies_after_a_round_trip() -> None:
    assert is_genuine(SIGNED)
    assert is_genuine(Receipt.from_json(SIGNED.to_json(), "receipt"))
    assert not is_genuine(UNSIGNED)
    assert SIGNED.signed(VALIDATOR.ss58_address, sign).message() == SIGNED.message()


def test_a_signature_does_not_pass_for_another_signer() -> None:
    assert not is_genuine(dataclasses.replace(SIGNED, signer=make_key("miner").ss58_address))


def test_layout_and_order_of_the_json_do_not_matter_to_the_signature() -> None:
    content = json.loads(SIGNED.to_json())
    shuffled = json.dumps(dict(reversed(content.items())), indent=7)
    assert is_genuine(Receipt.from_json(shuffled, "receipt"))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    yield path
    for key, child in children:
        yield from leaves(child, (*path, key))


def edited(path: tuple[Any, ...], edit: Callable[[Any, Any], None]) -> str:
    """The signed receipt's JSON after edit(container, key) at `path`."""
    content = json.loads(SIGNED.to_json())
    container = content
    for key in path[:-1]:
        container = container[key]
    edit(container, path[-1])
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


PATHS = [path for path in leaves(json.loads(SIGNED.to_json())) if path]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_tampering_with_any_field_is_noticed(path: tuple[Any, ...]) -> None:
    def alter(container: Any, key: Any) -> None:
        container[key] = altered(container[key])

    try:
        receipt = Receipt.from_json(edited(path, alter), "receipt")
    except ConfigError:
        return
    assert not is_genuine(receipt)


JUNK = [None, True, 3, -1, 1e400, math.nan, "text", "\ud800", [], [1], {}, {"a": [{}]}, 10**400]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_junk_in_any_field_is_refused_or_leaves_a_usable_receipt(path: tuple[Any, ...]) -> None:
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
def test_what_is_no_receipt_is_a_config_error_naming_its_origin(text: str | bytes) -> None:
    with pytest.raises(ConfigError, match=r"^from there"):
        Receipt.from_json(text, "from there")


@pytest.mark.parametrize("place", ["value", "key", "signer", "repo"])
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(place: str) -> None:
    """It could be neither printed nor stored, and what is said of the receipt names it."""
    text = SIGNED.to_line()
    whole = {"value": '"cpu"', "key": '"threads"', "signer": f'"{SIGNED.signer}"', "repo": '"owner/n'}[place]
    assert whole in text
    Receipt.from_json(text.replace(whole, whole[:-1] + "\\ud83d\\ude00" + whole[-1]), "whole pairs are text")
    with pytest.raises(ConfigError, match=r"^half"):
        Receipt.from_json(text.replace(whole, whole[:-1] + "\\ud800" + whole[-1]), "half")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-le", "utf-8-sig"])
def test_a_receipt_in_another_encoding_than_utf8_is_refused(encoding: str) -> None:
    with pytest.raises(ConfigError, match="not JSON"):
        Receipt.from_json(SIGNED.to_json().encode(encoding), "from there")


@pytest.mark.parametrize("section", [(), ("result",), ("submission",), ("competition",)])
def test_an_unknown_field_is_refused(section: tuple[str, ...]) -> None:
    def add(container: Any, key: Any) -> None:
        container[key] = 1

    with pytest.raises(ConfigError):
        Receipt.from_json(edited((*section, "unknown"), add), "receipt")


def test_equal_losses_on_equal_inputs_are_identical_whatever_the_seconds() -> None:
    replay = dataclasses.replace(RESULT, train_seconds=5.0, benchmark_loss=1.0)
    comparison = compare_receipt(SIGNED, replay)
    assert (comparison.verdict, comparison.difference, comparison.reasons) == (ReplayVerdict.IDENTICAL, 0.0, ())


def test_one_bit_is_a_difference() -> None:
    comparison = compare_receipt(SIGNED, dataclasses.replace(RESULT, loss=math.nextafter(RESULT.loss, 3.0)))
    assert comparison.verdict is ReplayVerdict.DIFFERENT
    assert comparison.difference == math.ulp(RESULT.loss)
    assert comparison.reasons == ()


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ((RESULT.step_losses[0], 0.5, 0.5, 0.5), "the loss of training step 2 differs"),
        (RESULT.step_losses[:3], "the number of training steps differs: 4 in the receipt, 3 here"),
    ],
)
def test_a_step_that_went_another_way_is_a_reason_and_no_verdict(steps: tuple[float, ...], told: str) -> None:
    same = compare_receipt(SIGNED, dataclasses.replace(RESULT, step_losses=steps))
    assert (same.verdict, same.difference) == (ReplayVerdict.IDENTICAL, 0.0)
    (reason,) = same.reasons
    assert reason.startswith(told)
    other = compare_receipt(SIGNED, dataclasses.replace(RESULT, step_losses=steps, loss=2.0))
    assert (other.verdict, other.reasons) == (ReplayVerdict.DIFFERENT, (reason,))


def test_where_a_score_ran_is_in_the_receipt_and_explains_no_difference() -> None:
    there, here = ({**RESULT.environment, "where": where} for where in ("ray node 1326d1f4 gpu 3 cuda:0", "local cpu"))
    receipt = dataclasses.replace(SIGNED, result=dataclasses.replace(RESULT, environment=there))
    assert Receipt.from_json(receipt.to_json(), "x").result.environment["where"] == "ray node 1326d1f4 gpu 3 cuda:0"
    for environment in (here, RESULT.environment):
        replayed = dataclasses.replace(RESULT, environment=environment)
        assert compare_receipt(receipt, replayed).reasons == ()
        assert compare_receipt(receipt, dataclasses.replace(replayed, loss=2.0)).verdict is ReplayVerdict.DIFFERENT


@pytest.mark.parametrize("name", ["torch", "device", "new"])
def test_a_difference_in_another_environment_is_not_comparable_and_says_why(name: str) -> None:
    environment = {**RESULT.environment, name: "else"}
    comparison = compare_receipt(SIGNED, dataclasses.replace(RESULT, loss=2.0, environment=environment))
    assert comparison.verdict is ReplayVerdict.NOT_COMPARABLE
    assert comparison.difference == 2.0 - RESULT.loss
    assert len(comparison.reasons) == 1
    assert comparison.reasons[0].startswith(f"{name} differs")
    same = compare_receipt(SIGNED, dataclasses.replace(RESULT, environment=environment))
    assert (same.verdict, len(same.reasons)) == (ReplayVerdict.IDENTICAL, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"lucky_num": 1},
        {"model_id": "Qwen/Qwen2.5-0.5B-Instruct"},
        {"model_revision": "b" * 40},
        {"model_revision": None, "model_digest": "b" * 64},
        {"hyperparameters_digest": "c" * 64},
        {"train_sha256": "d" * 64},
        {"train_rows": 249},
        {"eval_sha256": "e" * 64},
    ],
)
def test_other_inputs_are_never_comparable_even_with_the_same_loss(changes: dict[str, Any]) -> None:
    comparison = compare_receipt(SIGNED, dataclasses.replace(RESULT, **changes))
    assert (comparison.verdict, comparison.difference) == (ReplayVerdict.NOT_COMPARABLE, None)
    assert len(comparison.reasons) == len(changes)
