"""Two datasets compared by the offline script, with the tiny model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from template.constants import DATA_FILE
from template.miner.compare import compare_paired
from template.miner.loss_report import conclude
from template.receipts.files import read_receipt
from tests.fixtures.desk import SEED, Desk, open_desk
from tests.fixtures.network import write_dataset


@pytest.fixture(scope="module")
def desk(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("desk"), tiny_model) as desk:
        yield desk


def test_comparison_uses_the_same_seeds_for_both(desk: Desk) -> None:
    seeds = [SEED, SEED + 1, SEED + 2]
    files, folder = (desk.small, desk.foreign / DATA_FILE), desk.folder / "pairs"
    content = desk.json("--compare", *files, "--lucky_num", SEED, "--repeats", 3, "--receipt_dir", folder)
    assert content["lucky_nums"] == seeds
    assert content["a"]["losses"] == [desk.result(desk.small, seed).loss for seed in seeds]
    assert content["b"]["losses"] == [desk.result(desk.foreign, seed).loss for seed in seeds]
    paired = compare_paired(content["a"]["losses"], content["b"]["losses"])
    assert content["differences"] == list(paired.differences)
    assert (content["mean"], content["standard_error"]) == (paired.mean, paired.standard_error)
    assert (tuple(content["interval"]), content["confidence"]) == (paired.interval, 0.95)
    assert content["finding"] == paired.finding == "A is better", "24 rows beat 5"
    receipts = {
        (result.train_sha256, result.lucky_num) for result in (read_receipt(p).result for p in folder.iterdir())
    }
    assert len(receipts) == 6, "one of every evaluation"


def test_comparison_text_shows_losses_side_by_side(desk: Desk) -> None:
    ended = desk.run("--compare", desk.foreign, desk.small, "--lucky_num", SEED)
    assert ended.status == 0 and "5 seeds" in ended.output
    assert sum(f": {done} of 10, about " in line for line in ended.logs for done in range(1, 10)) == 9
    lines = [line.split() for line in ended.output.splitlines()]
    worse, better = (desk.result(folder).loss for folder in (desk.foreign, desk.small))
    assert lines[0] == ["A", str(desk.foreign)] and lines[1] == ["B", str(desk.small)]
    assert lines[4] == [str(SEED), f"{worse:.6f}", f"{better:.6f}", f"{better - worse:+.6f}"]
    assert [lines[index][0] for index in (9, 11, 12)] == ["mean", "difference", "interval"]
    assert lines[13][:3] == ["B", "IS", "BETTER"]


@pytest.mark.parametrize(
    ("losses", "line"),
    [
        ([2.0, 2.5], "IDENTICAL under every seed"),
        ([2.1, 2.6], "A IS BETTER by 0.100000"),
        ([1.9, 2.4], "B IS BETTER by 0.100000"),
        ([2.25, 2.5], "UNDECIDED: at this spread about 9 more seeds would be enough"),
        ([2.1, 2.4 + 1e-9], "UNDECIDED: at this spread even 1000 seeds would not be enough"),
    ],
)
def test_conclusion_of_a_comparison(losses: list[float], line: str) -> None:
    assert conclude(compare_paired([2.0, 2.5], losses)) == line


def test_comparison_names_the_rejected_dataset(desk: Desk) -> None:
    ended = desk.run("--compare", desk.small, desk.foreign, "--check")
    assert ended.status == 6
    assert f"{desk.foreign}: " in ended.logs[-1] and "not in the evaluation set" in ended.logs[-1]
    empty = write_dataset(desk.folder / "no-rows", [])
    ended = desk.run("--compare", desk.small, empty)
    assert ended.status == 6 and f"{empty}: " in ended.logs[-1]
    missing = desk.run("--compare", desk.small, desk.folder / "nowhere")
    assert missing.status == 3 and "--compare" in missing.logs[-1]
