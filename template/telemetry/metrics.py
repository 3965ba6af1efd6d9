"""Metrics and table rows of a validator, as wandb shows them. Pure."""

from collections import Counter
from statistics import median

from template.records import Metrics, RoundReport, SubmissionKey
from template.terminal import describe_verdict

STEP_METRICS = {"live/*": "live/block", "round/*": "round/start_block", "miner/*": "round/start_block"}
"""The x-axis of the metrics that match a pattern."""

Cell = str | float | None

LEADERBOARD_COLUMNS = (
    *("hotkey", "uid", "repo", "commit", "verdict", "why", "runs"),
    *("mean", "spread", "loss", "score", "credit", "weight", "seconds"),
)
EVALUATION_COLUMNS = ("hotkey", "repo", "commit", "number", "seed", "seed_block", "loss", "seconds", "receipt")

# Best datasets of a round that have a chart of their own.
_MINERS = 10
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
        "round/scored_now": len(report.results),
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


def miner_metrics(report: RoundReport) -> dict[str, float]:
    """Return loss and weight of the best miners, a chart for each."""
    evaluated = [row for row in report.leaderboard if row.loss is not None and row.reason is None]
    metrics: dict[str, float] = {}
    for row in evaluated[:_MINERS]:
        assert row.loss is not None
        metrics |= {f"miner/{row.hotkey[:8]}/loss": row.loss, f"miner/{row.hotkey[:8]}/weight": row.weight}
    return metrics


def leaderboard_rows(report: RoundReport) -> list[list[Cell]]:
    """Return the leaderboard by `LEADERBOARD_COLUMNS`; seconds are of this round only."""
    seconds: dict[str, float] = {}
    for run, result in report.results.items():
        seconds[run.key.hotkey] = seconds.get(run.key.hotkey, 0.0) + result.seconds
    return [
        [
            row.key.hotkey,
            row.uid,
            *_repo_and_commit(row.key),
            describe_verdict(row, report.ledger),
            row.message,
            row.runs,
            row.mean,
            row.spread,
            row.loss,
            row.score,
            row.credit,
            row.weight,
            seconds.get(row.key.hotkey),
        ]
        for row in report.leaderboard
    ]


def evaluation_rows(report: RoundReport) -> list[list[Cell]]:
    """Return the round's evaluations by `EVALUATION_COLUMNS`; one that is not done has no loss."""
    return [
        [
            run.key.hotkey,
            *_repo_and_commit(run.key),
            run.number,
            run.lucky_num,
            run.seed_block,
            *((result.loss, result.seconds, result.receipt_digest) if result else (None, None, None)),
        ]
        for run in report.round.evaluations or ()
        for result in (report.results.get(run),)
    ]


def _repo_and_commit(key: SubmissionKey) -> tuple[str, str]:
    repo, _, rest = key.commitment.partition(":")
    return repo, rest.rpartition(":")[2]
