"""Flags of the tracker, what it deletes, and what it imports."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neurons import validator
from template import cli
from template.telemetry import wandb_tracker
from template.telemetry.wandb_tracker import WandbTracker, delete_old_runs

ROOT = Path(__file__).resolve().parents[2]


def test_delete_old_runs_deletes_only_old_leftovers(tmp_path: Path) -> None:
    names = ("wandb/offline-run-1-a", "wandb/run-2-b", "data/artifacts/staging/tmp1", "cache/wandb/logs/core.log")
    for name in names:
        for path in (tmp_path / f"{name}-old", tmp_path / f"{name}-new"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir() if "run-" in name else path.touch()
        if "run-" in name:
            (tmp_path / f"{name}-old" / "run.wandb").touch()
        os.utime(tmp_path / f"{name}-old", times=(time.time() - 3 * 86400,) * 2)
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


@pytest.mark.parametrize(
    ("words", "mode", "expected"),
    [
        ([], "disabled", wandb_tracker.NullTracker),
        (["--wandb.off"], None, wandb_tracker.NullTracker),
        ([], "offline", WandbTracker),
    ],
)
def test_disabled_wandb_writes_nothing(
    words: list[str], mode: str | None, expected: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode) if mode else monkeypatch.delenv("WANDB_MODE", raising=False)
    args = validator.build_parser().parse_args(["--netuid", "96", "--offline", *words])
    tracker = validator.make_tracker(args, validator.make_config(args, tmp_path), "offline", tmp_path)
    assert type(tracker) is expected
    tracker.close()
    assert not list(tmp_path.rglob("run-*"))
    assert (tmp_path / "wandb").exists() <= (expected is WandbTracker)


def test_wandb_tracker_import_does_not_load_wandb() -> None:
    code = "import sys, template.telemetry.wandb_tracker; assert not {'wandb', 'torch', 'bittensor'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
