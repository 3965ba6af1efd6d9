"""The audit of a validator's round files: from a real hub, with the tiny model, against files that lie."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from template.chain.client import Chain
from template.config import load_training_args
from template.receipts.receipt import ReplayVerdict
from template.receipts.replay import Auditor, ReplayContext
from template.receipts.round_file import RoundHeader, digest_lines
from template.rules.seeds import seed_from_hash
from tests.fixtures.audit import AUDIT, NAMES, Office
from tests.fixtures.network import SMALL, Ended, Net, call_main, load_main, make_line, run_process, use_hub


@pytest.fixture(scope="module")
def office(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    folder = tmp_path_factory.mktemp("office")
    with Net(folder / "network", NAMES) as net, use_hub(net):
        yield Office(net, folder, tiny_model)


@pytest.fixture
def honest(office: Office, tmp_path: Path) -> Path:
    return office.write(tmp_path / "rounds", *(office.receipt(name) for name in NAMES))


def verdicts(ended: Ended) -> dict[str, str]:
    """What the audit says of each receipt, by hotkey."""
    words = ("identical", "differs", "not comparable", "cannot be fetched")
    lines = [line for line in ended.output.splitlines() if line.startswith(words)]
    return {line.rsplit(": ", 1)[1].split(", ")[1]: line for line in lines}


def test_an_honest_round_is_identical_and_holds_against_the_chain(office: Office, honest: Path) -> None:
    ended = office.audit(honest, "--subtensor.network", office.net.parts.network)
    assert ended.status == 0, (ended.output, ended.logs)
    lines = ended.output.splitlines()
    assert lines[0].startswith(f"{honest.name}: netuid 96, blocks 40 to 50, by {office.validator.hotkey}, 2 in the")
    assert lines[1] == "  consistent"
    assert [line.split(":")[0] for line in lines[2:4]] == ["identical", "identical"]
    assert lines[4] == "1 files: 0 bad signatures, 0 inconsistencies; 2 receipts scored again: 2 identical"


def test_it_runs_as_a_process_with_nothing_but_the_file(office: Office, honest: Path) -> None:
    environment = {key: value for key, value in office.net.environment("alice").items() if key != "HF_TOKEN"}
    process = run_process(AUDIT, honest.parent, "--sample", 1, *office.settings, env=environment)
    assert process.status == 0, process.logs
    assert "1 receipts scored again: 1 identical" in process.output


def test_a_loss_that_was_never_computed_differs_by_how_much(office: Office, tmp_path: Path) -> None:
    """The validator signs the lie and builds table and weights on it: only training again finds it."""
    loss = office.results["alice"].loss
    path = office.write(tmp_path, office.receipt("alice", loss=loss - 0.125), office.receipt("bob"))
    ended = office.audit(path)
    assert ended.status == 7
    assert "  consistent" in ended.output.splitlines()
    found = verdicts(ended)
    assert found[office.net.hotkey("alice")].startswith("differs by +0.125: ")
    assert found[office.net.hotkey("bob")].startswith("identical: ")
    smallest = office.write(tmp_path, office.receipt("alice", loss=math.nextafter(loss, 0.0)))
    assert office.audit(smallest).status == 7


def rewrite(path: Path, edit: Callable[[dict[str, Any], list[str]], None], sign: Chain | None) -> None:
    """Edits header and receipt lines; `sign` signs the header anew."""
    lines = path.read_text().splitlines()
    content, rest = json.loads(lines[0]), lines[1:]
    edit(content, rest)
    if sign is not None:
        content |= {"receipts": len(rest), "receipts_sha256": digest_lines(rest), "signer": sign.hotkey}
        header = RoundHeader.from_json(json.dumps(content), "edited")
        content["signature"] = sign.sign(header.message())
    path.write_text("".join(f"{line}\n" for line in [json.dumps(content), *rest]))


def test_a_table_that_does_not_follow_from_the_receipts_is_named(office: Office, honest: Path) -> None:
    def favour(content: dict[str, Any], _: list[str]) -> None:
        content["table"][0]["loss"] -= 0.1

    rewrite(honest, favour, office.validator)
    ended = office.audit(honest, "--sample", 0)
    assert ended.status == 7
    assert f"  inconsistent: {office.net.hotkey('alice')}: the table has the loss" in ended.output
    assert "signature" not in ended.output.splitlines()[1]


def test_a_file_that_somebody_else_changed_is_not_believed_and_not_run(office: Office, honest: Path) -> None:
    def favour(content: dict[str, Any], _: list[str]) -> None:
        content["table"][0]["loss"] -= 0.1

    rewrite(honest, favour, None)
    ended = office.audit(honest)
    assert ended.status == 9
    assert f"  signature: the header: NOT VALID for {office.validator.hotkey}" in ended.output.splitlines()
    assert "0 receipts scored again" in ended.output


def test_a_receipt_of_a_foreign_signer_is_named_and_not_run(office: Office, tmp_path: Path) -> None:
    stranger = office.net.chain("alice")
    path = office.write(tmp_path, office.receipt("alice", signer=stranger), office.receipt("bob"))
    ended = office.audit(path)
    assert ended.status == 9
    line = f"  signature: line 2: signed by {stranger.hotkey}, and the round by {office.validator.hotkey}"
    assert line in ended.output.splitlines()
    assert list(verdicts(ended)) == [office.net.hotkey("bob")]


def test_a_forged_receipt_signature_is_told_apart(office: Office, tmp_path: Path) -> None:
    forged = dataclasses.replace(office.receipt("alice"), signature="0" * 128)
    ended = office.audit(office.write(tmp_path, forged), "--sample", 0)
    assert ended.status == 9
    assert f"  signature: line 2: NOT VALID for {office.validator.hotkey}" in ended.output.splitlines()


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda content, rest: rest.pop(), "damaged: 1 receipts follow the header, which says 2"),
        (lambda content, rest: rest.reverse(), "damaged: the receipts are not those of the header"),
        (lambda content, rest: content.update(more=1), "damaged: line 1: expected exactly the keys"),
    ],
    ids=["a removed line", "swapped lines", "an unknown key"],
)
def test_a_damaged_file_is_named_and_holds_no_other_up(
    office: Office, honest: Path, edit: Callable[[dict[str, Any], list[str]], None], told: str
) -> None:
    damaged = honest.with_name("round-96-1-x.jsonl")
    shutil.copy(honest, damaged)
    rewrite(damaged, edit, None)
    ended = office.audit(honest.parent, "--sample", 1)
    assert ended.status == 7
    assert f"  inconsistent: {told}" in ended.output
    assert len(verdicts(ended)) == 1


def test_a_swapped_receipt_that_the_validator_signed_for_is_named(office: Office, honest: Path) -> None:
    other = office.receipt("alice", loss=office.results["alice"].loss - 1.0)

    def swap(_: dict[str, Any], rest: list[str]) -> None:
        rest[0] = other.to_line()

    rewrite(honest, swap, office.validator)
    ended = office.audit(honest, "--sample", 0)
    assert ended.status == 7
    assert f"line 2, {office.net.hotkey('alice')}: the table does not rest on this receipt" in ended.output


def test_a_dataset_that_is_gone_cannot_be_fetched(office: Office, tmp_path: Path) -> None:
    path = office.write(tmp_path, office.receipt("alice", commit="0" * 40), office.receipt("bob"))
    ended = office.audit(path)
    assert ended.status == 8
    found = verdicts(ended)
    assert found[office.net.hotkey("alice")].startswith("cannot be fetched (alice/data has no such commit")
    assert found[office.net.hotkey("bob")].startswith("identical: ")


def test_a_hub_that_is_gone_is_worth_another_try(office: Office, honest: Path) -> None:
    assert office.audit(honest, "--sample", 0).status == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        ended = office.audit(honest)
    assert ended.status == 5
    assert all(line.startswith("cannot be fetched now (") for line in verdicts(ended).values())


def test_another_file_than_the_commit_holds_differs(office: Office, tmp_path: Path) -> None:
    """The validator says it scored what nobody can see."""
    path = office.write(tmp_path, office.receipt("alice", train_sha256="0" * 64))
    ended = office.audit(path)
    assert ended.status == 7
    assert verdicts(ended)[office.net.hotkey("alice")].startswith("differs (alice/data at ")


def test_a_dataset_that_no_validator_may_score_differs(office: Office, tmp_path: Path) -> None:
    rows = [*SMALL[:4], make_line(10**6)]
    commit = office.net.upload("bob", rows)
    result = office.score(rows, office.seed("bob"))
    receipt = office.receipt("bob", commit=commit, **vars(result))
    ended = office.audit(office.write(tmp_path, receipt))
    assert ended.status == 7
    assert "differs (it cannot be scored here (not_in_pool)" in ended.output


def test_another_library_makes_a_difference_not_comparable(office: Office, tmp_path: Path) -> None:
    result = office.results["alice"]
    elsewhere = {**result.environment, "torch": "1.0"}
    path = office.write(tmp_path, office.receipt("alice", loss=result.loss + 1e-3, environment=elsewhere))
    ended = office.audit(path)
    assert ended.status == 8
    assert "not comparable (torch differs: 1.0 in the receipt" in ended.output


def test_a_file_cannot_make_the_auditor_train_what_it_did_not_name(office: Office, tmp_path: Path) -> None:
    """The files decide neither the model nor how long it trains, or one could keep an auditor busy for years."""
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
        assert verdicts(ended)[office.net.hotkey("alice")].startswith("not comparable (it"), ended.output
    path = office.write(tmp_path, office.receipt("alice"))
    default = call_main(load_main(AUDIT), path, "--model_path", office.model, "--work_dir", tmp_path / "work")
    assert default.status == 8
    assert "not comparable (it is of another competition" in default.output


def test_the_chain_contradicts_invented_hashes_and_seeds(office: Office, honest: Path) -> None:
    def invent(content: dict[str, Any], _: list[str]) -> None:
        content["start_block_hash"] = "0x" + "ab" * 32
        content["lucky_num"] = seed_from_hash(content["start_block_hash"])
        content["entries"][0]["seed_block"] += 1

    rewrite(honest, invent, office.validator)
    assert office.audit(honest, "--sample", 0).status == 0, "by itself the file agrees"
    ended = office.audit(honest, "--sample", 0, "--subtensor.network", office.net.parts.network)
    assert ended.status == 7
    assert "block 40 has the hash" in ended.output
    assert f"{office.net.hotkey('alice')}: block" in ended.output


def test_a_chain_that_has_no_such_block_gives_no_answer(office: Office, honest: Path) -> None:
    def future(content: dict[str, Any], _: list[str]) -> None:
        content.update(start_block=10**6, opened_block=10**6, end_block=10**6)

    rewrite(honest, future, office.validator)
    honest = honest.rename(honest.with_name("future.jsonl"))
    ended = office.audit(honest, "--sample", 0, "--subtensor.network", office.net.parts.network)
    assert ended.status == 5
    assert "  no answer: " in ended.output


def test_a_revision_that_is_not_the_pinned_one_is_not_run(office: Office) -> None:
    """Anyone may propose weights for a public model; a commit of theirs would make any loss come out as it was told."""
    pinned = dataclasses.replace(load_training_args(office.args), revision="a" * 40)
    auditor = Auditor(ReplayContext(work_dir=office.folder / "none"), office.net.competition, pinned)
    for revision in ("b" * 40, "refs/pr/1", "main", "a" * 39):
        comparison = auditor.replay(office.receipt("alice", model_revision=revision, model_digest=None))
        assert comparison.verdict is ReplayVerdict.NOT_COMPARABLE
        assert comparison.reasons == (f"its model is of the revision {revision}, which --training_args does not name",)


def test_an_earlier_round_s_file_is_no_later_one_s_and_two_stories_of_a_round_are_told_apart(
    office: Office, honest: Path
) -> None:
    replayed = honest.with_name(honest.name.replace("-40-", "-400-"))
    shutil.copy(honest, replayed)
    ended = office.audit(honest.parent, "--sample", 0)
    assert ended.status == 7
    assert ended.output.count("  inconsistent: ") == 1
    assert "  inconsistent: the name is of another round than netuid 96, block 40" in ended.output.splitlines()
    replayed.unlink()
    office.write(honest.parent / "other", office.receipt("alice"))
    ended = office.audit(honest, honest.parent / "other", "--sample", 0)
    assert ended.status == 7
    assert f"{office.validator.hotkey} tells something else of this round in {honest}" in ended.output


def test_a_sample_is_drawn_from_all_files_and_can_be_drawn_again(office: Office, honest: Path) -> None:
    shutil.copy(honest, honest.with_name("round-96-1-copy.jsonl"))
    runs = [json.loads(office.audit(honest.parent, "--sample", 1, "--seed", 3, "--json").output) for _ in range(2)]
    lines = [[(one["path"], one["line"]) for one in run["replayed"]] for run in runs]
    assert lines[0] == lines[1] and len(lines[0]) == 1
    assert (runs[0]["seed"], runs[0]["receipts"]) == (3, 4)
    told = office.audit(honest.parent, "--sample", 1)
    assert "scoring 1 of 4 receipts again: --sample 1 --seed " in told.output


def test_json_is_one_object_with_everything(office: Office, tmp_path: Path) -> None:
    path = office.write(tmp_path, office.receipt("alice", loss=office.results["alice"].loss - 0.125))
    ended = office.audit(path, "--json")
    assert ended.output.count("\n") == 1
    content = json.loads(ended.output)
    assert content["status"] == ended.status == 7
    (line,) = content["replayed"]
    assert (line["verdict"], line["difference"], line["line"]) == ("different", 0.125, 2)
    (file,) = content["files"]
    assert (file["path"], file["bad_signatures"], file["inconsistencies"]) == (str(path), [], [])


def test_what_a_stranger_wrote_does_not_reach_the_terminal_raw(office: Office, honest: Path) -> None:
    def paint(content: dict[str, Any], _: list[str]) -> None:
        content["queue"] = ["\x1b[2J\nidentical: all of it"]

    rewrite(honest, paint, office.validator)
    ended = office.audit(honest, "--sample", 0)
    assert ended.status == 7
    assert "\x1b" not in ended.output
    assert not any(line.startswith("identical") for line in ended.output.splitlines())
    result = office.results["alice"]
    elsewhere = {**result.environment, "torch": "\x1b[2J\nidentical: all of it"}
    office.write(honest.parent, office.receipt("alice", loss=result.loss + 1e-3, environment=elsewhere))
    ended = office.audit(honest)
    assert ended.status == 8
    assert "\x1b" not in ended.output and "not comparable (torch differs: \\x1b[2J\\nidentical" in ended.output


def test_a_command_line_that_makes_no_sense_is_refused(office: Office, honest: Path, tmp_path: Path) -> None:
    assert office.audit().status == 2
    assert office.audit(honest, "--sample", -1).status == 2
    assert office.audit(honest, "--sample", 1, "--all").status == 2
    assert office.audit(tmp_path / "nowhere").status == 3
    (tmp_path / "empty").mkdir()
    assert office.audit(tmp_path / "empty").status == 3
    assert office.audit(honest, "--device", "abacus").status == 3
