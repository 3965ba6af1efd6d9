"""Values of a competition from measured losses."""

import random
from dataclasses import replace

import pytest

from template.competition import Competition, Incentives
from template.rules.calibration import measure_spread, propose_values

SETTINGS = {"evaluations": 48, "blocks_per_epoch": 360, "seconds": 100.0}


def draw_losses(datasets: int, runs: int, *, seed_sd: float, sample_sd: float) -> list[list[float]]:
    draw = random.Random(3)
    means = [draw.gauss(2.6, sample_sd) for _ in range(datasets)]
    return [[draw.gauss(mean, seed_sd) for _ in range(runs)] for mean in means]


@pytest.mark.parametrize(("seed_sd", "sample_sd"), [(0.01, 0.03), (0.02, 0.004)])
def test_spread_separates_seeds_from_rows(seed_sd: float, sample_sd: float) -> None:
    spread = measure_spread(draw_losses(400, 12, seed_sd=seed_sd, sample_sd=sample_sd))
    assert spread.seed_sd == pytest.approx(seed_sd, rel=0.05)
    assert spread.sample_sd == pytest.approx(sample_sd, rel=0.15)
    assert spread.mean == pytest.approx(2.6, abs=0.005)


def test_spread_of_rows_is_zero_where_seeds_explain_it() -> None:
    # The means differ by less than the seeds do.
    assert measure_spread([[2.5, 2.7], [2.51, 2.71]]).sample_sd == 0.0


def test_error_of_the_spread_falls_with_the_runs() -> None:
    few, many = (measure_spread(draw_losses(5, runs, seed_sd=0.01, sample_sd=0.0)) for runs in (4, 16))
    assert few.seed_error == pytest.approx(0.18, abs=0.005) and many.seed_error == pytest.approx(0.08, abs=0.005)


def test_values_of_this_subnet_follow_from_its_noise() -> None:
    spread = measure_spread([[2.59, 2.604142], [2.61, 2.595858]])
    proposal = propose_values(spread, [], **SETTINGS)
    own = Incentives()
    assert (proposal.sd, proposal.epsilon) == (own.sd, own.epsilon)
    assert (proposal.evaluations, proposal.hold) == (own.evaluations, own.hold)
    assert (proposal.minb, proposal.bench, proposal.maxb) == (2.4, 2.6, 2.8) and proposal.is_assumed


def test_bench_pays_nobody_for_the_best_of_random_rows() -> None:
    losses = draw_losses(40, 12, seed_sd=0.001, sample_sd=0.02)
    proposal = propose_values(measure_spread(losses), [], **SETTINGS)
    means = [sum(runs) / len(runs) for runs in losses]
    assert sum(mean < proposal.bench for mean in means) <= 0.05 * len(means)


def test_good_dataset_sets_the_curve() -> None:
    spread = measure_spread([[2.59, 2.61], [2.61, 2.59]])
    proposal = propose_values(spread, [[2.52, 2.53], [2.49, 2.51]], **SETTINGS)
    assert (proposal.minb, proposal.bench, proposal.maxb) == (2.4, 2.6, 2.8) and not proposal.is_assumed


def test_good_dataset_that_is_no_better_is_not_used() -> None:
    spread = measure_spread([[2.59, 2.61], [2.61, 2.59]])
    assert propose_values(spread, [[2.6, 2.61]], **SETTINGS).is_assumed


def test_larger_spread_of_a_good_dataset_counts() -> None:
    spread = measure_spread([[2.599, 2.601], [2.601, 2.599]])
    assert propose_values(spread, [[2.3, 2.5]], **SETTINGS).sd == pytest.approx(0.15)


@pytest.mark.parametrize(("seconds", "slots"), [(100.0, 34), (5000.0, 0), (3456.0, 1)])
def test_slots_are_what_fits_into_most_of_a_round(seconds: float, slots: int) -> None:
    spread = measure_spread([[2.59, 2.61], [2.61, 2.59]])
    assert propose_values(spread, [], evaluations=48, blocks_per_epoch=360, seconds=seconds).slots == slots


def test_proposal_is_a_valid_competition() -> None:
    proposal = propose_values(measure_spread(draw_losses(5, 4, seed_sd=0.0123, sample_sd=0.01)), [], **SETTINGS)
    curve = {name: getattr(proposal, name) for name in ("bench", "minb", "maxb")}
    assert replace(Competition.from_defaults(), **curve)
    rules = {name: getattr(proposal, name) for name in ("epsilon", "sd", "evaluations", "hold", "slots")}
    assert Incentives(**rules).sd >= 0.0123 * 0.6
