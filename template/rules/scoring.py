"""Turn a loss into a score, and scores into the weights that are set on chain."""

import math
from collections.abc import Mapping

from template.competition import Competition
from template.constants import MIN_WEIGHT
from template.errors import ConfigError


def compute_score(
    loss: float | None,
    benchmark_loss: float,
    min_bench: float,
    max_bench: float,
    power: float,
    bench_height: float,
    miner_comp_id: str,
    real_comp_id: str,
) -> float:
    """Return the score of a loss, in [0, 1]: lower losses never score less.

    1 up to `min_bench`, `bench_height` at `benchmark_loss`, 0 from `max_bench` on; between them two arcs of exponent
    `power`, which meet at `benchmark_loss`. A missing or non-finite loss scores 0, and so does one of another
    competition. Each arc's base is a quotient of two differences of one sign, so in [0, 1] for every power.

    Raises: ConfigError unless min_bench < benchmark_loss < max_bench, 0 <= bench_height <= 1 and power > 0.
    """
    _check_curve(benchmark_loss, min_bench, max_bench, power, bench_height)
    if miner_comp_id != real_comp_id or loss is None or not math.isfinite(loss):
        return 0.0
    if loss < min_bench:
        return 1.0
    if loss <= benchmark_loss:
        base = (loss - benchmark_loss) / (min_bench - benchmark_loss)
        return float((1.0 - bench_height) * base**power + bench_height)
    if loss <= max_bench:
        base = (loss - benchmark_loss) / (max_bench - benchmark_loss)
        return float(bench_height - bench_height * base**power)
    return 0.0


def _check_curve(bench: float, min_bench: float, max_bench: float, power: float, height: float) -> None:
    # A finite span also keeps both quotients defined for limits near the ends of the float range.
    if not (min_bench < bench < max_bench and math.isfinite(max_bench - min_bench)):
        raise ConfigError(f"competition must have minb < bench < maxb, not {min_bench}, {bench}, {max_bench}")
    if not 0.0 <= height <= 1.0:
        raise ConfigError(f"competition.bheight must lie in [0, 1], not {height}")
    if not (power > 0.0 and math.isfinite(power)):
        raise ConfigError(f"competition.pow must be positive and finite, not {power}")


def shares_from_scores(scores: Mapping[str, float], min_weight: float = MIN_WEIGHT) -> dict[str, float]:
    """Return positive shares by hotkey, summing to 1; empty when all scores are 0.

    A share below `min_weight` is spread over the others in proportion. The order of `scores` does not matter.
    Raises: ValueError for a score outside [0, 1].
    """
    for hotkey, score in scores.items():
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"score of {hotkey} must lie in [0, 1], not {score}")
    total = math.fsum(scores.values())
    counted = {key: scores[key] for key in sorted(scores) if scores[key] > 0.0 and scores[key] / total >= min_weight}
    total = math.fsum(counted.values())
    return {hotkey: score / total for hotkey, score in counted.items()}


def weights_from_scores(
    scores: Mapping[str, float],
    uid_by_hotkey: Mapping[str, int],
    owner_uid: int | None,
    min_weight: float = MIN_WEIGHT,
) -> dict[int, float] | None:
    """Return weights by uid, summing to 1; None when no uid is left.

    Scores of hotkeys without a uid are dropped. When no share is left, all goes to the subnet owner, which burns it.
    """
    present = {hotkey: score for hotkey, score in scores.items() if hotkey in uid_by_hotkey}
    shares = shares_from_scores(present, min_weight)
    by_uid = {uid_by_hotkey[hotkey]: share for hotkey, share in shares.items()}
    if not by_uid:
        return None if owner_uid is None else {owner_uid: 1.0}
    return dict(sorted(by_uid.items()))


def score_of(loss: float, competition: Competition) -> float:
    """Return the score of a loss in its own competition."""
    comp = competition
    return compute_score(loss, comp.bench, comp.minb, comp.maxb, comp.pow, comp.bheight, comp.id, comp.id)
