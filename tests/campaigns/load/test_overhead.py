"""tests/campaigns/load/overhead.py at its smallest: every line is there and finite. The figures are no test's
matter."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.network import ROOT, load_main

BENCH = ROOT / "tests" / "campaigns" / "load" / "overhead.py"
SMALL = ("--miners", "3", "--rows", "4", "--pool", "6", "--scores", "2", "--repeats", "1", "--latency", "0.001")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, since it names the hub for the whole of it."""
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(BENCH), *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)


def test_every_bench_prints_its_lines_and_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "lines.json"
    ended = run(*SMALL, "--json", file)
    assert ended.returncode in (0, 1), ended.stderr
    lines = json.loads(file.read_text())
    assert len(ended.stdout.splitlines()) == len(lines) == 13
    for printed, line in zip(ended.stdout.splitlines(), lines, strict=True):
        assert printed.startswith(line["what"]) and math.isfinite(line["measured"])
        assert ("met" in printed.lower()) == (line["wanted"] is not None)
        assert ("NOT MET" in printed) == (not line["is_met"])
    assert ended.returncode == (0 if all(line["is_met"] for line in lines) else 1)
    for word in ("admission", "downloads", "tick with nothing", "first tick", "memory"):
        assert any(word in line["what"] for line in lines), word


def test_one_runs_alone() -> None:
    ended = run(*SMALL, "--only", "admission")
    assert len(ended.stdout.splitlines()) == 3, ended.stderr


@pytest.mark.parametrize("words", [("--only", "nothing"), ("--miners", "0"), ("--rows", "7", "--pool", "6")])
def test_a_wrong_setting_is_refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert load_main(BENCH)(list(words)) == 3
