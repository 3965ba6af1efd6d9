"""The public record of a round: to a file and back, and what is refused of a stranger's."""

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from template.chain.client import verify_signature
from template.errors import ConfigError, HostError
from template.receipts.files import MAX_LINE_BYTES, MAX_RECEIPTS, read_round, write_round
from template.receipts.round_file import MAX_ENTRIES, RoundFile, RoundHeader, make_round_lines
from template.receipts.verify import check_signatures, remarks
from tests.fixtures.rounds import ACCOUNT, COMPETITION, SIGNER, complaints, known, sign


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_round(tmp_path / "rounds", ACCOUNT, signer=SIGNER, sign=sign)


def test_a_round_comes_back_whole_and_an_honest_one_has_nothing_wrong(path: Path) -> None:
    file = read_round(path)
    header, current = file.header, ACCOUNT.round
    assert complaints(file) == []
    assert (header.netuid, header.competition, header.signer) == (96, COMPETITION, SIGNER)
    assert (header.start_block, header.end_block, header.lucky_num) == (36, 396, current.lucky_num)
    assert header.queue == tuple(key.hotkey for key in current.queue)
    assert [(one.hotkey, one.entry) for one in header.entries] == [tuple(one.key) for one in current.entries]
    assert [receipt.submission.hotkey for receipt in file.receipts if receipt.submission] == [
        one.key.hotkey for one in current.entries[:2]
    ], "in the order of the entries"
    assert [(line.reason, line.loss, line.weight) for line in header.table] == [
        (one.reason, one.loss, one.weight) for one in ACCOUNT.standings
    ]
    assert [line.receipt is None for line in header.table] == [False, False, True, False]
    assert header.weights[0].shares == dict(ACCOUNT.intents[0].shares)


def test_what_only_other_files_can_show_is_noted(path: Path) -> None:
    (note,) = remarks(read_round(path), known(read_round(path)))
    assert note.startswith("1 losses rest on receipts of other rounds")


def test_the_file_is_public_named_by_its_round_and_stands_alone(path: Path) -> None:
    assert path.name == f"round-96-36-{SIGNER[:8]}.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]
    assert write_round(path.parent, ACCOUNT, signer=None, sign=None).name == "round-96-36-offline.jsonl"


def test_each_line_is_json_and_its_sha256_is_what_the_table_names(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3 and all(json.loads(line) for line in lines)
    table = {line.hotkey: line.receipt for line in read_round(path).header.table}
    for line in lines[1:]:
        assert table[json.loads(line)["submission"]["hotkey"]] == hashlib.sha256(line.rstrip(b"\n")).hexdigest()
    assert read_round(path).header.receipts_sha256 == hashlib.sha256(b"".join(lines[1:])).hexdigest()


def test_nobody_needs_to_sign(tmp_path: Path) -> None:
    account = dataclasses.replace(ACCOUNT, receipts={}, all_receipt_digests={})
    file = read_round(write_round(tmp_path, account, signer=None, sign=None))
    assert check_signatures(file, verify_signature) == (None, {})
    assert any("nobody signed" in note for note in remarks(file, {}))


def test_a_disk_that_refuses_is_the_hosts_fault_and_leaves_nothing_partial(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot write the round"):
        write_round(tmp_path / "file", ACCOUNT, signer=SIGNER, sign=sign)
    (tmp_path / f"round-96-36-{SIGNER[:8]}.jsonl").mkdir()
    with pytest.raises(HostError, match="cannot write the round"):
        write_round(tmp_path, ACCOUNT, signer=SIGNER, sign=sign)
    assert len(list(tmp_path.iterdir())) == 2


def rewrite(path: Path, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))


BROKEN: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "empty": (lambda lines: [], "empty"),
    "a line less": (lambda lines: lines[:-1], "1 receipts follow the header, which says 2"),
    "a line more": (lambda lines: [*lines, lines[-1]], "3 receipts follow the header, which says 2"),
    "cut short": (lambda lines: [*lines[:-1], lines[-1][:-30]], "line 3: cut off"),
    "only the line feed gone": (lambda lines: [*lines[:-1], lines[-1][:-1]], "line 3: cut off"),
    "exchanged": (lambda lines: [lines[0], lines[2], lines[1]], "the receipts are not those of the header"),
    "one twice": (lambda lines: [lines[0], lines[1], lines[1]], "the receipts are not those of the header"),
    "a receipt first": (lambda lines: lines[1:], "line 1: expected a JSON object"),
    "not JSON": (lambda lines: [b"{\n", *lines[1:]], "line 1: not JSON"),
    "deep": (lambda lines: [b"[" * 100_000 + b"\n", *lines[1:]], "line 1: not JSON"),
    "an unknown key": (lambda lines: [lines[0].replace(b'"queue"', b'"turn"'), *lines[1:]], "line 1: expected exactly"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_not_whole_is_refused_with_its_place(path: Path, case: str) -> None:
    edit, told = BROKEN[case]
    rewrite(path, edit)
    with pytest.raises(ConfigError) as caught:
        read_round(path)
    assert str(caught.value).startswith(f"{path}: {told}")


def test_a_file_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(ConfigError, match=rf"line 1: too long; a line has at most {MAX_LINE_BYTES} bytes"):
        read_round(path)
    path.write_bytes(b"{}\n" * (MAX_RECEIPTS + 5))
    with pytest.raises(ConfigError, match=f"more than {MAX_RECEIPTS} receipts"):
        read_round(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_round(tmp_path / "missing.jsonl")


JUNK = [None, True, -1, 1e400, "text", "\ud800", [], [1], {}, {"a": [{}]}, 10**400]


def test_junk_in_any_field_of_the_header_is_refused_or_leaves_a_usable_header(path: Path) -> None:
    """Every value of the header in turn becomes each kind of junk; only a ConfigError may come of it."""
    text = path.read_bytes().splitlines()[0]
    places = [place for place in leaves(json.loads(text)) if place]
    assert len(places) > 60
    for place in places:
        for junk in JUNK:
            content = json.loads(text)
            put(content, place, junk)
            try:
                header = RoundHeader.from_json(json.dumps(content), "junk")
            except ConfigError as error:
                assert str(error).startswith("junk")
                continue
            file = RoundFile(header=header, receipts=())
            complaints(file)
            remarks(file, {})


def leaves(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(leaf for key, child in children for leaf in leaves(child, (*place, key)))]


def put(content: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        content = content[key]
    content[place[-1]] = value


def test_a_source_of_seeds_that_is_none_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="lucky_num_from"):
        write_round(path.parent, dataclasses.replace(ACCOUNT, lucky_num_from="dice"), signer=None, sign=None)
    content = json.loads(read_round(path).header.to_line())
    with pytest.raises(ConfigError, match="must be one of random, chain, fixed"):
        RoundHeader.from_json(json.dumps({**content, "lucky_num_from": "dice"}), "dice")


def test_a_key_that_stands_twice_is_refused_wherever_it_is(path: Path) -> None:
    """Of two readers one would take the first value, and both would find the same signature true."""
    first, *rest = path.read_text().splitlines()
    for doubled in (
        first.replace('"lucky_num":', '"lucky_num":0,"lucky_num":', 1),
        first.replace('"end_block":', '"end_block":0,"end_block":', 1),
    ):
        path.write_text("".join(f"{line}\n" for line in (doubled, *rest)))
        with pytest.raises(ConfigError, match="line 1: not JSON: duplicate key"):
            read_round(path)


def test_more_entries_than_a_subnet_has_are_refused() -> None:
    content = json.loads(make_round_lines(ACCOUNT, signer=SIGNER, sign=sign)[0])
    for name in ("entries", "queue", "table", "weights"):
        many = {**content, name: content[name][:1] * (MAX_ENTRIES + 1)}
        with pytest.raises(ConfigError, match=f"more than {MAX_ENTRIES} entries"):
            RoundHeader.from_json(json.dumps(many), "file")
