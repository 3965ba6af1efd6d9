"""Near duplicates, and duplicates in an evaluation set that holds them."""

import itertools
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from scripts.bench.tiny_model import make_tiny_tokenizer
from template.data.chat_templates import model2template, template_for
from template.data.encoding import encode_row
from template.data.eval_set import read_eval_set_index
from template.data.near_duplicates import NearDuplicates, normalized_digest
from template.data.rows import SUBMISSION_LIMITS, Message, Row, parse_rows
from template.records import Rank
from template.rules.duplicates import Candidate, match_duplicates
from template.training.tokenizer import PieceTokenizer


def row(*texts: str, system: str | None = None) -> Row:
    return Row(system, tuple(map(Message, itertools.cycle(("user", "assistant")), texts)), line=1)


PLAIN = row("Is it caf\u00e9, 'ok' - or not?", "It is: yes.", system="Be brief.")
ALIKE: dict[str, Row] = {
    "a decomposed accent": row("Is it cafe\u0301, 'ok' - or not?", "It is: yes.", system="Be brief."),
    "capitals": row("IS IT CAF\u00c9, 'OK' - OR NOT?", "it is: yes.", system="BE BRIEF."),
    "white space": row(" Is it\tcaf\u00e9,\u00a0'ok' -  or not?\n", "It\r\nis: yes.", system="Be brief. "),
    "full width": row("Is it caf\u00e9, 'ok' - or not\uff1f", "It is: \uff59es.", system="Be brief."),
    "zero width": row("Is\u200b it caf\u00e9, 'ok' - or not?", "It is: y\ufeffes.\u200d", system="B\u00ade brief."),
    "a direction": row("\u202eIs it caf\u00e9, 'ok' - or not?", "It is: yes.\u2069", system="Be brief."),
    "controls": row("Is it caf\u00e9, 'ok'\x00 - or not?", "It is: yes.\x7f", system="Be\x1b brief."),
    "a variation selector": row("Is it caf\u00e9\ufe0f, 'ok' - or not?", "It is: yes.\U000e0100", system="Be brief."),
    "quotation marks": row("Is it caf\u00e9, \u2018ok\u2019 \u2013 or not?", "It is: yes.", system="Be brief."),
    "Cyrillic letters": row(
        "Is it \u0441\u0430f\u00e9, 'ok' - or not?", "It is: \u0443\u0435\u0455.", system="\u0412e brief."
    ),
    "Greek letters": row("\u0399s it caf\u00e9, '\u03bfk' - or n\u03bft?", "It is: yes.", system="Be brief."),
    "a question nobody answers": row("Is it caf\u00e9, 'ok' - or not?", "It is: yes.", "And?", system="Be brief."),
}


@pytest.mark.parametrize("case", ALIKE)
def test_respelled_row_is_a_near_duplicate(case: str) -> None:
    assert normalized_digest(ALIKE[case]) == normalized_digest(PLAIN)
    assert ALIKE[case].key != PLAIN.key


@pytest.mark.parametrize("default", [None, "", " ", *dict.fromkeys(t.default_system for t in model2template.values())])
def test_missing_empty_and_default_system_are_equal(default: str | None) -> None:
    assert normalized_digest(row("q", "a", system=default)) == normalized_digest(row("q", "a"))


def test_different_texts_are_no_near_duplicates() -> None:
    others = [
        row("q", "a"), row("q", "b"), row("q", "a b"), row("q", "ab"), row("q", "a", "b", "c"), row("q", "a, b"),
        row("q", "a", system="s"), row("q"), row("q a"), row("", "q a"), row("qa", ""), row("q", "1"), row("q", "10"),
        row("q", "l"), row("q", "\u00e4"), row("q", "\u4e2d"), row("q", "\u4e2d\u6587"), row("q", "?"),
        row("q", "\u0434\u0430"), row("q", "\U0001f600"), row("q", "\U0001f601"), row("q", "e\u0301"), row("q", "e"),
    ]  # fmt: skip
    assert len({normalized_digest(item) for item in others}) == len(others)


def test_ascii_normalization_equals_the_unicode_one() -> None:
    every = "".join(map(chr, range(128)))
    assert normalized_digest(row(every, "a")) == normalized_digest(row(every + "\u200b", "a"))
    for text in (" \t x \x1f", "`a'", 'A "B"', "\x1c", "a\x0bb"):
        assert normalized_digest(row(text, text)) == normalized_digest(row(text + "\u2060", "\u2060" + text))


def test_rows_of_equal_tokens_are_near_duplicates() -> None:
    """Respelled rows that train alike must not evade the duplicate check."""
    tokenize, qwen = PieceTokenizer(make_tiny_tokenizer()), template_for("Qwen/Qwen2.5-1.5B-Instruct")
    accents = ["caf\u00e9", "cafe\u0301", " caf\u00e9\u3000", "\x1ccaf\u00e9", "caf\u00e9\x85"]
    texts = [*accents, "\u212b", "\u00c5", "A\u030a", "\u0958", "\u0915\u093c"]
    result: dict[Any, set[bytes]] = {}
    for text in texts:
        for item in (row(text, "a"), row(text, "a ", "more?"), row(text, "a", system="You are a helpful assistant.")):
            encoded = encode_row(item, qwen, tokenize)
            assert encoded is not None
            result.setdefault(encoded.input_ids, set()).add(normalized_digest(item))
    assert len(result) == 3 and all(len(kinds) == 1 for kinds in result.values())


def test_look_alike_letters_are_near_duplicates() -> None:
    for letters, latin in (
        ("\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425", "ABEKMHOPCTYX"),
        ("\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7", "ABEZHIKMNOPTYX"),
    ):
        for item, drawn in zip(letters, latin, strict=True):
            assert normalized_digest(row(item, "a")) == normalized_digest(row(drawn, "a")), unicodedata.name(item)


def test_near_duplicates_map_to_the_first_row() -> None:
    alike = NearDuplicates()
    others = [row("another", "row"), *ALIKE.values()]
    for item in (PLAIN, *others, PLAIN):
        alike.add(item)
    assert alike.canonical == {item.key: PLAIN.key for item in ALIKE.values()}


def line(number: int, *, is_shouted: bool = False) -> str:
    turns = [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": f"word {number}"}]
    text = json.dumps({"conversations": turns})
    return text.replace("word", "WORD") if is_shouted else text


def test_copy_in_the_other_spelling_is_a_duplicate(tmp_path: Path) -> None:
    eval_set = tmp_path / "data.jsonl"
    spellings = [[line(number, is_shouted=shouted) for number in range(150)] for shouted in (False, True)]
    eval_set.write_text("\n".join([*spellings[0], *spellings[1], line(900)]))
    index = read_eval_set_index(eval_set)
    assert index.near_duplicate_count == 150
    checked = [index.check("\n".join(item).encode(), name="x", max_rows=250) for item in spellings]
    assert checked[0].digest != checked[1].digest, "another text is another dataset"
    author, copier = (dataset.row_keys for dataset in checked)
    assert author == copier and len(set(author)) == 150
    result = match_duplicates(
        Candidate(hotkey=hotkey, digest="c", rank=Rank(block, block, b""), row_keys=keys)
        for block, (hotkey, keys) in enumerate({"author": author, "copier": copier}.items())
    )
    assert [(who, copy.hotkey, copy.shared) for (who, _), copy in result.items()] == [("copier", "author", 150)]
    # Keys stored by a version without near duplicates count the same.
    stored = [item.key for item in parse_rows("\n".join(spellings[1]).encode(), name="x", limits=SUBMISSION_LIMITS)]
    assert index.dedup_keys(stored) == author and index.dedup_keys(author) == author
    # A near duplicate of a row is not itself in the set.
    assert row("SAY 900", "word 900").key not in index
