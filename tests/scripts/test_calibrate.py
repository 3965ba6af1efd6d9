"""The proposal of a competition's values, measured with the tiny model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import calibrate
from template.competition import Competition
from template.constants import DATA_FILE
from tests.fixtures.desk import Desk, open_desk
from tests.fixtures.network import Ended, call_main


@pytest.fixture(scope="module")
def desk(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("desk"), tiny_model) as desk:
        yield desk


def run(desk: Desk, *arguments: object) -> Ended:
    return call_main(calibrate.main, *desk.settings, "--samples", 2, "--repeats", 2, *arguments)


@pytest.fixture(scope="module")
def measured(desk: Desk) -> dict[str, Any]:
    ended = run(desk, "--good", desk.small, "--json")
    assert ended.status == 0 and ended.output.count("\n") == 1, ended
    content: dict[str, Any] = json.loads(ended.output)
    return content


def test_each_dataset_is_evaluated_under_seeds_of_its_own(measured: dict[str, Any], desk: Desk) -> None:
    losses = measured["losses"]
    assert list(losses) == ["random 1", "random 2", str(desk.small)]
    assert len({loss for runs in losses.values() for loss in runs}) == 6
    assert measured["seconds"] > 0.0


def test_same_seed_gives_the_same_losses(measured: dict[str, Any], desk: Desk) -> None:
    again = json.loads(run(desk, "--good", desk.small, "--json").output)
    assert again["losses"] == measured["losses"]
    assert json.loads(run(desk, "--seed", 1, "--json").output)["losses"]["random 1"] != measured["losses"]["random 1"]


def test_printed_lines_are_a_part_of_a_competition_file(desk: Desk) -> None:
    ended = run(desk, "--good", desk.small / DATA_FILE)
    assert ended.status == 0, ended.logs
    head, _, lines = ended.output.partition("# for the competition file\n")
    assert "the seed moves a loss by" in head and "an evaluation takes" in head
    proposed = yaml.safe_load(lines)
    incentives = proposed.pop("incentives")
    values = {**desk.net.competition.to_dict(), **proposed}
    assert Competition.from_mapping(values, "the proposal").bench == proposed["bench"]
    assert incentives["evaluations"] == 4 and incentives["slots"] > 0


def test_random_dataset_has_as_many_different_rows_as_count(desk: Desk, tmp_path: Path) -> None:
    lines = (desk.eval_dir / DATA_FILE).read_bytes().splitlines()[: desk.net.competition.rows - 1]
    few = tmp_path / "few"
    few.mkdir()
    # Rows that come twice count once.
    (few / DATA_FILE).write_bytes(b"\n".join(lines * 2))
    ended = run(desk, "--eval_data_dir", few)
    assert ended.status == 3
    assert f"{len(lines)} different rows are too few for datasets of {len(lines) + 1} rows" in ended.logs[-1]
    assert run(desk, "--eval_data_dir", few, "--rows", 4).status == 0


def test_good_dataset_with_foreign_rows_is_refused(desk: Desk) -> None:
    ended = run(desk, "--good", desk.foreign)
    assert ended.status == 6 and "not in the evaluation set" in ended.logs[-1]


def test_all_wrong_arguments_are_named_at_once(desk: Desk, tmp_path: Path) -> None:
    ended = call_main(calibrate.main, *desk.settings, "--samples", 1, "--repeats", 0, "--good", tmp_path / "none.jsonl")
    assert ended.status in (2, 3)
    for text in ("--samples must be at least 2", "--good"):
        assert any(text in line for line in ended.logs), ended.logs
