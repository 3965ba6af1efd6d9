"""The crash campaign in small: a validator killed once at a point of each kind, and checks that notice all."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.campaigns.crash import checks
from tests.campaigns.crash.campaign import Crew
from tests.campaigns.crash.checks import STATE_FILE, compare, read_state
from tests.campaigns.crash.launcher import EVENTS_FILE, ROUND_BLOCKS
from tests.campaigns.crash.report import Campaign
from tests.campaigns.crash.run import Outcome
from tests.campaigns.crash.scenario import Base
from tests.fixtures.network import ROOT, Process, call_main, load_main

CRASH = ROOT / "scripts" / "crash.py"
PATIENCE_S = 900.0

KINDS = [
    f"{when} {what}"
    for what in (
        *("BEGIN", "COMMIT", "journal_mode", "fsync dataset", "fsync receipt", "fsync round file"),
        *("replace dataset", "replace receipt", "replace round file", "unlink dataset", "rmdir dataset"),
    )
    for when in ("before", "after")
] + ["before extrinsic is sent", "after extrinsic has landed", "after extrinsic is answered", "at a random moment"]


@dataclass(frozen=True)
class Ran:
    """A short campaign that is over. calm, killed: the folders of two of its runs, not to be written to."""

    process: Process
    folder: Path

    @property
    def calm(self) -> Path:
        return self.folder / "undisturbed"

    @property
    def killed(self) -> Path:
        return self.folder / "one of each"

    @property
    def hotkey(self) -> str:
        return Base.open(self.folder / "base", self.folder / "model").hotkey


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("crash") / "campaign"
    arguments = ["--short", "--dir", folder]
    with Process(CRASH, *arguments, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        process.finish(PATIENCE_S)
    return Ran(process, folder)


def test_a_validator_that_is_killed_at_a_point_of_each_kind_ends_as_one_that_is_not(ran: Ran) -> None:
    assert ran.process.status == 0, ran.process.output + "\n".join(ran.process.logs[-30:])
    assert ran.process.output.endswith("all agrees\n")
    rows = {line[:40]: line.split() for line in ran.process.output.splitlines()}
    for kind in KINDS:
        (row,) = [cells for name, cells in rows.items() if name.startswith(f"{kind} ")]
        kills, restarts, same, runs, doubled, orphans, partial = (row[at] for at in (-9, -8, -7, -5, -3, -2, -1))
        assert int(kills) == int(restarts) >= 1 and same == runs, row
        assert (doubled, orphans, partial) == ("0", "0", "0"), row
    told = next(line for line in ran.process.output.splitlines() if line.startswith("runs "))
    assert int(told.split(", ")[1].removeprefix("kills ")) >= 20


def test_the_faults_end_with_a_status_that_says_whose_they_are(ran: Ran) -> None:
    lines = ran.process.output.splitlines()
    assert [line for line in lines if line.startswith("disk full: ended") and "status 4" in line]
    for fault in ("disk full", "log cut short", "clock a year ahead, and back", "worker killed in each stage"):
        (row,) = [line for line in lines if line.startswith(f"fault: {fault}")]
        assert "1 of 1 runs" in row and row.split()[-3:] == ["0", "0", "0"]


def test_a_folder_that_is_in_use_is_refused(ran: Ran) -> None:
    with Process(CRASH, "--dir", ran.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        assert process.finish() == 3
    assert process.lines("--dir must be a new folder")


# What is planted is found


def copy_run(run: Path, folder: Path) -> Path:
    """What the checks look at of a run."""
    shutil.copytree(run / "state", folder / "state", ignore=shutil.ignore_patterns("cache", "eval_data"))
    shutil.copy(run / "chain.sqlite3", folder)
    return folder


def change(*statements: str) -> Callable[[Path], None]:
    """Changes the state file of a run; each statement must change something."""

    def work(folder: Path) -> None:
        with closing(sqlite3.connect(folder / "state" / STATE_FILE)) as db:
            for statement in statements:
                assert db.execute(statement).rowcount > 0
            db.commit()

    return work


def set_weights_twice(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "chain.sqlite3")) as db:
        db.execute(
            "INSERT INTO extrinsics SELECT block + 3, position, data, signer, error FROM extrinsics WHERE block ="
            " (SELECT max(block) FROM extrinsics)"
        )
        db.execute("INSERT INTO clock SELECT max(first_block) + 10, max(started_at), 0 FROM clock")
        db.execute("UPDATE chain SET sealed = sealed + 10")
        db.commit()


def cut(pattern: str) -> Callable[[Path], None]:
    """Takes the end off the first file of that name."""

    def work(folder: Path) -> None:
        path = next(folder.glob(pattern))
        os.truncate(path, path.stat().st_size - 10)

    return work


def mix_dataset(folder: Path) -> None:
    place = folder / "state" / "data" / "hotkey" / "alice--data-0"
    place.mkdir(parents=True)
    (place / "data.jsonl").write_text("another file")
    (place / ".source.json").write_text(json.dumps({"sha256": "0" * 64, "size": 12}))


def spoil_page(folder: Path) -> None:
    with (folder / "state" / STATE_FILE).open("r+b") as file:
        file.seek(2 * 4096)
        file.write(os.urandom(4096))


PLANTED = {
    "a verdict that is lost": (
        change("DELETE FROM receipts", "DELETE FROM verdicts WHERE loss IS NOT NULL"),
        "verdict on",
    ),
    "a refusal that is lost": (change("DELETE FROM verdicts WHERE reason = 'malformed'"), "verdict on"),
    "another reason": (change("UPDATE verdicts SET reason = 'empty' WHERE reason = 'malformed'"), "verdict on"),
    "the last bit of a loss": (
        change("UPDATE verdicts SET loss = loss + 9e-16 WHERE loss IS NOT NULL"),
        "verdict on",
    ),
    "a receipt that is lost": (change("DELETE FROM receipts"), "receipt: "),
    "another seed": (change("UPDATE round_members SET lucky_num = 7 WHERE lucky_num IS NOT NULL"), "entries of the"),
    "another table": (change("UPDATE standings SET weight = 0.0 WHERE weight > 0"), "tables of the round"),
    "weights that were never taken": (change("UPDATE weight_intents SET outcome = NULL"), "weights of the round"),
    "weights that were set twice": (set_weights_twice, "weights set 2 times in the round of block 720"),
    "a loss without its verdict": (change("DELETE FROM verdicts WHERE loss IS NOT NULL"), "state file: foreign key"),
    "half a receipt": (cut("state/receipts/*.json"), "not JSON"),
    "half a round": (cut("state/rounds/*.jsonl"), "incomplete"),
    "a dataset of another commit": (mix_dataset, "it is of another file"),
    "a page of noise": (spoil_page, "state file: "),
}


def look(ran: Ran, folder: Path) -> list[str]:
    """All that the checks say of a run's folder, as at a run's end."""
    path = folder / "state" / STATE_FILE
    if damaged := checks.check_database(path):
        return damaged
    partial, _ = checks.check_files(folder / "state", is_complete=True)
    doubled = checks.check_weights(folder / "chain.sqlite3", ran.hotkey, ROUND_BLOCKS)
    expected = read_state(ran.calm / "state" / STATE_FILE)
    return [*partial, *doubled, *compare(expected.until(720), read_state(path).until(720))]


def test_nothing_is_found_where_nothing_was_planted(ran: Ran, tmp_path: Path) -> None:
    assert look(ran, copy_run(ran.killed, tmp_path)) == []


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(name: str, ran: Ran, tmp_path: Path) -> None:
    plant, expected = PLANTED[name]
    plant(copy_run(ran.killed, tmp_path))
    found = look(ran, tmp_path)
    assert found and any(expected in said for said in found), found


ORPHAN = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
print(flush=True)
input()
"""


def test_a_process_that_outlives_its_parent_is_found() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert parent.stdout is not None and parent.stdin is not None
    try:
        parent.stdout.readline()
        parent.kill()
        parent.wait()
        (found,) = checks.find_orphans(parent.pid, grace_s=0.1)
        assert "time.sleep(99)" in found
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.stdin.close()
        parent.stdout.close()
    deadline = time.monotonic() + 30.0
    while checks.find_orphans(parent.pid, grace_s=0.0):
        assert time.monotonic() < deadline


def test_a_name_that_is_given_too_early_is_found(ran: Ran) -> None:
    events = (ran.calm / EVENTS_FILE).read_text().splitlines()
    assert checks.check_order(events) == []
    for place in ("receipts", "rounds"):
        early = [event for event in events if not event.startswith(f"after fsync | {place}/")]
        assert checks.check_order(early), place


def test_temporary_files_are_counted_and_are_no_partial_ones(tmp_path: Path) -> None:
    for name in ("receipts/.a.json.12", "rounds/.round-1.jsonl.abc", "data/hotkey/x/.data.jsonl.1", "data/hotkey/x/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half of")
    assert checks.check_files(tmp_path) == ([], 3)


def test_a_disagreement_is_in_the_table_and_in_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Outcome(
        "walk",
        points={"before BEGIN | x"},
        starts=2,
        differences=["verdict on x"],
        orphans=["killed before BEGIN | x: one"],
    )
    bad.kills["before BEGIN | x"] += 1
    campaign = Campaign(outcomes=[bad])
    monkeypatch.setattr(Crew, "work", lambda _: campaign)
    ended = call_main(load_main(CRASH), "--dir", tmp_path / "new")
    assert ended.status == 1
    assert "0 of 1 runs" in ended.output and "DISAGREES: walk: verdict on x" in ended.output
    assert "2 disagreements" in ended.output
