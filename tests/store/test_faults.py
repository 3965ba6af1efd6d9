"""The state file with two writers, readers, migrations, crashes and bad disks."""

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from template.errors import ConfigError, HostError
from template.records import ContentKey, EvalConfig, RetryState, SubmissionKey
from template.store import database
from template.store.migrations import MIGRATIONS, Execute
from template.store.store import Store
from tests.fixtures.store import COMPETITION, DIGEST, KEY, RESULT, make_evaluation, record_dataset
from tests.fixtures.views import make_stand, make_text

ROOT = Path(__file__).resolve().parents[2]
CONTENT = ContentKey("alice", DIGEST)
STAND = make_stand(SubmissionKey("a", "b"), 1)


def read_number(path: Path, query: str) -> int:
    """Read a number in the file without the store."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute(query).fetchone()[0])


def count(path: Path, table: str) -> int:
    return read_number(path, f"SELECT count(*) FROM {table}")


def insert_stand(db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO stands VALUES ('h', 'e', 1, 1, 1, 0, 0, 1)")


# One writer


HOLD = """
import sys
from pathlib import Path
from template.store.store import Store
store = Store(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_second_process_is_refused_until_the_first_is_killed(path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"open\n"
        with pytest.raises(ConfigError, match=rf"process {holder.pid}\) is using .*validator\.sqlite3.*--state_dir"):
            Store(path)
        holder.kill()
        holder.wait()
        Store(path).close()


def test_second_store_is_refused_until_the_first_is_closed(path: Path, store: Store) -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
            Store(path)
    store.close()
    store.close()
    with pytest.raises(RuntimeError, match="closed"):
        store.stands()
    Store(path).close()


def test_state_files_are_private_to_the_owner(path: Path) -> None:
    old = os.umask(0)
    try:
        with Store(path) as store:
            store.record_stands([STAND])
            files = sorted(path.parent.iterdir())
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files}
    finally:
        os.umask(old)
    assert set(modes.values()) == {0o600}
    assert {f"{path.name}{end}" for end in ("", ".lock", "-wal", "-shm")} == set(modes)


def test_odd_paths_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = Path("a folder?mode=ro&x#y%20") / "s.sqlite3"
    with Store(odd) as store:
        store.record_stands([STAND])
    assert (tmp_path / odd).is_file()
    with Store(odd, is_read_only=True) as reader:
        assert len(reader.stands()) == 1


# Readers


def test_reader_sees_committed_writes(path: Path, store: Store, eval_config: EvalConfig) -> None:
    with Store(path, is_read_only=True) as reader:
        assert reader.losses(eval_config) == {}
        with store.atomic() as db:
            insert_stand(db)
            assert reader.stands() == {}
        assert list(reader.stands()) == ["h"]
        store.record_evaluation(eval_config, make_evaluation(), RESULT, now=2.0)
        assert reader.losses(eval_config) == {CONTENT: [2.5]}


def test_reader_cannot_write(path: Path, store: Store, eval_config: EvalConfig) -> None:
    with Store(path, is_read_only=True) as reader, pytest.raises(HostError, match="readonly"):
        reader.record_evaluation(eval_config, make_evaluation(), RESULT, now=2.0)
    assert store.losses(eval_config) == {}


def test_reader_of_a_missing_state_raises(path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"no validator state at .*{path.name}"):
        Store(path, is_read_only=True)
    assert not path.parent.exists()


def test_reader_of_an_older_schema_raises(path: Path) -> None:
    path.parent.mkdir()
    sqlite3.connect(path).close()
    path.touch()
    with pytest.raises(ConfigError, match="older schema"):
        Store(path, is_read_only=True)


# Migrations


def m_late(execute: Execute) -> None:
    execute("CREATE TABLE late (x)")
    execute("INSERT INTO late VALUES (1)")


def m_later(execute: Execute) -> None:
    execute("UPDATE late SET x = x + 1")


LATE, VERSION = "SELECT x FROM late", "PRAGMA user_version"


def test_new_migration_runs_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(path) as store:
        store.record_stands([STAND])
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, m_late, m_later))
    for _ in range(2):
        with Store(path) as store:
            assert len(store.stands()) == 1
    assert read_number(path, LATE) == 2
    assert read_number(path, VERSION) == len(MIGRATIONS) + 2


def test_failing_migration_rolls_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def m_broken(execute: Execute) -> None:
        m_later(execute)
        execute("CREATE TABLE half (x)")
        raise ZeroDivisionError

    Store(path).close()
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, m_late, m_broken))
    with pytest.raises(ZeroDivisionError):
        Store(path)
    assert read_number(path, LATE) == 1
    assert read_number(path, VERSION) == len(MIGRATIONS) + 1
    with contextlib.closing(sqlite3.connect(path)) as db, pytest.raises(sqlite3.OperationalError, match="half"):
        db.execute("SELECT * FROM half")
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, m_late, m_later))
    Store(path).close()
    assert read_number(path, LATE) == 2


@pytest.mark.parametrize("is_read_only", [False, True])
def test_newer_schema_is_refused_and_unchanged(path: Path, monkeypatch: pytest.MonkeyPatch, is_read_only: bool) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", (*MIGRATIONS, m_late))
        Store(path).close()
    with pytest.raises(ConfigError, match=rf"{path.name} was written by a newer version"):
        Store(path, is_read_only=is_read_only)
    assert read_number(path, VERSION) == len(MIGRATIONS) + 1


def test_state_of_the_first_release_closes_its_open_round(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", MIGRATIONS[:1])
        with Store(path) as old, old.atomic() as db:
            db.execute("INSERT INTO contests VALUES (1, 'd', 'c', 'h', 'm', 1.0)")
            db.execute("INSERT INTO verdicts VALUES (1, 'a', 'e', NULL, '', 2.5, 1.0, 1.0)")
            db.execute("INSERT INTO receipts VALUES (1, 'a', 'e', 'signed')")
            db.execute("INSERT INTO rounds VALUES (3, 1, 10, '0x', 370, 7, 1.0, NULL)")
            db.execute("INSERT INTO round_entries VALUES (3, 0, 'a', 'e')")
            db.execute("INSERT INTO weight_intents VALUES (1, 3, 20, '{\"0\": 1.0}', 1.0, NULL, NULL)")
    eval_config = EvalConfig(1, "d")
    with Store(path) as store:
        assert store.open_round(eval_config) is None
        assert store.losses(eval_config) == store.verdicts(eval_config) == {}, "it compares with no new loss"
        assert [(intent.weights, intent.shares) for intent in store.intents(3)] == [({0: 1.0}, {})]
        assert store.last_start_block(eval_config) == 10


def test_stands_of_release_0_4_get_their_recorded_reveals(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", MIGRATIONS[:3])
        with Store(path) as old, old.atomic() as db:
            db.execute("INSERT INTO stands VALUES ('sealed', 'e', 10, 60, 8, 1, 0)")
            db.execute("INSERT INTO stands VALUES ('plain', 'e', 10, 60, 8, 1, 0)")
            db.execute("INSERT INTO openings VALUES ('sealed', 35, 8), ('plain', 5, 3)")
    with Store(path) as store:
        reveals = {hotkey: stand.reveal_block for hotkey, (stand,) in store.stands().items()}
    assert reveals == {"sealed": 35, "plain": 8}


# All or nothing


def test_error_in_a_transaction_rolls_it_back(path: Path, store: Store) -> None:
    for error in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error), store.atomic() as db:
            insert_stand(db)
            raise error
    with pytest.raises(HostError, match="transaction within"), store.atomic() as db:
        insert_stand(db)
        store.record_stands([])
    assert count(path, "stands") == 0
    store.record_stands([STAND])
    assert count(path, "stands") == 1


def test_failing_commit_leaves_no_transaction(path: Path, store: Store) -> None:
    with pytest.raises(sqlite3.IntegrityError), store.atomic() as db:
        db.execute("PRAGMA defer_foreign_keys=ON")
        db.execute(
            "INSERT INTO rounds (id, contest_id, start_block, start_block_hash, end_block, lucky_num, started_at)"
            " VALUES (1, 99, 1, '', 2, 0, 1.0)"
        )
    assert count(path, "rounds") == 0
    store.record_stands([STAND])


def test_loss_that_fails_to_be_recorded_ends_no_retry(path: Path, store: Store, eval_config: EvalConfig) -> None:
    store.record_retry_state(eval_config, KEY, RetryState(1))
    with store.atomic() as db:
        db.execute("CREATE TRIGGER full BEFORE DELETE ON attempts BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(sqlite3.IntegrityError):
        store.record_evaluation(eval_config, make_evaluation(), RESULT, now=1.0)
    assert store.losses(eval_config) == {}
    assert store.retry_states(eval_config) == {KEY: RetryState(1)}


# Faults of the disk


def test_file_that_is_no_database_raises_host_error(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(os.urandom(8192))
    failures = []
    for is_read_only in (False, True, False):
        with pytest.raises(HostError, match=rf"{path.name} failed: file is not a database") as failure:
            Store(path, is_read_only=is_read_only)
        # A reference to the frame keeps a lock that was not released.
        failures.append(failure)
    assert path.stat().st_size == 8192


def test_impossible_folder_raises_host_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match=r"file/validator\.sqlite3 failed"):
        Store(tmp_path / "file" / "validator.sqlite3")
    (tmp_path / "folder.sqlite3").mkdir()
    with pytest.raises(HostError, match=r"folder\.sqlite3 failed"):
        Store(tmp_path / "folder.sqlite3")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_raises_host_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(HostError, match="Permission denied"):
        Store(tmp_path / "validator.sqlite3")


def test_full_disk_raises_host_error_and_loses_nothing(path: Path, store: Store, eval_config: EvalConfig) -> None:
    store.record_evaluation(eval_config, make_evaluation(), RESULT, now=1.0)
    with store.atomic() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
    with store.atomic() as db:
        db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(HostError, match="full"):
        record_dataset(store, KEY, [os.urandom(32)] * 10_000)
    assert store.losses(eval_config) == {CONTENT: [2.5]}
    assert store.datasets(COMPETITION, 32) == {}
    with store.atomic() as db:
        db.execute("PRAGMA max_page_count=1000000")
    record_dataset(store, KEY, [b"k" * 32])


def test_damaged_file_raises_host_error(path: Path) -> None:
    with Store(path) as store:
        store.record_stands([make_stand(SubmissionKey(f"h{number}", make_text()), 1) for number in range(500)])
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(HostError, match=f"{path.name} failed: database disk image is malformed"), Store(path) as store:
        store.stands()


def test_writer_waits_for_a_locked_file_then_gives_up(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_MAX_LOCKED_S", 0.04)
    store._connection.execute("PRAGMA busy_timeout=50")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as intruder:
        intruder.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(HostError, match="locked"):
            store.record_stands([])
        assert time.monotonic() - began >= 0.05
        intruder.execute("ROLLBACK")
    store.record_stands([])
