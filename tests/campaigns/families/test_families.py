"""The families campaign in small: right classes, refused ones, and a planted third outcome."""

from pathlib import Path

import pytest

from tests.campaigns.families import run
from tests.campaigns.families.run import KINDS, play_kind


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_supported_class_has_parity(kind: str, tmp_path: Path) -> None:
    outcome = play_kind(kind, tmp_path)
    assert outcome.is_allowed and outcome.loaded.startswith("parity, ")


@pytest.mark.parametrize(
    ("kind", "unlisted"),
    [
        ("mistral", "parity, "),
        ("falcon", "refused: "),
        ("gpt_oss", "refused: "),
        ("dots3_note", "cannot be made tiny"),
    ],
)
def test_other_class_is_refused_by_name(kind: str, unlisted: str, tmp_path: Path) -> None:
    outcome = play_kind(kind, tmp_path)
    assert outcome.is_allowed and outcome.loaded.startswith(f"refused: config.json has model_type {kind!r}")
    assert outcome.unlisted.startswith(unlisted)


def test_every_supported_class_is_played() -> None:
    assert {"gemma", "gemma2", "gemma3_text", "llama", "qwen2", "qwen3"} <= set(KINDS)


def test_planted_difference_is_no_allowed_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_compare", lambda *_: 2e-5)
    assert not play_kind("qwen2", tmp_path).is_allowed
