"""What an operator's dashboard shows of a validator, as plain numbers and rows. Pure."""

from collections import Counter
from statistics import median

from template.records import LeaderboardRow, Metrics, RoundReport

# Which metric is the axis of those whose names match.
STEP_METRICS = {"live/*": "live/block", "round/*": "round/start_block"}

TABLE_COLUMNS = ("hotkey", "uid", "repo", "verdict", "loss", "score", "weight", "seconds")

_RANKS = (1, 2, 5, 10)


def live_metrics(metrics: Metrics) -> dict[str, float]:
    """The running charts: what the gauges say, unknown ones left out. Lag in seconds, memory in GiB."""
    values: dict[str, float] = {
        "live/block": metrics.block,
        "live/chain_lag_seconds": metrics.now - metrics.block_time,
        "live/queue": metrics.queue,
        "live/unscored": metrics.unscored,
        "live/running": len(metrics.running),
    }
    if metrics.weights_set_block is not None:
        values["live/blocks_since_weights"] = metrics.block - metrics.weights_set_block
    if metrics.tokens_per_s is not None:
        values["live/training_tokens_per_second"] = metrics.tokens_per_s
    for running in metrics.running:
        if running.memory_bytes is not None:
            values[f"live/memory_gib/{running.device}"] = running.memory_bytes / 2**30
    return values


def round_metrics(report: RoundReport) -> dict[str, float]:
    """The charts of a round: losses by rank, 1 the lowest, counts by verdict, and what became of the weights."""
    losses = sorted(standing.loss for standing in report.leaderboard if standing.loss is not None)
    metrics: dict[str, float] = {
        "round/start_block": report.round.start_block,
        "round/id": report.round.id,
        "round/scored_now": len(report.seconds),
    }
    for verdict, count in Counter(map(verdict_name, report.leaderboard)).items():
        metrics[f"round/verdicts/{verdict}"] = count
    for rank in _RANKS:
        if rank <= len(losses):
            metrics[f"round/loss/rank_{rank}"] = losses[rank - 1]
    if losses:
        metrics["round/loss/median"] = median(losses)
    for outcome in (intent.outcome for intent in report.intents):
        name = "unknown" if outcome is None else "accepted" if outcome.is_accepted else "refused"
        metrics[f"round/weights/{name}"] = metrics.get(f"round/weights/{name}", 0) + 1
    return metrics


def table_rows(report: RoundReport) -> list[list[str | float | None]]:
    """The round's table, cells as in `TABLE_COLUMNS`; seconds only for those scored in this round."""
    return [
        [
            standing.key.hotkey,
            standing.uid,
            standing.key.commitment.split(":")[0],
            verdict_name(standing),
            standing.loss,
            standing.score,
            standing.weight,
            report.seconds.get(standing.key.hotkey),
        ]
        for standing in report.leaderboard
    ]


def verdict_name(standing: LeaderboardRow) -> str:
    """The reason's code for a refusal, else `scored` or `waiting`."""
    if standing.reason is not None:
        return standing.reason.value
    return "waiting" if standing.loss is None else "scored"
