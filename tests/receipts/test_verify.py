"""Faults found in round files that are complete and signed, and wrong."""

import contextlib
import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from template.chain.client import verify_signature
from template.errors import ConfigError
from template.receipts.files import read_round
from template.receipts.round_file import RoundFile, RoundHeader
from template.receipts.verify import (
    check_across_files,
    check_against_chain,
    check_consistency,
    check_signatures,
    remarks,
)
from tests.fixtures.chain import make_key
from tests.fixtures.rounds import (
    ACCOUNT,
    SIGNER,
    by_digest,
    container_of,
    find_faults,
    find_lies,
    hash_of,
    json_places,
    sign,
)

ANN, BEN, CAT, DAN = (entry.key.hotkey for entry in ACCOUNT.round.entries)
TOP = ACCOUNT.standings[0].hotkey
FIRST, LAST, DIGEST = ACCOUNT.ledger[0].hotkey, ACCOUNT.ledger[2].hotkey, ACCOUNT.ledger[2].digest[:12]
Edit = Callable[[dict[str, Any]], object]


def edited(file: RoundFile, edit: Edit, *, resign: bool = True) -> RoundFile:
    """Edit the header of a file, and sign it again or not."""
    content = json.loads(file.header.to_line())
    edit(content)
    header = RoundHeader.from_json(json.dumps(content), "edited")
    return RoundFile(header=header.signed(SIGNER, sign) if resign else header, receipts=file.receipts)


def table(row: int, **changes: object) -> Edit:
    return lambda content: content["table"][row].update(changes)


def entry(row: int, **changes: object) -> Edit:
    return lambda content: content["entries"][row].update(changes)


def header(**changes: object) -> Edit:
    return lambda content: content.update(changes)


def weights(name: str, key: str, value: float) -> Edit:
    return lambda content: content["weights"][0][name].update({key: value})


def evaluation(row: int, **changes: object) -> Edit:
    return lambda content: content["evaluations"][row].update(changes)


def ledger(row: int, **changes: object) -> Edit:
    return lambda content: content["ledger"][row].update(changes)


FAULTS: dict[str, tuple[Edit, str]] = {
    "loss": (table(0, loss=6.0), f"{ANN}: loss 6.0 in the table, "),
    "score": (table(0, score=0.9), f"{ANN}: score 0.9 in the table"),
    "credit": (table(0, credit=0.9), f"{ANN}: credit 0.9 in the table"),
    "weight": (table(1, weight=0.9), f"{BEN}: weight 0.9 in the table"),
    "score of a rejected entry": (table(2, score=0.5), f"{CAT}: score 0.5 in the table, 0.0 by the rules"),
    "loss without a receipt": (evaluation(0, receipt=None), f"{ANN}: evaluation 1: loss without a receipt"),
    "receipt": (evaluation(0, receipt="0" * 64), f"line 2, {ANN}: receipt of no evaluation of this round"),
    "receipt of another entry": (
        lambda content: content["evaluations"][1].update(receipt=content["evaluations"][0]["receipt"]),
        f"{BEN}: evaluation 1: the receipt is of another dataset",
    ),
    "loss of an evaluation": (evaluation(0, loss=6.0), f"{ANN}: evaluation 1: loss 6.0 with lucky_num"),
    "seed of an evaluation": (evaluation(0, lucky_num=5), f"{ANN}: evaluation 1: loss "),
    "evaluation twice": (
        lambda content: content["evaluations"].append(content["evaluations"][0]),
        f"{ANN}: evaluation 1 more than once",
    ),
    "evaluation of another commitment": (evaluation(0, entry="x"), f"{ANN}: evaluation 1 of a commitment that is not"),
    "too many evaluations": (
        lambda content: content["incentives"].update(slots=1),
        "2 evaluations, and the competition has 1 a round",
    ),
    "loss in the ledger": (ledger(0, loss=6.0), f"{FIRST}, ledger: loss 6.0 after "),
    "credit in the ledger": (ledger(0, credit=0.9), f"{FIRST}, ledger: credit 0.9, by the rules "),
    "record called missing": (
        ledger(0, is_absent=True),
        f"{FIRST}, ledger: unpaid for a missing file, and the table has the dataset",
    ),
    "runs in the ledger": (
        lambda content: content["incentives"].update(evaluations=2, hold=2),
        f"{FIRST}, ledger: 1 evaluations, and the competition asks for 2",
    ),
    "order of the ledger": (lambda content: content["ledger"].reverse(), "the ledger is not in the order of ranks"),
    "ledger twice": (
        lambda content: content["ledger"].append(content["ledger"][2]),
        f"{LAST}: dataset {DIGEST} more than once in the ledger",
    ),
    "weight of a uid": (weights("weights", "2", 0.9), "weights of block 38: weights by uid are not proportional"),
    "weight outside the table": (weights("weights", "99", 0.1), "weights of block 38: uid 99 has weight 0.1"),
    "confirmed dataset out of the ledger": (
        lambda content: content["ledger"].pop(),
        f"{LAST}: 1 evaluations in the table, and its dataset is not in the ledger",
    ),
    "earlier weights in place of the table's": (
        lambda content: content["weights"][0].update(is_repeat=True),
        "earlier weights were submitted again, and those of the table were not",
    ),
    "weights of a past round": (
        header(opened_block=40),
        "weights of block 38: the round was over when it opened",
    ),
    "no table": (lambda content: content["table"].clear(), f"{ANN}: in entries, not in the table"),
    "missing row": (lambda content: content["table"].pop(2), f"{CAT}: in entries, not in the table"),
    "missing entry": (lambda content: content["entries"].pop(2), f"{CAT}: in queue, not in entries"),
    "repeated entry": (
        lambda content: content["entries"].append(content["entries"][0]),
        f"{ANN}: more than once in entries",
    ),
    "repeated uid": (entry(1, uid=2), "uid 2: more than once in entries"),
    "uid": (table(0, uid=50), f"{TOP}: uid or commitment differs"),
    "seed without its block": (evaluation(0, seed_block=None), f"{ANN}: seed_block must be there"),
    "seed block between rounds": (evaluation(0, seed_block=33), f"{ANN}: seed_block 33 is no start of a round"),
    "future seed block": (evaluation(0, seed_block=40), f"{ANN}: seed_block 40 is no start of a round up to this one"),
    "another seed block": (evaluation(0, seed_block=28), f"{ANN}: block 28 gives lucky_num"),
    "block hash": (header(start_block_hash=hash_of(5)), "block 36 has the hash"),
    "order of blocks": (header(opened_block=1), "blocks out of order"),
    "start between rounds": (header(start_block=37, end_block=41, opened_block=38), "start_block 37 is no multiple of"),
    "netuid": (header(netuid=97), f"line 2, {ANN}: netuid of the receipt differs"),
    "model": (header(model="other/model@1"), f"line 2, {ANN}: model of the receipt differs"),
    "hyperparameters": (header(hyperparameters_digest="0" * 64), f"line 2, {ANN}: hyperparameters of the receipt"),
    "competition": (
        lambda content: content["competition"].update(bheight=0.2),
        f"line 2, {ANN}: competition of the receipt differs",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_fault_signed_by_the_validator_is_found(path: Path, case: str) -> None:
    edit, message = FAULTS[case]
    faults = find_faults(edited(read_round(path), edit))
    assert any(fault.startswith(message) for fault in faults), faults
    assert not any("NOT VALID" in fault for fault in faults)


def test_hash_of_another_block_is_found_on_chain(path: Path) -> None:
    drawn = dataclasses.replace(read_round(path).header, lucky_num_from="random")
    (fault,) = check_against_chain(drawn, lambda block: hash_of(block + 1))
    assert fault.startswith("block 36 has the hash")


def test_chain_is_read_once_for_each_block(path: Path) -> None:
    blocks: list[int] = []

    def read(block: int) -> str:
        blocks.append(block)
        return hash_of(block)

    assert check_against_chain(read_round(path).header, read) == []
    assert blocks == [32, 36]


def test_header_edited_after_signing_is_not_valid(path: Path) -> None:
    file = edited(read_round(path), table(0, loss=6.0), resign=False)
    assert check_signatures(file, verify_signature) == (f"NOT VALID for {SIGNER}", {})


def test_foreign_forged_and_missing_signatures_are_distinguished(path: Path) -> None:
    file = read_round(path)
    stranger = make_key("stranger")
    foreign = file.receipts[0].signed(stranger.ss58_address, lambda message: str(stranger.sign(message).hex()))
    forged = dataclasses.replace(file.receipts[1], signature="0" * 128)
    unsigned = dataclasses.replace(file.receipts[0], signer=None, signature=None)
    blank = dataclasses.replace(file.receipts[0], signature=None)
    mixed = RoundFile(header=file.header, receipts=(foreign, forged, unsigned, blank))
    assert check_signatures(mixed, verify_signature) == (
        None,
        {
            0: f"signer {stranger.ss58_address} differs from the round's signer {SIGNER}",
            1: f"NOT VALID for {SIGNER}",
            2: f"signer None differs from the round's signer {SIGNER}",
            3: f"signature of {SIGNER} missing",
        },
    )


def test_receipt_signature_does_not_pass_for_a_round(path: Path) -> None:
    """The same hotkey signs both formats."""
    file = read_round(path)
    receipt, header = file.receipts[0], file.header
    assert not verify_signature(SIGNER, header.message(), str(receipt.signature))
    assert not verify_signature(SIGNER, receipt.message(), str(header.signature))
    assert header.message().split(b"\n")[0] != receipt.message().split(b"\n")[0]


def test_rejected_and_repeated_weights_are_no_fault(path: Path) -> None:
    def repeat(content: dict[str, Any]) -> None:
        last = {**content["weights"][0], "block": 39}
        repeated = {**last, "is_repeat": True, "shares": {SIGNER: 1.0}, "weights": {"1": 1.0}}
        content["weights"] += [{**last, "shares": {}, "is_accepted": False}, repeated]

    assert find_faults(edited(read_round(path), repeat)) == []


def test_evaluation_that_was_not_done_is_a_remark(path: Path) -> None:
    file = edited(read_round(path), evaluation(1, loss=None, receipt=None))
    assert f"{BEN}: evaluation 1 was planned and not done" in remarks(file)


def test_hotkey_without_its_weight_is_a_remark(path: Path) -> None:
    file = edited(read_round(path), lambda content: content["weights"][0]["weights"].pop("2"))
    assert find_faults(file) == []
    assert any(remark.startswith(f"{ANN}: no weight for uid 2") for remark in remarks(file))


def test_repeated_receipt_is_a_fault(path: Path) -> None:
    file = read_round(path)
    doubled = RoundFile(header=file.header, receipts=(*file.receipts, file.receipts[0]))
    assert f"receipt {file.receipts[0].digest[:12]}: more than once" in check_consistency(doubled, by_digest(doubled))


def test_second_version_of_a_round_by_its_signer_is_a_fault(path: Path) -> None:
    header = read_round(path).header
    other = dataclasses.replace(header, table=header.table[:1])
    fault = f"{SIGNER} signed another version of this round in rounds/first.jsonl"
    assert check_across_files({"rounds/first.jsonl": header, "b.jsonl": other})["b.jsonl"] == [fault]
    for changes in ({"signer": None}, {"signer": ANN}, {"start_block": 35}, {"netuid": 1}):
        assert check_across_files({"a": header, "b": dataclasses.replace(other, **changes)})["b"] == []


def test_later_writing_with_new_weights_is_no_fault(path: Path) -> None:
    header = read_round(path).header
    later = dataclasses.replace(header, weights=(), receipts=0, receipts_sha256="0" * 64, signature="0" * 128)
    assert check_across_files({"a": header, "b": header, "c": later}) == {"a": [], "b": [], "c": []}


@pytest.mark.parametrize(
    ("name", "is_fault"),
    [
        ("round-96-36-5Ef1ucvE.jsonl", False),
        ("round-96-36-offline.jsonl", False),
        ("round-96-36-5Ef1ucvE-0c5d1a.jsonl", False),
        ("round-96-37-5Ef1ucvE-0c5d1a.jsonl", True),
        ("round-97-36-5Ef1ucvE.jsonl", True),
        ("mine.jsonl", False),
        ("round-96-\u0663\u0666-5Ef1ucvE.jsonl", False),
    ],
)
def test_file_name_of_another_round_is_a_fault(path: Path, name: str, is_fault: bool) -> None:
    faults = check_across_files({f"rounds/{name}": read_round(path).header})[f"rounds/{name}"]
    assert faults == ["file name of another round: the header has netuid 96, block 36"] * is_fault


def test_extreme_numbers_in_a_header_break_no_check(path: Path) -> None:
    file = read_round(path)
    content = json.loads(file.header.to_line())
    places = [place for place in json_places(content) if type(container_of(content, place)[place[-1]]) in (int, float)]
    assert len(places) > 100
    read = 0
    for place in places:
        for value in (0, -1, 5e-324, -1.7e308, 1.7e308, 2**63, 10**400, 10**4299):
            changed = copy.deepcopy(content)
            container_of(changed, place)[place[-1]] = value
            with contextlib.suppress(ConfigError):
                lie = RoundFile(header=RoundHeader.from_json(json.dumps(changed), "lie"), receipts=file.receipts)
                read += 1
                check_consistency(lie, by_digest(file))
                remarks(lie)
                check_against_chain(lie.header, hash_of)
                find_lies(lie.header, receipts={})
                bare = RoundFile(header=lie.header, receipts=())
                assert check_signatures(bare, verify_signature)[0] is not None or lie.header == file.header
    assert read > len(places)
