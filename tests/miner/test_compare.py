"""Paired comparison: quantiles from printed tables, findings on made-up series."""

import math
import statistics

import pytest

from template.miner.compare import Finding, compare_paired, t_quantile

# Two-sided, from the table of Student's distribution that every statistics book prints.
TABLE = [
    *((1, 0.95, 12.706), (2, 0.95, 4.303), (4, 0.95, 2.776), (9, 0.95, 2.262), (30, 0.95, 2.042), (120, 0.95, 1.980)),
    *((1, 0.99, 63.657), (7, 0.99, 3.499), (3, 0.50, 0.765)),
]


@pytest.mark.parametrize(("freedom", "confidence", "expected"), TABLE)
def test_t_quantile_matches_the_printed_tables(freedom: int, confidence: float, expected: float) -> None:
    assert t_quantile(freedom, confidence) == pytest.approx(expected, abs=6e-4)


def test_mean_error_and_interval_match_the_textbook() -> None:
    a, b = [2.60, 2.62, 2.61, 2.63, 2.59], [2.58, 2.61, 2.58, 2.60, 2.58]
    differences = [-0.02, -0.01, -0.03, -0.03, -0.01]
    comparison = compare_paired(a, b)
    assert comparison.differences == pytest.approx(differences)
    assert comparison.mean == pytest.approx(-0.02)
    assert comparison.standard_error == pytest.approx(0.01 / math.sqrt(5))
    margin = 2.776 * 0.01 / 5**0.5
    assert comparison.interval == pytest.approx((-0.02 - margin, -0.02 + margin), abs=1e-5)
    assert (comparison.finding, comparison.seeds_needed) == (Finding.B_IS_BETTER, None)


def test_spread_between_seeds_hides_no_difference() -> None:
    a = [2.0, 3.0, 1.0, 2.5]
    assert compare_paired(a, [loss + 0.01 * (1 + loss / 100) for loss in a]).finding is Finding.A_IS_BETTER


def test_equal_losses_are_identical() -> None:
    same = compare_paired([2.0, 2.5], [2.0, 2.5])
    assert (same.finding, same.interval, same.seeds_needed) == (Finding.IDENTICAL, (0.0, 0.0), None)
    assert compare_paired([2.0, 2.5], [2.25, 2.75]).finding is Finding.A_IS_BETTER


def test_seeds_needed_is_the_first_count_that_decides() -> None:
    comparison = compare_paired([0.0] * 5, [0.3, -0.1, 0.2, -0.2, 0.3])
    assert comparison.finding is Finding.UNDECIDED and comparison.interval[0] < 0 < comparison.interval[1]
    assert comparison.seeds_needed is not None and comparison.seeds_needed > 5
    spread = statistics.stdev(comparison.differences)

    def margin(seeds: int) -> float:
        return t_quantile(seeds - 1) * spread / math.sqrt(seeds)

    assert margin(comparison.seeds_needed) < abs(comparison.mean) <= margin(comparison.seeds_needed - 1)


def test_seeds_needed_is_none_beyond_the_maximum() -> None:
    assert compare_paired([0.0, 0.0], [1.0, -1.0]).seeds_needed is None
    tiny = compare_paired([0.0] * 4, [1.0, -1.0, 1.0, -0.9])
    assert tiny.finding is Finding.UNDECIDED and tiny.seeds_needed is None


def test_comparison_needs_two_pairs() -> None:
    with pytest.raises(ValueError, match="two pairs"):
        compare_paired([2.0], [2.1])
    with pytest.raises(ValueError, match="shorter"):
        compare_paired([2.0, 2.1], [2.1])
