"""The soak run in small, and planted faults that its reference model must find."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.campaigns.soak import __main__ as command
from tests.campaigns.soak.event_log import LOG_FILE
from tests.campaigns.soak.report import audit
from tests.fixtures.network import ROOT


@pytest.fixture(scope="module")
def soak(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and summary of a short run."""
    folder = tmp_path_factory.mktemp("soak") / "run"
    sizes = ["--miners", "14", "--rounds", "3", "--replays", "8", "--seed", "11"]
    command = [sys.executable, "-m", "tests.campaigns.soak", "--dir", str(folder), *sizes]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder, ended.stdout


@pytest.mark.slow
def test_soak_short_run_agrees_with_reference_model(soak: tuple[Path, str]) -> None:
    summary = dict(line.split(": ", 1) for line in soak[1].splitlines() if ": " in line)
    assert soak[1].endswith("all agrees\n")
    for name in ("validator-0", "validator-1"):
        counted = dict(part.split(" ", 1)[::-1] for part in summary[name].split(", "))
        assert int(counted["weights accepted"]) > int(counted.get("burned", 0))
        assert int(counted["evaluated"]) >= int(counted["losses"]) > 0
        assert min(int(counted[name]) for name in ("duplicates", "ledger lines", "datasets")) > 0
    assert any(event in summary["events"] for event in ("uid recycled", "validator restarted", "worker killed"))
    assert command.main(["--dir", str(soak[0])]) == 3, "the folder is in use"


def change(file: str, statement: str) -> Callable[[Path], None]:
    """Return a function that changes a row in a database of the run."""

    def work(folder: Path) -> None:
        with closing(sqlite3.connect(folder / file)) as db:
            assert db.execute(statement).rowcount > 0
            db.commit()

    return work


def evaluate_twice(folder: Path) -> None:
    path = folder / LOG_FILE
    lines = path.read_text().splitlines()
    again = next(line for line in lines if '"evaluated"' in line and json.loads(line)["loss"] is not None)
    path.write_text("\n".join([*lines, again]) + "\n")


STATE = "validator-0/validator.sqlite3"
LAST_INTENT = "(SELECT max(id) FROM weight_intents WHERE json_extract(outcome, '$.is_accepted'))"
LAST_ROUND = "(SELECT max(round_id) FROM standings)"

PLANTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (lambda _: None, ""),
    "another loss": (change(STATE, "UPDATE evaluations SET loss = loss + 1e-9"), "losses and evaluations differ"),
    "wrong rejection": (change(STATE, "UPDATE verdicts SET reason = 'too_large'"), "verdicts differ"),
    "lost verdict": (change(STATE, "DELETE FROM verdicts"), "verdicts differ"),
    "lost evaluation": (change(STATE, "DELETE FROM evaluations WHERE number = 2"), "losses and evaluations differ"),
    "wrong duplicate": (
        change(STATE, "UPDATE standings SET reason = 'duplicate' WHERE loss IS NOT NULL AND reason IS NULL"),
        "duplicate",
    ),
    "later commit": (change(STATE, "UPDATE round_members SET rank_block = rank_block + 1"), "should be"),
    "longer stand": (change(STATE, "UPDATE stands SET first_block = first_block - 24"), "stands"),
    "earlier record": (change(STATE, "UPDATE ledger SET rank_block = rank_block - 24"), "confirmed"),
    "another credit": (
        change(STATE, f"UPDATE standings SET credit = credit * 2 WHERE round_id = {LAST_ROUND} AND credit > 0"),
        "leaderboard",
    ),
    "another ledger": (change(STATE, f"UPDATE rounds SET ledger = '[]' WHERE id = {LAST_ROUND}"), "ledger of round"),
    "another plan": (change(STATE, "DELETE FROM round_evaluations WHERE position = 0"), "plan of round"),
    "another seed": (change(STATE, "UPDATE round_evaluations SET lucky_num = 1"), "plan of round"),
    "another weight": (change(STATE, "UPDATE standings SET weight = weight / 2"), "weighs"),
    "wrong weights": (
        change(STATE, f"UPDATE weight_intents SET weights = '{{\"0\": 0.5}}' WHERE id = {LAST_INTENT}"),
        "should weigh",
    ),
    "wrong shares": (
        change(STATE, f"UPDATE weight_intents SET shares = '{{\"x\": 1.0}}' WHERE id = {LAST_INTENT}"),
        "should share",
    ),
    "unknown outcome": (
        change(STATE, f"UPDATE weight_intents SET outcome = NULL WHERE id = {LAST_INTENT}"),
        "has no outcome",
    ),
    "weights not on chain": (
        change("chain.sqlite3", "DELETE FROM extrinsics"),
        "is accepted, and the chain took nothing",
    ),
    "weights without intent": (
        change(STATE, f"DELETE FROM weight_intents WHERE id = {LAST_INTENT}"),
        "that no intent was for",
    ),
    "two evaluations": (evaluate_twice, "losses and evaluations differ"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_reference_model_planted_fault_is_found(name: str, soak: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(soak[0], folder)
    plant, expected = PLANTED[name]
    plant(folder)
    _, findings = audit(folder, replays=0, has_files=False)
    assert any(expected in finding for finding in findings) if expected else not findings, findings
