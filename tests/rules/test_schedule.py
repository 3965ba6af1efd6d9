"""Decisions about opening a round, downloads, the plan and evaluations."""

import math
from dataclasses import replace

import pytest

from template.records import RetryState, SubmissionKey
from template.rules.schedule import (
    MAX_HOST_FAILURES,
    Action,
    EvaluateDataset,
    FetchDatasets,
    OpenRound,
    PlanRound,
    SetWeights,
    State,
    Wait,
)
from tests.fixtures.schedule import (
    NOW,
    POLICY,
    REJECTED,
    A,
    B,
    C,
    D,
    E,
    at,
    choose,
    done,
    make_evaluation,
    make_idle,
    make_state,
    plan,
)
from tests.fixtures.views import make_key

FAILED, FAILED_TWICE = RetryState(remote_failures=1), RetryState(remote_failures=2)
RESTING = RetryState(remote_failures=1, next_at=NOW + 1)
SUSPENDED = RetryState(host_failures=MAX_HOST_FAILURES, next_at=math.inf)
READ: dict[SubmissionKey, tuple[bytes, ...]] = dict.fromkeys([A, B, C], ())


def test_queue_is_in_commit_order_despite_backoffs() -> None:
    retry_states = {A: RESTING, B: RetryState(host_failures=1, next_at=NOW)}
    assert plan({A: 1, B: 2, C: 50, D: 40, E: 40}, retry_states=retry_states) == (A, B, D, E, C)


def test_queue_leaves_out_decided_and_suspended_entries() -> None:
    blocks = {A: 1, B: 2, C: 3, E: 5, make_key("f"): 6}
    queue = plan(blocks, rejected=[A], verdicts={C: REJECTED}, datasets={B: ()}, retry_states={E: SUSPENDED})
    assert queue == (make_key("f"),)


def test_queue_is_no_longer_than_the_limit() -> None:
    keys = {make_key(f"h{number:02}"): number for number in range(60)}
    assert plan(keys, policy=replace(POLICY, miner_duplicate_sample_size=50)) == tuple(keys)[:50]


# Opening


@pytest.mark.parametrize("block", [720, 721, 900, 1079])
def test_new_state_opens_the_newest_aligned_block(block: int) -> None:
    assert choose(make_idle(), at(block)) == OpenRound(720, 1080)


def test_new_state_opens_the_start_block_of_the_competition() -> None:
    policy = replace(POLICY, start_block=400)
    assert choose(make_idle(), at(3_000), policy) == OpenRound(720, 1080)
    assert choose(make_idle(), at(719), policy) == Wait("the next round starts at block 720")


def test_new_season_continues_after_the_last_round_of_the_old() -> None:
    policy = replace(POLICY, start_block=400, season_block=2_000)
    assert choose(make_idle(), at(9_000), policy) == OpenRound(720, 1080)
    assert choose(make_idle(older_start_block=1080), at(9_000), policy) == OpenRound(1440, 1800)
    assert choose(make_idle(older_start_block=1300), at(9_000), policy) == OpenRound(1440, 1800), (
        "another period before"
    )
    assert choose(make_idle(older_start_block=7200), at(9_000), policy) == OpenRound(2160, 2520)


def test_round_opens_for_every_aligned_block_in_order() -> None:
    opened = make_idle(last_start_block=720)
    assert isinstance(choose(opened, at(1079)), Wait)
    assert choose(opened, at(1080)) == choose(opened, at(90_000)) == OpenRound(1080, 1440)


# Downloads and the plan


def test_plan_waits_for_first_downloads_only() -> None:
    state = make_state(A, B, downloading=frozenset([A]), datasets={B: ()}, available_slots=0)
    assert isinstance(choose(state, at(100)), Wait)
    assert choose(replace(state, downloading=frozenset(), retry_states={A: RESTING}), at(100)) == PlanRound()
    assert choose(state, at(410)) == SetWeights(), "weights are due"
    settled = replace(state, intents=[], has_leaderboard=True)
    assert choose(settled, at(410), replace(POLICY, sets_weights=False)) == PlanRound()


def test_plan_waits_for_retries_in_the_first_half_only() -> None:
    state = make_state(A, B, downloading=frozenset([A]), datasets={B: ()}, retry_states={A: FAILED}, available_slots=0)
    middle = (state.round.start_block + 410) // 2 if state.round else 0
    assert isinstance(choose(state, at(middle - 1)), Wait)
    assert choose(state, at(middle)) == PlanRound()


def test_round_that_opens_late_waits_for_retries_too() -> None:
    state = make_state(A, downloading=frozenset([A]), retry_states={A: FAILED}, available_slots=0)
    assert state.round is not None
    late = replace(state, round=replace(state.round, opened_block=380))
    assert isinstance(choose(late, at(394)), Wait)
    assert choose(late, at(395)) == PlanRound()


def test_missed_round_waits_for_three_tries_of_a_download() -> None:
    state = make_state(A, downloading=frozenset([A]), available_slots=0)
    assert state.round is not None
    missed = replace(state, round=replace(state.round, opened_block=90_000))
    for failures, expected in ((0, Wait), (2, Wait), (3, PlanRound)):
        retry = replace(FAILED, remote_failures=failures)
        assert isinstance(choose(replace(missed, retry_states={A: retry}), at(90_000)), expected)


def test_withheld_file_is_waited_for_by_nobody() -> None:
    retry_states = {A: RetryState(remote_failures=1, next_at=NOW)}
    state = make_state(A, B, datasets={B: ()}, retry_states=retry_states, available_slots=0)
    assert choose(state, at(100)) == PlanRound()
    planned = make_state(A, B, plan=[B], datasets={B: ()}, retry_states=retry_states, available_slots=0)
    assert choose(planned, at(100)) == EvaluateDataset(make_evaluation(B))
    assert choose(replace(planned, losses=done(B)), at(100)) == SetWeights()


def test_lost_file_is_downloaded_again_without_delays() -> None:
    state = make_state(A, B, plan=[A, B], missing_files=frozenset([A]))
    assert choose(state, at(100)) == FetchDatasets((A,))
    assert choose(replace(state, downloading=frozenset([A])), at(100)) == EvaluateDataset(make_evaluation(B))


SITUATIONS: dict[str, tuple[State, Action | type[Wait]]] = {
    "downloads come before evaluations": (make_state(A, B, C, datasets={A: ()}), FetchDatasets((B,))),
    "the fewest failures download first": (
        make_state(A, B, C, D, retry_states={A: FAILED_TWICE, B: FAILED, D: FAILED}, available_slots=3),
        FetchDatasets((C, B, D)),
    ),
    "downloads fill the slots": (
        make_state(A, B, C, D, available_slots=2, downloading=frozenset([B])), FetchDatasets((A, C)),
    ),
    "no slot is free": (make_state(A, B, available_slots=0, downloading=frozenset([B])), Wait),
    "no download starts twice": (make_state(A, B, available_slots=2, downloading=frozenset([A, B])), Wait),
    "an entry in backoff delays no plan": (make_state(A, B, datasets={B: ()}, retry_states={A: RESTING}), PlanRound()),
    "a suspended entry delays no plan": (make_state(A, retry_states={A: SUSPENDED}), PlanRound()),
    "failures of this machine below the limit": (
        make_state(A, retry_states={A: RetryState(host_failures=MAX_HOST_FAILURES - 1)}), FetchDatasets((A,)),
    ),
    "evaluations are in the order of the plan": (
        make_state(A, B, plan=[B, A]), EvaluateDataset(make_evaluation(B)),
    ),
    "a dataset has one evaluation at a time": (
        make_state(A, B, plan=[A, make_evaluation(A, 2), B], running=frozenset([A])),
        EvaluateDataset(make_evaluation(B)),
    ),
    "its next evaluation follows": (
        make_state(A, plan=[A, make_evaluation(A, 2)], losses=done(A)), EvaluateDataset(make_evaluation(A, 2)),
    ),
    "rejected datasets are not evaluated": (
        make_state(A, B, plan=[A, B], verdicts={A: REJECTED}), EvaluateDataset(make_evaluation(B)),
    ),
    "no worker is idle": (make_state(A, B, plan=[A, B], running=frozenset([A]), idle_workers=0), Wait),
    "all evaluations run": (make_state(A, plan=[A], running=frozenset([A])), Wait),
    "an evaluation that failed is planned again later": (
        make_state(A, B, plan=[A, B], retry_states={A: RESTING}, losses=done(B)), SetWeights(),
    ),
    "downloads of other rounds delay no weights": (
        make_state(A, plan=[A], losses=done(A), downloading=frozenset([B])), SetWeights(),
    ),
    "nothing to evaluate": (make_state(plan=[]), SetWeights()),
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_work_of_a_round(situation: str) -> None:
    state, expected = SITUATIONS[situation]
    action = choose(state, at(100))
    assert isinstance(action, Wait) if expected is Wait else action == expected


def test_missed_round_is_worked_through_without_weights() -> None:
    past = make_state(A, plan=[A], opened=900)
    assert choose(past, at(900)) == EvaluateDataset(make_evaluation(A))
    assert type(choose(replace(past, losses=done(A)), at(900))).__name__ == "CloseRound"
