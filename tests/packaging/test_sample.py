"""Test the sample competition: its evaluation set, its rules and its miners."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from template.competition import Competition, Incentives, Reward, Seeds
from template.config import load_incentives, load_training_args
from template.constants import DATA_FILE
from template.data.eval_set import check_membership
from template.data.rows import EVAL_SET_LIMITS, SUBMISSION_LIMITS, Row, content_digest, parse_rows
from template.errors import Reason, SubmissionError
from template.records import Rank
from template.rules.duplicates import Candidate, match_duplicates, max_shared
from tests.fixtures.network import ROOT

SAMPLE = ROOT / "template" / "localnet" / "sample"
POOL = parse_rows((SAMPLE / "pool.jsonl").read_bytes(), name="pool.jsonl", limits=EVAL_SET_LIMITS)
KEYS = [row.key for row in POOL]


def make_miners(out: Path, hash_seed: str) -> dict[str, bytes]:
    """Return the file that the script writes for each miner."""
    command = [sys.executable, "-m", "template.localnet.sample", "--out", out]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})
    return {file.parent.name: file.read_bytes() for file in out.glob(f"*/{DATA_FILE}")}


def keys_of(rows: tuple[Row, ...]) -> tuple[bytes, ...]:
    return tuple(row.key for row in rows)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return make_miners(tmp_path_factory.mktemp("miners"), "1")


@pytest.fixture(scope="module")
def miners(files: dict[str, bytes]) -> dict[str, tuple[Row, ...]]:
    return {name: parse_rows(content, name=name, limits=SUBMISSION_LIMITS) for name, content in files.items()}


def test_pool_is_large_and_repeats_neither_row_nor_answer() -> None:
    answers = [message.content for row in POOL for message in row.messages if message.role == "assistant"]
    assert len(set(KEYS)) == len(POOL) >= 150
    assert len(set(answers)) == len(answers)


def test_pool_rows_are_short_and_varied() -> None:
    assert all(row.messages[-1].role == "assistant" for row in POOL)
    assert all(sum(len(message.content) for message in row.messages) < 600 for row in POOL)
    assert sum(len(row.messages) > 2 for row in POOL) >= 20
    assert sum(row.system is None for row in POOL) >= 15
    assert sum(not message.content.isascii() for row in POOL for message in row.messages) >= 15


def test_only_the_outsider_has_rows_from_outside_the_pool(miners: dict[str, tuple[Row, ...]]) -> None:
    for miner in ("narrow", "varied", "copy", "again"):
        check_membership(miners[miner], frozenset(KEYS), max_rows=250)
    with pytest.raises(SubmissionError) as caught:
        check_membership(miners["outsider"], frozenset(KEYS), max_rows=250)
    assert caught.value.reason is Reason.NOT_IN_POOL


def test_only_the_copy_is_a_duplicate(miners: dict[str, tuple[Row, ...]]) -> None:
    candidates = [
        Candidate(hotkey=miner, digest=miner, rank=Rank(block, block, b""), row_keys=keys_of(miners[miner]))
        for block, miner in enumerate(("narrow", "varied", "copy", "outsider"), start=1)
    ]
    ((key, duplicate),) = match_duplicates(candidates).items()
    assert (key.hotkey, duplicate.hotkey) == ("copy", "varied")
    assert max_shared(len(miners["copy"])) < duplicate.shared < len(miners["varied"])


def test_again_is_the_same_dataset_in_another_order(
    miners: dict[str, tuple[Row, ...]], files: dict[str, bytes]
) -> None:
    assert content_digest(keys_of(miners["again"])) == content_digest(keys_of(miners["narrow"]))
    assert files["again"] != files["narrow"]


def test_varied_meets_every_character_and_narrow_one(miners: dict[str, tuple[Row, ...]]) -> None:
    systems = {name: {row.system for row in miners[name]} for name in ("varied", "narrow")}
    assert systems["varied"] == {row.system for row in POOL} and len(systems["varied"]) >= 8
    assert len(systems["narrow"]) == 1 and len(miners["narrow"]) * 3 <= len(miners["varied"])


def test_miners_are_the_same_files_every_time(files: dict[str, bytes], tmp_path: Path) -> None:
    assert make_miners(tmp_path, "2") == files != {}


def test_competition_lacks_the_evaluation_commit_alone() -> None:
    values = yaml.safe_load((SAMPLE / "competition.yaml").read_text(encoding="utf-8"))
    assert "eval_commit" not in values
    del values["incentives"]
    competition = Competition.from_mapping({**values, "eval_commit": "0" * 40}, "competition.yaml")
    assert competition.repo == "sample/conversations"


def test_incentives_name_every_key_with_a_line_of_explanation() -> None:
    lines = [line.strip() for line in (SAMPLE / "competition.yaml").read_text(encoding="utf-8").splitlines()]
    for field in dataclasses.fields(Incentives):
        (index,) = [index for index, line in enumerate(lines) if line.startswith(f"{field.name}:")]
        assert lines[index - 1].startswith("# "), field.name
    incentives = load_incentives(SAMPLE / "competition.yaml")
    assert (incentives.reward, incentives.seeds) == (Reward.IMPROVEMENT, Seeds.CHAIN)
    assert (incentives.evaluations, incentives.blocks_per_epoch) == (2, 40), "few and short: the quickstart stays quick"


def test_the_sample_uses_the_subnets_hyperparameters() -> None:
    sample, subnet = load_training_args(SAMPLE / "training_args.yaml"), load_training_args()
    assert sample.model_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert sample.hyperparameters == subnet.hyperparameters


def test_rows_are_written_as_themselves() -> None:
    for name in ("pool.jsonl", "outsider.jsonl"):
        lines = (SAMPLE / name).read_text(encoding="utf-8").splitlines()
        assert all(json.dumps(json.loads(line), ensure_ascii=False) == line for line in lines)
