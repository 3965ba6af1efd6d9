"""Scores of losses and weights of scores."""

import dataclasses
import itertools
import math
import random

import pytest

from template.competition import Competition
from template.constants import MIN_WEIGHT
from template.errors import ConfigError
from template.rules.scoring import compute_score, score_of, weights_from_scores

BENCH, MINB, MAXB, HEIGHT = 2.60, 2.40, 2.80, 0.05


def score(loss: float | None, power: float = 2, height: float = HEIGHT, ids: tuple[str, str] = ("1", "1")) -> float:
    return compute_score(loss, BENCH, MINB, MAXB, power, height, *ids)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (0.0, 1.0),
        (2.3999, 1.0),
        (2.40, 1.0),
        (2.45, 0.95 * 0.75**2 + 0.05),
        (2.50, 0.95 * 0.25 + 0.05),
        (2.60, 0.05),
        (2.70, 0.05 - 0.05 * 0.25),
        (2.80, 0.0),
        (2.8001, 0.0),
        (1e300, 0.0),
    ],
)
def test_the_score_follows_the_curve(loss: float, expected: float) -> None:
    assert score(loss) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("changed", [{"bench": 2.62}, {"minb": 2.3}, {"maxb": 2.9}, {"pow": 3.0}, {"bheight": 0.1}])
def test_every_parameter_of_a_competition_moves_its_scores(changed: dict[str, float]) -> None:
    plain = dataclasses.replace(Competition.from_defaults(), bench=BENCH, minb=MINB, maxb=MAXB, pow=2.0, bheight=HEIGHT)
    other = dataclasses.replace(plain, **changed)  # type: ignore[arg-type]
    assert [score_of(loss, plain) for loss in (2.5, 2.7)] != [score_of(loss, other) for loss in (2.5, 2.7)]


@pytest.mark.parametrize("joint", [MINB, BENCH, MAXB])
@pytest.mark.parametrize("power", [0.5, 1, 2, 3, 2.5])
def test_curve_is_continuous_at_its_joints(joint: float, power: float) -> None:
    before, after = math.nextafter(joint, 0.0), math.nextafter(joint, 9.0)
    assert score(before, power) == pytest.approx(score(joint, power), abs=1e-6)
    assert score(after, power) == pytest.approx(score(joint, power), abs=1e-6)


@pytest.mark.parametrize("height", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("power", [0.5, 1, 2, 3, 2.5])
def test_higher_loss_never_scores_more(power: float, height: float) -> None:
    scores = [score(2.3 + i / 5000, power, height) for i in range(3001)]
    assert all(earlier >= later for earlier, later in itertools.pairwise(scores))
    assert all(0.0 <= value <= 1.0 and isinstance(value, float) for value in scores)


@pytest.mark.parametrize("loss", [None, math.nan, math.inf, -math.inf])
def test_missing_or_non_finite_loss_scores_0(loss: float | None) -> None:
    assert score(loss) == 0.0


@pytest.mark.parametrize("ids", [("2", "1"), ("", "1"), ("01", "1")])
def test_loss_of_another_competition_scores_0(ids: tuple[str, str]) -> None:
    assert score(1.0, ids=ids) == 0.0


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("minb", {"min_bench": 2.6}),
        ("minb", {"min_bench": 2.7}),
        ("minb", {"min_bench": math.nan}),
        ("minb", {"min_bench": -math.inf}),
        ("maxb", {"max_bench": 2.6}),
        ("maxb", {"max_bench": math.inf}),
        ("bench", {"benchmark_loss": math.nan}),
        ("bheight", {"bench_height": -0.01}),
        ("bheight", {"bench_height": 1.01}),
        ("bheight", {"bench_height": math.nan}),
        ("pow", {"power": 0}),
        ("pow", {"power": -2}),
        ("pow", {"power": math.nan}),
        ("pow", {"power": math.inf}),
    ],
)
@pytest.mark.parametrize("loss", [2.5, None])
def test_invalid_curve_raises_config_error(loss: float | None, named: str, change: dict[str, float]) -> None:
    curve = {"benchmark_loss": BENCH, "min_bench": MINB, "max_bench": MAXB, "power": 2.0, "bench_height": HEIGHT}
    with pytest.raises(ConfigError, match=named):
        compute_score(loss, **{**curve, **change}, miner_comp_id="1", real_comp_id="1")


UIDS = {"a": 0, "b": 1, "c": 7}


def test_weights_are_the_shares_of_scores() -> None:
    assert weights_from_scores({"a": 0.1, "b": 0.3, "c": 0.4}, UIDS, 5) == pytest.approx({0: 0.125, 1: 0.375, 7: 0.5})
    assert weights_from_scores({"gone": 1.0, "b": 0.01}, UIDS, 5) == {1: 1.0}


def test_share_below_the_least_weight_goes_to_others() -> None:
    weights = weights_from_scores({"a": 1.0, "b": 1.1 * MIN_WEIGHT}, UIDS, 5)
    assert weights is not None
    assert set(weights) == {0, 1}
    assert weights_from_scores({"a": 1.0, "b": 0.9 * MIN_WEIGHT}, UIDS, 5) == {0: 1.0}
    assert weights_from_scores({"a": 1e-9, "b": 3e-9}, UIDS, 5) == pytest.approx({0: 0.25, 1: 0.75}), "not a score"


@pytest.mark.parametrize("scores", [{}, {"a": 0.0, "b": 0.0}, {"gone": 1.0}])
def test_without_scores_the_owner_gets_all(scores: dict[str, float]) -> None:
    assert weights_from_scores(scores, UIDS, 5) == {5: 1.0}
    assert weights_from_scores(scores, UIDS, 0) == {0: 1.0}
    assert weights_from_scores(scores, UIDS, None) is None
    assert weights_from_scores({**scores, "a": 0.5}, UIDS, None) == {0: 1.0}


@pytest.mark.parametrize("bad", [-0.1, 1.5, math.nan, math.inf])
def test_score_outside_0_to_1_raises(bad: float) -> None:
    with pytest.raises(ValueError, match="score of b"):
        weights_from_scores({"a": 0.5, "b": bad}, UIDS, 5)


def test_weights_sum_to_1_in_any_order() -> None:
    rng = random.Random(3)
    uids = {f"h{i}": i for i in range(256)}
    items = [(hotkey, rng.random() ** 8) for hotkey in uids]
    first = weights_from_scores(dict(items), uids, None)
    assert first is not None
    assert math.fsum(first.values()) == pytest.approx(1.0, abs=1e-12)
    assert min(first.values()) >= MIN_WEIGHT
    for _ in range(5):
        rng.shuffle(items)
        again = weights_from_scores(dict(items), uids, None)
        assert again is not None
        assert list(again.items()) == list(first.items())
