"""How rows outside the evaluation set differ from those they look like."""

import json
from pathlib import Path
from typing import Any

import pytest

from template.data.lookalikes import explain_foreign_rows
from template.data.rows import SUBMISSION_LIMITS, parse_rows


def make_row(*texts: str) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(texts)
    return {"conversations": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


SYSTEM = "You are a caf\u00e9 owner."
THEIRS = {"system": SYSTEM, **make_row("What's on the menu?", "Coffee, tea\nand cake.", "A cake!", "Here it is.")}
OTHERS = [make_row(f"question {number}", "Coffee, tea") for number in range(3)]


def explain(row: dict[str, Any], folder: Path, theirs: dict[str, Any] = THEIRS) -> dict[int, str]:
    """Explain a row in line 2 of a file; its look-alike is in line 3."""
    path = folder / "data.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in [*OTHERS[:2], theirs, OTHERS[2]]))
    return explain_foreign_rows(parse_rows(b"\n" + json.dumps(row).encode(), name="x", limits=SUBMISSION_LIMITS), path)


def changed(index: int, old: str, new: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(json.dumps(THEIRS))
    message = row["conversations"][index]
    message["content"] = message["content"].replace(old, new)
    return row


CASES = {
    "a decomposed accent": ({**THEIRS, "system": "You are a cafe\u0301 owner."}, "'system': Unicode form NFD, not NFC"),
    "no system text": ({**THEIRS, "system": None}, "'system': null, not 'You are a caf\\xe9 owner.'"),
    "empty system text": ({**THEIRS, "system": ""}, "'system': '', not 'You are a caf\\xe9 owner.'"),
    "a line end": (changed(1, "cake.", "cake.\n"), "message 2: ends with '\\n', not ''"),
    "a space in front": (changed(0, "What", " What"), "message 1: begins with ' ', not ''"),
    "carriage returns": (
        changed(1, "\n", "\r\n"),
        "message 2: character 12 is U+000D, not U+000A",
    ),
    "an apostrophe": (
        changed(0, "'", "\u2019"),
        "message 1: character 5 is U+2019 RIGHT SINGLE QUOTATION MARK, not U+0027 APOSTROPHE",
    ),
    "an invisible character": (
        changed(2, "cake", "\u200bcake"),
        "message 3: character 3 is U+200B ZERO WIDTH SPACE, not U+0063 LATIN SMALL LETTER C",
    ),
    "a byte order mark": (changed(2, "A", "\ufeffA"), "message 3: character 1 is U+FEFF, a byte order mark"),
    "a changed word": (changed(2, "cake", "bagel"), "message 3: 'bagel!' at character 3, not 'cake!'"),
    "a shortened text": (changed(3, " is.", ""), "message 4: '' at character 8, not ' is.'"),
    "fewer messages": (
        {"system": SYSTEM, "conversations": THEIRS["conversations"][:2]},
        "the number of messages: 2, not 4",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_difference_from_a_lookalike_is_named(case: str, tmp_path: Path) -> None:
    row, difference = CASES[case]
    (text,) = explain(row, tmp_path).values()
    assert text.startswith(f"looks like line 3 of the evaluation set, differs in {difference}")
    assert text.endswith(difference) or case == "a byte order mark"


def test_null_is_named_where_the_pool_has_an_empty_text(tmp_path: Path) -> None:
    row = make_row("What is on the menu today?", "Soup.")
    assert explain(row, tmp_path, {"system": "", **row}) == {
        2: "looks like line 3 of the evaluation set, differs in 'system': null, not ''"
    }


def test_further_differences_are_counted(tmp_path: Path) -> None:
    row = {**changed(2, "cake", "bagel"), "system": None}
    assert explain(row, tmp_path)[2].endswith("and 1 more")


def test_lookalike_with_most_equal_messages_is_named(tmp_path: Path) -> None:
    near, row = changed(0, "menu", "Menu"), changed(0, "menu", "MENU")
    path = tmp_path / "data.jsonl"
    lines = [changed(0, "menu", "card"), near, changed(3, "is", "was")]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    rows = parse_rows(json.dumps(row).encode(), name="x", limits=SUBMISSION_LIMITS)
    (text,) = explain_foreign_rows(rows, path).values()
    assert text.startswith("looks like line 2 ")


def test_row_that_shares_little_text_looks_like_none(tmp_path: Path) -> None:
    assert explain(make_row("What's on the menu?", "Nothing that you would like, I am afraid."), tmp_path) == {}
    assert explain(make_row("another question", "Coffee, tea, and something else"), tmp_path) == {}
