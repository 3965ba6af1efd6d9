"""Incentives of miners from the weights of validators, as on chain.

The chain clips each weight at the largest one that validators with more than half of the stake give at least (Yuma
consensus with kappa 0.5), and sums the clipped weights by stake.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

KAPPA = 0.5


@dataclass(frozen=True, kw_only=True)
class Vote:
    """The weights of validators that agree. stake: their part of all stake."""

    stake: float
    weights: Mapping[str, float]


def find_incentives(votes: Sequence[Vote]) -> dict[str, float]:
    """Return each hotkey's part of the emission for miners."""
    ranks = {}
    for hotkey in {hotkey: None for vote in votes for hotkey in vote.weights}:
        clip = _weighted_median([(vote.weights.get(hotkey, 0.0), vote.stake) for vote in votes])
        ranks[hotkey] = math.fsum(vote.stake * min(vote.weights.get(hotkey, 0.0), clip) for vote in votes)
    total = math.fsum(ranks.values())
    return {hotkey: rank / total for hotkey, rank in ranks.items() if rank > 0.0}


def _weighted_median(weights: Sequence[tuple[float, float]]) -> float:
    """Return the lowest weight up to which the stake is more than 1 - KAPPA."""
    ordered = sorted(weights)
    stakes = itertools.accumulate(stake for _, stake in ordered)
    return next(weight for (weight, _), stake in zip(ordered, stakes, strict=True) if stake > 1.0 - KAPPA)
