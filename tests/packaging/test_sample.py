"""Test the sample competition: its evaluation set and its four miners."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from template.competition import Competition
from template.config import load_training_args
from template.constants import DEFAULT_DUPLICATE_COUNT
from template.data.eval_set import check_membership
from template.data.rows import EVAL_SET_LIMITS, SUBMISSION_LIMITS, Row, parse_rows
from template.errors import Reason, SubmissionError
from template.rules.duplicates import Candidate, match_duplicates

SAMPLE = Path(__file__).resolve().parents[2] / "contrib" / "sample"


@pytest.fixture(scope="module")
def pool() -> tuple[Row, ...]:
    return parse_rows((SAMPLE / "pool.jsonl").read_bytes(), name="pool.jsonl", limits=EVAL_SET_LIMITS)


@pytest.fixture(scope="module")
def miners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Row, ...]]:
    """Return the rows that the script writes for each miner."""
    out = tmp_path_factory.mktemp("miners")
    _make_miners(out)
    files = sorted(out.glob("*/data.jsonl"))
    return {file.parent.name: parse_rows(file.read_bytes(), name=str(file), limits=SUBMISSION_LIMITS) for file in files}


def _make_miners(out: Path, **environment: str) -> None:
    command = [sys.executable, str(SAMPLE / "make_miners.py"), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})


def _keys(rows: tuple[Row, ...]) -> tuple[bytes, ...]:
    return tuple(row.key for row in rows)


def test_pool_is_large_and_repeats_neither_row_nor_answer(pool: tuple[Row, ...]) -> None:
    answers = [message.content for row in pool for message in row.messages if message.role == "assistant"]
    assert len(pool) >= 150
    assert len(set(_keys(pool))) == len(pool)
    assert len(set(answers)) == len(answers)


def test_pool_rows_are_short_and_end_with_an_answer(pool: tuple[Row, ...]) -> None:
    for row in pool:
        assert row.messages[-1].role == "assistant"
        assert sum(len(message.content) for message in row.messages) < 600


def test_the_sample_pool_has_varied_rows(pool: tuple[Row, ...]) -> None:
    assert sum(len(row.messages) > 2 for row in pool) >= 20
    assert sum(row.system is None for row in pool) >= 15
    assert sum(not message.content.isascii() for row in pool for message in row.messages) >= 15
    assert len({row.system for row in pool}) >= 8


def test_every_miner_but_the_outsider_takes_rows_from_the_pool(
    pool: tuple[Row, ...], miners: dict[str, tuple[Row, ...]]
) -> None:
    pool_keys = frozenset(_keys(pool))
    for miner in ("varied", "narrow", "copy"):
        check_membership(miners[miner], pool_keys, max_rows=250)
    with pytest.raises(SubmissionError) as caught:
        check_membership(miners["outsider"], pool_keys, max_rows=250)
    assert caught.value.reason is Reason.NOT_IN_POOL


def test_only_the_copy_is_a_duplicate(miners: dict[str, tuple[Row, ...]]) -> None:
    candidates = [
        Candidate(hotkey=miner, commit="0" * 40, block=block, row_keys=_keys(miners[miner]))
        for block, miner in enumerate(("varied", "narrow", "outsider", "copy"), start=1)
    ]
    duplicates = match_duplicates(candidates)
    assert set(duplicates) == {("copy", "0" * 40)}
    assert DEFAULT_DUPLICATE_COUNT < duplicates["copy", "0" * 40].shared < len(miners["varied"])


def test_varied_meets_every_character_and_narrow_one(pool: tuple[Row, ...], miners: dict[str, tuple[Row, ...]]) -> None:
    assert {row.system for row in miners["varied"]} == {row.system for row in pool}
    assert len({row.system for row in miners["narrow"]}) == 1
    assert len(miners["narrow"]) * 4 < len(miners["varied"])


def test_miners_are_the_same_files_every_time(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "2")):
        _make_miners(tmp_path / name, PYTHONHASHSEED=seed)
    for file in (tmp_path / "a").glob("*/data.jsonl"):
        assert file.read_bytes() == (tmp_path / "b" / file.parent.name / "data.jsonl").read_bytes()


def test_competition_lacks_the_evaluation_commit_alone() -> None:
    values = yaml.safe_load((SAMPLE / "competition.yaml").read_text(encoding="utf-8"))
    assert "eval_commit" not in values
    competition = Competition.from_mapping({**values, "eval_commit": "0" * 40}, "competition.yaml")
    assert competition.repo == "sample/conversations"


def test_the_sample_uses_the_subnets_hyperparameters() -> None:
    sample, subnet = load_training_args(SAMPLE / "training_args.yaml"), load_training_args()
    assert sample.model_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert sample.hyperparameters == subnet.hyperparameters


def test_rows_are_written_as_themselves() -> None:
    for name in ("pool.jsonl", "outsider.jsonl"):
        text = (SAMPLE / name).read_text(encoding="utf-8")
        assert "\\u" not in text
        assert all(json.dumps(json.loads(line), ensure_ascii=False) == line for line in text.splitlines())
