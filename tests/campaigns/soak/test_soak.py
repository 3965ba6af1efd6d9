"""The soak run in small: real validators through some stormy rounds, and books that notice whatever is wrong."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.campaigns.soak.diary import DIARY_FILE
from tests.campaigns.soak.report import audit
from tests.fixtures.network import ROOT, Process

SOAK = ROOT / "scripts" / "soak.py"
PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def soak(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Process]:
    """The folder of a short run, not to be written to, and its process, ended."""
    folder = tmp_path_factory.mktemp("soak") / "run"
    arguments = ["--dir", folder, "--miners", 12, "--rounds", 5, "--replays", 50, "--seed", 11]
    with Process(SOAK, *arguments, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        process.finish(PATIENCE_S)
    return folder, process


def summary(process: Process) -> dict[str, str]:
    """The lines of the printed table by their names."""
    lines = [line.split("  ", 1) for line in process.output.splitlines() if "  " in line]
    return {name: value.strip() for name, value in lines}


def test_a_short_soak_agrees_with_its_books(soak: tuple[Path, Process]) -> None:
    _, process = soak
    assert process.status == 0, process.output + "\n".join(process.logs[-30:])
    assert process.output.endswith("all agrees\n")
    told = summary(process)
    for at in range(2):
        assert " scored" in told[f"validator-{at} verdict"] and " accepted" in told[f"validator-{at} weights"]
        recomputed = dict(reversed(part.split(" ", 1)) for part in told[f"validator-{at} recomputed"].split(", "))
        assert int(recomputed["losses"]) == int(recomputed["seeds"]) > 0, "every score was made again"
    assert int(told["uids recycled"]) + int(told["validators restarted"]) + int(told["workers killed"]) > 0
    assert " alike" in told["weights of two validators"]


def change(file: str, *statements: str) -> Callable[[Path], None]:
    """Changes a database of the run; every statement must change something."""

    def work(folder: Path) -> None:
        with closing(sqlite3.connect(folder / file)) as db:
            for statement in statements:
                assert db.execute(statement).rowcount > 0, statement
            db.commit()

    return work


def score_twice(folder: Path) -> None:
    """Has the diary tell of a score once more."""
    lines = (folder / DIARY_FILE).read_text().splitlines()
    (again,) = [line for line in lines if '"worked"' in line and json.loads(line)["loss"] is not None][:1]
    (folder / DIARY_FILE).write_text("\n".join([*lines, again]) + "\n")


STATE = "validator-0/validator.sqlite3"
SCORED = "(SELECT hotkey FROM verdicts WHERE loss IS NOT NULL LIMIT 1)"
LAST_INTENT = "(SELECT max(id) FROM weight_intents WHERE json_extract(outcome, '$.is_accepted'))"

WRONG = {
    "a loss that is another": (
        change(STATE, "UPDATE verdicts SET loss = loss + 1e-9 WHERE loss IS NOT NULL"),
        "scores and verdicts differ",
    ),
    "a verdict on a file that is good": (
        change(STATE, f"UPDATE verdicts SET loss = NULL, reason = 'malformed' WHERE hotkey = {SCORED}"),
        "is malformed and should be scored",
    ),
    "a verdict that is lost": (change(STATE, f"DELETE FROM verdicts WHERE hotkey = {SCORED}"), "verdicts differ"),
    "a line that calls an original a copy": (
        change(STATE, "UPDATE standings SET reason = 'duplicate' WHERE loss IS NOT NULL AND reason IS NULL"),
        "duplicate",
    ),
    "a rank that is later": (change(STATE, "UPDATE round_members SET rank_block = rank_block + 1"), "should be"),
    "a uid that is another's": (change(STATE, "UPDATE round_members SET uid = uid + 1"), "should be"),
    "a burn before its time": (
        change(STATE, f"UPDATE weight_intents SET weights = '{{\"0\": 1.0}}' WHERE id = {LAST_INTENT}"),
        "should weigh",
    ),
    "shares that are not the scores'": (
        change(STATE, f"UPDATE weight_intents SET shares = '{{\"x\": 1.0}}' WHERE id = {LAST_INTENT}"),
        "should share",
    ),
    "an outcome that is not known": (
        change(STATE, f"UPDATE weight_intents SET outcome = NULL WHERE id = {LAST_INTENT}"),
        "has no outcome",
    ),
    "weights that the chain never took": (
        change("chain.sqlite3", "DELETE FROM extrinsics"),
        "is accepted, and the chain took nothing",
    ),
    "weights that no intent was for": (
        change(STATE, f"DELETE FROM weight_intents WHERE id = {LAST_INTENT}"),
        "that no intent was for",
    ),
    "a seed that was chosen": (
        change(STATE, "UPDATE receipts SET receipt = json_set(receipt, '$.result.lucky_num', 1)"),
        "has seed 1",
    ),
    "a score that was made twice": (score_twice, "was scored 2 times"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_books_notice(name: str, soak: tuple[Path, Process], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(soak[0], folder)
    spoil, expected = WRONG[name]
    spoil(folder)
    findings = audit(folder, validators=2, replays=0).findings
    assert any(expected in finding for finding in findings), findings


def test_the_books_of_an_untouched_run_are_in_order(soak: tuple[Path, Process], tmp_path: Path) -> None:
    shutil.copytree(soak[0], tmp_path / "run")
    assert audit(tmp_path / "run", validators=2, replays=0).findings == []


def test_a_folder_that_is_in_use_is_refused(soak: tuple[Path, Process]) -> None:
    with Process(SOAK, "--dir", soak[0], env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        assert process.finish() == 3
    assert process.lines("--dir must be a new folder")
