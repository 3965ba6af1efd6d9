"""The load run in small: a dozen miners who commit again and again, and what the figures rest on."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from template.constants import MAX_EVAL_SET_BYTES, MAX_EVAL_SET_ROWS, MAX_SUBMISSION_BYTES, MAX_SUBMISSION_ROWS
from template.data.eval_set import EvalSetIndex, read_eval_set_index
from template.data.rows import SUBMISSION_LIMITS, parse_rows
from tests.campaigns.load import __main__ as load
from tests.campaigns.load.run import MEMORY_BOUND_MIB, POOL_ROW_BYTES, Situation, memory_bound
from tests.campaigns.load.world import LoadWorld
from tests.campaigns.measure import Line
from tests.campaigns.synthetic_subnet import make_lines
from tests.fixtures.network import ROOT, load_main

LOAD = ROOT / "scripts" / "load.py"
SMALL = ("--miners", 12, "--rows", 110, "--pool", 600, "--tempo", 60, "--rounds", 2, "--block_seconds", 0.15)


def test_a_small_subnet_that_commits_all_the_time_stays_within_its_limits(tmp_path: Path) -> None:
    file = tmp_path / "lines.json"
    command = [sys.executable, LOAD, "--only", "recommit", *SMALL, "--json", file, "--dir", tmp_path / "run"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([*map(str, command)], env=env, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = json.loads(file.read_text())
    assert all(line["is_met"] for line in lines)
    found = {line["what"]: line["measured"] for line in lines}
    assert found["rounds that closed"] == 2 and found["rounds without weights"] == 0
    assert found["of 1 steady miners, without a verdict after 2 rounds"] == 0
    assert found["scores"] > 12, "whoever committed again was scored again"


def test_a_limit_that_is_passed_is_told_by_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Line("a", 1.0, "", 1.0), Line("b", 2.0, "", 1.0), Line("c", 0.5, "", 1.0, is_least=True)]
    monkeypatch.setattr(load, "run_situation", lambda situation, folder: iter(found))
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    assert load.main(["--only", "hung"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("NOT MET") == 2 and printed.endswith("2 over their limits\n")


@pytest.mark.parametrize("words", [("--only", "nothing"), ("--miners", "0"), ("--rows", "100"), ("--dir", str(ROOT))])
def test_a_wrong_setting_is_refused(words: tuple[str, ...]) -> None:
    assert load_main(LOAD)(list(words)) == 3


def test_the_memory_bound_is_that_of_the_protocols_limits() -> None:
    assert (
        memory_bound(MAX_EVAL_SET_BYTES, MAX_EVAL_SET_ROWS)
        <= MEMORY_BOUND_MIB
        < memory_bound(MAX_EVAL_SET_BYTES, 2**20)
    )
    assert f"{MEMORY_BOUND_MIB:,} MiB" in (ROOT / "docs" / "operator.md").read_text()


@pytest.mark.parametrize("rows", [5_462, 8_000])
def test_a_row_of_the_pool_takes_no_more_memory_than_the_bound_says(rows: int, tmp_path: Path) -> None:
    """The first number is one more than a table of its size takes, so that it has just been doubled."""
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(make_lines(rows, words=8)), encoding="utf-8")
    tracemalloc.start()
    try:
        index: EvalSetIndex = read_eval_set_index(path)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index) == rows and held < rows * POOL_ROW_BYTES


def test_large_files_reach_both_limits_and_near_ones_share_just_too_little(tmp_path: Path) -> None:
    world = LoadWorld(tmp_path / "net", miners=3, pool=make_lines(200), rows=110, tempo=60)
    try:
        first, second, _ = (set(content.splitlines()) for content in world.datasets("near"))
        assert len(first) == len(second) == 110 and len(first & second) == 100
        content = next(world.datasets("large"))
    finally:
        world.close()
    assert 0.99 * MAX_SUBMISSION_BYTES < len(content) <= MAX_SUBMISSION_BYTES
    assert len(parse_rows(content, name="x", limits=SUBMISSION_LIMITS)) > 0.99 * MAX_SUBMISSION_ROWS


def test_smaller_sizes_are_in_proportion() -> None:
    args = load.build_parser().parse_args(["--miners", "32", "--rows", "120", "--tempo", "60"])
    (hung,) = (one for one in load.SITUATIONS if one.name == "hung")
    small = load.resize(hung, args)
    assert isinstance(small, Situation)
    assert (small.miners, small.hung, small.queue_size, small.rows, small.tempo) == (32, 31, 32, 120, 60)
