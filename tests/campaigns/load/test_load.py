"""The load campaign and the overhead benches in small, and their memory bound."""

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from template.constants import (
    MAX_EVAL_SET_BYTES,
    MAX_EVAL_SET_ROWS,
    MAX_SUBMISSION_BYTES,
    MAX_SUBMISSION_ROWS,
)
from template.data.eval_set import EvalSetIndex, read_eval_set_index
from template.data.rows import SUBMISSION_LIMITS, parse_rows
from tests.campaigns.load import __main__ as load
from tests.campaigns.load.run import MEMORY_BOUND_MIB, POOL_ROW_BYTES, memory_bound
from tests.campaigns.load.run import run as run_situation
from tests.campaigns.load.situations import LoadedSubnet, Situation
from tests.campaigns.measure import Figure
from tests.campaigns.synthetic_subnet import make_file, make_rows
from tests.fixtures.network import ROOT


@pytest.mark.slow
def test_load_small_recommitting_subnet_is_within_limits(tmp_path: Path) -> None:
    sizes: Any = {"miners": 12, "steady": 1, "sample_size": 12, "queue_size": 12, "rows": 110, "pool_rows": 900}
    small = Situation(name="recommit", what="", recommit_blocks=12, tempo=60, block_s=0.1, **sizes)
    figures = list(run_situation(small, tmp_path))
    assert [figure for figure in figures if not figure.is_met] == []
    measured = {figure.what: figure.measured for figure in figures}
    assert measured["rounds that closed"] == 2
    # Miners who commit the same rows again are evaluated once.
    assert measured["evaluations"] == 12


@pytest.mark.slow
def test_overhead_every_bench_prints_figures() -> None:
    sizes = "--miners 3 --rows 4 --pool 6 --scores 2 --repeats 1 --latency 0.001"
    command = [sys.executable, "-m", "tests.campaigns.load.overhead", *sizes.split()]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    for what in ("admission", "downloads", "tick with nothing", "first tick", "memory"):
        assert what in ended.stdout


def test_load_exceeded_limit_exits_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    figures = [Figure("a", 1.0, "", 1.0), Figure("b", 2.0, "", 1.0), Figure("c", 0.5, "", 1.0, is_least=True)]
    monkeypatch.setattr(load, "run_situation", lambda situation, folder: folder.mkdir() or iter(figures))
    assert load.main(["--only", "hung"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("NOT MET") == 2 and printed.endswith("2 over their limits\n")
    assert load.main(["--only", "nothing"]) == 3


def test_load_memory_bound_follows_protocol_limits() -> None:
    largest = memory_bound(MAX_EVAL_SET_BYTES, MAX_EVAL_SET_ROWS)
    assert largest <= MEMORY_BOUND_MIB < memory_bound(MAX_EVAL_SET_BYTES, 2**20)
    assert f"{MEMORY_BOUND_MIB:,} MiB" in (ROOT / "docs" / "operator.md").read_text()


# The first number is one more than a table of its size takes, so that it has just been doubled.
@pytest.mark.parametrize("rows", [5_462, 8_000])
def test_load_memory_of_pool_row_is_within_bound(rows: int, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(make_file(make_rows(rows, words=8)))
    tracemalloc.start()
    try:
        index: EvalSetIndex = read_eval_set_index(path)
        memory, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index) == rows and memory < rows * POOL_ROW_BYTES


def test_load_datasets_reach_limits_and_stay_originals(tmp_path: Path) -> None:
    loaded = LoadedSubnet(tmp_path / "subnet", Situation(name="x", what="x", miners=3, rows=110, pool_rows=250))
    with loaded.subnet:
        first, second, _ = (set(content.splitlines()) for content in loaded.datasets("near"))
        assert len(first) == len(second) == 110 and len(first & second) == 44
        content = next(loaded.datasets("large"))
    assert 0.99 * MAX_SUBMISSION_BYTES < len(content) <= MAX_SUBMISSION_BYTES
    assert len(parse_rows(content, name="x", limits=SUBMISSION_LIMITS)) > 0.99 * MAX_SUBMISSION_ROWS
