"""An attack that succeeds, by its verdict or by its cost, is told, and holds up no other."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from tests.campaigns.attack import __main__ as command
from tests.campaigns.attack.runner import MIB, Attack, Outcome, judge, launch, report


def fall(error: Exception) -> str:
    raise error


def fill(folder: Path) -> str:
    (folder / "there").mkdir()
    (folder / "there" / "gone").write_bytes(bytes(3 * MIB))
    (folder / "there" / "gone").unlink()
    (folder / "left").write_bytes(bytes(2 * MIB))
    return "fine"


def make(**changes: object) -> Attack:
    usual = {"name": "it", "run": lambda _: "fine", "expected": "fine", "max_seconds": 5.0, "max_memory": 50}
    return Attack(**{**usual, **changes})  # type: ignore[arg-type]


def test_whose_fault_it_is_is_the_verdict() -> None:
    assert judge(lambda: None) == "taken"
    assert judge(lambda: fall(SubmissionError(Reason.EMPTY, "x"))) == "miner: empty"
    assert judge(lambda: fall(RemoteError("x"))) == "again later"
    assert judge(lambda: fall(HostError("x"))) == "our machine"
    assert judge(lambda: fall(ConfigError("x"))) == "operator"
    with pytest.raises(ZeroDivisionError):
        judge(lambda: 1 // 0)


def test_what_an_attack_costs_is_measured_and_held_against_its_bounds(tmp_path: Path) -> None:
    outcome = launch(make(run=lambda _: f"{len(bytearray(40 * MIB)) and 'fine'}"), tmp_path)
    assert outcome.faults() == []
    assert 30 < outcome.memory < 60
    (tmp_path / "disk").mkdir()
    (fault,) = launch(make(run=fill), tmp_path / "disk").faults()
    assert "MiB on disk, at most 0 expected" in fault
    dear = Outcome(attack=make(), verdict="fine", seconds=6.0, memory=51.0, disk=0.0)
    assert [fault.split(": ")[1] for fault in dear.faults()] == [
        "6.0 seconds, at most 5 expected",
        "51.0 MiB of memory, at most 50 expected",
    ]


def test_what_nobody_meant_to_raise_is_a_fault_and_ends_nothing(tmp_path: Path) -> None:
    outcome = launch(make(run=lambda _: str(1 // 0)), tmp_path)
    assert outcome.faults() == [
        "it: expected 'fine', found 'raised ZeroDivisionError: integer division or modulo by zero'"
    ]
    assert "raised ZeroDivisionError" in report([outcome])


def test_the_command_names_what_is_not_as_it_must_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = {"rows": [make()], "hub": [make(name="worse", expected="another"), make(name="good")], "chain": [make()]}
    monkeypatch.setattr(command, "import_module", lambda name: SimpleNamespace(ATTACKS=tables[name.rpartition(".")[2]]))
    assert command.main(["rows", "chain"]) == 0
    assert "every attack failed" in capsys.readouterr().out
    assert command.main([]) == 1
    out = capsys.readouterr().out
    assert "NOT AS IT MUST BE: worse: expected 'another', found 'fine'" in out
    assert "1 not as they must be" in out and out.count("good") == 1
    assert command.main(["rows", "hubs"]) == ConfigError.exit_code
