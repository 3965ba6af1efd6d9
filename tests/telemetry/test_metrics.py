"""Metrics and table rows for wandb."""

import pytest

from template.errors import Reason
from template.records import (
    EvaluationResult,
    LeaderboardRow,
    LedgerLine,
    Metrics,
    RoundEvaluation,
    RoundReport,
    RunningEvaluation,
    SubmissionKey,
)
from template.telemetry.metrics import evaluation_rows, leaderboard_rows, live_metrics, miner_metrics, round_metrics
from tests.fixtures.status import EVALUATIONS, REFUSED, TAKEN, make_round
from tests.fixtures.views import make_intent

RESULT = EvaluationResult(loss=1.25, seconds=3.5, receipt="{}", receipt_digest="ef" * 32)


def run(hotkey: str, number: int = 1) -> RoundEvaluation:
    key = SubmissionKey(hotkey, "owner/repo:1:2")
    return RoundEvaluation(key=key, digest="ab", number=number, lucky_num=1, seed_block=None)


def make_row(uid: int, *, loss: float | None = None, reason: Reason | None = None, repo: str = "") -> LeaderboardRow:
    key = SubmissionKey(f"hotkey{uid}", f"owner/{repo or f'repo{uid}'}:1:{'0' * 40}")
    message = "a sentence" if reason else ""
    return LeaderboardRow(
        key=key, uid=uid, reason=reason, message=message, loss=loss, score=0.5, weight=0.25, digest=f"digest{uid}",
        mean=loss, spread=None if loss is None else 0.125, runs=0 if loss is None else 3, credit=0.75,
    )  # fmt: skip


def make_line(uid: int, *, loss: float, credit: float) -> LedgerLine:
    return LedgerLine(
        hotkey=f"hotkey{uid}", digest=f"digest{uid}", rank_block=1, commit_block=1, registration_block=0, runs=3,
        mean=loss, spread=0.125, loss=loss, frontier=20.0, credit=credit,
    )  # fmt: skip


def make_report(leaderboard: list[LeaderboardRow], number: int = 7, **fields: object) -> RoundReport:
    values = {"ledger": (), "intents": (), "results": {}, **fields}
    return RoundReport(round=make_round(number), leaderboard=tuple(leaderboard), **values)  # type: ignore[arg-type]


def make_metrics(**fields: object) -> Metrics:
    values = {"now": 112.0, "block": 500, "block_time": 100.0, "doing": "", "round_id": 1, "queue": 4, "unscored": 9}
    return Metrics(**{**values, **fields})  # type: ignore[arg-type]


def test_round_metrics_losses_by_rank_and_verdict_counts() -> None:
    rows = [make_row(uid, loss=float(10 - uid)) for uid in range(6)]
    metrics = round_metrics(make_report([*rows, make_row(6), make_row(7, reason=Reason.DUPLICATE)]))
    assert metrics == {
        "round/id": 7,
        "round/start_block": 100,
        "round/scored_now": 0,
        "round/loss/rank_1": 5.0,
        "round/loss/rank_2": 6.0,
        "round/loss/rank_5": 9.0,
        "round/loss/median": 7.5,
        "round/verdicts/in_progress": 6,
        "round/verdicts/waiting": 1,
        "round/verdicts/duplicate": 1,
    }


def test_round_metrics_empty_round_has_no_losses() -> None:
    assert round_metrics(make_report([])) == {"round/start_block": 100, "round/id": 7, "round/scored_now": 0}
    assert leaderboard_rows(make_report([])) == []


def test_round_metrics_count_the_ledger_and_its_best_loss() -> None:
    ledger = (make_line(0, loss=10.0, credit=0.3), make_line(1, loss=9.0, credit=0.1), make_line(2, loss=8.9, credit=0))
    metrics = round_metrics(make_report([make_row(uid, loss=10.0 - uid) for uid in range(4)], ledger=ledger))
    assert {name: value for name, value in metrics.items() if "ledger" in name or "verdicts" in name} == {
        "round/ledger/confirmed": 3,
        "round/ledger/records": 2,
        "round/ledger/record_loss": 9.0,
        "round/verdicts/record": 2,
        "round/verdicts/confirmed": 1,
        "round/verdicts/in_progress": 1,
    }


def test_round_metrics_count_weights_by_outcome() -> None:
    intents = tuple(make_intent(1, 1, outcome) for outcome in (None, TAKEN, REFUSED, TAKEN))
    metrics = round_metrics(make_report([], intents=intents))
    weights = {name: value for name, value in metrics.items() if "/weights/" in name}
    assert weights == {"round/weights/unknown": 1, "round/weights/accepted": 2, "round/weights/refused": 1}


def test_leaderboard_rows_include_uid_zero_and_loss_zero() -> None:
    leaderboard = [make_row(0, loss=0.0), make_row(1, reason=Reason.MALFORMED), make_row(2)]
    rows = leaderboard_rows(make_report(leaderboard, results={run("hotkey0"): RESULT, run("hotkey0", 2): RESULT}))
    assert rows[0] == [
        *("hotkey0", 0, "owner/repo0", "0" * 40, "in_progress", "", 3, 0.0, 0.125, 0.0, 0.5, 0.75, 0.25, 7.0),
    ]
    assert [row[4:7] + row[-1:] for row in rows[1:]] == [
        ["malformed", "a sentence", 0, None],
        ["waiting", "", 0, None],
    ]


def test_evaluation_rows_have_commit_seed_and_receipt() -> None:
    done, *open_ones = EVALUATIONS
    repo, _, commit = done.key.commitment.split(":")
    rows = evaluation_rows(make_report([], results={done: RESULT}))
    assert rows[0] == [done.key.hotkey, repo, commit, 1, 11, None, 1.25, 3.5, "ef" * 32]
    assert [row[3:] for row in rows[1:]] == [[run.number, 11, None, None, None, None] for run in open_ones]


def test_miner_metrics_are_a_series_for_each_of_the_best_ten() -> None:
    rows = [make_row(uid, loss=5.0 + uid) for uid in range(12)]
    metrics = miner_metrics(make_report([make_row(20, loss=4.0, reason=Reason.DUPLICATE), make_row(21), *rows]))
    assert len(metrics) == 20
    assert metrics["miner/hotkey3/loss"] == 8.0 and metrics["miner/hotkey3/weight"] == 0.25
    assert not {"miner/hotkey20/loss", "miner/hotkey21/loss", "miner/hotkey10/loss"} & metrics.keys()


def test_live_metrics_show_lag_queue_memory_and_speed() -> None:
    running = RunningEvaluation(key=SubmissionKey("h", "e"), device="cuda:1", started_at=0.0, memory_bytes=3 * 2**30)
    other = RunningEvaluation(key=SubmissionKey("h", "e"), device="cpu", started_at=0.0)
    basic = {"live/block": 500, "live/chain_lag_seconds": 12.0, "live/queue": 4, "live/unscored": 9}
    assert live_metrics(make_metrics()) == {**basic, "live/running": 0}
    assert live_metrics(make_metrics(running=(running, other), weights_set_block=380, tokens_per_s=1234.5)) == {
        **basic,
        "live/running": 2,
        "live/blocks_since_weights": 120,
        "live/training_tokens_per_second": 1234.5,
        "live/memory_gib/cuda:1": 3.0,
    }


@pytest.mark.parametrize(("burned", "shown"), [(None, {}), (0.25, {"live/weights_burned": 0.25})])
def test_live_metrics_name_the_burned_share(burned: float | None, shown: dict[str, float]) -> None:
    values = live_metrics(make_metrics(burned=burned))
    assert {name: value for name, value in values.items() if "burn" in name} == shown
