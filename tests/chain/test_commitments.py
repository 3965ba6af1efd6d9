"""Parsing of commitments, strictly, for anything a miner publishes."""

from typing import Any

import pytest

from template.chain.commitments import encode_timelock_plaintext, parse_commitment
from template.chain_records import ChainCommitment

HI = {"Raw2": "0x6869"}
SEALED = {"TimelockEncrypted": {"encrypted": "0x6869", "reveal_round": 5}}
REVEALED_HI = "\x08hi"


def read(*fields: object, revealed: tuple[tuple[str, int], ...] = ()) -> ChainCommitment:
    commitment = parse_commitment("hotkey", {"block": 10, "info": {"fields": list(fields)}}, revealed)
    assert commitment is not None and (commitment.hotkey, commitment.block) == ("hotkey", 10)
    return commitment


def read_opened(*revealed: tuple[Any, int]) -> ChainCommitment:
    commitment = parse_commitment("hotkey", None, revealed)
    assert commitment is not None
    return commitment


def unreadable(block: int) -> ChainCommitment:
    return ChainCommitment(hotkey="hotkey", block=block, text=None)


def test_nothing_on_chain_is_none() -> None:
    assert parse_commitment("hotkey", None, None) is None
    assert parse_commitment("hotkey", None, []) is None


def test_one_plain_field_is_its_text() -> None:
    assert read(HI) == ChainCommitment(hotkey="hotkey", block=10, text="hi")
    assert read({"Raw4": "0x30783031"}).text == "0x01"
    assert read({"Raw2": "0xc3a9"}).text == "é"


def test_one_sealed_field_tells_the_round_that_opens_it() -> None:
    assert read(SEALED) == ChainCommitment(hotkey="hotkey", block=10, text=None, reveal_round=5)


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (HI, HI),
        (HI, "ResetBondsFlag"),
        ("ResetBondsFlag",),
        ({"Raw2": "0xfffe"},),
        ({"Raw3": "0x6869"},),
        ({"Raw2": "hi"},),
        ({"Raw2": "0x68 69"},),
        ({"Raw2": b"hi"},),
        ({"Raw2": None},),
        ({"Raw": "0x6869"},),
        ({"BigRaw": "0x6869"},),
        ({"Sha256": "0x6869"},),
        ({**HI, "Raw1": "0x61"},),
        (SEALED, SEALED),
        (SEALED, HI),
        ({**SEALED, **HI},),
        ({"TimelockEncrypted": "0x6869"},),
        ({"TimelockEncrypted": {"encrypted": "0x6869"}},),
        ({"TimelockEncrypted": {"encrypted": "0x6869", "reveal_round": 0}},),
        ({"TimelockEncrypted": {"encrypted": "0x6869", "reveal_round": True}},),
        ({"TimelockRevealFailed": {"encrypted": "0x6869", "reveal_round": 5}},),
        ({2: "0x6869"},),
        (None,),
    ],
    ids=str,
)
def test_anything_else_has_neither_text_nor_round(fields: tuple[object, ...]) -> None:
    assert read(*fields) == unreadable(10)


def test_a_later_commitment_overrides_an_older_reveal() -> None:
    for block in (1, 9, 10):
        assert read(HI, revealed=((REVEALED_HI, block),)).text == "hi"
        assert read(SEALED, revealed=((REVEALED_HI, block),)).reveal_round == 5


def test_what_is_left_of_a_partly_opened_commitment_has_no_text() -> None:
    assert read(HI, revealed=((REVEALED_HI, 11),)) == unreadable(10)
    assert read(SEALED, revealed=((REVEALED_HI, 11),)) == unreadable(10)


def test_the_newest_reveal_counts_in_whatever_order() -> None:
    newest = ChainCommitment(hotkey="hotkey", block=20, text="new", is_revealed=True)
    assert read_opened(("\x0cold", 9), ("\x0cnew", 20)) == newest
    assert read_opened(("\x0cnew", 20), ("\x0cold", 9)) == newest
    assert read_opened(("\x0cold", 9), ("text", 20)) == unreadable(20), "an older text does not stand in for it"


def test_two_reveals_of_one_block_have_no_text() -> None:
    assert read_opened((REVEALED_HI, 20), (REVEALED_HI, 20)) == unreadable(20)


def show(raw: bytes) -> str:
    """Decode bytes as the client does."""
    try:
        return raw.decode()
    except ValueError:
        return "0x" + raw.hex()


@pytest.mark.parametrize(
    "text", ["a", "hello", "xello world!", "x0123456789a", "0x", "0xfffe", "x" * 63, "x" * 64, "é" * 20, "é" * 64]
)
def test_sealed_text_is_read_back_once_revealed(text: str) -> None:
    opened = read_opened((show(encode_timelock_plaintext(text)), 20))
    assert opened == ChainCommitment(hotkey="hotkey", block=20, text=text, is_revealed=True)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "hi",
        "owner/name:1:" + "a" * 40,
        "\x08h",
        "\x08hi!",
        "\x09\x00hi",
        "\x02\x00\x00\x00",
        "\x03",
        "0x",
        "0x08fffe",
        "0x09",
        "0x00",
        "0x0c414243",
        "0x086",
        "0xzz",
        "0x0B",
        b"\x08hi",
        None,
    ],
    ids=repr,
)
def test_a_reveal_that_is_not_one_string_has_no_text(data: object) -> None:
    assert read_opened((data, 20)) == unreadable(20)
