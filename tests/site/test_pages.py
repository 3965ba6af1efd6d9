"""The pages of a leaderboard, without a browser."""

import csv
import dataclasses
import io
import json
import time
from pathlib import Path

import pytest

from template.competition import Reward
from template.receipts.files import read_header
from template.receipts.round_file import RoundHeader
from template.rules.scoring import score_of
from template.site.archive import History, file_name, round_name
from template.site.extract import Extract, extract_round
from template.site.pages import Site
from template.site.render import ASSETS, read_asset
from template.site.words import Verdict, explain_pay, explain_verdict, explain_weight
from tests.fixtures.hostile import BIDI, FORMULA, TEXTS, make_hostile
from tests.fixtures.season import PERIOD, Season

HUB = "https://huggingface.co"


def read_history(paths: list[Path], repo: str | None = None) -> History:
    extracts = [extract_round(*read_header(path), path.name, None) for path in paths]
    return History(extracts, read_header(paths[-1])[0], repo)


def build(*histories: History, folder: Path) -> dict[str, bytes]:
    names = {round_name(extract): extract.name for history in histories for extract in history.rounds}

    def read_receipt(name: str, line: int) -> bytes:
        return (folder / names[name]).read_bytes().split(b"\n")[line - 1] + b"\n"

    return dict(Site(histories, HUB, read_receipt).pages())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Round files of a season of twelve hotkeys."""
    folder = tmp_path_factory.mktemp("season")
    list(Season(12, changes=0.1).write(folder, 24))
    return folder


@pytest.fixture(scope="module")
def paths(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: int(path.name.split("-")[2]))


@pytest.fixture(scope="module")
def site(paths: list[Path], folder: Path) -> dict[str, bytes]:
    return build(read_history(paths, "val/rounds"), folder=folder)


@pytest.fixture(scope="module")
def newest(paths: list[Path]) -> RoundHeader:
    return read_header(paths[-1])[0]


def test_start_page_says_who_is_paid_for_what_since_when(site: dict[str, bytes], newest: RoundHeader) -> None:
    page = site["index.html"].decode()
    paid = [line for line in newest.table if line.weight > 0.0]
    body = page[page.index('id="paid"') : page.index('id="others"')]
    assert paid and all(f"hotkeys/{line.hotkey}.html" in body for line in paid)
    assert body.count("A record that counts since block ") == 2 * len(paid), "for wide and for narrow screens"


def test_dropped_dataset_is_told_why(newest: RoundHeader) -> None:
    message = "2 of 8 evaluations, dropped: more are unlikely to bring its loss 6.2 below 6.1, where pay begins"
    verdict = explain_verdict(dataclasses.replace(newest.table[0], reason=None, message=message), newest, None)
    text = "2 of 8 evaluations are done. More are unlikely to bring its loss 6.2 below 6.1, where pay begins."
    assert verdict == Verdict("dropped", f"{text} So validators evaluate it no more.")


def test_dropped_dataset_names_an_unpaid_record_apart(newest: RoundHeader) -> None:
    message = "2 of 8 evaluations, dropped: more are unlikely; unpaid records (rows 12): the file is missing"
    verdict = explain_verdict(dataclasses.replace(newest.table[0], reason=None, message=message), newest, None)
    assert verdict.why.endswith("So validators evaluate it no more. Unpaid records (rows 12): the file is missing.")


def test_credit_that_is_left_is_of_present_records(newest: RoundHeader) -> None:
    paid = next(line for line in newest.table if line.weight > 0.0)
    record = next(line for line in newest.ledger if line.hotkey == paid.hotkey and line.credit > 0.0)
    absent = dataclasses.replace(record, is_absent=True)
    why = explain_weight(paid, dataclasses.replace(newest, ledger=(*newest.ledger, absent)))
    assert "What is left at block " in why and why == explain_weight(paid, newest)


@pytest.mark.parametrize("reward", list(Reward))
def test_start_page_says_how_a_weight_is_earned(newest: RoundHeader, reward: Reward, folder: Path) -> None:
    rules = dataclasses.replace(newest.incentives, reward=reward)
    header = dataclasses.replace(newest, incentives=rules)
    page = build(History([extract_round(header, [], "name", None)], header, None), folder=folder)["index.html"].decode()
    text = page[page.index('id="how"') :]
    assert "under 8 seeds." in text
    assert ("A credit halves every 100,800 blocks (14 days)" in text) == (reward is Reward.IMPROVEMENT)


def test_shown_score_formula_is_that_of_the_validators(newest: RoundHeader) -> None:
    competition = newest.competition
    shown = explain_pay(newest).partition("a loss L scores ")[2].partition(". Datasets are")[0]
    formula = shown.replace(" ((", " * ((").replace("^", "**")
    for loss in (competition.bench, competition.minb, competition.bench - 0.05):
        assert eval(formula, {"L": loss}) == pytest.approx(score_of(loss, competition))


def test_each_hotkey_and_round_has_a_page(site: dict[str, bytes], paths: list[Path], newest: RoundHeader) -> None:
    assert {f"hotkeys/{line.hotkey}.html" for line in newest.table} <= site.keys()
    assert len([name for name in site if name.startswith("rounds/")]) == len(paths)


def test_receipt_files_are_the_lines_of_the_round_files(site: dict[str, bytes], paths: list[Path]) -> None:
    lines = {line + b"\n" for path in paths for line in read_header(path)[1]}
    receipts = {content for name, content in site.items() if name.startswith("receipts/")}
    assert receipts == lines and len(receipts) > 50


def test_every_page_has_the_policy_and_no_inline_code(site: dict[str, bytes]) -> None:
    pages = {name: content.decode() for name, content in site.items() if name.endswith(".html")}
    policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    policy += "base-uri 'none'; form-action 'none'"
    assert [name for name, page in pages.items() if f'content="{policy}"' not in page] == []
    assert [name for name, page in pages.items() if " style=" in page or "<style" in page or "<script>" in page] == []


def test_unchanged_history_gives_the_same_bytes(site: dict[str, bytes], paths: list[Path], folder: Path) -> None:
    assert build(read_history(paths, "val/rounds"), folder=folder) == site


def test_extract_survives_json(paths: list[Path]) -> None:
    extract = extract_round(*read_header(paths[-1]), "name", None)
    again = Extract.from_json(json.loads(json.dumps(extract.to_json())))
    assert json.dumps(again.to_json()) == json.dumps(extract.to_json()) and again.rows == extract.rows


@pytest.fixture
def hostile(folder: Path, tmp_path: Path, paths: list[Path]) -> dict[str, bytes]:
    path = tmp_path / paths[-1].name
    path.write_bytes(paths[-1].read_bytes())
    return build(read_history([make_hostile(path, Season(0))]), folder=tmp_path)


def test_strangers_texts_are_escaped_everywhere(hostile: dict[str, bytes]) -> None:
    own = {f"assets/{name}" for name in ASSETS}
    for name, content in hostile.items():
        text = content.decode()
        if name in own or name.startswith("receipts/"):
            continue
        assert BIDI[0] not in text and "\x1b" not in text and "\u200b" not in text, name
        if name.endswith(".html"):
            assert "<script>document" not in text and "<img" not in text and "<svg onload" not in text, name
            assert 'href="javascript:' not in text, name
    assert "\\u202egpj.exe" in hostile["index.html"].decode() and "{{7*7}}" in hostile["index.html"].decode()


def test_strangers_texts_are_escaped_for_scripts(hostile: dict[str, bytes]) -> None:
    """What a page's script reads is shown escaped: JSON's own escapes end with the reading."""
    scripts = [content.decode() for name, content in hostile.items() if name.startswith("data/")]
    values = [json.loads(text.partition("=")[2].rstrip(";\n")) for text in scripts]
    shown = json.dumps(values, ensure_ascii=False)
    assert "\\\\u202egpj.exe" in shown
    assert BIDI[0] not in shown and "\\u001b" not in shown and "\u200b" not in shown


def test_strangers_names_are_no_paths(hostile: dict[str, bytes]) -> None:
    pages = [name for name in hostile if name.startswith("hotkeys/")]
    assert {f"hotkeys/{file_name(text)}.html" for text in TEXTS} <= set(pages)
    assert all(name.removeprefix("hotkeys/").removesuffix(".html").isalnum() for name in pages)


def test_csv_has_no_cell_that_begins_a_formula(hostile: dict[str, bytes]) -> None:
    rows = list(csv.DictReader(io.StringIO(hostile["standings.csv"].decode())))
    assert f"'{FORMULA}" in {row["hotkey"] for row in rows} and "'+1+1" in {row["dataset"] for row in rows}
    texts = [row[key] for row in rows for key in ("hotkey", "dataset", "why", "verdict")]
    assert not any(text.startswith(("=", "+", "-", "@")) for text in texts)


def test_charts_come_with_their_licence() -> None:
    assert read_asset("uPlot.iife.min.js").startswith(b"/*! https://github.com/leeoniya/uPlot (v1.6.32) */")
    assert b"MIT License" in read_asset("uPlot-LICENSE.txt") and b"Leon Sorokin" in read_asset("uPlot-LICENSE.txt")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[History, Path]:
    folder = tmp_path_factory.mktemp("large")
    paths = list(Season(256).write(folder, 5))
    history = read_history(paths)
    # The same rounds again, as a long history.
    rounds = [
        dataclasses.replace(extract, start_block=extract.start_block + turn * len(paths) * PERIOD)
        for turn in range(10)
        for extract in history.rounds
    ]
    return History(rounds, history.newest, None), folder


def test_many_hotkeys_and_rounds_stay_small_and_fast(large: tuple[History, Path]) -> None:
    """A tenth of 256 hotkeys and 500 rounds, in a tenth of 20 MB beside the receipts, and of 10 s."""
    history, folder = large
    started = time.process_time()
    site = build(history, folder=folder)
    seconds = time.process_time() - started
    size = sum(len(content) for name, content in site.items() if not name.startswith(("receipts/", "assets/")))
    receipts = sum(len(content) for name, content in site.items() if name.startswith("receipts/"))
    assert seconds < 3.0 and receipts <= 4 * 10**6 and size < 3 * 10**6, (seconds, receipts, size)
