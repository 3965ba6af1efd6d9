"""Fuzzing finds nothing in the product, and finds planted faults."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

from template.chain_records import ChainCommitment
from template.competition import CommitmentRecord
from template.data.encoding import EncodedRow, encode_row
from template.data.rows import Row, scan_rows
from template.errors import ConfigError
from template.receipts.receipt import Receipt
from tests.campaigns.fuzz import __main__ as command
from tests.campaigns.fuzz import commitments, run, targets
from tests.campaigns.fuzz.run import Runner, Tally
from tests.campaigns.fuzz.seeds import make_seeds
from tests.campaigns.fuzz.targets import TARGETS

CORPUS = command.CORPUS


def replay(target: str, folder: Path) -> Tally:
    return run.run_inputs(target, [*make_seeds()[target], *run.read_corpus(CORPUS / target)], folder)


def test_fuzz_corpus_covers_all_targets() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert len(files) < 500 and sum(path.stat().st_size for path in files) < 300_000
    # Named by their content, so that a changed line end shows.
    assert all(path.name == run.name_of(path.read_bytes()) for path in files)


@pytest.mark.parametrize("target", TARGETS)
def test_fuzz_corpus_and_shapes_find_nothing(target: str, tmp_path: Path) -> None:
    tally = replay(target, tmp_path)
    assert tally.inputs > len(make_seeds()[target]) and tally.findings == {}
    tally = run.run_shapes(target, 60, 7, tmp_path)
    assert (tally.inputs, tally.findings) == (60, {})


def test_fuzz_by_coverage_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: pip install -e '.[fuzz]'")
    run.write_corpus(tmp_path / "corpus", run.read_corpus(CORPUS / "rows"))
    tally = run.run_coverage("rows", tmp_path / "corpus", 300, 7, tmp_path / "findings")
    assert (tally.inputs, tally.findings) == (300, {})
    assert tally.edges > 100 and tally.features > tally.edges and tally.corpus > 0


def scan_last_key(data: bytes, **limits: Any) -> Any:
    """Take the last of two equal keys."""
    return scan_rows(data.replace(b', "role": "user"}]', b"}]"), **limits)


def encode_without_mask(row: Row, *arguments: Any, **limits: Any) -> EncodedRow | None:
    """Make everything a target in rows with a system text."""
    encoded = encode_row(row, *arguments, **limits)
    if encoded is None or row.system is None:
        return encoded
    return dataclasses.replace(encoded, targets=(True,) * len(encoded.input_ids))


def tokenize_control_tokens() -> Any:
    """Tokenize control tokens that a row spells."""
    return lambda *texts: targets._tokenizer()("".join(texts), add_special_tokens=False)["input_ids"]


def parse_laxly(text: str) -> CommitmentRecord:
    return PARSE(text.replace("--", "-"))


def write_rounded(receipt: Receipt) -> str:
    return json.dumps(json.loads(TO_LINE(receipt), parse_float=lambda text: round(float(text), 6)))


PARSE, TO_LINE = CommitmentRecord.parse, Receipt.to_line
ANY = ChainCommitment(hotkey="h", block=1, text="x")
PLANTED: list[tuple[str, Any, str, Any]] = [
    ("rows", targets, "scan_rows", scan_last_key),
    ("chat", targets, "encode_row", encode_without_mask),
    ("chat", targets, "_tokenize", tokenize_control_tokens),
    ("commitment", CommitmentRecord, "parse", parse_laxly),
    ("fields", commitments, "parse_commitment", lambda *_: ANY),
    ("receipt", Receipt, "to_line", write_rounded),
    ("receipt", targets, "verify_signature", lambda *_: True),
    ("round", targets, "remarks", lambda *_: 1 / 0),
]


@pytest.mark.parametrize(
    ("target", "where", "name", "planted"), PLANTED, ids=[f"{target}-{name}" for target, _, name, _ in PLANTED]
)
def test_fuzz_planted_fault_is_found(
    target: str, where: Any, name: str, planted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, planted)
    findings = replay(target, tmp_path).findings
    assert findings
    for path in findings.values():
        with pytest.raises(Exception, match=r"\S"):
            TARGETS[target].check(Path(path).read_bytes())


def take_too_much(data: bytes) -> None:
    until = time.process_time() + (2 * run.INPUT_SECONDS if data == b"slow" else 0.0)
    while time.process_time() < until:
        pass
    if data == b"large":
        bytearray(2 * run.INPUT_MIB * 2**20)


# Taking the memory takes seconds, too, on a slow machine.
@pytest.mark.parametrize(("data", "seconds", "limit"), [(b"slow", 0.2, "0.2 s"), (b"large", 60.0, "64 MiB")])
def test_fuzz_input_beyond_budget_is_found(
    data: bytes, seconds: float, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "INPUT_SECONDS", seconds)
    runner = Runner("some", "corpus", take_too_much, tmp_path)
    for number in range(run.MEASURED_EVERY):
        runner.run(b"%d" % number)
    runner.run(data)
    assert list(runner.finish().findings) == [f"more than {limit}"]


def test_fuzz_minimised_corpus_reaches_the_same_code() -> None:
    check, seeds = TARGETS["commitment"].check, make_seeds()["commitment"]
    inputs = [*seeds, *(seed + b"x" * 30 for seed in seeds)]
    minimised = run.minimise(check, inputs)
    assert 1 < len(minimised) < len(inputs)
    steps = [set[object]().union(*(run.steps_of(check, data) for data in chosen)) for chosen in (minimised, inputs)]
    assert steps[0] == steps[1]


def test_fuzz_command_finding_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--targets", "commitment", "--examples", "20", "--runs", "0", "--corpus", str(tmp_path / "corpus")]
    assert command.main([*arguments, "--keep"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[:-1]] == ["corpus:", "shapes:"] and lines[-1].endswith("0 findings")
    monkeypatch.setattr(CommitmentRecord, "parse", parse_laxly)
    assert command.main([*arguments, "--dir", str(tmp_path)]) == 1
    assert "FOUND: commitment: AssertionError at commitments.py:" in capsys.readouterr().out
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "atheris" else name)
    assert command.main(["--runs", "1"]) == ConfigError.exit_code
    assert "pip install -e '.[fuzz]'" in capsys.readouterr().err
