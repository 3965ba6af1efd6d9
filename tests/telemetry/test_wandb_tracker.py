"""Runs of the real wandb client and service, and processes killed or stopped."""

import dataclasses
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from template.errors import Reason
from template.records import Metrics, RoundReport
from template.telemetry import wandb_tracker
from template.telemetry.metrics import EVALUATION_COLUMNS, LEADERBOARD_COLUMNS
from template.telemetry.redaction import Redactor
from template.telemetry.wandb_run import child_processes
from template.telemetry.wandb_tracker import TrackerConfig, WandbTracker
from tests.fixtures.logs import log_lines
from tests.fixtures.workers import is_alive, until
from tests.telemetry.test_metrics import RESULT, make_metrics, make_report, make_row, run

ROOT = Path(__file__).resolve().parents[2]
HOTKEY = "5F3sa2TJAWMqDhXG6jhV4N8ko9SxwGy8TpaNS1repo5EYjQX"
DAY = 1_800_000_000.0
SECRET = "hf_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3f"


# Texts of strangers, and how a table shows them.
HOSTILE = {
    '=HYPERLINK("http://x")': """'=HYPERLINK("http://x")""",
    "@SUM(A1)": "'@SUM(A1)",
    "a\u202eb\ttab": "a\\u202eb\\ttab",
    "<img src=//x>": "\\u003cimg src=//x>",
    "![pixel](http://x)": "![pixel]\\u0028http://x)",
    "a plain (text), 中文": "a plain (text), 中文",
}


@contextmanager
def without_login(home: Path) -> Iterator[None]:
    """Set an environment without a wandb login and with a secret."""
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("HF_TOKEN", SECRET)
        yield


@pytest.fixture(autouse=True)
def logged(tmp_path: Path) -> Iterator[list[str]]:
    """Log lines, in an environment without a login."""
    with without_login(tmp_path / "home"), log_lines() as lines:
        yield lines


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Folder of wandb's files. No process may work in it after the test."""
    yield tmp_path / "tracking"
    until(lambda: run_processes(tmp_path / "tracking") == [])


def make_config(folder: Path, *, version: str = "1.2", competition: str = "chat") -> TrackerConfig:
    return TrackerConfig(
        project="test", entity=None, hotkey=HOTKEY, netuid=96, version=version, folder=folder, competition=competition,
        settings={"incentives": {"slots": 30}},
    )  # fmt: skip


def make_tracker(folder: Path, *, clock: Callable[[], float] = lambda: DAY) -> WandbTracker:
    return WandbTracker(make_config(folder), redact=Redactor(), clock=clock, backoff_s=0.05)


def point(block: int) -> Metrics:
    return make_metrics(now=12.0 * block + 3, block=block, block_time=12.0 * block)


def closed_round(number: int, file: Path | None = None) -> RoundReport:
    losses = enumerate([None, 1.5, 2.5])
    rows = [make_row(uid, loss=loss, reason=None if loss else Reason.DUPLICATE, repo=SECRET) for uid, loss in losses]
    round_file = None if file is None else str(file)
    return make_report(rows, number, results={run("hotkey1"): RESULT}, round_file=round_file)


def run_processes(folder: Path) -> list[int]:
    """Return the processes that work in the folder: of the run and of wandb's service."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if path.readlink() == folder:
                pids.append(int(path.parent.name))
        except OSError:
            continue
    return pids


def service(folder: Path) -> int:
    """Return the process id of wandb's service."""
    (child,) = [child for pid in run_processes(folder) for child in child_processes(pid)]
    return child


def runs(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_ctime_ns)


def read_run(path: Path) -> list[Record]:
    """Parse a run's file: LevelDB's log format after a header of 7 bytes."""
    data, records, payload, offset = path.read_bytes(), [], b"", 7
    while offset + 7 <= len(data):
        if 32768 - offset % 32768 < 7:
            offset += 32768 - offset % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, offset)
        payload += data[offset + 7 : offset + 7 + size]
        offset += 7 + size
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(payload)
            records.append(record)
            payload = b""
    return records


def history(path: Path) -> list[dict[str, Any]]:
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in read_run(path)
        if record.WhichOneof("record_type") == "history"
    ]


def values(path: Path, name: str) -> list[Any]:
    return [row[name] for row in history(path) if name in row]


def read_table(path: Path, name: str, index: int = 0) -> Any:
    """Parse the run's tables of this name in their order."""
    files = (path.parent / "files/media/table/round").glob(f"{name}_*.json")
    return json.loads(sorted(files, key=lambda file: int(file.name.split("_")[1]))[index].read_text())


def run_python(code: str, *arguments: Path) -> int:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=environment, timeout=120).returncode


def warnings(logged: list[str]) -> list[str]:
    return [line.rstrip() for line in logged if line.startswith("WARNING")]


def is_finished(path: Path) -> bool:
    return any(record.WhichOneof("record_type") == "exit" for record in read_run(path))


def open_run(folder: Path, logged: list[str]) -> WandbTracker:
    """Open a tracker that has reported a point."""
    tracker = make_tracker(folder)
    tracker.report_metrics(point(100))
    until(lambda: logged)
    return tracker


def files_with(text: str, folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


@dataclass(frozen=True)
class Finished:
    """A finished run, the environments of its processes, and the log lines."""

    folder: Path
    path: Path
    environments: list[bytes]
    logged: list[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    top = tmp_path_factory.mktemp("finished")
    folder = top / "tracking"
    (top / "round-1.jsonl").write_text('{"signed": true}\n')
    with without_login(top / "home"), pytest.MonkeyPatch.context() as patch, log_lines() as lines:
        patch.setenv("WANDB_ENTITY", "somebody-else")
        patch.setenv("DATABASE_URL", "postgres://operator")
        tracker = open_run(folder, lines)
        environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid in run_processes(folder)]
        tracker.report_round(closed_round(1, top / "round-1.jsonl"))
        tracker.report_round(closed_round(2, top / "lost.jsonl"))
        tracker.report_metrics(point(101))
        tracker.report_round(make_report([dataclasses.replace(make_row(1), message=text) for text in HOSTILE]))
        tracker.close(timeout_s=60)
    (path,) = runs(folder)
    return Finished(top, path, environments, lines)


def test_wandb_run_holds_charts_and_leaderboard(finished: Finished) -> None:
    path = finished.path
    assert is_finished(path) and warnings(finished.logged) == []
    assert values(path, "live/block") == [100, 101]
    assert values(path, "live/chain_lag_seconds") == [3, 3]
    assert values(path, "round/loss/rank_1") == [1.5, 1.5]
    table = read_table(path, "standings")
    assert table["columns"] == list(LEADERBOARD_COLUMNS)
    assert [row[:6] + row[-1:] for row in table["data"][:2]] == [
        ["hotkey0", 0, "owner/[redacted]", "0" * 40, "duplicate", "a sentence", None],
        ["hotkey1", 1, "owner/[redacted]", "0" * 40, "in_progress", "", 3.5],
    ]
    table = read_table(path, "evaluations")
    assert table["columns"] == list(EVALUATION_COLUMNS) and [row[3:5] for row in table["data"]] == [
        [1, 11],
        [2, 11],
        [1, 11],
    ]
    assert values(path, "miner/hotkey1/loss") == [1.5, 1.5]


def test_text_of_a_stranger_is_shown_harmlessly_in_tables(finished: Finished) -> None:
    assert [row[5] for row in read_table(finished.path, "standings", -1)["data"]] == list(HOSTILE.values())


def test_wandb_run_holds_identity_and_existing_receipts(finished: Finished) -> None:
    records = read_run(finished.path)
    artifacts = [record.request.log_artifact.artifact for record in records] + [record.artifact for record in records]
    (receipts,) = [artifact for artifact in artifacts if artifact.type == "receipts"]
    assert receipts.name == f"receipts-{HOTKEY[:8]}"
    assert [content.local_path for content in receipts.manifest.contents] == [str(finished.folder / "round-1.jsonl")]
    (opened,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (opened.project, opened.run_group, opened.display_name) == ("test", HOTKEY, f"{HOTKEY[:8]}-96-chat")
    assert opened.host == "validator"
    config = {update.key: json.loads(update.value_json) for update in opened.config.update}
    assert config["version"] == "1.2" and config["incentives"] == {"slots": 30}


def test_wandb_files_hold_no_secret_and_none_is_at_home(finished: Finished) -> None:
    assert files_with(SECRET, finished.folder) == files_with("", finished.folder / "home") == []


def test_wandb_processes_get_only_listed_variables(finished: Finished) -> None:
    assert len(finished.environments) == 2
    assert not any(SECRET.encode() in environment for environment in finished.environments)
    assert b"somebody-else" not in finished.environments[0] and b"postgres" not in finished.environments[0]


@pytest.mark.slow
def test_wandb_run_is_resumed_at_a_start_and_the_next_day(folder: Path) -> None:
    for days in ((DAY,), (DAY, DAY + 86400)):
        clock = iter(days)
        tracker = make_tracker(folder, clock=lambda clock=clock: next(clock))  # type: ignore[misc]
        for block in range(len(days)):
            tracker.report_metrics(point(block))
        tracker.close(timeout_s=60)
    # A file for each, so that old ones can go.
    assert [values(path, "live/block") for path in runs(folder)] == [[0], [0], [1]]
    assert all(map(is_finished, runs(folder)))
    assert len({path.name for path in runs(folder)}) == 1


def test_wandb_run_is_one_for_all_losses_that_compare() -> None:
    first, release, competition = (
        make_config(Path("runs"), **change).run_settings()
        for change in ({}, {"version": "1.3"}, {"competition": "code"})
    )
    assert first["id"] == release["id"] != competition["id"]
    assert (first["config"]["version"], release["config"]["version"]) == ("1.2", "1.3")


def main_process(folder: Path) -> int:
    return run_processes(folder)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("find", "fault"), [(service, signal.SIGKILL), (service, signal.SIGSTOP), (main_process, signal.SIGSTOP)]
)
def test_wandb_process_dies_or_hangs_round_is_sent_again(
    find: Callable[[Path], int],
    fault: signal.Signals,
    folder: Path,
    logged: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wandb_tracker, "REQUEST_TIMEOUT_S", 3)
    monkeypatch.setattr(wandb_tracker, "_HANG_S", 6.0)
    tracker = open_run(folder, logged)
    broken = find(folder)
    os.kill(broken, fault)
    tracker.report_round(closed_round(1))
    until(lambda: len(runs(folder)) == 2)
    tracker.close(timeout_s=60)
    first, second = runs(folder)
    assert first.name == second.name
    assert values(second, "round/id") == [1] and is_finished(second)
    assert not is_alive(broken)
    assert len(warnings(logged)) == 1


def test_wandb_service_hung_reports_and_close_return(folder: Path, logged: list[str]) -> None:
    tracker = open_run(folder, logged)
    for pid in (service(folder), *run_processes(folder)):
        os.kill(pid, signal.SIGSTOP)
    for block in range(1000):
        tracker.report_metrics(point(block))
        tracker.report_round(closed_round(block))
    # The service hangs forever, its timeout is a minute.
    tracker.close(timeout_s=0.5)
    assert not tracker._thread.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "status"), [("os.kill(os.getpid(), signal.SIGKILL)", -9), ("os.kill(service(folder), signal.SIGSTOP)", 0)]
)
def test_wandb_run_without_close_is_finished(folder: Path, end: str, status: int) -> None:
    code = (
        "import sys; from tests.telemetry.test_wandb_tracker import *\n"
        "folder = Path(sys.argv[1]); tracker = make_tracker(folder); tracker.report_metrics(point(1))\n"
        f"until(lambda: runs(folder)); {end}\n"
    )
    assert run_python(code, folder) == status
    if status == 0:
        os.kill(service(folder), signal.SIGCONT)
    until(lambda: is_finished(runs(folder)[0]))


def test_wandb_server_silent_close_returns(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "0123456789abcdef" * 2 + "01234567"
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_API_KEY", key)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        tracker = make_tracker(folder)
        tracker.report_metrics(point(1))
        server.settimeout(90)
        connection, _ = server.accept()
        tracker.close(timeout_s=0.5)
        connection.close()
    assert not tracker._thread.is_alive()
    assert files_with(key, tmp_path) == []


def test_wandb_key_invalid_is_a_warning(folder: Path, logged: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    tracker = make_tracker(folder)
    tracker.report_metrics(point(1))
    until(lambda: warnings(logged))
    tracker.close(timeout_s=60)
    assert "WANDB_API_KEY invalid" in warnings(logged)[0]


def test_wandb_tracker_long_outage_keeps_rounds_over_metrics(folder: Path, logged: list[str]) -> None:
    folder.write_text("in the way")
    tracker = make_tracker(folder)
    tracker.report_round(closed_round(1))
    for block in range(wandb_tracker.MAX_WAITING):
        tracker.report_metrics(point(block))
    tracker.report_round(closed_round(2))
    # More failures than a round has tries.
    until(lambda: tracker._backoff_s >= 0.8)
    folder.unlink()
    until(lambda: len(warnings(logged)) == 2)
    tracker.close(timeout_s=60)
    (path,) = runs(folder)
    blocks = values(path, "live/block")
    assert values(path, "round/id") == [1, 2]
    # A later one finds room once the first is tried.
    assert blocks[:-1] == list(range(len(blocks) - 1)) and abs(len(blocks) - wandb_tracker.MAX_WAITING // 2) <= 1
    assert warnings(logged)[0].startswith("WARNING wandb failed: [Errno 17] File exists: ")
    dropped = wandb_tracker.MAX_WAITING - len(blocks)
    assert warnings(logged)[1:] == [f"WARNING wandb: dropped {dropped} reports while it was unavailable"]


@pytest.mark.slow
def test_old_name_of_offline_mode_sends_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)  # with a login, it would be online
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    tracker = make_tracker(folder)
    tracker.report_round(closed_round(1))
    tracker.close(timeout_s=60)
    assert len(runs(folder)) == 1 and values(runs(folder)[0], "round/id") == [1]
