"""What is found in a round file that is whole and lies."""

import contextlib
import copy
import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from template.chain.client import verify_signature
from template.errors import ConfigError
from template.receipts.files import read_round, write_round
from template.receipts.round_file import RoundFile, RoundHeader
from template.receipts.verify import (
    check_across_files,
    check_against_chain,
    check_consistency,
    check_signatures,
    remarks,
)
from template.rules.seeds import seed_from_hash
from tests.fixtures.chain import make_key
from tests.fixtures.rounds import ACCOUNT, SIGNER, complaints, hash_of, known, make_receipt, sign


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_round(tmp_path / "rounds", ACCOUNT, signer=SIGNER, sign=sign)


def changed(file: RoundFile, edit: Callable[[dict[str, Any]], None], *, resign: bool = True) -> RoundFile:
    """The file with another header, which the validator itself signed, or nobody did again."""
    content = json.loads(file.header.to_line())
    edit(content)
    header = RoundHeader.from_json(json.dumps(content), "changed")
    if resign:
        header = dataclasses.replace(header, signature=sign(header.message()))
    return RoundFile(header=header, receipts=file.receipts)


ANN, BEN, CAT, DAN = (entry.key.hotkey for entry in ACCOUNT.round.entries)
LIES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a loss": (lambda c: c["table"][0].update(loss=6.0), f"{ANN}: the table has the loss 6.0, and the receipt"),
    "a score": (lambda c: c["table"][0].update(score=0.9), f"{ANN}: the score is"),
    "a weight": (lambda c: c["table"][1].update(weight=0.9), f"{BEN}: the weight is"),
    "a refused one paid": (lambda c: c["table"][2].update(score=0.5), f"{CAT}: the score is 0.0 by the rules"),
    "a loss without a receipt": (lambda c: c["table"][3].update(receipt=None), f"{DAN}: a loss without a receipt"),
    "another's receipt": (
        lambda c: c["table"][1].update(receipt=c["table"][0]["receipt"]),
        f"{BEN}: the table's loss rests on a receipt of another dataset",
    ),
    "submitted shares": (
        lambda c: c["weights"][0]["shares"].update({ANN: 0.9}),
        f"weights of block 380: {ANN} has the",
    ),
    "a share for a stranger": (
        lambda c: c["weights"][0]["shares"].update({SIGNER: 0.5}),
        f"weights of block 380: {SIGNER} has the weight 0.0",
    ),
    "a uid's weight": (
        lambda c: c["weights"][0]["weights"].update({"2": 0.9}),
        "weights of block 380: the weights by uid are not in proportion",
    ),
    "a stranger's uid": (
        lambda c: c["weights"][0]["weights"].update({"99": 0.1}),
        "weights of block 380: uid 99 was given 0.1",
    ),
    "a missing miner": (lambda c: c["table"].pop(2), f"{CAT}: in entries, not in the table"),
    "an added miner": (lambda c: c["entries"].pop(2), f"{CAT}: in queue, not in entries"),
    "one twice": (lambda c: c["entries"].append(c["entries"][0]), f"{ANN}: more than once in entries"),
    "one uid twice": (lambda c: c["entries"][1].update(uid=2), "uid 2: more than once in entries"),
    "a uid": (lambda c: c["table"][0].update(uid=50), f"{ANN}: the table has another uid"),
    "a seed": (lambda c: c["entries"][0].update(lucky_num=5), "line 2, "),
    "a refused one's seed": (lambda c: c["entries"][2].update(lucky_num=5), f"{CAT}: block 34 gives the lucky_num"),
    "a seed without its block": (
        lambda c: c["entries"][2].update(seed_block=None),
        f"{CAT}: a lucky_num from the chain needs its seed_block",
    ),
    "a later seed block": (
        lambda c: c["entries"][0].update(seed_block=33),
        f"{ANN}: its seed_block is 33, and every 1",
    ),
    "a seed block to come": (
        lambda c: c["entries"][0].update(seed_block=37),
        f"{ANN}: its seed_block 37 is not between",
    ),
    "the round's seed": (lambda c: c.update(lucky_num=5), "start_block_hash gives the lucky_num"),
    "the block's hash": (lambda c: c.update(start_block_hash=hash_of(5)), "start_block_hash gives the lucky_num"),
    "the order of blocks": (lambda c: c.update(opened_block=9999), "blocks out of order"),
    "the netuid": (lambda c: c.update(netuid=97), f"line 2, {ANN}: the receipt is of netuid 96"),
    "the model": (lambda c: c.update(model="other/model@1"), f"line 2, {ANN}: the receipt is of the model"),
    "the hyperparameters": (
        lambda c: c.update(hyperparameters_digest="0" * 64),
        f"line 2, {ANN}: the receipt is of other hyperparameters",
    ),
    "the competition": (
        lambda c: c["competition"].update(bheight=0.2),
        f"line 2, {ANN}: the receipt is of another competition",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_that_the_validator_signed_is_found(path: Path, lie: str) -> None:
    edit, told = LIES[lie]
    found = complaints(changed(read_round(path), edit))
    assert any(line.startswith(told) for line in found), found
    assert not any("NOT VALID" in line for line in found)


def test_a_hash_that_is_not_the_blocks_is_told_by_the_chain(path: Path) -> None:
    header = read_round(path).header
    (line,) = check_against_chain(
        dataclasses.replace(header, lucky_num_from="random"), lambda block: hash_of(block + 1)
    )
    assert line.startswith("block 36 has the hash")
    asked: list[int] = []

    def ask(block: int) -> str:
        asked.append(block)
        return hash_of(block)

    assert check_against_chain(header, ask) == []
    assert asked == [32, 33, 34, 36], "each block once"


def test_a_header_changed_by_somebody_else_is_not_believed(path: Path) -> None:
    file = changed(read_round(path), lambda content: content["table"][0].update(loss=6.0), resign=False)
    header_wrong, receipts_wrong = check_signatures(file, verify_signature)
    assert header_wrong == f"NOT VALID for {SIGNER}" and receipts_wrong == {}


def test_receipts_of_another_signer_are_told_apart_from_forged_ones(path: Path) -> None:
    file = read_round(path)
    stranger = make_key("stranger")
    foreign = file.receipts[0].signed(stranger.ss58_address, lambda message: str(stranger.sign(message).hex()))
    forged = dataclasses.replace(file.receipts[1], signature="0" * 128)
    header_wrong, found = check_signatures(RoundFile(header=file.header, receipts=(foreign, forged)), verify_signature)
    assert header_wrong is None
    assert found[0] == f"signed by {stranger.ss58_address}, and the round by {SIGNER}"
    assert found[1] == f"NOT VALID for {SIGNER}"
    unsigned = dataclasses.replace(file.receipts[0], signer=None, signature=None)
    assert "nobody" in check_signatures(RoundFile(header=file.header, receipts=(unsigned,)), verify_signature)[1][0]


def test_a_receipt_is_no_round_and_a_round_no_receipt(path: Path) -> None:
    """The same hotkey signs both; neither signature serves for the other."""
    file = read_round(path)
    receipt, header = file.receipts[0], file.header
    assert not verify_signature(SIGNER, header.message(), str(receipt.signature))
    assert not verify_signature(SIGNER, receipt.message(), str(header.signature))
    assert header.message().split(b"\n")[0] != receipt.message().split(b"\n")[0]


def test_the_loss_of_an_earlier_round_is_checked_where_its_file_is_at_hand(path: Path) -> None:
    file = read_round(path)
    entry = dataclasses.replace(ACCOUNT.round.entries[3], lucky_num=seed_from_hash(hash_of(35)))
    earlier = make_receipt(entry)
    table = [dataclasses.replace(line) for line in file.header.table]
    table[3] = dataclasses.replace(table[3], receipt=earlier.digest)
    file = RoundFile(header=dataclasses.replace(file.header, table=tuple(table)), receipts=file.receipts)
    both = {**known(file), earlier.digest: earlier}
    assert check_consistency(file, both) == [] and remarks(file, both) == []
    lying = dataclasses.replace(earlier, result=dataclasses.replace(earlier.result, loss=5.0))
    assert check_consistency(file, {**known(file), earlier.digest: lying}) != []


def test_refused_weights_and_those_of_another_round_are_no_lie(path: Path) -> None:
    def repeat(content: dict[str, Any]) -> None:
        last = {**content["weights"][0], "block": 390}
        older = {**last, "is_repeat": True, "shares": {SIGNER: 1.0}, "weights": {"1": 1.0}}
        refused = {**last, "shares": {}, "is_accepted": False}
        content["weights"] = [*content["weights"], refused, older]

    assert complaints(changed(read_round(path), repeat)) == []


def nobody_scores(content: dict[str, Any]) -> None:
    for line in content["table"]:
        line.update(loss=None, receipt=None, score=0.0, weight=0.0, reason="malformed")
    content["weights"][0].update(weights={"0": 1.0}, shares={SIGNER: 1.0})


def test_where_nobody_has_a_score_one_hotkey_may_get_it_all(path: Path) -> None:
    file = dataclasses.replace(read_round(path), receipts=())
    burnt = changed(file, nobody_scores)
    assert complaints(burnt) == []
    assert any(note.startswith(f"nobody has a score, and all went to {SIGNER}") for note in remarks(burnt, {}))

    def split(content: dict[str, Any]) -> None:
        nobody_scores(content)
        content["weights"][0].update(shares={SIGNER: 0.5, ANN: 0.5})

    assert complaints(changed(file, split)) == [
        "weights of block 380: several hotkeys have a share, and nobody has a score"
    ]


def test_a_miner_left_out_of_the_weights_is_noted(path: Path) -> None:
    def drop(content: dict[str, Any]) -> None:
        del content["weights"][0]["weights"]["2"]

    file = changed(read_round(path), drop)
    assert complaints(file) == []
    assert any(note.startswith(f"{ANN}: no weight for its uid 2") for note in remarks(file, known(file)))


def test_a_score_that_came_too_late_for_the_table_is_noted(path: Path) -> None:
    def forget(content: dict[str, Any]) -> None:
        for line in content["table"]:
            if line["hotkey"] == BEN:
                line.update(loss=None, receipt=None, score=0.0, weight=0.0)
        paid = [line for line in content["table"] if line["loss"] is not None]
        total = sum(line["score"] for line in paid)
        for line in paid:
            line["weight"] = line["score"] / total
        content["weights"][0].update(
            shares={line["hotkey"]: line["weight"] for line in paid},
            weights={str(line["uid"]): line["weight"] for line in paid},
        )

    file = changed(read_round(path), forget)
    assert complaints(file) == []
    assert f"{BEN}: scored too late for the table" in remarks(file, known(file))


def test_a_receipt_that_the_validator_put_in_twice_is_named(path: Path) -> None:
    file = read_round(path)
    doubled = RoundFile(header=file.header, receipts=(*file.receipts, file.receipts[0]))
    assert f"{ANN}: more than one receipt" in check_consistency(doubled, known(doubled))


def test_a_validator_tells_one_story_of_a_round(path: Path) -> None:
    header = read_round(path).header
    first, twin, late = "rounds/first.jsonl", "elsewhere.jsonl", "late.jsonl"
    later = dataclasses.replace(header, weights=(), receipts=0, receipts_sha256="0" * 64, signature="0" * 128)
    assert check_across_files({first: header, twin: header, late: later}) == {first: [], twin: [], late: []}
    other = dataclasses.replace(header, table=header.table[:1])
    told = [f"{SIGNER} tells something else of this round in {first}"]
    assert check_across_files({first: header, twin: other}) == {first: [], twin: told}
    for changes in ({"signer": None}, {"signer": ANN}, {"start_block": 35}, {"netuid": 1}):
        assert check_across_files({first: header, twin: dataclasses.replace(other, **changes)})[twin] == []


@pytest.mark.parametrize(
    ("name", "is_wrong"),
    [
        ("round-96-36-5Ef1ucvE.jsonl", False),
        ("round-96-36-offline.jsonl", False),
        ("round-96-37-5Ef1ucvE.jsonl", True),
        ("round-97-36-5Ef1ucvE.jsonl", True),
        ("mine.jsonl", False),
        ("round-96-\u0663\u0666-5Ef1ucvE.jsonl", False),
    ],
)
def test_a_name_is_of_the_file_s_own_round(path: Path, name: str, is_wrong: bool) -> None:
    found = check_across_files({f"rounds/{name}": read_round(path).header})
    wrong = ["the name is of another round than netuid 96, block 36"] if is_wrong else []
    assert found == {f"rounds/{name}": wrong}


def leaves(content: object, *path: str | int) -> Iterator[tuple[str | int, ...]]:
    """Where the numbers stand in a JSON value."""
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(value, *path, key)
    elif type(content) in (int, float):
        yield path


def test_no_number_of_a_strangers_breaks_the_check(path: Path) -> None:
    file = read_round(path)
    content = json.loads(file.header.to_line())
    places = list(leaves(content))
    assert len(places) > 50
    read = 0
    for *folders, name in places:
        for value in (0, -1, 5e-324, -1.7e308, 1.7e308, 2**63, 10**400, 10**4299):
            changed = copy.deepcopy(content)
            functools.reduce(operator.getitem, folders, changed)[name] = value
            with contextlib.suppress(ConfigError):
                lie = RoundFile(header=RoundHeader.from_json(json.dumps(changed), "lie"), receipts=file.receipts)
                read += 1
                check_consistency(lie, known(file))
                remarks(lie, known(file))
                check_against_chain(lie.header, hash_of)
                assert check_signatures(lie, verify_signature)[0] is not None or lie.header == file.header
    assert read > len(places)
