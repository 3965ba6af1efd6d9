"""Timeouts: how they follow earlier results, and when a job exceeds one."""

import pytest

from template.records import Progress, TrainResult
from template.workers.timeouts import StageTimer, Throughput, WorkerTimeouts, tokens_per_s
from tests.fixtures.results import make_result

TIMEOUTS = WorkerTimeouts()


def took(train_seconds: float, eval_seconds: float) -> TrainResult:
    """Make a result of 2000 trained and 500 evaluated tokens."""
    return make_result(train_seconds=train_seconds, eval_seconds=eval_seconds)


def train(done: int, total: int = 2000) -> Progress:
    return Progress(stage="train", done=done, total=total)


def evaluate(total: int) -> Progress:
    return Progress(stage="evaluate", done=1, total=total)


def test_throughput_counts_the_tokens_of_every_epoch() -> None:
    assert Throughput().updated(took(100.0, 5.0)) == Throughput(train=0.05, evaluate=0.01)
    assert tokens_per_s(took(100.0, 5.0)) == 20.0
    assert tokens_per_s(took(0.0, 0.0)) is None


def test_throughput_slows_at_once_and_speeds_up_slowly() -> None:
    slow, fast = took(200.0, 10.0), took(100.0, 5.0)
    mixed = Throughput().updated(slow).updated(fast)
    assert mixed.train is not None and 0.05 < mixed.train < 0.1
    assert mixed.updated(slow) == Throughput().updated(slow)
    for _ in range(200):
        mixed = mixed.updated(fast)
    assert mixed.train == pytest.approx(0.05)


def test_throughput_ignores_a_result_without_tokens() -> None:
    empty = make_result(train_tokens=0, eval_tokens=0, train_seconds=100.0)
    assert Throughput(train=1.0).updated(empty) == Throughput(train=1.0)


def test_limit_is_proportional_to_tokens_with_a_minimum() -> None:
    throughput = Throughput(train=0.05, evaluate=0.01)
    assert throughput.limit_s(train(1), TIMEOUTS) == 5 * 0.05 * 2000
    assert throughput.limit_s(train(1, total=200_000), TIMEOUTS) == 5 * 0.05 * 200_000
    assert throughput.limit_s(evaluate(10_000), TIMEOUTS) == 5 * 0.01 * 10_000
    assert throughput.limit_s(train(1, total=10), TIMEOUTS) == TIMEOUTS.stage_least_s


def test_timeout_before_the_first_result_is_a_stall() -> None:
    timer = StageTimer.begin(0.0)
    assert timer.timeout_reason(Throughput(), TIMEOUTS, 900.0) is None
    assert "no progress for 901 s in stage load" in (timer.timeout_reason(Throughput(), TIMEOUTS, 901.0) or "")
    for step in range(1, 100):
        timer = timer.advanced(train(step), 800.0 * step)
        assert timer.timeout_reason(Throughput(), TIMEOUTS, 800.0 * step + 899) is None
    assert timer.timeout_reason(Throughput(), TIMEOUTS, 800.0 * 99 + 901) is not None


def test_timeout_restarts_with_each_stage_and_replay() -> None:
    throughput = Throughput(train=0.05, evaluate=0.01)
    timer = StageTimer.begin(0.0).advanced(train(1), 10.0).advanced(train(2000), 500.0)
    evaluating = timer.advanced(evaluate(2000), 505.0)
    assert evaluating.timeout_reason(throughput, TIMEOUTS, 560.0) is None
    assert evaluating.timeout_reason(throughput, TIMEOUTS, 505.0 + 101.0) is not None
    replayed = timer.advanced(train(8), 505.0)
    assert replayed.timeout_reason(throughput, TIMEOUTS, 900.0) is None
