"""Runs of the real wandb client and service, and processes killed or stopped."""

import argparse
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from wandb.proto.wandb_internal_pb2 import Record

from template import cli
from template.errors import Reason
from template.records import Metrics, RoundReport
from template.telemetry import wandb_tracker
from template.telemetry.redaction import Redactor
from template.telemetry.wandb_run import child_processes
from template.telemetry.wandb_tracker import TrackerConfig, WandbTracker, delete_old_runs
from tests.telemetry.test_metrics import make_metrics, make_report, make_row

ROOT = Path(__file__).resolve().parents[2]
HOTKEY = "5F3sa2TJAWMqDhXG6jhV4N8ko9SxwGy8TpaNS1repo5EYjQX"
DAY = 1_800_000_000.0
SECRET = "hf_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3f"


@pytest.fixture(autouse=True)
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Log lines, without a wandb login and with a secret in the environment."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    lines: list[str] = []
    sink = logger.add(lines.append, level="INFO", format="{level} {message}")  # type: ignore[arg-type]
    yield lines
    logger.remove(sink)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Folder of wandb's files. No process may work in it after the test."""
    yield tmp_path / "tracking"
    wait_until(lambda: run_processes(tmp_path / "tracking") == [])


def make_tracker(folder: Path, *, clock: Callable[[], float] = lambda: DAY, version: str = "1.2") -> WandbTracker:
    config = TrackerConfig(project="test", entity=None, hotkey=HOTKEY, netuid=96, version=version, folder=folder)
    return WandbTracker(config, redact=Redactor(), clock=clock, backoff_s=0.05)


def point(block: int) -> Metrics:
    return make_metrics(now=12.0 * block + 3, block=block, block_time=12.0 * block)


def closed_round(number: int, file: Path | None = None) -> RoundReport:
    losses = enumerate([None, 1.5, 2.5])
    rows = [make_row(uid, loss=loss, reason=None if loss else Reason.DUPLICATE, repo=SECRET) for uid, loss in losses]
    round_file = None if file is None else str(file)
    return make_report(rows, number, seconds={"hotkey1": 2.0}, round_file=round_file)


def wait_until(is_reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + 90
    while not is_reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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
    children = [child for pid in run_processes(folder) for child in child_processes(pid)]
    assert len(children) == 1
    return children[0]


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


def warnings(logged: list[str]) -> list[str]:
    return [line.rstrip() for line in logged if line.startswith("WARNING")]


def is_finished(path: Path) -> bool:
    return any(record.WhichOneof("record_type") == "exit" for record in read_run(path))


def test_wandb_run_holds_charts_table_receipts_and_no_secret(folder: Path, tmp_path: Path, logged: list[str]) -> None:
    receipts = tmp_path / "round-1.jsonl"
    receipts.write_text('{"signed": true}\n')
    tracker = make_tracker(folder)
    tracker.report_metrics(point(100))
    tracker.report_round(closed_round(1, receipts))
    tracker.report_round(closed_round(2, tmp_path / "lost.jsonl"))
    tracker.report_metrics(point(101))
    tracker.close(timeout_s=60)
    (path,) = runs(folder)
    assert is_finished(path)
    assert values(path, "live/block") == [100, 101]
    assert values(path, "live/chain_lag_seconds") == [3, 3]
    assert values(path, "round/loss/rank_1") == [1.5, 1.5]
    table = json.loads(next((path.parent / "files/media/table/round").glob("standings_*.json")).read_text())
    assert table["columns"] == list(wandb_tracker.TABLE_COLUMNS)
    assert table["data"][:2] == [
        ["hotkey0", 0, "owner/[redacted]", "duplicate", None, 0.5, 0.25, None],
        ["hotkey1", 1, "owner/[redacted]", "scored", 1.5, 0.5, 0.25, 2],
    ]
    records = read_run(path)
    artifacts = [record.request.log_artifact.artifact for record in records] + [record.artifact for record in records]
    receipts_of_run = [artifact for artifact in artifacts if artifact.type == "receipts"]
    assert [artifact.name for artifact in receipts_of_run] == [f"receipts-{HOTKEY[:8]}"]
    assert [content.local_path for content in receipts_of_run[0].manifest.contents] == [str(receipts)]
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.run_group, run.display_name) == ("test", HOTKEY, f"{HOTKEY[:8]}-1.2-2027-01-15")
    assert (run.host, warnings(logged)) == ("validator", [])
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in written if SECRET.encode() in file.read_bytes()]
    assert not [file for file in written if file.is_relative_to(tmp_path / "home")]


def test_wandb_run_restart_same_day_and_version_resumes(folder: Path) -> None:
    now = DAY
    tracker = make_tracker(folder, clock=lambda: now)
    tracker.report_metrics(point(1))
    tracker.close(timeout_s=60)
    tracker = make_tracker(folder, clock=lambda: now)
    tracker.report_metrics(point(2))
    now += 86400
    tracker.report_metrics(point(3))
    tracker.close(timeout_s=60)
    tracker = make_tracker(folder, clock=lambda: now, version="1.3")
    tracker.report_metrics(point(4))
    tracker.close(timeout_s=60)
    paths = runs(folder)
    assert [values(path, "live/block") for path in paths] == [[1], [2], [3], [4]]
    assert all(map(is_finished, paths))
    first, second, third, fourth = (path.name for path in paths)
    assert first == second
    assert len({second, third, fourth}) == 3


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_wandb_service_dies_or_hangs_round_is_sent_again(
    fault: signal.Signals, folder: Path, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_tracker, "REQUEST_TIMEOUT_S", 5)
    tracker = make_tracker(folder)
    tracker.report_metrics(point(1))
    wait_until(lambda: logged)
    broken = service(folder)
    os.kill(broken, fault)
    tracker.report_round(closed_round(1))
    wait_until(lambda: len(runs(folder)) == 2)
    tracker.close(timeout_s=60)
    first, second = runs(folder)
    assert first.name == second.name
    assert values(second, "round/id") == [1]
    assert is_finished(second)
    assert not Path(f"/proc/{broken}").exists() or "Z" in Path(f"/proc/{broken}/stat").read_text().split()[2]
    assert len(warnings(logged)) == 1


def test_wandb_process_stopped_is_replaced(folder: Path, logged: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_tracker, "_HANG_S", 5.0)
    tracker = make_tracker(folder)
    tracker.report_metrics(point(1))
    wait_until(lambda: logged)
    os.kill(run_processes(folder)[0], signal.SIGSTOP)
    tracker.report_round(closed_round(1))
    wait_until(lambda: len(runs(folder)) == 2)
    tracker.close(timeout_s=60)
    assert values(runs(folder)[1], "round/id") == [1]


def test_wandb_process_gets_only_listed_variables(
    folder: Path, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_ENTITY", "somebody-else")
    monkeypatch.setenv("DATABASE_URL", "postgres://operator")
    tracker = make_tracker(folder)
    tracker.report_metrics(point(1))
    wait_until(lambda: logged)
    variables = Path(f"/proc/{run_processes(folder)[0]}/environ").read_bytes()
    tracker.close(timeout_s=60)
    assert b"somebody-else" not in variables and b"postgres" not in variables


def test_wandb_service_hung_reports_and_close_return(folder: Path, logged: list[str]) -> None:
    tracker = make_tracker(folder)
    tracker.report_metrics(point(1))
    wait_until(lambda: logged)
    for pid in (service(folder), *run_processes(folder)):
        assert SECRET.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        os.kill(pid, signal.SIGSTOP)
    for block in range(1000):
        tracker.report_metrics(point(block))
        tracker.report_round(closed_round(block))
    # The service hangs forever, its timeout is a minute.
    tracker.close(timeout_s=0.5)
    assert not tracker._thread.is_alive()


@pytest.mark.parametrize(
    ("end", "status"), [("os.kill(os.getpid(), signal.SIGKILL)", -9), ("os.kill(service(folder), signal.SIGSTOP)", 0)]
)
def test_wandb_run_without_close_is_finished(folder: Path, end: str, status: int) -> None:
    code = (
        "import sys; from tests.telemetry.test_wandb_tracker import *\n"
        "folder = Path(sys.argv[1]); tracker = make_tracker(folder); tracker.report_metrics(point(1))\n"
        f"wait_until(lambda: runs(folder)); {end}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, timeout=120)
    assert done.returncode == status
    if status == 0:
        os.kill(service(folder), signal.SIGCONT)
    wait_until(lambda: is_finished(runs(folder)[0]))


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
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in written if key.encode() in file.read_bytes()]


def test_wandb_key_invalid_is_a_warning(folder: Path, logged: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    tracker = make_tracker(folder)
    tracker.report_metrics(point(1))
    wait_until(lambda: warnings(logged))
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
    wait_until(lambda: tracker._backoff_s >= 0.8)
    folder.unlink()
    wait_until(lambda: len(warnings(logged)) == 2)
    tracker.close(timeout_s=60)
    (path,) = runs(folder)
    blocks = values(path, "live/block")
    assert values(path, "round/id") == [1, 2]
    assert blocks == list(range(len(blocks))) and abs(len(blocks) - wandb_tracker.MAX_WAITING // 2) <= 1
    assert "FileExistsError" in warnings(logged)[0]
    dropped = wandb_tracker.MAX_WAITING - len(blocks)
    assert warnings(logged)[1:] == [f"WARNING wandb: dropped {dropped} reports while it was unavailable"]


def test_delete_old_runs_deletes_only_old_leftovers(tmp_path: Path) -> None:
    names = ("wandb/offline-run-1-a", "wandb/run-2-b", "data/artifacts/staging/tmp1", "cache/wandb/logs/core.log")
    for kind in ("old", "new"):
        for name in names:
            path = tmp_path / f"{name}-{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if "run-" in name:
                path.mkdir()
                (path / "run.wandb").write_text("")
            else:
                path.write_text("")
            if kind == "old":
                os.utime(path, times=(time.time() - 3 * 86400,) * 2)
    (tmp_path / "wandb" / "run-latest").symlink_to("gone")
    delete_old_runs(tmp_path, keep_days=2)
    left = {str(path.relative_to(tmp_path)) for pattern in wandb_tracker._LEFTOVERS for path in tmp_path.glob(pattern)}
    assert left == {f"{name}-new" for name in names} | {"wandb/run-latest"}


def test_tracking_arguments_are_parsed() -> None:
    parser = argparse.ArgumentParser()
    cli.add_tracking_arguments(parser)
    logged = vars(parser.parse_args(["--wandb.off", "--wandb.project", "p", "--wandb.entity", "e"]))
    assert logged == {"wandb_off": True, "wandb_project": "p", "wandb_entity": "e"}
    default = vars(parser.parse_args([]))
    assert default == {"wandb_off": False, "wandb_project": "dataset-subnet", "wandb_entity": None}


def test_wandb_tracker_import_does_not_load_wandb() -> None:
    code = "import sys, template.telemetry.wandb_tracker; assert not {'wandb', 'torch', 'bittensor'} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
