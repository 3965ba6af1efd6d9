"""The offline script, in this process unless the claim is about processes."""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from template.chain.client import verify_signature
from template.config import load_training_args
from template.constants import DATA_FILE
from template.hub.datasets import upload_dataset
from template.miner.compare import compare_paired
from template.receipts.files import read_receipt, write_receipt
from template.receipts.receipt import EvaluatedSubmission, Receipt
from template.records import TrainResult
from template.rules.scoring import score_of
from template.workers.executor import Evaluator
from tests.fixtures.network import (
    COMPUTE_LOSS,
    POOL,
    SMALL,
    Ended,
    Net,
    call_main,
    load_main,
    make_content,
    make_line,
    run_process,
    use_hub,
    write_dataset,
    write_training_args,
)

SEED = 5


@dataclasses.dataclass
class Bench:
    """Datasets on disk, and a hub with one of them."""

    net: Net
    folder: Path
    model: Path
    commit: str

    def __post_init__(self) -> None:
        self.args = write_training_args(self.folder / "args.yaml")
        self.eval_dir = write_dataset(self.folder / "eval", POOL)
        self.small = write_dataset(self.folder / "small", SMALL)
        self.foreign = write_dataset(self.folder / "foreign", [*SMALL[:4], make_line(10**6)])

    @property
    def settings(self) -> list[object]:
        return [
            *("--competition", self.net.parts.competition, "--training_args", self.args),
            *("--model_path", self.model, "--work_dir", self.folder / "work"),
        ]

    def run(self, *arguments: object, settings: list[object] | None = None) -> Ended:
        main = load_main(COMPUTE_LOSS)
        return call_main(main, *arguments, *(self.settings if settings is None else settings))

    def loss(self, *arguments: object) -> float:
        """Return the loss that --json prints."""
        ended = self.run("--json", *arguments)
        assert ended.status == 0, ended.logs
        return float(json.loads(ended.output)["loss"])

    def result(self, folder: Path, lucky_num: int = SEED) -> TrainResult:
        """Evaluate a folder as a validator does."""
        return Evaluator(
            competition=self.net.competition,
            training_args=load_training_args(self.args),
            eval_data_dir=self.eval_dir,
            model_path=self.model,
        ).evaluate(folder, lucky_num)


@pytest.fixture(scope="module")
def context(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("desk")
    with Net(folder / "network", ["alice"]) as net, use_hub(net, "alice"):
        yield Bench(net, folder, tiny_model, net.upload("alice", SMALL))


@pytest.fixture(scope="module")
def signed(context: Bench) -> Path:
    """A signed receipt of alice's dataset on the hub."""
    submission = EvaluatedSubmission(
        netuid=96, hotkey=context.net.hotkey("alice"), repo="alice/data", commit=context.commit
    )
    receipt = Receipt(competition=context.net.competition, submission=submission, result=context.result(context.small))
    validator = context.net.chain("validator")
    return write_receipt(receipt.signed(validator.hotkey, validator.sign), context.folder / "signed")


def test_loss_is_equal_across_processes_and_evaluations(context: Bench) -> None:
    arguments = ("--dataset_path", context.small, "--lucky_num", SEED)
    first = context.loss(*arguments)
    context.loss("--dataset_path", context.foreign, "--lucky_num", SEED + 1)
    losses = [context.loss(*arguments), context.loss(*arguments)]
    for _ in range(2):
        process = run_process(
            COMPUTE_LOSS, "--json", *arguments, *context.settings, env=context.net.environment("alice")
        )
        assert process.status == 0, process.logs
        losses.append(json.loads(process.output)["loss"])
    assert losses == [first] * 4 and math.isfinite(first)


def test_file_folder_and_hub_give_the_same_loss(context: Bench) -> None:
    seed = ("--lucky_num", SEED)
    expected = context.result(context.small).loss
    assert context.loss("--dataset_path", context.small, *seed) == expected
    assert context.loss("--dataset_path", context.small / DATA_FILE, *seed) == expected
    assert context.loss("--hf_repo_id", "alice/data", "--revision", context.commit, *seed) == expected
    assert context.loss("--dataset_path", context.small, "--eval_data_dir", context.eval_dir, *seed) == expected


def test_text_shows_loss_score_and_distance_from_bench(context: Bench) -> None:
    ended = context.run("--dataset_path", context.small, "--lucky_num", SEED)
    result = context.result(context.small)
    fields = dict(line.split(maxsplit=1) for line in ended.output.splitlines())
    bench = context.net.competition.bench
    assert ended.status == 0
    assert float(fields["loss"]) == result.loss and fields["seed"] == str(SEED)
    assert fields["score"] == f"{score_of(result.loss, context.net.competition):.6f} of 1"
    assert fields["bench"].startswith(f"{bench}: this is {abs(bench - result.loss):.6f} ")
    assert fields["bench"].endswith("better" if result.loss <= bench else "worse")
    assert fields["rows"] == f"{len(SMALL)} trained on, {len(POOL)} evaluated on"


def test_json_shows_everything_that_can_change_the_loss(context: Bench) -> None:
    ended = context.run("--dataset_path", context.small, "--lucky_num", SEED, "--json")
    assert ended.output.count("\n") == 1
    content, result = json.loads(ended.output), context.result(context.small)
    assert (content["loss"], content["losses"], content["lucky_nums"]) == (result.loss, [result.loss], [SEED])
    assert content["spread"] is None
    assert content["score"] == score_of(result.loss, context.net.competition)
    assert content["competition"] == context.net.competition.to_dict()
    assert (content["train_sha256"], content["eval_sha256"]) == (result.train_sha256, result.eval_sha256)
    assert content["hyperparameters_digest"] == result.hyperparameters_digest
    assert content["environment"] == dict(result.environment)
    assert content["model"].endswith(str(result.model_digest))


def test_repeats_count_seeds_up_and_show_mean_and_spread(context: Bench) -> None:
    arguments = ("--dataset_path", context.small, "--lucky_num", 2**32 - 1, "--repeats", 3)
    content = json.loads(context.run(*arguments, "--json").output)
    expected = [context.result(context.small, seed).loss for seed in (2**32 - 1, 0, 1)]
    assert content["lucky_nums"] == [2**32 - 1, 0, 1]
    assert content["losses"] == expected and len(set(expected)) == 3
    assert content["loss"] == statistics.fmean(expected)
    assert content["spread"] == statistics.stdev(expected)
    lines = context.run(*arguments).output.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["loss", repr(loss), "lucky_num", str(seed)] for loss, seed in zip(expected, (2**32 - 1, 0, 1), strict=True)
    ]
    assert lines[3].split() == ["mean", "loss", repr(statistics.fmean(expected))]
    assert lines[4].startswith(f"spread   {statistics.stdev(expected):.6f} ") and "3 seeds" in lines[4]


def test_seed_is_drawn_by_default(context: Bench) -> None:
    runs = [json.loads(context.run("--dataset_path", context.small, "--json").output) for _ in range(2)]
    assert runs[0]["lucky_nums"] != runs[1]["lucky_nums"]
    (seed,) = runs[0]["lucky_nums"]
    assert runs[0]["loss"] == context.loss("--dataset_path", context.small, "--lucky_num", seed)


def test_check_rejects_rows_outside_the_evaluation_set(context: Bench) -> None:
    assert context.run("--dataset_path", context.foreign).status == 0
    checked = context.run("--dataset_path", context.foreign, "--check")
    assert checked.status == 6 and checked.output == ""
    assert "not in the evaluation set: line 5" in checked.logs[-1]
    assert context.run("--dataset_path", context.small, "--check").status == 0


def test_receipt_of_each_seed_is_written_and_replays(context: Bench) -> None:
    folder = context.folder / "own"
    arguments = ("--dataset_path", context.small, "--lucky_num", SEED, "--repeats", 2, "--receipt_dir", folder)
    losses = json.loads(context.run(*arguments, "--json").output)["losses"]
    receipts = sorted((read_receipt(path) for path in folder.iterdir()), key=lambda receipt: receipt.result.lucky_num)
    assert [receipt.result.loss for receipt in receipts] == losses
    assert all(receipt.submission is None and receipt.signature is None for receipt in receipts)
    path = next(folder.glob(f"*-{SEED}.json"))
    settings: list[object] = ["--model_path", context.model, "--work_dir", context.folder / "work"]
    replay = context.run("--verify", path, "--dataset_path", context.small, settings=settings)
    assert replay.status == 0 and replay.output.splitlines()[-1] == "IDENTICAL"
    assert "signature  none" in replay.output.splitlines()
    lost = context.run("--verify", path, settings=settings)
    assert lost.status == 3 and "pass the file with --dataset_path" in lost.logs[-1]


def verify(context: Bench, path: Path, *more: object) -> Ended:
    return context.run(
        "--verify", path, "--model_path", context.model, "--work_dir", context.folder / "work", *more, settings=[]
    )


def test_honest_receipt_is_identical(context: Bench, signed: Path) -> None:
    ended = verify(context, signed)
    assert ended.status == 0, ended.logs
    assert ended.output.splitlines()[-1] == "IDENTICAL"
    assert f"signature  valid, by {context.net.hotkey('validator')}" in ended.output.splitlines()
    content = json.loads(verify(context, signed, "--json").output)
    assert (content["verdict"], content["difference"]) == ("identical", 0.0)
    assert content["recorded"] == content["replayed"] == context.result(context.small).loss


def resign(context: Bench, signed: Path, **changed: object) -> Path:
    """Write the receipt with another result, signed by a miner."""
    receipt = read_receipt(signed)
    result = dataclasses.replace(receipt.result, **changed)  # type: ignore[arg-type]
    liar = context.net.chain("alice")
    forged = dataclasses.replace(receipt, result=result).signed(liar.hotkey, liar.sign)
    assert verify_signature(liar.hotkey, forged.message(), str(forged.signature))
    return write_receipt(forged, context.folder / f"forged-{len(list(context.folder.iterdir()))}")


def test_false_loss_is_different_by_its_error(context: Bench, signed: Path) -> None:
    loss = read_receipt(signed).result.loss
    path = resign(context, signed, loss=loss - 0.125)
    ended = verify(context, path)
    assert ended.status == 7
    assert ended.output.splitlines()[-1] == "DIFFERENT by +0.125"
    smallest = verify(context, resign(context, signed, loss=math.nextafter(loss, 0.0)), "--json")
    assert smallest.status == 7 and json.loads(smallest.output)["difference"] > 0.0


def test_receipt_of_another_file_is_not_comparable(context: Bench, signed: Path) -> None:
    ended = verify(context, signed, "--dataset_path", context.foreign)
    assert ended.status == 8
    assert ended.output.splitlines()[-1] == "NOT COMPARABLE"
    assert "training file differs" in ended.output


def test_strangers_text_in_a_receipt_is_escaped(context: Bench, signed: Path) -> None:
    content = json.loads(signed.read_text())
    path = context.folder / "painted.json"
    path.write_text(json.dumps({**content, "signer": "\x1b[2J\x1b[32mvalid, by me\nIDENTICAL"}))
    ended = verify(context, path)
    assert ended.status == 9
    assert r"signature  NOT VALID for \x1b[2J\x1b[32mvalid, by me\nIDENTICAL" in ended.output.splitlines()


def test_malformed_receipt_is_refused_by_its_path(context: Bench) -> None:
    path = context.folder / "no-receipt.json"
    path.write_text("[]")
    ended = verify(context, path)
    assert ended.status == 3
    (line,) = ended.logs
    assert str(path) in line


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
    ],
    ids=range(12),
)
def test_invalid_command_line_is_refused(context: Bench, arguments: tuple[str, ...]) -> None:
    ended = context.run(*arguments)
    assert ended.status == 2 and ended.output == ""
    assert "error:" in ended.logs[-1]


def test_comparison_uses_the_same_seeds_for_both(context: Bench) -> None:
    seeds = [SEED, SEED + 1, SEED + 2]
    arguments = ("--compare", context.small, context.foreign / DATA_FILE, "--lucky_num", SEED, "--repeats", 3)
    content = json.loads(context.run(*arguments, "--json").output)
    assert content["lucky_nums"] == seeds
    assert content["a"]["losses"] == [context.result(context.small, seed).loss for seed in seeds]
    assert content["b"]["losses"] == [context.result(context.foreign, seed).loss for seed in seeds]
    paired = compare_paired(content["a"]["losses"], content["b"]["losses"])
    assert content["differences"] == list(paired.differences)
    assert (content["mean"], content["standard_error"]) == (paired.mean, paired.standard_error)
    assert (tuple(content["interval"]), content["confidence"]) == (paired.interval, 0.95)
    assert content["finding"] == paired.finding == "A is better", "24 rows beat 5"


def test_comparison_text_shows_losses_side_by_side(context: Bench) -> None:
    ended = context.run("--compare", context.foreign, context.small, "--lucky_num", SEED, "--repeats", 2)
    assert ended.status == 0
    lines = [line.split() for line in ended.output.splitlines()]
    worse, better = (context.result(folder).loss for folder in (context.foreign, context.small))
    assert lines[0] == ["A", str(context.foreign)] and lines[1] == ["B", str(context.small)]
    assert lines[4] == [str(SEED), f"{worse:.6f}", f"{better:.6f}", f"{better - worse:+.6f}"]
    assert lines[6][0] == "mean" and lines[8][0] == "difference" and lines[9][0] == "interval"
    assert ended.output.splitlines()[-1].startswith(("B IS BETTER by 0.", "UNDECIDED: "))


def test_dataset_compared_with_itself_is_identical(context: Bench) -> None:
    ended = context.run("--compare", context.small, context.small / DATA_FILE)
    assert ended.output.splitlines()[-1] == "IDENTICAL under every seed"
    assert "5 seeds" in ended.output


def test_undecided_comparison_shows_the_seeds_needed(context: Bench) -> None:
    near = write_dataset(context.folder / "near", [*SMALL[1:], SMALL[0]])
    ended = context.run("--compare", context.small, near, "--lucky_num", SEED, "--repeats", 3)
    assert ended.status == 0
    assert ended.output.splitlines()[-1].startswith("UNDECIDED: at this spread ")


def test_comparison_names_the_rejected_dataset(context: Bench) -> None:
    ended = context.run("--compare", context.small, context.foreign, "--check")
    assert ended.status == 6
    assert f"{context.foreign}: " in ended.logs[-1] and "not in the evaluation set" in ended.logs[-1]
    empty = write_dataset(context.folder / "no-rows", [])
    ended = context.run("--compare", context.small, empty)
    assert ended.status == 6 and f"{empty}: " in ended.logs[-1]
    missing = context.run("--compare", context.small, context.folder / "nowhere")
    assert missing.status == 3 and "--compare" in missing.logs[-1]


def test_comparison_writes_a_receipt_of_every_evaluation(context: Bench) -> None:
    folder = context.folder / "pairs"
    context.run(
        "--compare", context.small, context.foreign, "--lucky_num", SEED, "--repeats", 2, "--receipt_dir", folder
    )
    receipts = [read_receipt(path).result for path in folder.iterdir()]
    assert len({(result.train_sha256, result.lucky_num) for result in receipts}) == 4


def test_private_dataset_is_downloaded_with_the_users_token(context: Bench) -> None:
    commit = upload_dataset(make_content(SMALL), "alice/secret", token="hf_local_alice", private=True)
    arguments = ("--hf_repo_id", "alice/secret", "--revision", commit, "--lucky_num", SEED)
    assert context.loss(*arguments) == context.result(context.small).loss
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HF_TOKEN")
        assert context.run(*arguments).status == 6


def test_each_kind_of_error_has_its_status(context: Bench) -> None:
    seed = ("--lucky_num", SEED)
    empty = context.folder / "empty"
    empty.mkdir()
    missing = ("--hf_repo_id", "alice/nothing", "--revision", "0" * 40, *seed)
    assert context.run("--dataset_path", context.folder / "nowhere", *seed).status == 3
    assert context.run("--dataset_path", empty, *seed).status == 6
    assert context.run("--hf_repo_id", "alice/data", "--revision", "main", *seed).status == 3
    assert context.run(*missing).status == 6
    assert context.run("--dataset_path", context.small, "--eval_data_dir", empty, *seed).status == 3
    assert context.run("--dataset_path", context.small, "--device", "abacus", *seed).status == 3


def test_unreachable_hub_has_its_own_status(context: Bench, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        ended = context.run("--dataset_path", context.small, settings=[*context.settings, "--work_dir", tmp_path])
    assert ended.status == 5
    assert "RemoteError" in ended.logs[-1]


def test_stdout_has_only_the_result(context: Bench) -> None:
    ended = context.run("--dataset_path", context.small, "--lucky_num", SEED, "--logging.debug", "--json")
    json.loads(ended.output)
    assert any("evaluated loss=" in line for line in ended.logs)
