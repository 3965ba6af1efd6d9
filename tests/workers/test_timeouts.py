"""Time limits: what is learnt from scores, and when a job is given up."""

import dataclasses

import pytest

from template.competition import Competition
from template.records import Progress, TrainResult
from template.workers.timeouts import StageTimer, Throughput, WorkerTimeouts, tokens_per_s

LIMITS = WorkerTimeouts()


def make_result(train_seconds: float, eval_seconds: float, *, epochs: int = 2) -> TrainResult:
    """A score of 1000 tokens an epoch, and 500 to evaluate on."""
    return TrainResult(
        loss=2.5,
        benchmark_loss=Competition.from_defaults().bench,
        lucky_num=1,
        model_id="a/b",
        model_revision=None,
        model_digest="0" * 64,
        hyperparameters={"num_train_epochs": epochs},
        hyperparameters_digest="1" * 64,
        train_sha256="2" * 64,
        train_rows=10,
        train_tokens=1000,
        eval_sha256="3" * 64,
        eval_rows=5,
        eval_skipped_rows=0,
        eval_tokens=500,
        step_losses=(1.0,),
        environment={},
        load_seconds=0.0,
        train_seconds=train_seconds,
        eval_seconds=eval_seconds,
    )


def train(done: int, total: int = 2000) -> Progress:
    return Progress(stage="train", done=done, total=total)


def test_every_epoch_counts_in_the_seconds_per_token() -> None:
    assert Throughput().updated(make_result(100.0, 5.0)) == Throughput(train=0.05, evaluate=0.01)
    assert tokens_per_s(make_result(100.0, 5.0)) == 20.0
    assert tokens_per_s(make_result(0.0, 0.0)) is None


def test_a_slower_score_counts_at_once_and_a_faster_one_little_by_little() -> None:
    slow, fast = make_result(200.0, 10.0), make_result(100.0, 5.0)
    once = Throughput().updated(slow).updated(fast)
    assert once.train is not None and 0.05 < once.train < 0.1
    assert once.updated(slow) == Throughput().updated(slow)
    settled = once
    for _ in range(200):
        settled = settled.updated(fast)
    assert settled.train == pytest.approx(0.05)


def test_the_limit_is_in_proportion_to_the_tokens_and_never_below_the_least() -> None:
    known = Throughput().updated(make_result(100.0, 5.0))
    assert known.limit_s(train(1), LIMITS) == 5 * 0.05 * 2000
    assert known.limit_s(train(1, total=200_000), LIMITS) == 5 * 0.05 * 200_000
    assert known.limit_s(Progress(stage="evaluate", done=1, total=10_000), LIMITS) == 5 * 0.01 * 10_000
    assert known.limit_s(train(1, total=10), LIMITS) == LIMITS.stage_least_s


def test_without_a_known_speed_only_a_stall_ends_a_job() -> None:
    phase = StageTimer.begin(0.0)
    assert phase.timeout_reason(Throughput(), LIMITS, 900.0) is None
    assert "no progress for 901 s in stage load" in (phase.timeout_reason(Throughput(), LIMITS, 901.0) or "")
    for at in range(1, 100):
        phase = phase.advanced(train(at), 800.0 * at)
        assert phase.timeout_reason(Throughput(), LIMITS, 800.0 * at + 899) is None
    assert phase.timeout_reason(Throughput(), LIMITS, 800.0 * 99 + 901) is not None


def test_a_job_that_creeps_on_ends_at_its_stage_limit() -> None:
    known = Throughput(train=0.05, evaluate=0.01)
    phase = StageTimer.begin(0.0).advanced(train(1), 10.0).advanced(train(2), 509.0)
    assert phase.timeout_reason(known, LIMITS, 510.0) is None
    assert "stage train of 2000 tokens took more than 500 s" in (phase.timeout_reason(known, LIMITS, 511.0) or "")


def test_each_stage_and_each_replay_of_it_has_its_own_time() -> None:
    known = Throughput(train=0.05, evaluate=0.01)
    phase = StageTimer.begin(0.0).advanced(train(1), 10.0).advanced(train(2000), 500.0)
    evaluating = phase.advanced(Progress(stage="evaluate", done=1, total=2000), 505.0)
    assert evaluating.timeout_reason(known, LIMITS, 560.0) is None
    assert evaluating.timeout_reason(known, LIMITS, 505.0 + 101.0) is not None
    replayed = phase.advanced(train(8), 505.0)
    assert replayed.timeout_reason(known, LIMITS, 900.0) is None


def test_a_machine_slower_than_the_pace_is_seen_through_in_a_few_time_outs() -> None:
    known = Throughput(train=0.05, evaluate=0.01)
    assert known.relaxed().limit_s(train(1), LIMITS) == 2 * 500
    assert Throughput().relaxed() == Throughput()


def test_the_rest_between_starts_grows_to_its_most() -> None:
    rests = [LIMITS.restart_pause_s(failures) for failures in range(12)]
    assert rests[:4] == [0.0, 5.0, 10.0, 20.0]
    assert rests[-1] == LIMITS.restart_pause_s(10**6) == 600.0


def test_a_result_without_tokens_teaches_nothing() -> None:
    empty = dataclasses.replace(make_result(100.0, 5.0), train_tokens=0, eval_tokens=0)
    assert Throughput(train=1.0).updated(empty) == Throughput(train=1.0)
