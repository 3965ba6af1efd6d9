"""The audit script: a real hub, the tiny model, honest and false round files."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from template.chain.client import Chain
from template.config import load_training_args
from template.localnet.chain.ledger import ChainFault
from template.receipts.receipt import ReplayVerdict
from template.receipts.replay import Auditor, ReplayContext
from template.receipts.round_file import RoundHeader, digest_lines
from tests.fixtures.audit import AUDIT, NAMES, Office
from tests.fixtures.network import SMALL, Ended, call_main, load_main, make_line


@pytest.fixture
def honest(office: Office, tmp_path: Path) -> Path:
    return office.write(tmp_path / "rounds", *(office.receipt(name) for name in NAMES))


def verdicts(ended: Ended) -> dict[str, str]:
    """Return the line of each replayed receipt, by hotkey."""
    words = ("identical", "differs", "not comparable", "cannot be fetched")
    lines = [line for line in ended.output.splitlines() if line.startswith(words)]
    return {line.rsplit(": ", 1)[1].split(", ")[1]: line for line in lines}


def test_honest_round_is_identical_and_agrees_with_the_chain(office: Office, honest: Path) -> None:
    ended = office.audit(honest, "--subtensor.network", office.net.network)
    assert ended.status == 0, (ended.output, ended.logs)
    lines = ended.output.splitlines()
    assert lines[0].startswith(f"{honest.name}: netuid 96, blocks 100 to 200, by {office.validator.hotkey}, 2 in the")
    assert lines[1] == "  consistent"
    assert [line.split(":")[0] for line in lines[2:4]] == ["identical", "identical"]
    assert lines[4] == "1 files: no findings; 2 receipts replayed: 2 identical"
    assert any("replayed: 1 of 2, about " in line for line in ended.logs)


def test_audit_needs_no_wallet_and_no_token(
    office: Office, honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    ended = office.audit(honest.parent, "--sample", 1)
    assert ended.status == 0 and "1 receipts replayed: 1 identical" in ended.output


def test_false_loss_differs_by_its_error(office: Office, tmp_path: Path) -> None:
    """Signature, table and weights follow from the loss: only a replay differs."""
    loss = office.results["alice"].loss
    path = office.write(tmp_path, office.receipt("alice", loss=loss - 0.125), office.receipt("bob"))
    ended = office.audit(path)
    assert ended.status == 7
    assert "  consistent" in ended.output.splitlines()
    lines = verdicts(ended)
    assert lines[office.net.hotkey("alice")].startswith("differs by +0.125: ")
    assert lines[office.net.hotkey("bob")].startswith("identical: ")


Edit = Callable[[dict[str, Any], list[str]], object]


def rewrite(path: Path, edit: Edit, sign: Chain | None = None) -> None:
    """Edit header and receipt lines; `sign` signs the header again."""
    lines = path.read_text().splitlines()
    content, rest = json.loads(lines[0]), lines[1:]
    edit(content, rest)
    if sign is not None:
        content |= {"receipts": len(rest), "receipts_sha256": digest_lines(rest), "signer": sign.hotkey}
        header = RoundHeader.from_json(json.dumps(content), "edited")
        content["signature"] = sign.sign(header.message())
    path.write_text("".join(f"{line}\n" for line in [json.dumps(content), *rest]))


def test_header_edited_after_signing_is_not_replayed(office: Office, honest: Path) -> None:
    rewrite(honest, lambda content, _: content["table"][0].update(loss=1.0))
    ended = office.audit(honest)
    assert ended.status == 9
    assert f"  signature: the header: NOT VALID for {office.validator.hotkey}" in ended.output.splitlines()
    assert "0 receipts replayed" in ended.output


def test_receipt_of_another_signer_is_not_replayed(office: Office, tmp_path: Path) -> None:
    stranger = office.net.chain("alice")
    path = office.write(tmp_path, office.receipt("alice", signer=stranger), office.receipt("bob"))
    ended = office.audit(path)
    assert ended.status == 9
    line = f"  signature: line 2: signer {stranger.hotkey} differs from the round's signer {office.validator.hotkey}"
    assert line in ended.output.splitlines()
    assert list(verdicts(ended)) == [office.net.hotkey("bob")]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content, rest: rest.pop(), "damaged: 1 receipts after the header, which lists 2"),
        (lambda content, rest: rest.reverse(), "damaged: the sha256 of the receipts is not receipts_sha256"),
        (lambda content, rest: content.update(more=1), "damaged: line 1: expected exactly the keys"),
    ],
    ids=["a removed line", "swapped lines", "an unknown key"],
)
def test_damaged_file_does_not_stop_the_audit_of_others(office: Office, honest: Path, edit: Edit, message: str) -> None:
    damaged = honest.with_name("round-96-1-x.jsonl")
    shutil.copy(honest, damaged)
    rewrite(damaged, edit)
    ended = office.audit(honest.parent, "--sample", 1)
    assert ended.status == 7
    assert f"  inconsistent: {message}" in ended.output
    assert len(verdicts(ended)) == 1


def test_receipt_of_a_missing_dataset_cannot_be_fetched(office: Office, tmp_path: Path) -> None:
    path = office.write(tmp_path, office.receipt("alice", commit="0" * 40), office.receipt("bob"))
    ended = office.audit(path)
    assert ended.status == 8
    lines = verdicts(ended)
    assert lines[office.net.hotkey("alice")].startswith("cannot be fetched (alice/data has no such commit")
    assert lines[office.net.hotkey("bob")].startswith("identical: ")


def test_unreachable_hub_ends_with_the_status_for_a_retry(office: Office, honest: Path) -> None:
    assert office.audit(honest, "--sample", 0).status == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        ended = office.audit(honest)
    assert ended.status == 5
    assert all(line.startswith("cannot be fetched now (") for line in verdicts(ended).values())


def test_receipt_of_another_file_than_the_commits_differs(office: Office, tmp_path: Path) -> None:
    path = office.write(tmp_path, office.receipt("alice", train_sha256="0" * 64))
    ended = office.audit(path)
    assert ended.status == 7
    assert verdicts(ended)[office.net.hotkey("alice")].startswith("differs (sha256 ")


def test_receipt_of_an_invalid_dataset_differs(office: Office, tmp_path: Path) -> None:
    rows = [*SMALL[:4], make_line(10**6)]
    commit = office.net.upload("bob", rows)
    result = office.score(rows, office.seed("bob"))
    receipt = office.receipt("bob", commit=commit, **vars(result))
    ended = office.audit(office.write(tmp_path, receipt))
    assert ended.status == 7
    assert "differs (evaluation fails here (not_in_pool)" in ended.output


def test_receipt_outside_of_the_audit_is_not_replayed(office: Office, tmp_path: Path) -> None:
    """Else a file could keep an auditor busy for years."""
    result = office.results["alice"]
    forever = {**result.hyperparameters, "num_train_epochs": 10**9}
    for receipt in (
        office.receipt("alice", hyperparameters=forever),
        office.receipt("alice", model_id="evil/model", model_revision="0" * 40, model_digest=None),
        office.receipt("alice", model_revision="refs/pr/1", model_digest=None),
        office.receipt("alice", model_revision="main", model_digest=None),
        office.receipt("alice", lucky_num=2**40),
        office.receipt("alice", environment={"dtype": "int8"}),
    ):
        ended = office.audit(office.write(tmp_path, receipt))
        assert verdicts(ended)[office.net.hotkey("alice")].startswith("not comparable ("), ended.output
    path = office.write(tmp_path, office.receipt("alice"))
    default = call_main(load_main(AUDIT), path, "--model_path", office.model, "--work_dir", tmp_path / "work")
    assert default.status == 20 and "  rules: the file is of competition sample, " in default.output
    assert "not comparable (receipt of another competition" in default.output


def test_invented_hash_and_seed_contradict_the_chain(office: Office, honest: Path) -> None:
    def invent(content: dict[str, Any], _: list[str]) -> None:
        content["start_block_hash"] = "0x" + "ab" * 32

    rewrite(honest, invent, office.validator)
    assert office.audit(honest, "--sample", 0).status == 0, "by itself the file agrees"
    ended = office.audit(honest, "--sample", 0, "--subtensor.network", office.net.network)
    assert ended.status == 15
    assert f"  seed: block {office.start_block} has the hash" in ended.output


def test_weights_that_the_chain_has_not_are_found(office: Office, honest: Path) -> None:
    def move(content: dict[str, Any], _: list[str]) -> None:
        line, uids = content["weights"][0], sorted(content["weights"][0]["sent"])
        line["included_block"] -= 1
        assert len(uids) == 2

    rewrite(honest, move, office.validator)
    assert office.audit(honest, "--sample", 0).status == 0, "by itself the file agrees"
    ended = office.audit(honest, "--sample", 0, "--subtensor.network", office.net.network)
    assert ended.status == 11
    assert "  weights: weights of block" in ended.output


def test_receipt_of_other_rows_than_the_digest_differs(office: Office, honest: Path) -> None:
    """The digest decides the seed, so a false one would choose it."""
    rewrite(honest, lambda content, _: content["evaluations"][0].update(digest="ab" * 32), office.validator)
    ended = office.audit(honest)
    assert "differs (the counted rows have the digest" in ended.output


def test_chain_that_fails_gives_no_answer(office: Office, honest: Path) -> None:
    network = ("--subtensor.network", office.net.network)
    office.net.admin.set_fault("read", ChainFault.ERROR, calls=1000)
    try:
        ended = office.audit(honest, "--sample", 0, *network)
    finally:
        office.net.admin.set_fault("read", ChainFault.ERROR, calls=0)
    assert ended.status == 5
    assert "  no answer: " in ended.output
    assert office.audit(honest, "--sample", 0, *network).status == 0


def test_receipt_of_another_revision_is_not_replayed(office: Office) -> None:
    """A stranger's proposal for a public model has a commit too, and any weights."""
    pinned = dataclasses.replace(load_training_args(office.args), revision="a" * 40)
    auditor = Auditor(ReplayContext(work_dir=office.folder / "none"), office.net.competition, pinned)
    for revision in ("b" * 40, "refs/pr/1", "main", "a" * 39):
        comparison = auditor.replay(office.receipt("alice", model_revision=revision, model_digest=None))
        assert comparison.verdict is ReplayVerdict.NOT_COMPARABLE
        assert comparison.reasons == (f"model revision {revision} is not the one of --training_args",)


def test_second_version_of_a_round_is_inconsistent(office: Office, honest: Path) -> None:
    office.write(honest.parent / "other", office.receipt("alice"))
    ended = office.audit(honest, honest.parent / "other", "--sample", 0)
    assert ended.status == 7
    assert f"{office.validator.hotkey} signed another version of this round in {honest}" in ended.output


def test_sample_with_a_seed_is_drawn_again(office: Office, honest: Path) -> None:
    shutil.copy(honest, honest.with_name("round-96-1-copy.jsonl"))
    runs = [json.loads(office.audit(honest.parent, "--sample", 1, "--seed", 3, "--json").output) for _ in range(2)]
    lines = [[(row["path"], row["line"]) for row in run["replayed"]] for run in runs]
    assert lines[0] == lines[1] and len(lines[0]) == 1
    assert (runs[0]["seed"], runs[0]["receipts"]) == (3, 4)
    drawn = office.audit(honest.parent, "--sample", 1)
    assert "replaying 1 of 4 receipts: --sample 1 --seed " in drawn.output


def test_json_is_one_object_with_files_and_replays(office: Office, tmp_path: Path) -> None:
    path = office.write(tmp_path, office.receipt("alice", loss=office.results["alice"].loss - 0.125))
    ended = office.audit(path, "--json")
    assert ended.output.count("\n") == 1
    content = json.loads(ended.output)
    assert content["status"] == ended.status == 7
    (line,) = content["replayed"]
    assert (line["verdict"], line["difference"], line["line"]) == ("different", 0.125, 2)
    (file,) = content["files"]
    assert (file["path"], file["findings"]) == (str(path), [])


def test_strangers_text_is_escaped_in_the_audit(office: Office, honest: Path) -> None:
    painted = "\x1b[2J\nidentical: all of it"
    rewrite(honest, lambda content, _: content.update(queue=[painted]), office.validator)
    ended = office.audit(honest, "--sample", 0)
    assert ended.status == 7 and "\x1b" not in ended.output
    assert not any(line.startswith("identical") for line in ended.output.splitlines())
    result = office.results["alice"]
    elsewhere = {**result.environment, "torch": painted}
    office.write(honest.parent, office.receipt("alice", loss=result.loss + 1e-3, environment=elsewhere))
    ended = office.audit(honest)
    assert ended.status == 8
    assert "\x1b" not in ended.output and "not comparable (torch differs: \\x1b[2J\\nidentical" in ended.output


def test_invalid_command_line_is_refused(office: Office, honest: Path, tmp_path: Path) -> None:
    (empty := tmp_path / "empty").mkdir()
    for words in ((), (honest, "--sample", -1), (honest, "--sample", 1, "--all")):
        assert office.audit(*words).status == 2
    for setting in ((tmp_path / "nowhere",), (empty,), (honest, "--device", "abacus")):
        assert office.audit(*setting).status == 3
