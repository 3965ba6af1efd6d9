"""The strict parser of data.jsonl, and encoding."""

import gc
import hashlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from template import constants
from template.config import load_training_args
from template.data.chat_templates import template_for
from template.data.encoding import EncodedRow, encode_row, has_target_for_any_tokenizer
from template.data.rows import SUBMISSION_LIMITS, Limits, Message, Row, parse_rows
from template.errors import Reason, SubmissionError
from template.training.model import load_tokenizer

QWEN = template_for("Qwen/Qwen2.5-1.5B-Instruct")
LIMITS = Limits(file_bytes=10_000, rows=5, row_bytes=1_000, messages=4, json_depth=4)
GOOD = '{"system": "s", "conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'


def parse(content: str | bytes, limits: Limits = LIMITS) -> tuple[Row, ...]:
    return parse_rows(content.encode() if isinstance(content, str) else content, name="data.jsonl", limits=limits)


def rejection(content: str | bytes, limits: Limits = LIMITS) -> SubmissionError:
    with pytest.raises(SubmissionError) as caught:
        parse(content, limits)
    return caught.value


def row_json(*turns: str, **others: Any) -> str:
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    return json.dumps({"conversations": messages, **others})


def with_content(raw_json: str) -> str:
    return row_json("?", "a").replace('"?"', raw_json)


def tokenize(before: str, content: str = "", after: str = "", /) -> list[int]:
    return list((before + content + after).encode())


def test_valid_row_is_parsed() -> None:
    assert parse(GOOD) == (Row("s", (Message("user", "q"), Message("assistant", "a")), 1),)


def test_blank_lines_are_skipped_but_counted() -> None:
    rows = parse(f"\n \t\r\n{GOOD}\r\n\r\n  {GOOD}\t \n\n{GOOD}")
    assert [row.line for row in rows] == [3, 5, 7]


CONTENTS = {
    **{f"separator {text!a}": f'"x{text}y"' for text in ("\u2028", "\u2029", "\x85", "\x7f")},
    **{f"escape {text}": f'"x{text}y"' for text in ("\\u000b", "\\u000c", "\\r", "\\n", "\\u001e", "\\u0000")},
    "a surrogate pair": '"\\ud83d\\ude00"',
    "brackets, which are no depth": '"' + "[{" * 100 + '\\"[[[[[\\\\"',
}


@pytest.mark.parametrize("case", CONTENTS)
def test_text_of_json_is_content(case: str) -> None:
    (row,) = parse(with_content(CONTENTS[case]))
    assert row.messages[0].content == json.loads(CONTENTS[case])


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \t\r\n"])
def test_file_without_rows_is_empty(content: bytes) -> None:
    assert rejection(content).reason is Reason.EMPTY


# Malformed rows, with a part of the error message

MALFORMED = {
    "not json": ("hello", "at character 1"),
    "two values": (f"{GOOD} {GOOD}", "Extra data"),
    "cut short": (GOOD[:-1], "expected one JSON object"),
    "a carriage return between rows": (f"{GOOD}\r{GOOD}", "Extra data"),
    **{f"white space {text!a}": (text, "expected one JSON object") for text in ("\x0b", "\x0c", "\xa0", "\u2028")},
    "single quotes": ("{'system': null}", "at character 2"),
    "a list": ("[1]", "expected a JSON object, found [1]"),
    "a number": ("17", "found 17"),
    "NaN": ('{"x": NaN, "conversations": []}', "found NaN"),
    "Infinity": ('{"x": Infinity}', "found Infinity"),
    "-Infinity": ('{"x": [-Infinity]}', "found -Infinity"),
    "duplicate key": ('{"system": "a", "system": "b"}', "found 'system' again"),
    "duplicate key by an escape": ('{"system": "a", "s\\u0079stem": "b"}', "found 'system' again"),
    "duplicate key deep down": ('{"x": [{"y": {"z": 1, "z": 1}}]}', "found 'z' again"),
    "raw control character": (with_content('"a\x0bb"'), "control character"),
    "no conversations": ('{"system": "s"}', "expected 'conversations'"),
    "null conversations": ('{"conversations": null}', "found None"),
    "text as conversations": ('{"conversations": "hi"}', "found 'hi'"),
    "no messages": ('{"conversations": []}', "expected 'conversations'"),
    "a message that is text": ('{"conversations": ["hi"]}', "expected message 1 to be an object"),
    "assistant first": ('{"conversations": [{"role": "assistant", "content": "a"}]}', "the role 'user' in message 1"),
    "user twice": (
        '{"conversations": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
        "the role 'assistant' in message 2, found 'user'",
    ),
    "system as a role": ('{"conversations": [{"role": "system", "content": "a"}]}', "found 'system'"),
    "no role": ('{"conversations": [{"content": "a"}]}', "found None"),
    "role as list": ('{"conversations": [{"role": ["user"], "content": "a"}]}', "found ['user']"),
    "no content": ('{"conversations": [{"role": "user"}]}', "the content of message 1 to be text, found None"),
    "number content": (with_content("5"), "found 5"),
    "huge number content": (with_content("9" * 300), "found 999999"),
    "list content": (with_content('["a"]'), "found ['a']"),
    "true content": (with_content("true"), "found True"),
    "number system": (row_json("q", "a", system=5), "expected 'system' to be text or null, found 5"),
    "empty list system": (row_json("q", "a", system=[]), "found []"),
    "half a surrogate pair": (with_content('"\\ud800"'), "surrogate"),
    "half a surrogate pair in system": ('{"system": "\\udfff", ' + GOOD[16:], "surrogate"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_row_is_rejected_with_line_and_cause(case: str) -> None:
    line, cause = MALFORMED[case]
    error = rejection(f"{GOOD}\n\n{line}\n{GOOD}")
    assert error.reason is Reason.MALFORMED
    assert str(error).startswith("data.jsonl, line 3: expected")
    assert cause in str(error)


SHAREGPT = '{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}'
OPENAI = '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}'
FORMATS = {
    "a Git LFS pointer": ("version https://git-lfs.github.com/spec/v1", "a Git LFS pointer, not the file itself"),
    "a web page": ("  <!doctype html><html>", "a web page, not the file itself"),
    "XML": ('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page, not the file itself"),
    "joined files": (f"\ufeff{GOOD}", "found U+FEFF, a byte order mark: files that were joined keep theirs"),
    "joined rows": (f"{GOOD}\ufeff{GOOD}", "found U+FEFF, a byte order mark"),
    "typographic quotes": (GOOD.replace('"', "\u201c"), "found U+201C LEFT DOUBLE QUOTATION MARK"),
    "ShareGPT": (SHAREGPT, "'from' and 'value' are keys of the ShareGPT format"),
    "OpenAI": (OPENAI, "'messages' is the key of OpenAI's format: name it 'conversations'"),
    "OpenAI's parts": (with_content('[{"type": "text", "text": "q"}]'), "OpenAI's content parts are not read"),
    "Alpaca": ('{"instruction": "q", "output": "a"}', "'instruction' is a key of the Alpaca format"),
    "a singular": ('{"conversation": []}', "'conversation' is misspelt: name it 'conversations'"),
    "a system message": (OPENAI.replace("messages", "conversations"), "move its content to the row's key 'system'"),
    "other role names": (GOOD.replace("assistant", "GPT"), "found 'GPT'; write the role 'assistant'"),
    "an array": (f"[{GOOD}]", "a JSON array: write one row per line"),
    "an array's first line": ("[", "a JSON array: write one row per line"),
    "an array's row": (f"{GOOD},", "remove the comma between rows"),
    "a row on several lines": ("{", "the line ends inside the row"),
    "two rows on a line": (GOOD + GOOD, "write one row per line"),
    "Python": (str(json.loads(GOOD)), "a Python dict: write rows with json.dumps"),
    "Markdown": ("```json", "a Markdown code block"),
    "gzip": (b"\x1f\x8b\x08\x00", "a gzip file: unpack it first"),
    "Parquet": (b"PAR1\x15\x04", "a Parquet file: convert it to JSON lines"),
    "UTF-16": ("{}".encode("utf-16-le"), "UTF-16 text: save it as UTF-8"),
    "UTF-16 with its mark": ("{}".encode("utf-16"), "UTF-16 text: save it as UTF-8"),
}


@pytest.mark.parametrize("case", FORMATS)
def test_row_of_another_format_is_named(case: str) -> None:
    line, cause = FORMATS[case]
    content = GOOD.encode() + b"\n" + (line.encode() if isinstance(line, str) else line)
    error = rejection(content, SUBMISSION_LIMITS)
    assert error.reason is Reason.MALFORMED
    assert str(error).startswith("data.jsonl, line 2: expected") and cause in str(error)


def test_array_on_one_long_line_is_named() -> None:
    error = rejection(f"[{', '.join([GOOD] * 20)}]")
    assert error.reason is Reason.TOO_LARGE and "a JSON array: write one row per line" in str(error)


@pytest.mark.parametrize("raw", [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"])
def test_invalid_utf8_is_rejected_with_its_position(raw: bytes) -> None:
    line = with_content('"ab#"').encode()
    error = rejection(GOOD.encode() + b"\n" + line.replace(b"#", raw))
    assert error.reason is Reason.MALFORMED
    assert f"line 2: expected UTF-8, found byte 0x{raw[0]:02x} at byte {line.index(b'#') + 1}" in str(error)


def test_byte_order_mark_is_rejected() -> None:
    error = rejection(b"\xef\xbb\xbf" + GOOD.encode())
    assert error.reason is Reason.MALFORMED
    assert "byte order mark" in str(error)


def test_error_quotes_little_of_a_long_value() -> None:
    error = rejection('{"conversations": "' + "\\ud800" * 150 + '"}')
    assert len(str(error).encode()) < 200


def test_each_limit_rejects_one_above_it() -> None:
    def limit(**values: int) -> Limits:
        return replace(LIMITS, **values)

    size = len(GOOD)
    for tight, content in [
        (limit(file_bytes=size), GOOD + " "),
        (limit(row_bytes=size), " " + GOOD),
        (limit(rows=1), f"{GOOD}\n{GOOD}"),
        (limit(messages=2), row_json("q", "a", "q", system="s")),
        (limit(json_depth=3), '{"x": [[[]]]}'),
    ]:
        assert parse(GOOD, tight)
        error = rejection(content, tight)
        assert error.reason is Reason.TOO_LARGE
        assert str(error).startswith("data.jsonl")


def test_white_space_does_not_count_to_the_limits() -> None:
    limits = replace(LIMITS, row_bytes=len(GOOD), rows=1)
    assert len(parse(GOOD + " " * 500 + "\r\n" + " " * 2_000 + "\n\n", limits)) == 1


def test_depth_after_an_escaped_backslash_is_counted() -> None:
    error = rejection('{"a": "\\\\", "b": ' + "[" * 9 + "]" * 9 + "}")
    assert error.reason is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 260_000,
        b'{"a":' * 50_000,
        b"]" * 100_000 + b"[" * 160_000,
        b'"' * 260_000,
        b'"' + b'\\"' * 130_000,
        b'"' + b"\\" * 260_000,
        b'{"a": ' + b"9" * 260_000 + b"}",
        b'{"a": -0.' + b"9" * 130_000 + b"e" + b"9" * 120_000 + b"}",
        b'{"a": [' + b"[]," * 87_000,
        b"{" + b'"a":1,' * 43_000,
    ],
    ids=lambda line: line[:8].decode() + "...",
)
def test_hostile_line_is_rejected_quickly(line: bytes) -> None:
    started = time.process_time()
    assert rejection(line, SUBMISSION_LIMITS).reason in (Reason.MALFORMED, Reason.TOO_LARGE)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("is_enabled", [True, False])
def test_row_of_many_values_triggers_no_garbage_collection(is_enabled: bool) -> None:
    """Collecting takes fifteen seconds for a file of 16 MiB."""
    line = GOOD[:-1].encode() + b', "note": [' + b"[]," * 80_000 + b"0]}"
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        seen.append(info["generation"])

    was_enabled = gc.isenabled()
    (gc.enable if is_enabled else gc.disable)()
    gc.callbacks.append(note)
    try:
        assert len(parse(line + b"\n" + line, SUBMISSION_LIMITS)) == 2
        assert rejection(line.replace(b"0]", b"NaN]"), SUBMISSION_LIMITS).reason is Reason.MALFORMED
        assert gc.isenabled() is is_enabled
    finally:
        gc.callbacks.remove(note)
        (gc.enable if was_enabled else gc.disable)()
    assert seen.count(2) == 0 and len(seen) < 20


@pytest.mark.parametrize("digits", [640, 0])
def test_huge_unread_number_ignores_the_digit_limit(digits: int) -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(digits)
    try:
        assert parse('{"n": ' + "9" * 5_000 + ", " + GOOD[1:], SUBMISSION_LIMITS)
    finally:
        sys.set_int_max_str_digits(before)


@pytest.mark.parametrize(
    "copy",
    [
        '{"conversations":[{"content":"q","role":"user"},{"content":"a","role":"assistant"}],"system":"s"}',
        GOOD.replace('"q"', '"\\u0071"'),
        GOOD.replace('"role": "user"', '"role": "user", "id": 7'),
        GOOD.replace('"s",', '"s", "source": {"x": [1]},'),
    ],
    ids=["order and spaces", "an escape", "a key in a message", "a key in the row"],
)
def test_disguised_copy_has_the_same_key(copy: str) -> None:
    original, disguised = parse(GOOD)[0], parse("\n" + copy)[0]
    assert disguised.key == original.key
    assert disguised == original


def test_different_texts_have_different_keys() -> None:
    lines = [GOOD, row_json("q", "a"), row_json("q", "a "), row_json("q", "a", "q"), row_json("q"), row_json("a", "q")]
    empty = row_json("q", "a", system="")
    assert len({parse(line)[0].key for line in [*lines, empty]}) == 7
    assert parse(row_json("q", "a", system=None))[0].key == parse(row_json("q", "a"))[0].key


def encode(row: Row, max_tokens: int = 2048) -> EncodedRow:
    encoded = encode_row(row, QWEN, tokenize, max_tokens=max_tokens)
    assert encoded is not None
    return encoded


def test_assistant_pieces_are_the_targets() -> None:
    (row,) = parse("\n" + row_json("q1", "a1", "q2", "a2", system="s"))
    encoded = encode(row)
    text = bytes(encoded.input_ids)
    targets = bytes(i for i, is_target in zip(encoded.input_ids, encoded.targets, strict=True) if is_target)
    assert text.decode() == (
        "<|im_start|>system\ns<|im_end|>\n"
        "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>\n"
    )
    assert targets == b"a1<|im_end|>\na2<|im_end|>\n"
    assert encoded.target_count == len(targets)
    assert encoded.line == 2


def test_each_piece_is_tokenized_on_its_own() -> None:
    (row,) = parse(row_json(" q ", "a\n"))
    seen: list[tuple[str, ...]] = []

    def note(*texts: str) -> list[int]:
        seen.append(texts)
        return [0]

    encode_row(row, QWEN, note)
    assert seen == [piece[:3] for piece in QWEN.pieces(None, ["q", "a"])]


def test_last_user_turn_without_answer_is_dropped() -> None:
    with_question, without = parse(row_json("q", "a", "more?") + "\n" + row_json("q", "a"))
    assert encode(with_question).input_ids == encode(without).input_ids


def test_question_alone_has_no_target() -> None:
    (row,) = parse(row_json("q"))
    assert encode_row(row, QWEN, tokenize) is None
    assert encode_row(row, template_for("google/gemma-3-1b-it"), tokenize) is None


def test_row_truncated_before_its_first_target_is_none() -> None:
    (row,) = parse(row_json("q", "answer"))
    whole = encode(row)
    first_target = whole.targets.index(True)
    cut = encode(row, max_tokens=first_target + 1)
    assert cut.input_ids == whole.input_ids[: first_target + 1]
    assert len(cut.targets) == len(cut.input_ids)
    assert cut.target_count == 1
    assert encode_row(row, QWEN, tokenize, max_tokens=first_target) is None


def test_default_truncation_is_at_2048_tokens() -> None:
    (row,) = parse(row_json("q", "a" * 5_000), SUBMISSION_LIMITS)
    encoded = encode_row(row, QWEN, tokenize)
    assert encoded is not None
    assert len(encoded.input_ids) == len(encoded.targets) == constants.MAX_TOKENS == 2048


def test_has_target_is_certain_for_short_prompts_only(tiny_model: Path) -> None:
    """NFC spells U+0958 as two characters: 1,200 bytes may be 2,400 tokens."""
    tokenize = load_tokenizer(load_training_args(), model_path=tiny_model)
    for question in ("\u0958" * 400, "\u0958" * 200, "q" * 1_900, "q" * 2_000):
        (row,) = parse(row_json(question, "a"), SUBMISSION_LIMITS)
        assert encode_row(row, QWEN, tokenize) is not None or not has_target_for_any_tokenizer(row)
    assert encode_row(parse(row_json("\u0958" * 400, "a"), SUBMISSION_LIMITS)[0], QWEN, tokenize) is None
    assert has_target_for_any_tokenizer(parse(row_json("q" * 1_900, "a"), SUBMISSION_LIMITS)[0])
    assert has_target_for_any_tokenizer(parse(row_json("\u0958" * 200, "a"), SUBMISSION_LIMITS)[0])


def test_target_at_position_zero_does_not_count() -> None:
    assert EncodedRow((1, 2, 3), (True, False, True), 1).target_count == 1
    assert EncodedRow((1, 2), (True, False), 1).target_count == 0


def test_key_equals_that_of_json_dumps() -> None:
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    texts = ["", "plain", 'a "quoted" \\ word', "two\r\nlines\t", "\x00\x1f\x7f\u2028", every, *map(chr, range(256))]
    for text in texts:
        row = Row(text, (Message("user", text), Message("assistant", "x" + text)), 1)
        turns = [{"content": text, "role": "user"}, {"content": "x" + text, "role": "assistant"}]
        value = {"conversations": turns, "system": text}
        canonical = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        assert row.key == hashlib.sha256(canonical.encode()).digest(), repr(text[:9])
    assert Row(None, (Message("user", "a"),), 1).key != Row("null", (Message("user", "a"),), 1).key
