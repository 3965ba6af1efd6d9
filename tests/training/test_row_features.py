"""Vectors of rows, and the datasets that are chosen by them."""

import json
from pathlib import Path

import pytest
import torch

from template.data.rows import SUBMISSION_LIMITS, parse_rows
from template.training import row_features
from template.training.model import ScoringModel
from template.training.packing import pack_rows
from template.training.row_features import RowFeatures, gradient_features, word_features
from tests.fixtures.training import CPU, Bench, draw, encode, make_row, make_rows


def any_row(row: int) -> bool:
    return True


@pytest.fixture(scope="module")
def model(bench: Bench) -> ScoringModel:
    model = bench.load()
    model.reset_adapter(1)
    return model


def test_matched_rows_complement_each_other() -> None:
    rows = torch.tensor([[1.0, 0.1], [1.0, 0.1], [0.1, 1.0], [-1.0, 0.0]])
    features = RowFeatures(rows, torch.tensor([1.0, 0.9]))
    assert features.rank()[:2] == [0, 1], "each is like the target, but both are the same"
    assert sorted(features.match_target(2, any_row)) == [0, 2]
    assert features.similarity([0, 2]) > features.similarity([0, 1])


def test_matched_sum_is_nearer_the_target_than_ranked() -> None:
    features = RowFeatures(draw(60, 8), draw(8, seed=2))
    matched, ranked = features.match_target(10, any_row), features.rank()[:10]
    assert len(set(matched)) == 10
    assert features.similarity(matched) > features.similarity(ranked) > features.similarity(range(10))


def test_row_that_may_not_be_added_is_left_out() -> None:
    features = RowFeatures(draw(20, 8), draw(8, seed=2))
    assert set(features.match_target(30, lambda row: row % 2 == 0)) == set(range(0, 20, 2))


def test_features_survive_their_file() -> None:
    features = RowFeatures(draw(3, 4), draw(4))
    again = RowFeatures.from_bytes(features.to_bytes())
    assert torch.equal(again.contributions, features.contributions) and torch.equal(again.target, features.target)


def test_folded_gradients_keep_the_cosines(model: ScoringModel, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tiny model has few tensors, whose errors would not cancel.
    monkeypatch.setattr(row_features, "_GRADIENT_WIDTH", 512)
    rows = encode(model, make_rows(6, seed=3))
    vectors = gradient_features(model, rows).contributions
    whole = []
    for index in range(len(rows)):
        (pack,) = pack_rows(rows, [index], 10**6, CPU)
        gradients = torch.autograd.grad(model.target_losses(pack).sum(), list(model.adapter_parameters.values()))
        whole.append([gradient.flatten() for gradient in gradients])
    scales = [torch.stack(column).square().sum().pow(0.25).clamp_min(1e-30) for column in zip(*whole, strict=True)]
    exact = torch.stack([torch.cat([g / s for g, s in zip(row, scales, strict=True)]) for row in whole])
    cosines = [torch.nn.functional.normalize(part, dim=1) for part in (exact, vectors)]
    assert torch.allclose(cosines[0] @ cosines[0].T, cosines[1] @ cosines[1].T, atol=0.08)


def test_gradients_do_not_depend_on_the_other_rows(model: ScoringModel) -> None:
    rows = encode(model, make_rows(4, seed=3))
    every, two = gradient_features(model, rows), gradient_features(model, rows[:2])
    # Only the scale of each tensor does.
    assert torch.equal(every.contributions[:2].sign(), two.contributions.sign())


def test_word_features_cover_the_topics(tmp_path: Path) -> None:
    topics = ["storm sea lamp", "bread oven flour", "court judge law"]
    rows = [make_row(f"{topic} please", topic) for topic in topics for _ in range(4)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    features = word_features(parse_rows(content, name="rows", limits=SUBMISSION_LIMITS))
    assert {row // 4 for row in features.match_target(3, any_row)} == {0, 1, 2}
