"""The proposal of a dataset, with the tiny model."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from scripts import select_rows
from template.constants import DATA_FILE
from template.localnet.network import NETUID
from template.miner.selection import Journal
from tests.fixtures.desk import Desk, open_desk
from tests.fixtures.network import LARGE, POOL, ROOT, Ended, Process, call_main

ROWS = 12


@pytest.fixture(scope="module")
def desk(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("desk"), tiny_model) as desk:
        yield desk


def run(desk: Desk, out: Path, *arguments: object) -> Ended:
    return call_main(select_rows.main, *desk.settings, "--out", out, "--rows", ROWS, *arguments)


def search(desk: Desk, out: Path, *arguments: object) -> dict[str, Any]:
    ended = run(desk, out, "--json", *arguments)
    assert ended.status == 0 and ended.output.count("\n") == 1, ended
    content: dict[str, Any] = json.loads(ended.output)
    return content


def lines_of(trial: dict[str, Any]) -> list[str]:
    return [POOL[line - 1] for line in trial["rows"]]


@pytest.fixture(scope="module")
def found(desk: Desk) -> dict[str, Any]:
    """A search of eleven evaluations."""
    return search(desk, desk.folder / "found.jsonl", "--evaluations", 11)


def best_of(content: dict[str, Any]) -> dict[str, Any]:
    best: dict[str, Any] = [trial for trial in content["trials"] if trial["is_better"]][-1]
    return best


def test_every_method_is_tried_before_swaps(found: dict[str, Any]) -> None:
    names = [trial["name"] for trial in found["trials"]]
    assert names[:5] == list(select_rows.METHODS)
    assert len(names) > 5 and all(name.startswith("swap of ") for name in names[5:])


def test_written_dataset_is_the_best_trial(found: dict[str, Any], desk: Desk) -> None:
    best = best_of(found)
    assert Path(found["out"]).read_text().splitlines() == lines_of(best) and len(set(best["rows"])) == ROWS
    folder = desk.folder / "best"
    folder.mkdir()
    (folder / DATA_FILE).write_bytes(Path(found["out"]).read_bytes())
    pairs = zip(best["losses"], found["lucky_nums"], strict=False)
    assert all(loss == desk.result(folder, seed).loss for loss, seed in pairs)


def test_budget_of_evaluations_is_not_exceeded(found: dict[str, Any]) -> None:
    assert found["evaluations"] == sum(len(trial["losses"]) for trial in found["trials"]) == 11


def test_search_continues_from_its_journal(found: dict[str, Any], desk: Desk, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select_rows, "evaluate_once", None)
        again = search(desk, tmp_path / "again.jsonl", "--evaluations", 11)
    assert again["trials"] == found["trials"] and again["seconds"] > 0.0
    assert (tmp_path / "again.jsonl").read_bytes() == Path(found["out"]).read_bytes()


@pytest.mark.slow
def test_killed_search_continues_from_its_journal(found: dict[str, Any], desk: Desk, tmp_path: Path) -> None:
    settings = ["--evaluations", 11, "--work_dir", tmp_path / "work"]
    arguments = [*desk.settings, "--out", tmp_path / "out.jsonl", "--rows", ROWS, *settings]
    with Process(ROOT / "scripts" / "select_rows.py", *arguments, env=desk.net.environment("validator")) as process:
        process.wait_for("; evaluations ", count=2)
        process.send(signal.SIGKILL)
        assert process.finish() == -signal.SIGKILL
    (file,) = (tmp_path / "work" / "selection").glob("*.jsonl")
    recorded = len(Journal(file))
    with mock.patch.object(select_rows, "evaluate_once", wraps=select_rows.evaluate_once) as evaluate_once:
        again = search(desk, tmp_path / "out.jsonl", *settings)
    assert evaluate_once.call_count == 11 - recorded < 11
    assert again["trials"] == found["trials"]
    assert (tmp_path / "out.jsonl").read_bytes() == Path(found["out"]).read_bytes()


def test_larger_budget_continues_the_search(found: dict[str, Any], desk: Desk, tmp_path: Path) -> None:
    more = search(desk, tmp_path / "more.jsonl", "--evaluations", 13)
    done = len(found["trials"]) - 1
    assert more["trials"][:done] == found["trials"][:done] and more["evaluations"] == 13


def test_nothing_is_written_before_an_evaluation(desk: Desk, tmp_path: Path) -> None:
    ended = run(desk, tmp_path / "none.jsonl", "--minutes", 1e-6, "--seed", 1)
    assert ended.status == 3 and "spent before the first evaluation" in ended.logs[-1]
    assert not (tmp_path / "none.jsonl").exists()


def test_table_is_plain_where_stdout_is_no_terminal(found: dict[str, Any], desk: Desk, tmp_path: Path) -> None:
    ended = run(desk, tmp_path / "plain.jsonl", "--evaluations", 11)
    head, *lines = ended.output.splitlines()
    assert head.split() == ["trial", "proposal", "seeds", "loss", "difference", "outcome"]
    assert [line.split()[1] for line in lines[:5]] == list(select_rows.METHODS)
    assert "\x1b" not in ended.output and f"{tmp_path / 'plain.jsonl'}: {ROWS} rows, by " in ended.output


def test_table_at_a_terminal_shows_the_best_in_green(found: dict[str, Any], desk: Desk, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        ended = run(desk, tmp_path / "shown.jsonl", "--evaluations", 11)
    (line,) = [line for line in ended.output.splitlines() if "\x1b[32m" in line]
    assert best_of(found)["name"] in line


def test_proposals_are_no_duplicates_of_a_committed_dataset(desk: Desk, tmp_path: Path) -> None:
    desk.net.submit("alice", LARGE)
    where = ("--netuid", NETUID, "--subtensor.network", desk.net.network)
    content = search(desk, tmp_path / "own.jsonl", "--evaluations", 7, *where)
    shared = [len(set(lines_of(trial)) & set(LARGE)) for trial in content["trials"]]
    assert max(shared) == 4, "40% of 12 rows"
    refused = run(desk, tmp_path / "none.jsonl", "--evaluations", 1, *where, "--rows", 60)
    assert refused.status == 3 and "would be a duplicate" in refused.logs[-1]
    assert not (tmp_path / "none.jsonl").exists()


def test_all_wrong_arguments_are_named_at_once(desk: Desk, tmp_path: Path) -> None:
    ended = call_main(select_rows.main, *desk.settings, "--out", tmp_path, "--rows", 0, "--seeds", 0, "--hotkey", "x")
    assert ended.status == 3
    for text in (
        "expected a budget",
        "it needs --netuid",
        "--rows must be at least 1",
        "--seeds must be at least 1",
        "this is a folder",
    ):
        assert any(text in line for line in ended.logs), ended.logs


@pytest.mark.parametrize(("rows", "text"), [(111, "only the first 110 rows"), (None, "there is no choice")])
def test_number_of_rows_without_a_choice_is_refused(desk: Desk, tmp_path: Path, rows: int | None, text: str) -> None:
    few = tmp_path / "few"
    few.mkdir()
    (few / DATA_FILE).write_text("\n".join(POOL[:100]))
    wanted = ("--rows", rows) if rows else ()
    arguments = ("--out", tmp_path / "x.jsonl", "--evaluations", 1, "--eval_data_dir", few, *wanted)
    ended = call_main(select_rows.main, *desk.settings, *arguments)
    assert ended.status == 3 and text in ended.logs[-1]
