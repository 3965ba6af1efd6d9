"""Reading commitments strictly: two that differ on chain never read the same."""

import pytest

from template.commitments import to_commitment

HI = {"Raw2": "0x6869"}


def read(*fields: object, revealed: tuple[tuple[int, str], ...] = ()) -> str | None:
    return to_commitment("hotkey", 10, fields, revealed).text


def test_one_plain_field_is_its_text() -> None:
    assert read(HI) == "hi"
    assert read({"Raw4": "0x30783031"}) == "0x01"
    assert read({"Raw2": "0xc3a9"}) == "é"


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
        ({"TimelockEncrypted": {"encrypted": "0x6869", "reveal_round": 5}},),
        ({2: "0x6869"},),
        (None,),
    ],
    ids=str,
)
def test_anything_else_has_no_text(fields: tuple[object, ...]) -> None:
    assert read(*fields) is None


def test_what_was_sealed_has_no_text_and_an_older_reveal_does_not_matter() -> None:
    assert read(HI, revealed=((10, "hi"),)) is None
    assert read(HI, revealed=((9, "old"),)) == "hi"
