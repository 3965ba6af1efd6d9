"""The offline script, with the tiny model."""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from template.competition import bind_digest
from template.constants import DATA_FILE
from template.hub.datasets import upload_dataset
from template.localnet.network import NETUID
from template.receipts.files import read_receipt, write_receipt
from template.rules.evaluations import derive_seed
from template.rules.ledger import estimate_loss
from template.rules.scoring import score_of
from tests.fixtures.desk import INCENTIVES, SEED, Desk, open_desk
from tests.fixtures.network import (
    COMPUTE_LOSS,
    POOL,
    SMALL,
    make_content,
    run_process,
    write_dataset,
)


@pytest.fixture(scope="module")
def desk(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("desk"), tiny_model) as desk:
        yield desk


@pytest.fixture(scope="module")
def signed(desk: Desk) -> Path:
    """A signed receipt of alice's dataset on the hub."""
    return write_receipt(desk.receipt(), desk.folder / "signed")


@pytest.mark.slow
def test_loss_is_equal_in_another_process(desk: Desk) -> None:
    arguments = ("--dataset_path", desk.small, "--lucky_num", SEED)
    environment = desk.net.environment("alice")
    process = run_process(COMPUTE_LOSS, "--json", *arguments, *desk.settings, env=environment)
    assert process.status == 0, process.logs
    loss = json.loads(process.output)["loss"]
    assert loss == desk.result(desk.small).loss and math.isfinite(loss)


def test_every_source_of_a_dataset_gives_the_same_loss(desk: Desk) -> None:
    sources: list[tuple[object, ...]] = [
        ("--dataset_path", desk.small),
        ("--dataset_path", desk.small / DATA_FILE),
        ("--hf_repo_id", "alice/data", "--revision", desk.commit),
        ("--dataset_path", desk.small, "--eval_data_dir", desk.eval_dir),
    ]
    losses = [desk.json(*source, "--lucky_num", SEED)["loss"] for source in sources]
    assert losses == [desk.result(desk.small).loss] * 4


def test_text_shows_loss_score_and_distance_from_bench(desk: Desk) -> None:
    ended = desk.run("--dataset_path", desk.small, "--lucky_num", SEED)
    result = desk.result(desk.small)
    fields = dict(line.split(maxsplit=1) for line in ended.output.splitlines())
    bench = desk.net.competition.bench
    assert ended.status == 0
    assert float(fields["loss"]) == result.loss and fields["seed"] == str(SEED)
    assert fields["score"] == f"{score_of(result.loss, desk.net.competition):.6f} of 1"
    assert fields["bench"].startswith(f"{bench}: this is {abs(bench - result.loss):.6f} ")
    assert fields["bench"].endswith("better" if result.loss <= bench else "worse")
    assert fields["rows"] == f"{len(SMALL)} trained on, {len(POOL)} evaluated on"


def test_json_shows_everything_that_can_change_the_loss(desk: Desk) -> None:
    content, result = desk.json("--dataset_path", desk.small, "--lucky_num", SEED), desk.result(desk.small)
    assert (content["loss"], content["losses"], content["lucky_nums"]) == (result.loss, [result.loss], [SEED])
    assert (content["spread"], content["runs"]) == (None, 1)
    assert content["score"] == score_of(result.loss, desk.net.competition)
    assert content["competition"] == desk.net.competition.to_dict()
    assert (content["train_sha256"], content["eval_sha256"]) == (result.train_sha256, result.eval_sha256)
    assert content["hyperparameters_digest"] == result.hyperparameters_digest
    assert content["environment"] == dict(result.environment)
    assert content["model"].endswith(str(result.model_digest))


def test_repeats_count_seeds_up_and_show_mean_and_spread(desk: Desk) -> None:
    arguments = ("--dataset_path", desk.small, "--lucky_num", 2**32 - 1, "--repeats", 3)
    content, seeds = desk.json(*arguments), [2**32 - 1, 0, 1]
    expected = [desk.result(desk.small, seed).loss for seed in seeds]
    assert content["lucky_nums"] == seeds
    assert content["losses"] == expected and len(set(expected)) == 3
    estimate = estimate_loss(expected, INCENTIVES["sd"])
    assert {name: content[name] for name in ("loss", "mean", "spread", "runs")} == dataclasses.asdict(estimate)
    assert content["loss"] > content["mean"] and content["score"] == score_of(estimate.loss, desk.net.competition)
    ended = desk.run(*arguments)
    shown = [line.partition("evaluated: ")[2] for line in ended.logs if "evaluated: " in line]
    assert [text.partition(" left")[0].partition(", about ")[0] for text in shown] == ["1 of 3", "2 of 3"]
    lines = ended.output.splitlines()
    assert lines[:3] == [f"loss {loss!r} lucky_num {seed}" for loss, seed in zip(expected, seeds, strict=True)]
    assert lines[3].split() == ["mean", repr(estimate.mean)]
    assert lines[4].startswith(f"spread   {statistics.stdev(expected):.6f} ") and "3 seeds" in lines[4]
    assert lines[5].startswith(f"loss     {estimate.loss!r} as it is paid")


def test_runs_missing_to_be_confirmed_are_timed(desk: Desk) -> None:
    arguments = ("--dataset_path", desk.small, "--lucky_num", SEED, "--repeats")
    content = desk.json(*arguments, 3)
    assert content["missing_runs"] == 1 and not content["is_dropped"]
    assert content["missing_seconds"] == pytest.approx(statistics.fmean(content["seconds"]))
    (line,) = [line for line in desk.run(*arguments, 3).output.splitlines() if line.startswith("runs")]
    assert "3 of 4: 1 more to be confirmed, about " in line and "on this machine" in line
    assert "runs     4 of 4: enough to be confirmed" in desk.run(*arguments, 4).output
    strict = ("--competition", desk.competition("chain", bench=6.0))
    hopeless = desk.run("--dataset_path", desk.foreign, "--lucky_num", SEED, *strict)
    assert "runs     1 of 4: validators stop here" in hopeless.output


def test_committed_dataset_has_the_validators_loss(desk: Desk) -> None:
    desk.net.submit("alice", SMALL)
    desk.net.align(20)
    rank_block = desk.net.admin.block()
    where = ("--as_validator", "--netuid", NETUID, "--subtensor.network", desk.net.network)
    wallet = ("--wallet.path", desk.net.parts.wallets, "--wallet.name", "alice")
    content = desk.json(*where, "--hotkey", desk.net.hotkey("alice"))
    assert content["on_chain"]["rank_block"] == rank_block
    digest, block_hash = content["on_chain"]["digest"], desk.net.chain("alice").block_hash(rank_block)
    assert content["lucky_nums"] == [derive_seed(block_hash, digest, number) for number in (1, 2)]
    assert content["losses"] == [desk.result(desk.small, seed).loss for seed in content["lucky_nums"]]
    desk.net.admin.advance(20)
    ended = desk.run(*where, *wallet)
    assert f"rank     block {rank_block}\n" in ended.output
    assert f"seeds    of evaluations 1 to 4, from blocks {rank_block} to {rank_block + 20}" in ended.output
    assert len(desk.json(*where, *wallet, "--repeats", 3)["losses"]) == 3
    unknown = desk.run(*where, *wallet, "--competition", desk.competition("random"))
    assert unknown.status == 3 and "draws its seeds at random" in unknown.logs[-1]


def test_seed_is_drawn_by_default(desk: Desk) -> None:
    first, second = (desk.json("--dataset_path", desk.small) for _ in range(2))
    assert first["lucky_nums"] != second["lucky_nums"]
    assert first["loss"] == desk.result(desk.small, *first["lucky_nums"]).loss


def test_check_rejects_rows_outside_the_evaluation_set(desk: Desk) -> None:
    assert desk.run("--dataset_path", desk.foreign).status == 0
    checked = desk.run("--dataset_path", desk.foreign, "--check")
    assert checked.status == 6 and checked.output == ""
    assert "not in the evaluation set: line 5" in checked.logs[-1]
    spaced = write_dataset(desk.folder / "spaced", [SMALL[0].replace("say", "say ")])
    assert "line 1 looks like line " in desk.run("--dataset_path", spaced, "--check").logs[-1]
    assert desk.run("--dataset_path", desk.small, "--check").status == 0


def test_receipt_of_each_seed_is_written_and_replays(desk: Desk) -> None:
    folder = desk.folder / "own"
    arguments = ("--dataset_path", desk.small, "--lucky_num", SEED, "--repeats", 2, "--receipt_dir", folder)
    losses = desk.json(*arguments)["losses"]
    receipts = sorted((read_receipt(path) for path in folder.iterdir()), key=lambda receipt: receipt.result.lucky_num)
    assert [receipt.result.loss for receipt in receipts] == losses
    assert all(receipt.submission is None and receipt.signature is None for receipt in receipts)
    path = next(folder.glob(f"*-{SEED}.json"))
    replay = desk.verify(path, "--dataset_path", desk.small)
    assert replay.status == 0 and replay.output.splitlines()[-1] == "IDENTICAL"
    assert "signature  none" in replay.output.splitlines()
    lost = desk.verify(path)
    assert lost.status == 3 and "pass the file with --dataset_path" in lost.logs[-1]


def test_honest_receipt_is_identical(desk: Desk, signed: Path) -> None:
    ended = desk.verify(signed)
    assert ended.status == 0, ended.logs
    assert ended.output.splitlines()[-1] == "IDENTICAL"
    assert f"signature  valid, by {desk.net.hotkey('validator')}" in ended.output.splitlines()
    content = json.loads(desk.verify(signed, "--json").output)
    assert (content["verdict"], content["difference"]) == ("identical", 0.0)
    assert content["recorded"] == content["replayed"] == desk.result(desk.small).loss


def test_receipt_of_a_bound_digest_is_identical(desk: Desk) -> None:
    result = desk.result(desk.small)
    digest = bind_digest(result.train_sha256, desk.net.hotkey("alice"))
    path = write_receipt(desk.receipt(commit=digest), desk.folder / "bound")
    assert desk.verify(path).output.splitlines()[-1] == "IDENTICAL"


def test_false_loss_is_different_by_its_error(desk: Desk) -> None:
    forged = desk.receipt("alice", loss=desk.result(desk.small).loss - 0.125)
    ended = desk.verify(write_receipt(forged, desk.folder / "forged"))
    assert ended.status == 7 and ended.output.splitlines()[-1] == "DIFFERENT by +0.125"


def test_receipt_of_another_file_is_not_comparable(desk: Desk, signed: Path) -> None:
    ended = desk.verify(signed, "--dataset_path", desk.foreign)
    assert ended.status == 8 and ended.output.splitlines()[-1] == "NOT COMPARABLE"
    assert "training file differs" in ended.output


def test_strangers_text_in_a_receipt_is_escaped(desk: Desk, signed: Path) -> None:
    content = json.loads(signed.read_text())
    path = desk.folder / "painted.json"
    path.write_text(json.dumps({**content, "signer": "\x1b[2J\x1b[32mvalid, by me\nIDENTICAL"}))
    ended = desk.verify(path)
    assert ended.status == 9
    assert r"signature  NOT VALID for \x1b[2J\x1b[32mvalid, by me\nIDENTICAL" in ended.output.splitlines()


def test_malformed_receipt_is_refused_by_its_path(desk: Desk) -> None:
    path = desk.folder / "no-receipt.json"
    path.write_text("[]")
    ended = desk.verify(path)
    (line,) = ended.logs
    assert ended.status == 3 and str(path) in line


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--dataset_path", "x", "--hf_repo_id", "alice/data", "--revision", "0" * 40),
        ("--hf_repo_id", "alice/data"),
        ("--dataset_path", "x", "--repeats", "0"),
        ("--dataset_path", "x", "--lucky_num", "-1"),
        ("--dataset_path", "x", "--lucky_num", str(2**32)),
        ("--compare", "x"),
        ("--compare", "x", "y", "--repeats", "1"),
        ("--compare", "x", "y", "--dataset_path", "z"),
        ("--compare", "x", "y", "--verify", "z"),
        ("--verify", "x", "--lucky_num", "0"),
        ("--verify", "x", "--repeats", "1"),
        ("--as_validator", "--netuid", "1"),
        ("--as_validator", "--hotkey", "x"),
        ("--as_validator", "--netuid", "1", "--hotkey", "x", "--wallet.name", "y"),
        ("--as_validator", "--netuid", "1", "--hotkey", "x", "--lucky_num", "1"),
        ("--as_validator", "--netuid", "1", "--hotkey", "x", "--dataset_path", "y"),
    ],
    ids=range(17),
)
def test_invalid_command_line_is_refused(desk: Desk, arguments: tuple[str, ...]) -> None:
    ended = desk.run(*arguments)
    assert ended.status == 2 and ended.output == ""
    assert "error:" in ended.logs[-1]


def test_private_dataset_is_downloaded_with_the_users_token(desk: Desk) -> None:
    commit = upload_dataset(make_content(SMALL), "alice/secret", token="hf_local_alice", private=True)
    arguments = ("--hf_repo_id", "alice/secret", "--revision", commit, "--lucky_num", SEED)
    assert desk.json(*arguments)["loss"] == desk.result(desk.small).loss
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HF_TOKEN")
        assert desk.run(*arguments).status == 6


def test_each_kind_of_error_has_its_status(desk: Desk) -> None:
    (empty := desk.folder / "empty").mkdir()
    for status, *arguments in (
        (3, "--dataset_path", desk.folder / "nowhere"),
        (6, "--dataset_path", empty),
        (3, "--hf_repo_id", "alice/data", "--revision", "main"),
        (6, "--hf_repo_id", "alice/nothing", "--revision", "0" * 40),
        (3, "--dataset_path", desk.small, "--eval_data_dir", empty),
        (3, "--dataset_path", desk.small, "--device", "abacus"),
    ):
        assert desk.run(*arguments, "--lucky_num", SEED).status == status, arguments


def test_unreachable_hub_has_its_own_status(desk: Desk, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        ended = desk.run("--dataset_path", desk.small, "--work_dir", tmp_path)
    assert ended.status == 5
    assert "ERROR   the Hub could not be reached" in ended.logs[-1]


def test_stdout_has_only_the_result(desk: Desk) -> None:
    ended = desk.run("--dataset_path", desk.small, "--lucky_num", 0xF00D, "--logging.debug", "--json")
    json.loads(ended.output)
    assert any("evaluated loss=" in line for line in ended.logs)


def test_receipt_folder_that_fails_costs_no_result(desk: Desk) -> None:
    (blocked := desk.folder / "blocked").touch()
    arguments = ("--dataset_path", desk.small, "--lucky_num", SEED, "--receipt_dir", blocked)
    ended = desk.run(*arguments, "--json")
    assert ended.status == 0 and json.loads(ended.output)["loss"] == desk.result(desk.small).loss
    first, last = [line for line in ended.logs if "WARNING" in line]
    assert f"--receipt_dir {blocked}: File exists; the result is printed without receipts" in first
    assert "not every receipt was written: cannot write" in last
    pair = desk.run("--compare", desk.small, desk.foreign, "--repeats", 2, "--receipt_dir", blocked)
    assert pair.status == 0 and ("IS BETTER by" in pair.output or "UNDECIDED" in pair.output)
