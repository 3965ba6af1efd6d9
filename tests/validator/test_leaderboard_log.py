"""The leaderboard of a round in the log: one short table."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from template.errors import Reason
from template.records import Leaderboard
from template.telemetry.logging import configure_logging
from template.validator.weights import log_leaderboard
from tests.fixtures.logs import log_lines
from tests.fixtures.network import LARGE, SMALL, Net, use_hub
from tests.fixtures.store import LINE, OPENED, make_row
from tests.fixtures.validator import open_bench

ROUND = replace(OPENED, id=7)
PAID = [make_row(f"paid{number}", number, loss=2.0 + number / 100, weight=0.5 - number / 100) for number in range(40)]
MALFORMED = [make_row(f"torn{number}", number, reason=Reason.MALFORMED) for number in range(40, 250)]
WAITING = [make_row(f"new{number}", number) for number in range(250, 256)]


def test_round_of_256_miners_is_one_short_table() -> None:
    with log_lines() as logs:
        log_leaderboard(ROUND, Leaderboard([*MALFORMED, *WAITING, *PAID], []))
    counts = "210 malformed, 40 in_progress, 6 waiting"
    assert logs[0] == f"INFO leaderboard of round 7, blocks 10 to 370: {counts}\n"
    assert logs[1].split() == ["INFO", "hotkey", "uid", "verdict", "runs", "loss", "credit", "weight"]
    assert [line.split()[1] for line in logs[2:-1]] == [f"paid{number}" for number in range(20)]
    assert logs[-1].startswith("INFO   and 236 more")


def test_table_is_coloured_and_no_stranger_adds_a_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    configure_logging()
    log_leaderboard(ROUND, Leaderboard([make_row("<red>a</red>\x1b[31m", 1), make_row("b", 2)], []))
    _, _, hostile, plain, *_ = terminal.getvalue().splitlines()
    assert "<red>a</red>\\x1b[31m" in hostile and "\x1b[31m" not in hostile
    assert "\x1b[33mwaiting     \x1b[0m" in plain


def test_whole_table_is_in_the_details() -> None:
    with log_lines("DEBUG") as logs:
        log_leaderboard(ROUND, Leaderboard([*MALFORMED, *PAID], [LINE]))
    assert sum(line.startswith("DEBUG entry hotkey=") for line in logs) == 250


def test_table_of_a_round_without_entries_is_a_line() -> None:
    with log_lines() as logs:
        log_leaderboard(ROUND, Leaderboard([], []))
    assert logs == ["INFO leaderboard of round 7, blocks 10 to 370: no entries\n"]


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    with Net(tmp_path / "network", ["alice", "bob"]) as net, use_hub(net):
        net.submit("alice", SMALL)
        net.submit("bob", [*LARGE[:9], "{]"])
        yield net


def test_validator_logs_the_table_once_a_round(net: Net) -> None:
    with open_bench(net) as bench, log_lines() as logs:
        bench.run_rounds()
    titles = [line for line in logs if "leaderboard of round" in line]
    assert len(titles) == 1 and "1 malformed" in titles[0], logs
    assert not any("checked hotkey" in line or "rejected hotkey" in line for line in logs)
