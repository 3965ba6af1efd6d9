"""Verdicts and audits of round files on the Hub."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import audit, verdict
from template.localnet.hub.store import upload_files
from tests.fixtures.network import Ended, Net, call_main, use_hub
from tests.fixtures.publication import MINERS, OTHER_REPO, REPO, Publication


@pytest.fixture(scope="module")
def publication(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publication]:
    with Net(tmp_path_factory.mktemp("published") / "network", MINERS) as net, use_hub(net):
        yield Publication(net)


def show(publication: Publication, name: str, work_dir: Path, *arguments: object) -> Ended:
    hotkey = publication.net.hotkey(name)
    return call_main(verdict.main, "--hotkey", hotkey, "--work_dir", work_dir, *arguments)


def test_copy_is_told_what_it_copies(publication: Publication, tmp_path: Path) -> None:
    ended = show(publication, "carol", tmp_path, "--rounds", publication.folder)
    assert ended.status == 0, ended.logs
    (line,) = [line for line in ended.output.splitlines() if line.startswith("  verdict")]
    assert line.startswith(
        f"  verdict  duplicate. Shares 58 rows with the earlier dataset of {publication.net.hotkey('alice')}"
    )


RED, GREEN = "\x1b[31m", "\x1b[32m"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the output count as a terminal of 16 colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.usefixtures("terminal")
def test_terminal_gets_tables_with_a_red_refusal(publication: Publication, tmp_path: Path) -> None:
    output = show(publication, "carol", tmp_path, "--rounds", publication.folder).output
    assert f"  verdict  {RED}duplicate. Shares 58 rows" in output and f"signatures  {GREEN}valid" in output
    assert "since block" in output and "─────" in output
    output = show(publication, "alice", tmp_path, "--rounds", publication.folder).output
    assert f"  verdict  {GREEN}record. " in output and "evaluation" in output


@pytest.mark.usefixtures("terminal")
def test_terminal_gets_an_audit_with_red_findings(publication: Publication) -> None:
    rules = ("--competition", publication.net.parts.competition, "--sample", 0)
    output = call_main(audit.main, min(publication.folder.iterdir()), *rules).output
    assert f"  rules    {RED}blocks_per_epoch is 40 in the file, in the competition 360" in output
    assert f"{RED}1 files: 2 receipt, 1 seed, 2 rules; 0 receipts replayed: none" in output


@pytest.mark.usefixtures("terminal")
def test_no_color_leaves_the_tables_and_no_colour(
    publication: Publication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    output = show(publication, "carol", tmp_path, "--rounds", publication.folder).output
    assert "─────" in output and "\x1b[3" not in output


def test_paid_dataset_is_told_why_by_each_validator(publication: Publication, tmp_path: Path) -> None:
    ended = show(publication, "alice", tmp_path, "--rounds", REPO, OTHER_REPO, "--json")
    validators = json.loads(ended.output)["validators"]
    assert set(validators) == {publication.net.hotkey("validator"), publication.net.hotkey("bob")}
    own = validators[publication.net.hotkey("validator")]
    assert (own["verdict"], own["weight"]) == ("record", 1.0) and own["loss"] < 6.8
    assert own["weight_why"].endswith("is 100.00% of all paid scores, " + f"{own['score']:.4f}.")
    assert own["weights"].startswith("On chain since block ")
    assert validators[publication.net.hotkey("bob")]["loss"] != own["loss"]


def test_validator_is_found_by_its_hotkey(publication: Publication, tmp_path: Path) -> None:
    source = publication.net.hotkey("validator")
    ended = show(publication, "alice", tmp_path, "--rounds", source, *publication.arguments(tmp_path))
    assert ended.status == 0, ended.logs
    assert ended.output.splitlines()[0].startswith(f"validator {source}, round of blocks ")
    assert ended.output.endswith("\nsignatures: valid\n")


@pytest.mark.parametrize("name", ["alice", "owner"])
def test_hotkey_without_an_announcement_is_named(publication: Publication, tmp_path: Path, name: str) -> None:
    source = publication.net.hotkey(name)
    ended = show(publication, "alice", tmp_path, "--rounds", source, *publication.arguments(tmp_path))
    assert ended.status == 3 and f"{source}: this hotkey has announced no repo" in ended.logs[-1]


def test_hotkey_that_never_committed_is_in_no_file(publication: Publication, tmp_path: Path) -> None:
    ended = show(publication, "owner", tmp_path, "--rounds", publication.folder)
    assert ended.status == 3 and "in none of the 2 round files" in ended.logs[-1]


def test_file_of_another_signer_in_the_repo_is_not_valid(publication: Publication, tmp_path: Path) -> None:
    net = publication.net
    files = {path.name: path for path in publication.folder.iterdir()}
    upload_files(net.hub.store.root, "carol/rounds", files)
    assert net.chain("owner").announce_rounds("carol/rounds").is_accepted
    source = net.hotkey("owner")
    ended = show(publication, "alice", tmp_path, "--rounds", source, *publication.arguments(tmp_path))
    assert ended.status == 9 and f"and the files of {source} were asked for" in ended.output
    rules = ("--competition", net.parts.competition)
    ended = call_main(audit.main, "--from", source, "--sample", 0, *rules, *publication.arguments(tmp_path))
    assert ended.status == 9 and f"and the files of {source} were asked for" in ended.output


def test_audit_finds_the_files_by_the_hotkey(publication: Publication, tmp_path: Path) -> None:
    ended = call_main(
        audit.main, "--from", publication.net.hotkey("validator"), "--sample", 0,
        "--competition", publication.net.parts.competition, *publication.arguments(tmp_path),
    )  # fmt: skip
    names = [line.split(":")[0] for line in ended.output.splitlines() if line.startswith("round-")]
    assert names == sorted(path.name for path in publication.folder.iterdir())
    assert "weights:" not in ended.output and "signature:" not in ended.output
