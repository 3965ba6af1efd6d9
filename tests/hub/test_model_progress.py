"""What is shown of a model's download."""

import io
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from template.config import load_training_args
from template.hub import model_progress, progress
from template.hub.model_progress import show_model_download
from template.localnet.hub.store import upload_files
from template.training.model import load_model
from tests.fixtures.faulty_hub import FaultKind, FaultyHub, HubFault, set_faults
from tests.fixtures.hub import upload_model, use_endpoint
from tests.fixtures.logs import log_lines
from tests.fixtures.training import MODEL_ID

SHARDS = {"model-1.safetensors": b"a" * 4_000_000, "model-2.safetensors": b"b" * 6_000_000}


@pytest.fixture(autouse=True)
def fast(server: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_progress, "POLL_S", 0.02)
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.1)
    use_endpoint(server, monkeypatch)


def test_download_is_logged_once_it_takes_long(server: FaultyHub, tiny_model: Path, tmp_path: Path) -> None:
    revision, cache = upload_model(server, MODEL_ID, tiny_model), tmp_path / "cache"
    size = (tiny_model / "model.safetensors").stat().st_size / 1e6
    set_faults(server.store.root, HubFault(kind=FaultKind.LATENCY, seconds=0.4, pattern="^GET .*safetensors", count=1))
    shown = []
    for _ in range(2):
        with log_lines() as logs, show_model_download(MODEL_ID, revision, cache):
            args = load_training_args()
            args = type(args)(model_id=MODEL_ID, revision=revision, hyperparameters=args.hyperparameters)
            load_model(args, device=torch.device("cpu"), dtype=torch.float32, cache_dir=cache)
        shown.append(logs)
    first, *progress = shown[0]
    assert f"INFO downloading once: model={MODEL_ID} bytes={size:.1f} MB folder={cache}/models--" in first
    assert progress and all(re.search(rf"model={MODEL_ID}: \d.\d MB of {size:.1f} MB", line) for line in progress)
    assert shown[1] == [], "the weights are in the cache"


@pytest.mark.parametrize("is_listed", [True, False])
def test_parts_of_files_count_and_other_revisions_do_not(server: FaultyHub, tmp_path: Path, is_listed: bool) -> None:
    if is_listed:
        upload_files(server.store.root, MODEL_ID, SHARDS, repo_type="model")
    blobs = tmp_path / f"models--{MODEL_ID.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "other").write_bytes(bytes(50_000_000))
    with log_lines() as logs, show_model_download(MODEL_ID, None, tmp_path):
        (blobs / "one.incomplete").write_bytes(bytes(2_000_000))
        expected = "2.0 MB of 10.0 MB, about 0 min left" if is_listed else "2.0 MB so far"
        wait_until(lambda: any(line.endswith(f"{expected}\n") for line in logs))


@pytest.mark.parametrize(
    ("total", "speed", "text"),
    [
        (10_000_000, 100_000.0, "2.0 MB of 10.0 MB, about 1 min left"),
        (3_100_000_000, 5_000_000.0, "2.0 MB of 3.1 GB, about 10 min left"),
        (1_000_000, 1.0, "2.0 MB of 1.0 MB, about 0 min left"),
        (10_000_000, 0.0, "2.0 MB of 10.0 MB"),
        (None, 1.0, "2.0 MB so far"),
    ],
)
def test_rest_of_a_download_is_told_in_minutes(total: int | None, speed: float, text: str) -> None:
    assert progress.describe_download(2_000_000, total, speed) == text


def wait_until(is_reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_reached():
        assert time.monotonic() < deadline, "not reached"
        time.sleep(0.01)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal_shows_a_bar_and_no_lines(server: FaultyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_files(server.store.root, MODEL_ID, SHARDS, repo_type="model")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    blobs = tmp_path / f"models--{MODEL_ID.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    with log_lines() as logs, show_model_download(MODEL_ID, None, tmp_path):
        (blobs / "one.incomplete").write_bytes(bytes(5_000_000))
        wait_until(lambda: "50%" in terminal.getvalue())
    assert len(logs) == 1 and "5.00M/10.0M" in terminal.getvalue()
    assert not [thread for thread in threading.enumerate() if thread.name == "model-progress"]
