"""Receipts of release 0.3 keep their bytes and verify; round files of 0.3 and 0.4 are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from template.chain.client import verify_signature
from template.errors import ConfigError
from template.receipts.files import read_receipt, read_round
from template.receipts.round_file import RoundHeader

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "v0_3"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())["api"]
RECEIPTS = {path: read_receipt(FOLDER / path) for path in EXPECTED["receipts"]}


@pytest.mark.parametrize("path", EXPECTED["receipts"])
def test_receipt_of_0_3_reads_back_and_verifies(path: str) -> None:
    receipt, expected = RECEIPTS[path], EXPECTED["receipts"][path]
    assert receipt.to_json() + "\n" == (FOLDER / path).read_text()
    assert (receipt.result.loss.hex(), receipt.digest) == (expected["loss"], expected["digest"])
    if expected["signature"]:
        assert verify_signature(str(receipt.signer), receipt.message(), str(receipt.signature))
    else:
        assert receipt.signer is receipt.signature is None


@pytest.mark.parametrize("path", EXPECTED["rounds"])
def test_round_file_of_0_3_is_refused_with_its_version(path: str) -> None:
    with pytest.raises(ConfigError, match=r"line 1: of version 0\.3"):
        read_round(FOLDER / path)


def test_round_file_of_0_4_is_refused_with_its_version() -> None:
    first = (FOLDER / next(iter(EXPECTED["rounds"]))).read_text().splitlines()[0]
    header = first.replace("dataset-round/1", "dataset-round/2")
    with pytest.raises(ConfigError, match=r"of version 0\.4, which has other rules"):
        RoundHeader.from_json(header, "round.jsonl")
