"""The chain's consensus: a minority cannot raise a weight."""

import pytest

from tests.campaigns.game.consensus import Vote, find_incentives


def test_incentives_of_one_vote_are_its_weights() -> None:
    weights = {"a": 0.25, "b": 0.75}
    assert find_incentives([Vote(stake=1.0, weights=weights)]) == weights


def test_minority_cannot_pay_a_hotkey_without_weight() -> None:
    votes = [Vote(stake=0.6, weights={"a": 0.25, "b": 0.75}), Vote(stake=0.4, weights={"friend": 1.0})]
    assert find_incentives(votes) == {"a": 0.25, "b": 0.75}


def test_minority_raises_a_share_by_what_it_denies_others() -> None:
    votes = [Vote(stake=0.6, weights={"friend": 0.2, "b": 0.8}), Vote(stake=0.4, weights={"friend": 1.0})]
    # The friend's weight is clipped to 0.2 of all stake, and the others keep 0.8 of 60% of it.
    assert find_incentives(votes)["friend"] == pytest.approx(0.2 / (0.2 + 0.6 * 0.8))


def test_majority_decides_every_weight() -> None:
    votes = [Vote(stake=0.4, weights={"a": 0.2, "b": 0.8}), Vote(stake=0.6, weights={"friend": 1.0})]
    assert find_incentives(votes) == {"friend": 1.0}
