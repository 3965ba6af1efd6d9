"""Metrics and table rows of a validator, as wandb shows them. Pure."""

from collections import Counter
from statistics import median

from template.records import Metrics, RoundReport
from template.terminal import describe_verdict

STEP_METRICS = {"live/*": "live/block", "round/*": "round/start_block"}
"""The x-axis of the metrics that match a pattern."""
TABLE_COLUMNS = (
    *("hotkey", "uid", "repo", "verdict", "runs", "mean", "spread", "loss", "score", "credit", "weight", "seconds"),
)

_RANKS = (1, 2, 5, 10)


def live_metrics(metrics: Metrics) -> dict[str, float]:
    """Return the running charts without unknown values: lag in seconds, memory in GiB."""
    values: dict[str, float] = {
        "live/block": metrics.block,
        "live/chain_lag_seconds": metrics.now - metrics.block_time,
        "live/queue": metrics.queue,
        "live/unscored": metrics.unscored,
        "live/running": len(metrics.running),
    }
    if metrics.weights_set_block is not None:
        values["live/blocks_since_weights"] = metrics.block - metrics.weights_set_block
    if metrics.burned is not None:
        values["live/weights_burned"] = metrics.burned
    if metrics.tokens_per_s is not None:
        values["live/training_tokens_per_second"] = metrics.tokens_per_s
    for running in metrics.running:
        if running.memory_bytes is not None:
            values[f"live/memory_gib/{running.device}"] = running.memory_bytes / 2**30
    return values


def round_metrics(report: RoundReport) -> dict[str, float]:
    """Return a round's charts: losses by rank, verdicts, the ledger, weight outcomes."""
    losses = sorted(row.loss for row in report.leaderboard if row.loss is not None)
    metrics: dict[str, float] = {
        "round/start_block": report.round.start_block,
        "round/id": report.round.id,
        "round/scored_now": len(report.seconds),
    }
    for verdict, count in Counter(describe_verdict(row, report.ledger) for row in report.leaderboard).items():
        metrics[f"round/verdicts/{verdict}"] = count
    for rank in _RANKS:
        if rank <= len(losses):
            metrics[f"round/loss/rank_{rank}"] = losses[rank - 1]
    if losses:
        metrics["round/loss/median"] = median(losses)
    if records := [line.loss for line in report.ledger if line.credit > 0.0]:
        metrics["round/ledger/record_loss"] = min(records)
    if report.ledger:
        metrics["round/ledger/confirmed"] = len(report.ledger)
        metrics["round/ledger/records"] = len(records)
    for outcome in (intent.outcome for intent in report.intents):
        name = "unknown" if outcome is None else "accepted" if outcome.is_accepted else "refused"
        metrics[f"round/weights/{name}"] = metrics.get(f"round/weights/{name}", 0) + 1
    return metrics


def table_rows(report: RoundReport) -> list[list[str | float | None]]:
    """Return the leaderboard by `TABLE_COLUMNS`; seconds are of this round only."""
    return [
        [
            row.key.hotkey,
            row.uid,
            row.key.commitment.split(":")[0],
            describe_verdict(row, report.ledger),
            row.runs,
            row.mean,
            row.spread,
            row.loss,
            row.score,
            row.credit,
            row.weight,
            report.seconds.get(row.key.hotkey),
        ]
        for row in report.leaderboard
    ]
