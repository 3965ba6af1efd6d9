"""The crash campaign in small, and planted faults that its checks must find."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.campaigns.crash import __main__ as command
from tests.campaigns.crash import checks
from tests.campaigns.crash.campaign import Campaign, Report
from tests.campaigns.crash.points import EVENTS_FILE
from tests.campaigns.crash.run import Outcome
from tests.campaigns.process_under_test import STATE_FILE, find_orphans
from tests.campaigns.synthetic_subnet import SyntheticSubnet
from tests.fixtures.network import ROOT

KINDS = 2 * 11 + 3 + 1


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a short campaign, which nothing writes to any more, and its table."""
    folder = tmp_path_factory.mktemp("crash") / "campaign"
    arguments = ["-m", "tests.campaigns.crash", "--short", "--dir", str(folder)]
    ended = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder, ended.stdout


@pytest.mark.slow
def test_crash_campaign_kills_at_every_kind_and_agrees(campaign: tuple[Path, str]) -> None:
    table = campaign[1]
    rows = [line.split() for line in table.splitlines() if line.startswith(("before ", "after ", "at a ", "fault: "))]
    assert len(rows) == KINDS + 4 and table.endswith("all agrees\n")
    assert all(int(kills) >= 1 for *_, kills, _, _, _, _ in rows[:KINDS])
    assert all(same == number for *_, same, _, number, _ in rows)
    assert {"doubled 0", "orphans 0", "partial 0"} <= {*table.splitlines()}
    assert re.search(r"^in fault: disk full: \d times exit status 4", table, re.MULTILINE)


def plant(path: Path, edit: str | Callable[[bytes], bytes]) -> None:
    """Execute a statement, which must change a row, or replace the bytes of a file."""
    if callable(edit):
        path.write_bytes(edit(path.read_bytes()))
        return
    with closing(sqlite3.connect(path)) as db:
        assert db.execute(edit).rowcount > 0
        db.commit()


STATE = f"state/{STATE_FILE}"
REPEAT = """INSERT INTO extrinsics SELECT block + 3, position, data, signer, error FROM extrinsics
    WHERE block = (SELECT max(block) FROM extrinsics)"""
PLANTED: dict[str, tuple[str, str | Callable[[bytes], bytes], str]] = {
    "nothing": (STATE, bytes, ""),
    "last bit of a loss": (STATE, "UPDATE evaluations SET loss = loss + 9e-16", "evaluation of"),
    "lost receipt": (STATE, "UPDATE evaluations SET receipt = ''", "evaluation of"),
    "another seed": (STATE, "UPDATE round_evaluations SET lucky_num = 7", "plan of the round"),
    "another table": (STATE, "UPDATE standings SET weight = 0.0 WHERE weight > 0", "leaderboard of the round"),
    "weights never accepted": (STATE, "UPDATE weight_intents SET outcome = NULL", "weights in the round"),
    "weights set twice": ("subnet/chain.sqlite3", REPEAT, "weights set 2 times in the round of block 720"),
    "another ledger": (STATE, "UPDATE rounds SET ledger = '[]' WHERE ledger <> '[]'", "ledger of the round"),
    "plan without round": (STATE, "DELETE FROM rounds", "state file: foreign key"),
    "half a receipt": ("state/receipts/*.json", lambda content: content[:-10], "not JSON"),
    "half a round file": ("state/rounds/*.jsonl", lambda content: content[:-10], "incomplete"),
    "overwritten page": (STATE, lambda content: content[:8192] + os.urandom(4096) + content[12288:], "state file: "),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_crash_checks_planted_fault_is_found(name: str, campaign: tuple[Path, str], tmp_path: Path) -> None:
    source = campaign[0]
    shutil.copytree(source / "walk 1", tmp_path / "run", ignore=shutil.ignore_patterns("cache", "eval_data"))
    pattern, edit, expected = PLANTED[name]
    plant(next((tmp_path / "run").glob(pattern)), edit)
    state = tmp_path / "run" / STATE
    faults = checks.check_database(state)
    if not faults:
        with SyntheticSubnet(tmp_path / "run" / "subnet") as subnet:
            faults = checks.check_weights(subnet.weights_calls())
        faults += checks.check_files(state.parent, is_complete=True)[0]
        undisturbed = checks.read_state(source / "undisturbed" / STATE, 720)
        faults += checks.compare(undisturbed, checks.read_state(state, 720))
    assert any(expected in fault for fault in faults) if expected else not faults, faults


@pytest.mark.slow
def test_crash_checks_rename_before_fsync_is_found(campaign: tuple[Path, str]) -> None:
    events = (campaign[0] / "undisturbed" / EVENTS_FILE).read_text().splitlines()
    assert checks.check_order(events) == []
    for folder in ("receipts", "rounds"):
        assert checks.check_order(event for event in events if not event.startswith(f"after fsync | {folder}/"))


ORPHAN = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
print(flush=True)
input()
"""


def test_crash_checks_process_that_outlives_parent_is_found() -> None:
    command = [sys.executable, "-c", ORPHAN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        parent.kill()
    try:
        (orphan,) = find_orphans(parent.pid, grace_s=0.1)
        assert "time.sleep(99)" in orphan
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30.0
    while find_orphans(parent.pid, grace_s=0.0):
        assert time.monotonic() < deadline


def test_crash_command_disagreement_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point = "before BEGIN | x"
    outcome = Outcome("walk", points={point}, starts=2, kills=Counter([point]))
    outcome.faults |= {"differences": ["verdict on x"], "orphans": ["7"]}
    monkeypatch.setattr(Campaign, "run", lambda _: Report([outcome]))
    assert command.main(["--dir", str(tmp_path / "new")]) == 1
    output = capsys.readouterr().out
    assert "0 of 1 runs" in output and "DISAGREES: walk: verdict on x" in output and "2 disagreements" in output
    assert command.main(["--dir", str(ROOT)]) == 3
