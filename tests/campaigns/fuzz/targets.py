"""Targets of fuzzing: properties that each reader of strangers' bytes must have.

A target takes any bytes and raises for a finding: the product must read what a second, plain reader reads, refuse by
documented errors alone, and read its own output the same.
"""

import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from scripts.bench.tiny_model import make_tiny_tokenizer
from template.chain.client import verify_signature
from template.constants import MAX_TOKENS
from template.data.chat_templates import template_for
from template.data.encoding import Tokenize, encode_row, has_target_for_any_tokenizer
from template.data.rows import (
    SUBMISSION_LIMITS,
    Limits,
    LineError,
    Message,
    Row,
    RowKey,
    parse_rows,
    read_keys,
    scan_rows,
)
from template.errors import ConfigError, SubmissionError
from template.receipts.files import read_round
from template.receipts.receipt import Receipt, compare_receipt
from template.receipts.verify import check_against_chain, check_consistency, check_signatures, remarks
from template.training.tokenizer import PieceTokenizer
from tests.campaigns.fuzz.commitments import check_commitment, check_fields, check_message, expect
from tests.campaigns.fuzz.reference import ReferenceRow, read_rows
from tests.campaigns.fuzz.seeds import HONEST_MESSAGES, RECEIPTS
from tests.fixtures.rounds import by_digest, hash_of

# So small that inputs of a fuzzer's size reach every one of them.
_SMALL = Limits(file_bytes=3000, rows=6, row_bytes=1000, messages=6, json_depth=6)


class Target(NamedTuple):
    """A check that raises for a finding, and the words of its format.

    share: of a campaign's runs, in percent, as one run here is cheap or dear.
    """

    check: Callable[[bytes], None]
    share: int
    max_bytes: int
    words: tuple[bytes, ...]


# Rows


def check_rows(data: bytes) -> None:
    """Compare a file of rows with the reference, under two sets of limits."""
    for limits in (_SMALL, SUBMISSION_LIMITS):
        _compare_rows(data, limits)


def _compare_rows(data: bytes, limits: Limits) -> None:
    actual, expected = list(scan_rows(data, limits=limits)), read_rows(data, limits)
    expect(len(actual) == len(expected), "other lines are rows")
    for ours, theirs in zip(actual, expected, strict=True):
        if isinstance(ours, LineError):
            check_message(ours.error)
            is_same = not isinstance(theirs, ReferenceRow) and ours.error.reason in theirs.reasons
            expect(is_same and ours.line == theirs.line, f"refused as {ours.error.reason}: {theirs}")
        else:
            expect(isinstance(theirs, ReferenceRow), f"a row is taken: {theirs}")
            contents = tuple(message.content for message in ours.messages)
            expect(theirs == ReferenceRow(ours.line, ours.system, contents), "a row is read as another")
            expect(isinstance(theirs, ReferenceRow) and ours.key == theirs.key, "a row has another key")
    rows = [row for row in actual if isinstance(row, Row)]
    for row, other in itertools.combinations(rows, 2):
        expect((row.key == other.key) == (row == other), "a key is of two rows, or a row has two keys")
    _compare_ways(data, limits, actual)
    for row in rows:
        _write_again(row)


def _compare_ways(data: bytes, limits: Limits, expected: Sequence[Row | LineError]) -> None:
    """Check that `parse_rows` and `read_keys` agree with `scan_rows`."""
    fault = next((line for line in expected if isinstance(line, LineError)), None)
    outcomes: list[object] = []
    cached: dict[bytes, bytes] = {}
    for _ in range(2):
        keys: list[RowKey] = []
        try:
            for digest, row in read_keys(data, name="data.jsonl", limits=limits, keys_by_line=dict(cached)):
                cached[digest] = row.key
                keys.append(RowKey(row.line, row.key))
        except SubmissionError as error:
            outcomes.append((error.reason, str(error)))
        else:
            outcomes.append(keys)
    try:
        rows = parse_rows(data, name="data.jsonl", limits=limits)
    except SubmissionError as error:
        expect(fault is not None and error.reason is fault.error.reason, "the first fault is not what is raised")
        outcomes.append((error.reason, str(error)))
    else:
        expect(fault is None and list(rows) == list(expected), "rows are lost")
        outcomes.append([RowKey(row.line, row.key) for row in rows])
    expect(all(outcome == outcomes[0] for outcome in outcomes), "two ways to read a file disagree")


def _write_again(row: Row) -> None:
    """Check that other spellings of a row give the same row."""
    turns: list[dict[str, object]] = [{"role": message.role, "content": message.content} for message in row.messages]
    extended = [{"id": {"n": 1e9}, **dict(reversed(turn.items()))} for turn in turns]
    spellings = (
        json.dumps({"system": row.system, "conversations": turns}),
        json.dumps({"conversations": extended, "id": [None], "system": row.system}, ensure_ascii=False, indent=1),
    )
    for text in spellings:
        content = b"\n" * (row.line - 1) + text.replace("\n", " ").encode() + b"\r\n"
        limits = Limits(file_bytes=2**24, rows=1, row_bytes=2**24, messages=len(turns), json_depth=9)
        (again,) = parse_rows(content, name="again", limits=limits)
        expect(again == row and again.key == row.key and again.line == row.line, "a row written again is another")


# Tokens


@cache
def _tokenizer() -> Any:
    return make_tiny_tokenizer()


@cache
def _tokenize() -> Tokenize:
    return PieceTokenizer(_tokenizer())


_ROW_WORDS = (
    b'"conversations":', b'"role":', b'"user"', b'"assistant"', b'"content":', b'"system":', b"null", b"true", b"NaN",
    b"\\u", b"\\ud800", b"\\udc00", b"\\n", b"\\\\", b'\\"', b"\n", b"\r\n", b"[[", b"{}", b"1e9", b"-0.5",
    b'{"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n',
)  # fmt: skip
_RECORD_WORDS = (
    b"null", b"true", b"[]", b"{}", b'""', b"NaN", b"Infinity", b"1e999", b"-0.0", b"0", b"1" * 400, b'"signer":',
    b'"signature":', b'"submission":', b'"competition":', b'"result":', b'"loss":', b"\\ud800", b'"hotkey":',
    b'"weights":',
)  # fmt: skip

_FAMILY = template_for("Qwen/Qwen2.5-1.5B-Instruct")


def check_chat(data: bytes) -> None:
    """Encode the rows of a file, or a row of its parts between 0xff bytes."""
    try:
        rows: Sequence[Row] = parse_rows(data, name="data.jsonl", limits=SUBMISSION_LIMITS)
    except SubmissionError:
        system, *texts = (part.decode(errors="ignore") for part in data.split(b"\xff"))
        turns = tuple(Message(("user", "assistant")[index % 2], text) for index, text in enumerate(texts or [""]))
        rows = [Row(system or None, turns, 1)]
    for row in rows[:3]:
        _check_encoding(row)


@cache
def _own_control(before: str, after: str) -> list[int]:
    """Return the control tokens of the template's own texts."""
    return [token for token in _tokenize()(before, "", after) if token in _control()]


@cache
def _control() -> frozenset[int]:
    return frozenset(token for token, added in _tokenizer().added_tokens_decoder.items() if added.special)


def _check_encoding(row: Row) -> None:
    contents = [message.content for message in row.messages][: len(row.messages) // 2 * 2]
    ids: list[int] = []
    targets: list[bool] = []
    for before, content, after, is_target in _FAMILY.pieces(row.system, contents):
        piece = _tokenize()(before, content, after)
        written = [token for token in piece if token in _control()]
        expect(written == _own_control(before, after), "a row wrote a control token")
        spelt = _tokenizer()._tokenizer.normalizer.normalize_str(content)
        shown = _tokenizer().decode(piece, clean_up_tokenization_spaces=False)
        expect(shown == before + spelt + after, "tokens spell another text")
        ids += piece
        targets += [is_target] * len(piece)
    for max_tokens in (24, MAX_TOKENS):
        _check_cut(row, ids, targets, max_tokens)


def _check_cut(row: Row, ids: list[int], targets: list[bool], max_tokens: int) -> None:
    encoded = encode_row(row, _FAMILY, _tokenize(), max_tokens=max_tokens)
    if encoded is None:
        expect(not any(targets[1:max_tokens]), "a row with an answer is refused")
        is_certain = max_tokens == MAX_TOKENS and has_target_for_any_tokenizer(row)
        expect(not is_certain, "an answer that cannot be cut off was cut off")
        return
    expect(any(targets[1:max_tokens]), "a row without an answer is taken")
    expect(encoded.input_ids == tuple(ids[:max_tokens]), "other tokens than the pieces have")
    expect(encoded.targets == tuple(targets[:max_tokens]), "targets are not exactly the answers")
    expect(encoded.target_count == sum(targets[1:max_tokens]), "targets are miscounted")


# Receipts and rounds


def _check_json(data: bytes) -> object:
    """Return the value of unambiguous JSON. Raises: ValueError."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    def refuse(text: str) -> object:
        raise ValueError(text)

    value: object = json.loads(data, object_pairs_hook=once, parse_constant=refuse)
    return value


def check_receipt(data: bytes) -> None:
    """Read a receipt and write it again."""
    try:
        receipt = Receipt.from_json(data, "receipt")
    except ConfigError as error:
        expect(str(error).startswith("receipt"), "a refusal does not name its origin")
        check_message(error)
        return
    value = _check_json(data)
    expect(json.loads(receipt.to_line()) == value, "a receipt is not what was read")
    for text in (receipt.to_line(), receipt.to_json(), receipt.to_json().encode()):
        again = Receipt.from_json(text, "again")
        expect(again == receipt and again.to_line() == receipt.to_line(), "a receipt written again is another")
        expect(again.message() == receipt.message() and again.digest == receipt.digest, "its message is another")
    comparison = compare_receipt(receipt, receipt.result)
    expect(comparison.difference == 0.0 and not comparison.reasons, "a receipt is not identical with itself")
    "\n".join(compare_receipt(RECEIPTS[0], receipt.result).reasons).encode()
    if receipt.signer is not None and receipt.signature is not None:
        is_genuine = verify_signature(receipt.signer, receipt.message(), receipt.signature)
        expect(not is_genuine or receipt.message() in HONEST_MESSAGES, "a forged signature is genuine")


def check_round(data: bytes) -> None:
    """Read a round file and verify it."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as written:
        written.write(data)
        written.flush()
        try:
            file = read_round(Path(written.name))
        except ConfigError as error:
            expect(str(error).startswith(written.name), "a refusal does not name its file")
            check_message(error)
            return
    first, *rest = data.split(b"\n")[:-1]
    expect(json.loads(file.header.to_line()) == _check_json(first), "a header is not what was read")
    expect(len(rest) == len(file.receipts) == file.header.receipts, "receipts are lost")
    receipts = by_digest(file)
    header_wrong, receipts_wrong = check_signatures(file, verify_signature)
    faults = [header_wrong or "", *receipts_wrong.values(), *check_consistency(file, receipts)]
    faults += [*remarks(file), *check_against_chain(file.header, hash_of)]
    "\n".join(faults).encode()


TARGETS: Mapping[str, Target] = {
    "commitment": Target(check_commitment, 32, 200, (b":1:", b"/", b".git", b"--", b"..", b"0x", b"0123456789abcdef")),
    "fields": Target(check_fields, 32, 700, (b"\x04", b"\x86", b"\x88", b"\x87", b"\x36", b"\x83")),
    "rows": Target(check_rows, 8, 4096, _ROW_WORDS),
    "chat": Target(check_chat, 3, 2048, (*_ROW_WORDS, b"<|im_start|>", b"<|im_end|>", b"\xff", b"\n")),
    "receipt": Target(check_receipt, 15, 8192, _RECORD_WORDS),
    "round": Target(check_round, 10, 16384, _RECORD_WORDS),
}
