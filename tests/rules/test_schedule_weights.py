"""Decisions about weights, and about closing a round."""

from dataclasses import replace
from typing import Any

import pytest

from template.chain_records import WeightOutcome
from template.records import RetryState, WeightIntent
from template.rules.schedule import (
    MAX_WEIGHTS_PAUSE_BLOCKS,
    UNKNOWN_OUTCOME_BLOCKS,
    CloseRound,
    EvaluateDataset,
    OpenRound,
    ResolveIntent,
    ResubmitWeights,
    SetWeights,
    State,
    Stop,
    Wait,
    keep_alive,
)
from tests.fixtures.schedule import (
    ACCEPTED,
    NOW,
    POLICY,
    TOO_FAST,
    A,
    at,
    choose,
    done,
    intent,
    make_evaluation,
    make_idle,
    make_state,
)
from tests.fixtures.views import make_view


def test_weights_are_set_when_work_is_done_or_time_is_up() -> None:
    busy = make_state(A, plan=[A])
    assert choose(busy, at(409)) == EvaluateDataset(make_evaluation(A))
    assert choose(busy, at(410)) == SetWeights()
    assert choose(make_state(plan=[]), at(100)) == SetWeights()
    late = make_state(A, plan=[A], retry_states={A: RetryState(remote_failures=1, next_at=NOW + 1)})
    assert choose(late, at(100)) == SetWeights(), "it is planned again in a later round"


@pytest.mark.parametrize(("end", "closing"), [(120, 110), (101, 101), (199, 150), (200, 150), (201, 151)])
def test_short_round_keeps_its_first_half_for_work(end: int, closing: int) -> None:
    state = make_state(A, plan=[A], end=end)
    assert choose(state, at(closing - 1)) == EvaluateDataset(make_evaluation(A))
    assert choose(state, at(closing)) == SetWeights()


def test_work_continues_after_weights_until_the_end() -> None:
    state = make_state(A, plan=[A], intents=[intent(410, ACCEPTED)])
    assert choose(state, at(420)) == choose(state, at(460)) == EvaluateDataset(make_evaluation(A))
    state = replace(state, losses=done(A))
    assert isinstance(choose(state, at(420)), Wait)
    assert choose(state, at(460)) == CloseRound(is_settled=True)


@pytest.mark.parametrize("registered", [0, 95], ids=["after weights", "after the registration alone"])
def test_rate_limit_delays_weights_but_not_work(registered: int) -> None:
    view = at(110, last_update=95, registered=registered, weights_rate_limit=20)
    state = make_state(A, plan=[A], end=120)
    assert choose(state, view) == EvaluateDataset(make_evaluation(A))
    waiting = choose(replace(state, losses=done(A)), view)
    assert isinstance(waiting, Wait)
    assert "115" in waiting.why
    assert choose(state, replace(view, block=115)) == SetWeights()


def test_rate_limit_counts_from_an_update_of_the_hotkey() -> None:
    assert choose(make_state(plan=[]), at(100, last_update=0, weights_rate_limit=1000)) == SetWeights()
    assert choose(make_state(plan=[]), make_view(100, weights_rate_limit=1000)) == SetWeights(), "it is not registered"


def test_rate_limit_longer_than_the_round_delays_weights() -> None:
    view = at(461, last_update=400, weights_rate_limit=100)
    assert isinstance(choose(make_state(plan=[]), view), Wait)
    assert choose(make_state(plan=[]), replace(view, block=500)) == SetWeights()


def test_weights_of_another_process_do_not_keep_a_round_open() -> None:
    view = at(560, last_update=555, weights_rate_limit=100)
    assert choose(make_state(plan=[]), view) == SetWeights()
    assert choose(make_state(plan=[], intents=[intent(560, TOO_FAST)]), replace(view, block=561)) == CloseRound(
        is_settled=False
    )


def test_rejected_weights_are_retried_with_backoff() -> None:
    block, pauses = 100, []
    intents: list[WeightIntent] = []
    while len(pauses) < 7:
        intents.append(intent(block, TOO_FAST, len(intents) + 1))
        tried = block
        while choose(make_state(plan=[], intents=intents), at(block)) != SetWeights():
            block += 1
        pauses.append(block - tried)
    assert pauses == [2, 4, 8, 16, 16, 16, 16]
    assert max(pauses) == MAX_WEIGHTS_PAUSE_BLOCKS
    assert choose(make_state(plan=[], intents=intents * 1000), at(block)) == SetWeights()


def test_weights_are_tried_until_the_rounds_end_and_once_after() -> None:
    tried = make_state(A, plan=[A], losses=done(A), intents=[intent(450, TOO_FAST)])
    assert choose(tried, at(459)) == SetWeights()
    assert choose(tried, at(460)) == CloseRound(is_settled=False)
    late = replace(tried, intents=[])
    assert choose(late, at(100_000)) == SetWeights()
    for outcome in (TOO_FAST, ACCEPTED):
        expected = CloseRound(is_settled=outcome.is_accepted)
        assert choose(replace(late, intents=[intent(100_000, outcome)]), at(100_000)) == expected


def test_missed_round_sets_no_weights() -> None:
    past = make_state(A, plan=[A], losses=done(A), opened=460)
    assert choose(past, at(460)) == CloseRound(is_settled=False)
    assert choose(replace(past, round=replace(past.round, opened_block=459)), at(460)) == SetWeights()


def test_weights_do_not_wait_for_a_running_evaluation() -> None:
    state = make_state(A, plan=[A], running=frozenset([A]), idle_workers=0)
    assert isinstance(choose(state, at(409)), Wait)
    assert choose(state, at(410)) == SetWeights()
    assert isinstance(choose(replace(state, intents=[intent(410, ACCEPTED)]), at(411)), Wait)
    assert isinstance(choose(replace(state, intents=[intent(410, ACCEPTED)]), at(460)), Wait), "the round waits"


# Resubmitted weights


def lasting(**changes: Any) -> State:
    return make_state(A, plan=[A], running=frozenset([A]), has_last_shares=True, **changes)


def test_last_shares_are_resubmitted_to_stay_active() -> None:
    view = at(374, last_update=300, activity_cutoff=100)
    assert isinstance(choose(lasting(), view), Wait)
    assert choose(lasting(), replace(view, block=375)) == ResubmitWeights()
    assert choose(replace(lasting(), round=None), replace(view, block=375)) == ResubmitWeights()
    assert keep_alive(lasting(), replace(view, block=375), POLICY) == ResubmitWeights()


def test_nothing_is_resubmitted_without_shares_or_weights() -> None:
    view = at(400, last_update=300, activity_cutoff=100)
    assert keep_alive(replace(lasting(), has_last_shares=False), view, POLICY) is None
    assert keep_alive(lasting(), view, replace(POLICY, sets_weights=False)) is None
    assert keep_alive(lasting(), make_view(400), POLICY) is None
    assert keep_alive(lasting(), replace(view, activity_cutoff=0), POLICY) is None
    for pending in (lasting(intents=[intent(380)]), lasting(repeats=[intent(380)])):
        assert keep_alive(pending, view, POLICY) is None
        assert keep_alive(pending, replace(view, block=380 + UNKNOWN_OUTCOME_BLOCKS), POLICY) == ResolveIntent(1, False)


def test_resubmission_keeps_rate_limit_and_backoff() -> None:
    view = at(375, last_update=300, activity_cutoff=100, weights_rate_limit=90)
    assert keep_alive(lasting(), view, POLICY) is None
    assert keep_alive(lasting(), replace(view, block=390), POLICY) == ResubmitWeights()
    once = lasting(repeats=[intent(390, TOO_FAST)])
    assert keep_alive(once, replace(view, block=391), POLICY) is None
    assert keep_alive(once, replace(view, block=392), POLICY) == ResubmitWeights()


def test_pending_weights_of_an_earlier_round_block_new_ones() -> None:
    state = make_state(A, plan=[A], losses=done(A), pending_intents=[intent(380)])
    assert isinstance(choose(state, at(400)), Wait)
    assert choose(state, at(400, last_update=390)) == ResolveIntent(1, True)
    assert choose(make_idle(pending_intents=[intent(380)]), at(413)) == ResolveIntent(1, False)


def test_pending_weights_expire_without_a_uid_or_weights() -> None:
    state = make_idle(pending_intents=[intent(380)])
    late = 380 + UNKNOWN_OUTCOME_BLOCKS
    assert choose(state, make_view(late)) == ResolveIntent(1, False)
    assert choose(state, at(late), replace(POLICY, sets_weights=False)) == ResolveIntent(1, False)


def test_resubmission_does_not_count_as_the_rounds_weights() -> None:
    state = make_state(
        A, plan=[A], intents=[intent(410, TOO_FAST)], repeats=[intent(411, ACCEPTED, 2)], has_last_shares=True
    )
    assert choose(state, at(412, last_update=411)) == SetWeights()


# Pending weights


def test_pending_weights_are_resolved_by_the_chain() -> None:
    state = make_state(plan=[], intents=[intent(120)])
    assert isinstance(choose(state, at(121, last_update=120)), Wait)
    assert choose(state, at(123, last_update=121)) == ResolveIntent(1, is_accepted=True)
    assert choose(state, at(120 + UNKNOWN_OUTCOME_BLOCKS)) == ResolveIntent(1, is_accepted=False)
    assert isinstance(choose(state, at(119 + UNKNOWN_OUTCOME_BLOCKS)), Wait)
    assert isinstance(choose(state, at(123, last_update=121, registered=121)), Wait), "a registration is no answer"


def test_work_continues_while_weights_are_pending() -> None:
    state = make_state(A, plan=[A], intents=[intent(420)])
    assert choose(state, at(421)) == EvaluateDataset(make_evaluation(A))
    assert isinstance(choose(replace(state, losses=done(A)), at(421)), Wait)


def test_round_stays_open_until_weights_are_resolved() -> None:
    state = make_state(A, plan=[A], intents=[intent(455)])
    assert isinstance(choose(state, at(460)), Wait)
    assert choose(state, at(461, last_update=458)) == ResolveIntent(1, is_accepted=True)
    assert choose(state, at(455 + UNKNOWN_OUTCOME_BLOCKS)) == ResolveIntent(1, is_accepted=False)


def test_every_pending_intent_is_resolved() -> None:
    intents = [intent(120, None, 1), intent(130, None, 2)]
    state = make_state(plan=[], intents=intents)
    assert choose(state, at(140, last_update=135)) == ResolveIntent(2, is_accepted=True)
    state = replace(state, intents=[intents[0], replace(intents[1], outcome=ACCEPTED)], pending_intents=[intents[0]])
    assert choose(state, at(140, last_update=135)) == ResolveIntent(1, is_accepted=True)


def test_weights_that_land_late_count() -> None:
    lost = intent(120, WeightOutcome(is_accepted=False, error="Lost"), 1)
    second = intent(160, TOO_FAST, 2)
    state = make_state(plan=[], intents=[lost, second])
    assert isinstance(choose(state, at(170, last_update=158, weights_rate_limit=100)), Wait)
    assert choose(state, at(460, last_update=158, weights_rate_limit=100)) == CloseRound(is_settled=True)
    assert choose(state, at(460, last_update=110, weights_rate_limit=100)) == CloseRound(is_settled=False)


# Without weights, and the last round


WATCHING = replace(POLICY, sets_weights=False)


def test_unset_weights_still_make_a_leaderboard() -> None:
    state = make_state(A, plan=[A], losses=done(A))
    assert choose(state, at(100, last_update=99, weights_rate_limit=1000), WATCHING) == SetWeights()
    state = replace(state, has_leaderboard=True)
    assert isinstance(choose(state, at(100), WATCHING), Wait)
    assert choose(state, at(460), WATCHING) == CloseRound(is_settled=True)


def test_round_without_entries_needs_no_leaderboard() -> None:
    assert isinstance(choose(make_state(plan=[]), at(100), WATCHING), Wait)
    assert choose(make_state(plan=[]), at(460), WATCHING) == CloseRound(is_settled=True)
    assert choose(make_state(plan=[]), at(460), replace(WATCHING, max_rounds=1)) == CloseRound(is_settled=True)


def test_last_round_closes_when_its_work_is_done() -> None:
    policy = replace(POLICY, max_rounds=2)
    state = make_state(A, plan=[A], losses=done(A), intents=[intent(110, ACCEPTED)])
    assert isinstance(choose(state, at(111), policy), Wait)
    assert choose(replace(state, rounds_done=1), at(111), policy) == CloseRound(is_settled=True)
    assert choose(replace(state, rounds_done=1, losses={}), at(111), policy) == EvaluateDataset(make_evaluation(A))
    assert choose(replace(state, rounds_done=1, intents=()), at(111), policy) == SetWeights()


def test_validator_stops_after_the_last_round() -> None:
    assert choose(make_idle(rounds_done=2), at(500), replace(POLICY, max_rounds=2)) == Stop()
    assert isinstance(choose(make_idle(rounds_done=1), at(500), replace(POLICY, max_rounds=2)), OpenRound)
    of_an_earlier_process = make_state(A, plan=[A], rounds_done=0)
    assert choose(of_an_earlier_process, at(100), replace(POLICY, max_rounds=1)) == EvaluateDataset(make_evaluation(A))
