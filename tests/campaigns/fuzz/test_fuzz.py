"""Fuzzing: the kept corpus and a short campaign find nothing, and would find what there is to be found."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from template.competition import CommitmentRecord
from template.data.encoding import EncodedRow, encode_row
from template.data.rows import Row, scan_rows
from template.errors import ConfigError
from template.receipts.receipt import Receipt
from template.records import ChainCommitment
from tests.campaigns.fuzz import __main__ as fuzz
from tests.campaigns.fuzz import commitments, run, targets
from tests.campaigns.fuzz.run import Runner, minimise, read_corpus, run_coverage, run_shapes, write_corpus
from tests.campaigns.fuzz.seeds import make_seeds
from tests.campaigns.fuzz.targets import TARGETS

CORPUS = Path(__file__).resolve().parent / "corpus"


def test_the_targets_are_those_of_the_command_and_each_has_a_corpus() -> None:
    assert tuple(TARGETS) == fuzz.TARGETS
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert len(files) < 500 and sum(path.stat().st_size for path in files) < 300_000
    # Named by what they hold, so that a changed line end shows.
    assert all(path.name == run.name_of(path.read_bytes()) for path in files)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_found_in_the_corpus(target: str, tmp_path: Path) -> None:
    runner = Runner(target, "corpus", TARGETS[target].check, tmp_path)
    inputs = [*make_seeds()[target], *read_corpus(CORPUS / target)]
    assert len(inputs) > len(make_seeds()[target])
    for data in inputs:
        runner.run(data)
    tally = runner.finish()
    assert (tally.inputs, tally.findings) == (len(inputs), {})


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_found_by_shape(target: str, tmp_path: Path) -> None:
    tally = run_shapes(target, 60, 7, tmp_path)
    assert (tally.inputs, tally.findings) == (60, {})


def test_nothing_is_found_by_coverage(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: pip install -e '.[fuzz]'")
    write_corpus(tmp_path / "corpus", read_corpus(CORPUS / "rows"))
    tally = run_coverage("rows", tmp_path / "corpus", 300, 7, tmp_path / "findings")
    assert (tally.inputs, tally.findings) == (300, {})
    assert tally.edges > 100 and tally.features > tally.edges and tally.corpus > 0


# What would be found


def laxly(data: bytes, **limits: Any) -> Any:
    """A reader of rows that takes the last of two equal keys."""
    return scan_rows(data.replace(b', "role": "user"}]', b"}]"), **limits)


def blindly(row: Row, *arguments: Any, **limits: Any) -> EncodedRow | None:
    """An encoder that forgets what is a target in a row of a system text."""
    encoded = encode_row(row, *arguments, **limits)
    if encoded is None or row.system is None:
        return encoded
    return dataclasses.replace(encoded, targets=(True,) * len(encoded.input_ids))


class LooseRecord(CommitmentRecord):
    """An entry that may stand in white space."""

    @classmethod
    def parse(cls, text: str) -> CommitmentRecord:
        return CommitmentRecord.parse(text.replace("--", "-"))


class RoundedReceipt(Receipt):
    """A receipt that is written to six digits."""

    def to_line(self) -> str:
        return json.dumps(json.loads(super().to_line(), parse_float=lambda text: round(float(text), 6)))

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> "RoundedReceipt":
        read = Receipt.from_json(text, source)
        return cls(**{field.name: getattr(read, field.name) for field in dataclasses.fields(read)})


ANY = ChainCommitment(hotkey="hotkey", block=1, text="x")
PLANTED: dict[str, tuple[str, str, Any]] = {
    "a lax reader of rows": ("rows", "scan_rows", laxly),
    "an encoder without masks": ("chat", "encode_row", blindly),
    "a tokenizer that heeds what rows write": ("chat", "_tokenize", lambda: lambda *texts: plain_ids("".join(texts))),
    "a lax reader of entries": ("commitment", "CommitmentRecord", LooseRecord),
    "a reader of fields that takes any": (
        "fields",
        "parse_commitment",
        lambda *_: ChainCommitment(hotkey="h", block=1, text="x"),
    ),
    "a writer of receipts that rounds": ("receipt", "Receipt", RoundedReceipt),
    "signatures that nobody checks": ("receipt", "verify_signature", lambda *_: True),
    "a check of rounds that raises": ("round", "remarks", lambda *_: 1 / 0),
}


def plain_ids(text: str) -> list[int]:
    ids: list[int] = targets._tokenizer()(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_fault_is_found(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, name, planted = PLANTED[case]
    monkeypatch.setattr(commitments if hasattr(commitments, name) else targets, name, planted)
    runner = Runner(target, "corpus", TARGETS[target].check, tmp_path)
    for data in (*make_seeds()[target], *read_corpus(CORPUS / target)):
        runner.run(data)
    found = runner.finish().findings
    assert found
    for path in found.values():
        with pytest.raises(Exception, match=r"\S"):
            TARGETS[target].check(Path(path).read_bytes())


def sleepily(data: bytes) -> None:
    until = time.process_time() + (2 * run.INPUT_SECONDS if data == b"slow" else 0.0)
    while time.process_time() < until:
        pass


def greedily(data: bytes) -> None:
    if data == b"large":
        bytearray(2 * run.INPUT_MIB * 2**20)


@pytest.mark.parametrize(("check", "data", "told"), [(sleepily, b"slow", "0.2 s"), (greedily, b"large", "64 MiB")])
def test_an_input_beyond_its_budget_is_found(
    check: Callable[[bytes], None], data: bytes, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "INPUT_SECONDS", 0.2)
    runner = Runner("some", "corpus", check, tmp_path)
    for number in range(run._MEASURED_EVERY):
        runner.run(b"%d" % number)
    runner.run(data)
    (what,) = runner.finish().findings
    assert what == f"more than {told}"


def test_a_corpus_is_minimised_to_what_reaches_all_that_it_reaches(tmp_path: Path) -> None:
    check, seeds = TARGETS["commitment"].check, make_seeds()["commitment"]
    padded = [seed + b"x" * 30 for seed in seeds]
    kept = minimise(check, [*seeds, *padded])
    assert 1 < len(kept) < len(seeds) + len(padded)
    every = set[object]().union(*(run._steps(check, data) for data in (*seeds, *padded)))
    assert set[object]().union(*(run._steps(check, data) for data in kept)) == every
    write_corpus(tmp_path / "one", kept)
    write_corpus(tmp_path / "one", kept[:2])
    assert read_corpus(tmp_path / "one") == sorted(kept[:2], key=lambda data: (len(data), data))


# The command


def test_the_command_prints_its_table_and_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--examples", "20", "--runs", "0", "--corpus", str(tmp_path / "c"), "--dir", str(tmp_path / "d")]
    assert fuzz.main(["--targets", "commitment", "fields", "--keep", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:-1]] == [
        ["commitment", "corpus"],
        ["commitment", "shapes"],
        ["fields", "corpus"],
        ["fields", "shapes"],
    ]
    assert lines[-1].endswith("inputs, 0 findings")


def test_the_command_names_what_it_found_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commitments, "CommitmentRecord", LooseRecord)
    arguments = ["--examples", "0", "--runs", "0", "--dir", str(tmp_path)]
    assert fuzz.main(["--targets", "commitment", *arguments]) == 1
    *_, found = capsys.readouterr().out.splitlines()
    assert found.startswith("FOUND: commitment: AssertionError at fuzz_entries.py:") and str(tmp_path) in found


def test_a_campaign_without_atheris_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "atheris" else name)
    assert fuzz.main(["--runs", "1"]) == ConfigError.exit_code
    assert "pip install -e '.[fuzz]'" in capsys.readouterr().err
