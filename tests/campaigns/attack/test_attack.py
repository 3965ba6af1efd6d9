"""Every attack fails within its limits; one that succeeds is reported."""

import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace

import pytest
from loguru import logger

from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.telemetry.logging import configure_logging
from tests.campaigns.attack import __main__ as command
from tests.campaigns.attack import chain, hub, rows
from tests.campaigns.attack.environment import shared_environment
from tests.campaigns.attack.hub_harness import start_hubs
from tests.campaigns.attack.runner import Attack, judge, launch
from tests.campaigns.measure import MIB

# Of terminal escapes, of a line feed with a forged log line, of a bidi override.
ESCAPED = (r"\x1b[2J", r"\nINFO", r"\u202e")
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) .*")


def test_attack_names_are_unique() -> None:
    for table, least in ((rows.ATTACKS, 80), (hub.ATTACKS, 300), (chain.ATTACKS, 150)):
        assert len({attack.name for attack in table}) == len(table) > least


def short(attacks: Iterable[Attack]) -> list[Attack]:
    return [attack for attack in attacks if not attack.is_long]


@pytest.mark.slow
@pytest.mark.parametrize("attack", short(rows.ATTACKS), ids=lambda attack: attack.name)
def test_attack_by_hostile_rows_fails(attack: Attack, tmp_path: Path) -> None:
    assert not launch(attack, tmp_path).faults()


@pytest.mark.slow
@pytest.mark.parametrize("attack", short(hub.ATTACKS), ids=lambda attack: attack.name[:60])
def test_attack_by_hostile_hub_fails(attack: Attack, tmp_path: Path) -> None:
    # Imports and start-up are not charged to the first attack.
    start_hubs()
    assert not launch(attack, tmp_path).faults()


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """The logs of the attacked validator, set up as by an entry point."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with redirect_stderr(io.StringIO()) as stream:
        configure_logging(is_debug=True)
        yield stream
    logger.remove()
    root.handlers[:] = handlers
    root.setLevel(level)


def odd_lines(logs: io.StringIO) -> list[str]:
    lines = logs.getvalue().split("\n")[:-1]
    return [line for line in lines if not (line.isprintable() and LINE.fullmatch(line))]


@pytest.mark.slow
@pytest.mark.parametrize("attack", short(chain.ATTACKS), ids=lambda attack: attack.name)
def test_attack_by_hostile_chain_data_fails(attack: Attack, tmp_path: Path, logs: io.StringIO) -> None:
    # Before the first attack, as above.
    shared_environment()
    assert not launch(attack, tmp_path).faults()
    assert odd_lines(logs) == []


@pytest.mark.slow
def test_attack_by_hostile_commitments_fails_and_is_escaped(tmp_path: Path, logs: io.StringIO) -> None:
    shared_environment()
    assert not launch(chain.TOGETHER, tmp_path).faults()
    assert odd_lines(logs) == []
    assert [text for text in ESCAPED if text not in logs.getvalue()] == []


def make(run: Callable[[Path], str] = lambda _: "fine", *, name: str = "plain", max_memory: int = 50) -> Attack:
    return Attack(name, run, "fine", max_seconds=5.0, max_memory=max_memory)


def fail(error: Exception) -> str:
    raise error


def fill(folder: Path) -> str:
    (folder / "gone").write_bytes(bytes(3 * MIB))
    (folder / "gone").unlink()
    (folder / "left").write_bytes(bytes(2 * MIB))
    return "fine"


def test_attack_verdict_is_kind_of_error() -> None:
    assert judge(lambda: None) == "taken"
    assert judge(lambda: fail(SubmissionError(Reason.EMPTY, "x"))) == "miner: empty"
    errors = {RemoteError: "again later", HostError: "our machine", ConfigError: "operator"}
    for error, verdict in errors.items():
        assert judge(lambda error=error: fail(error("x"))) == verdict  # type: ignore[misc]


def test_attack_beyond_limits_is_reported(tmp_path: Path) -> None:
    # Far above the limit: the kernel may take idle pages back meanwhile.
    costly = make(lambda _: f"{len(bytearray(256 * MIB)) and 'fine'}", max_memory=20)
    (fault,) = launch(costly, tmp_path).faults()
    assert "MiB of memory, at most 20 expected" in fault
    (fault,) = launch(make(fill), tmp_path).faults()
    assert "MiB on disk, at most 0 expected" in fault


def test_attack_command_success_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = {"rows": [make()], "hub": [make(lambda _: str(1 // 0), name="worse"), make(name="good")]}
    monkeypatch.setattr(command, "import_module", lambda name: SimpleNamespace(ATTACKS=tables[name.rpartition(".")[2]]))
    assert command.main(["rows"]) == 0
    assert "every attack failed" in capsys.readouterr().out
    assert command.main(["rows", "hub"]) == 1
    output = capsys.readouterr().out
    assert "worse: expected 'fine', found 'raised ZeroDivisionError" in output
    assert "1 unexpected outcomes" in output and output.count("good") == 1
    assert command.main(["rows", "hubs"]) == 3
