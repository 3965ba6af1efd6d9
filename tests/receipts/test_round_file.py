"""Round files: written and read back, and refused when incomplete or malformed."""

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from template.chain.client import verify_signature
from template.errors import ConfigError
from template.receipts.files import MAX_FILE_BYTES, MAX_LINE_BYTES, MAX_RECEIPTS, read_round, round_file
from template.receipts.round_file import MAX_ENTRIES, RoundFile, RoundHeader, make_round_lines
from template.receipts.verify import check_signatures, remarks
from template.serialization import canonical_json
from tests.fixtures.rounds import (
    ACCOUNT,
    COMPETITION,
    INCENTIVES,
    JUNK,
    SIGNER,
    container_of,
    find_faults,
    find_lies,
    json_places,
    sign,
)

HEADER = json.loads(make_round_lines(ACCOUNT, signer=SIGNER, sign=sign)[0])
LISTS = ("entries", "queue", "evaluations", "ledger", "table", "weights")


def test_round_file_reads_back_whole(path: Path) -> None:
    header, current = read_round(path).header, ACCOUNT.round
    assert (header.netuid, header.competition, header.incentives) == (96, COMPETITION, INCENTIVES)
    assert (header.start_block, header.end_block, header.signer) == (36, 40, SIGNER)
    assert header.queue == tuple(key.hotkey for key in current.queue)
    assert [(line.hotkey, line.entry, line.block, line.commit_block) for line in header.entries] == [
        (*entry.key, entry.reveal_block, entry.commit_block) for entry in current.entries
    ]
    assert [
        (line.hotkey, line.digest, line.number, line.lucky_num, line.seed_block) for line in header.evaluations
    ] == [(run.key.hotkey, run.digest, run.number, run.lucky_num, run.seed_block) for run in current.evaluations or ()]
    assert [(line.reason, line.loss, line.weight) for line in header.table] == [
        (row.reason, row.loss, row.weight) for row in ACCOUNT.standings
    ]
    assert list(header.ledger) == list(ACCOUNT.ledger) and len(header.ledger) == 3
    assert header.weights[0].shares == dict(ACCOUNT.intents[0].shares)


def test_signature_of_a_release_that_knew_fewer_rules_is_valid() -> None:
    content = json.loads(json.dumps(HEADER))
    del content["incentives"]["season_block"], content["signature"]
    content["signature"] = sign(f"{content['format']}\n{canonical_json(content)}".encode())
    header = RoundHeader.from_json(json.dumps(content), "header")
    assert header.incentives == INCENTIVES and verify_signature(SIGNER, header.message(), header.signature or "")
    assert json.loads(header.to_line()) == content


def test_round_file_keeps_receipts_in_the_order_of_the_plan(path: Path) -> None:
    hotkeys = [receipt.submission.hotkey for receipt in read_round(path).receipts if receipt.submission]
    assert hotkeys == [evaluation.key.hotkey for evaluation in ACCOUNT.round.evaluations or ()]


def test_honest_round_file_has_neither_faults_nor_remarks(path: Path) -> None:
    file = read_round(path)
    assert find_faults(file) == [] and remarks(file) == []


def test_round_file_is_public_and_named_by_its_round(path: Path) -> None:
    season = hashlib.sha256("\n".join(ACCOUNT.season).encode()).hexdigest()[:6]
    assert path.name == f"round-96-36-{SIGNER[:8]}-{season}.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]
    assert round_file(ACCOUNT, signer=None, sign=None).name == f"round-96-36-offline-{season}.jsonl"


def test_round_file_digests_are_sha256_of_its_lines(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    header = read_round(path).header
    table = {line.hotkey: line.receipt for line in header.evaluations}
    for line in lines[1:]:
        assert table[json.loads(line)["submission"]["hotkey"]] == hashlib.sha256(line.rstrip(b"\n")).hexdigest()
    assert header.receipts_sha256 == hashlib.sha256(b"".join(lines[1:])).hexdigest()


def test_unsigned_round_file_is_a_remark(tmp_path: Path) -> None:
    account = dataclasses.replace(ACCOUNT, receipts={}, results={})
    file = read_round(round_file(account, signer=None, sign=None).write(tmp_path))
    assert check_signatures(file, verify_signature) == (None, {})
    assert any(remark.startswith("unsigned") for remark in remarks(file))


BROKEN: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "empty": (lambda lines: [], "line 1: incomplete"),
    "a line less": (lambda lines: lines[:-1], "1 receipts after the header, which lists 2"),
    "a line more": (lambda lines: [*lines, lines[-1]], "3 receipts after the header, which lists 2"),
    "cut short": (lambda lines: [*lines[:-1], lines[-1][:-30]], "line 3: incomplete"),
    "only the line feed gone": (lambda lines: [*lines[:-1], lines[-1][:-1]], "line 3: incomplete"),
    "exchanged": (lambda lines: [lines[0], lines[2], lines[1]], "the sha256 of the receipts is not"),
    "one twice": (lambda lines: [lines[0], lines[1], lines[1]], "the sha256 of the receipts is not"),
    "a receipt first": (lambda lines: lines[1:], "line 1: expected a JSON object"),
    "not JSON": (lambda lines: [b"{\n", *lines[1:]], "line 1: not JSON"),
    "deep": (lambda lines: [b"[" * 100_000 + b"\n", *lines[1:]], "line 1: not JSON"),
    "an unknown key": (lambda lines: [lines[0].replace(b'"queue"', b'"turn"'), *lines[1:]], "line 1: expected exactly"),
    # Of two readers one would take the first value, and both would find the signature valid.
    "a duplicate key": (
        lambda lines: [lines[0].replace(b'"end_block":', b'"end_block":0,"end_block":', 1), *lines[1:]],
        "line 1: not JSON: duplicate key",
    ),
    "many lines": (lambda lines: [b"{}\n"] * (MAX_RECEIPTS + 5), f"more than {MAX_RECEIPTS} receipts"),
    "a long line": (lambda lines: [lines[0][:-1], b" " * MAX_LINE_BYTES, b"\n"], "line 1: more than"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_incomplete_round_file_is_refused_with_its_place(path: Path, case: str) -> None:
    edit, message = BROKEN[case]
    path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(ConfigError) as caught:
        read_round(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_huge_round_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(ConfigError, match=f"more than {MAX_FILE_BYTES} bytes"):
        read_round(path)


def test_junk_in_a_header_is_refused_or_leaves_a_usable_header(path: Path) -> None:
    text = path.read_bytes().splitlines()[0]
    places = list(json_places(json.loads(text)))
    assert len(places) > 60
    for place in places:
        for junk in JUNK:
            content = json.loads(text)
            container_of(content, place)[place[-1]] = junk
            try:
                header = RoundHeader.from_json(json.dumps(content), "junk")
            except ConfigError as error:
                assert str(error).startswith("junk")
                continue
            file = RoundFile(header=header, receipts=())
            find_faults(file)
            find_lies(header, receipts={})
            remarks(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lucky_num_from": "dice"}, "lucky_num_from must be one of random, chain, fixed"),
        ({"netuid": 2**16}, "netuid, start_block, seed_block or rank_block out of range"),
        ({"start_block": -1}, "netuid, start_block, seed_block or rank_block out of range"),
        ({"ledger": [{**HEADER["ledger"][0], "runs": 0}]}, "runs or number of an evaluation out of range"),
        *(({name: [HEADER[name][0]] * (MAX_ENTRIES + 1)}, f"more than {MAX_ENTRIES} entries") for name in LISTS),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_header_value_out_of_range_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^file: .*{message}"):
        RoundHeader.from_json(json.dumps({**HEADER, **changes}), "file")
