"""Decisions in single states; `test_schedule_rounds` plays whole rounds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from template.errors import Reason
from template.records import (
    ChainView,
    Entry,
    RetryState,
    Round,
    SubmissionKey,
    Verdict,
    WeightIntent,
    WeightOutcome,
)
from template.rules.duplicates import Duplicate
from template.rules.schedule import (
    MAX_HOST_FAILURES,
    MAX_WEIGHTS_PAUSE_BLOCKS,
    UNKNOWN_OUTCOME_BLOCKS,
    Action,
    CloseRound,
    EvaluateDataset,
    FetchDatasets,
    OpenRound,
    Policy,
    ResolveIntent,
    ResubmitWeights,
    SetWeights,
    State,
    Stop,
    Wait,
    decide,
    keep_alive,
    plan_queue,
)
from tests.fixtures.views import make_entry, make_key, make_neuron, make_view

ME = "me"
NOW = 1000.0
A, B, C, D, E = (make_key(name) for name in "abcde")
SCORED = Verdict(loss=2.5)
REFUSED = Verdict(reason=Reason.MALFORMED, message="line 1")
COPY = Duplicate(hotkey="x", commit="y", block=1, shared=101)
POLICY = Policy()
ACCEPTED = WeightOutcome(is_accepted=True, block=110)
TOO_FAST = WeightOutcome(is_accepted=False, error="SettingWeightsTooFast")


def make_entries(blocks: Mapping[SubmissionKey, int], refused: Sequence[SubmissionKey] = ()) -> dict[Any, Entry]:
    return {
        key: make_entry(key, block, uid=uid, competition_id="other" if key in refused else "1")
        for uid, (key, block) in enumerate(blocks.items())
    }


def make_state(*entries: SubmissionKey, start: int = 100, end: int = 460, **changes: Any) -> State:
    """A new round of blocks [100, 460) with these entries in rank order."""
    values: dict[str, Any] = {
        "hotkey": ME,
        "round": Round(
            id=1,
            start_block=start,
            start_block_hash="0x",
            opened_block=start,
            end_block=end,
            lucky_num=7,
            entries=tuple(make_entry(key, 10 + at, uid=at, lucky_num=7) for at, key in enumerate(entries)),
            queue=tuple(entries),
        ),
        "rounds_done": 0,
        "datasets": {},
        "verdicts": {},
        "duplicates": {},
        "retry_states": {},
        "intents": (),
        "has_leaderboard": False,
    }
    values.update(changes)
    if "datasets" not in changes:
        values["datasets"] = {key: () for key, verdict in values["verdicts"].items() if verdict.loss is not None}
    weights = [*values["intents"], *values.get("repeats", ())]
    return State(**{"pending_intents": [intent for intent in weights if intent.outcome is None], **values})


def make_idle(**changes: Any) -> State:
    """Between rounds."""
    return make_state(**{"round": None, **changes})


def at(block: int, *, last_update: int = 0, registered: int = 0, gone: str = "", **changes: Any) -> ChainView:
    """The chain at a block, with this validator and all miners but `gone`."""
    me = make_neuron(99, ME, registration_block=registered, last_update_block=last_update)
    miners = [make_neuron(uid, name) for uid, name in enumerate("abcdef") if name != gone]
    return make_view(block, neurons=[*miners, me], **changes)


def intent(block: int, outcome: WeightOutcome | None = None, number: int = 1) -> WeightIntent:
    return WeightIntent(
        id=number,
        block=block,
        weights={0: 1.0},
        shares={"a": 1.0},
        registrations={},
        created_at=0.0,
        outcome=outcome,
        finished_at=None,
    )


def choose(state: State, view: ChainView, policy: Policy = POLICY, now: float = NOW) -> Action:
    return decide(state, view, now, policy)


def plan(
    blocks: Mapping[SubmissionKey, int], refused: Sequence[SubmissionKey] = (), **changes: Any
) -> tuple[SubmissionKey, ...]:
    """The queue of a round with these entries, given with their rank blocks."""
    known: dict[str, Any] = {"verdicts": {}, "duplicates": {}, "datasets": {}, "retry_states": {}, **changes}
    return plan_queue(make_entries(blocks, refused), **known, now=NOW, policy=POLICY)


# Opening a round


def test_queue_is_in_rank_order_despite_backoffs() -> None:
    retry_states = {A: RetryState(remote_failures=1, next_at=NOW + 1), B: RetryState(host_failures=1, next_at=NOW)}
    assert plan({A: 1, B: 2, C: 50, D: 40, E: 40}, retry_states=retry_states) == (A, B, D, E, C)


def test_fewest_failures_download_first() -> None:
    retry_states = {
        A: RetryState(remote_failures=2),
        B: RetryState(remote_failures=1),
        D: RetryState(remote_failures=1),
    }
    state = make_state(A, B, C, D, retry_states=retry_states, available_slots=3)
    assert choose(state, at(100)) == FetchDatasets((C, B, D))


def test_failed_download_no_longer_delays_evaluations() -> None:
    known: dict[str, Any] = {"datasets": {C: ()}, "available_slots": 0}
    for first in (frozenset[SubmissionKey](), frozenset([A, B])):
        assert isinstance(choose(make_state(A, B, C, downloading=first, **known), at(100)), Wait), "the first try"
        failed = {"retry_states": {A: RetryState(remote_failures=1), B: RetryState(remote_failures=3)}}
        assert choose(make_state(A, B, C, downloading=first, **known, **failed), at(100)) == EvaluateDataset(C)


def test_loss_with_pruned_rows_is_checked_not_evaluated_again() -> None:
    assert plan({A: 1, B: 2}, verdicts={A: SCORED, B: SCORED}, datasets={B: ()}) == (A,)
    state = make_state(A, B, verdicts={A: SCORED}, datasets={B: ()}, running=frozenset([B]), idle_workers=0)
    assert choose(state, at(100)) == FetchDatasets((A,))
    assert isinstance(choose(replace(state, datasets={A: (), B: ()}), at(100)), Wait)


def test_entry_checked_again_does_not_count_as_a_sample() -> None:
    policy = replace(POLICY, miner_sample_size=1)
    state = make_state(A, B, verdicts={A: SCORED}, datasets={A: (), B: ()})
    assert choose(state, at(100), policy) == SetWeights()
    assert state.round is not None
    again = replace(state.round, entries=(make_entry(A), make_entry(B, lucky_num=7)))
    assert choose(replace(state, round=again), at(100), policy) == EvaluateDataset(B)


def test_queue_leaves_out_done_duplicate_and_suspended_entries() -> None:
    queue = plan(
        {A: 1, B: 2, C: 3, D: 4, E: 5, make_key("f"): 6},
        refused=[A],
        verdicts={B: SCORED, C: REFUSED},
        datasets={B: ()},
        duplicates={D: COPY},
        retry_states={E: RetryState(host_failures=MAX_HOST_FAILURES, next_at=math.inf)},
    )
    assert queue == (make_key("f"),)


def test_queue_is_no_longer_than_the_sample() -> None:
    keys = {make_key(f"h{number:02}"): number for number in range(60)}
    assert plan(keys) == tuple(keys)[:50]


@pytest.mark.parametrize(
    ("until_epoch", "tempo", "end"),
    [(360, 360, 460), (1000, 1000, 460), (200, 360, 300), (51, 360, 151), (50, 360, 460), (0, 100, 200), (1, 2, 103)],
    ids=["whole", "long tempo", "near", "just enough", "too near", "now", "tiny tempo"],
)
def test_round_ends_with_a_nearer_epoch_of_the_chain(until_epoch: int, tempo: int, end: int) -> None:
    assert choose(make_idle(), at(100, blocks_until_epoch=until_epoch, tempo=tempo)) == OpenRound(100, end)


def test_round_has_at_least_one_block() -> None:
    view = at(100, blocks_until_epoch=0, tempo=0)
    assert choose(make_idle(), view, replace(POLICY, block_threshold=0)) == OpenRound(100, 101)


ALIGNED = replace(POLICY, is_aligned=True)


@pytest.mark.parametrize("block", [720, 721, 900, 1029])
def test_aligned_rounds_start_at_multiples(block: int) -> None:
    view = at(block, blocks_until_epoch=7, tempo=99)
    assert choose(make_idle(), view, ALIGNED) == OpenRound(720, 1080)


def test_aligned_round_opens_once_and_not_near_its_end() -> None:
    opened = make_idle(last_start_block=720)
    assert isinstance(choose(opened, at(1000), ALIGNED), Wait)
    assert choose(opened, at(1080), ALIGNED) == OpenRound(1080, 1440)
    assert isinstance(choose(make_idle(), at(1030), ALIGNED), Wait)
    assert choose(make_idle(last_start_block=360), at(1030 - 1), ALIGNED) == OpenRound(720, 1080)


# Work


def test_downloads_come_before_evaluations() -> None:
    state = make_state(A, B, C, datasets={A: ()})
    assert choose(state, at(100)) == FetchDatasets((B,))
    assert choose(replace(state, datasets={A: (), B: (), C: ()}), at(100)) == EvaluateDataset(A)


def test_downloads_fill_the_slots_and_none_starts_twice() -> None:
    state = make_state(A, B, C, D, available_slots=2, downloading=frozenset([B]))
    assert choose(state, at(100)) == FetchDatasets((A, C))
    assert isinstance(choose(replace(state, available_slots=0), at(100)), Wait)
    assert isinstance(choose(replace(state, downloading=frozenset([A, B, C, D])), at(100)), Wait)


def test_evaluation_waits_for_possible_originals_only() -> None:
    state = make_state(A, B, C, datasets={B: ()}, downloading=frozenset([C]), verdicts={A: REFUSED})
    assert choose(state, at(100)) == EvaluateDataset(B)
    waiting = choose(replace(state, downloading=frozenset([A, C]), verdicts={}), at(100))
    assert waiting == Wait("0 evaluations running, 0 waiting for a worker, 2 downloads running")
    no_room = replace(state, downloading=frozenset([C]), verdicts={}, available_slots=0)
    assert isinstance(choose(no_room, at(100)), Wait), "a download that has not started counts too"


def test_entry_of_the_same_block_may_be_the_original() -> None:
    state = make_state(A, B, datasets={A: ()}, downloading=frozenset([B]))
    assert choose(state, at(100)) == EvaluateDataset(A)
    beside = replace(state, round=replace(state.round, entries=(make_entry(A), make_entry(B))))
    assert isinstance(choose(beside, at(100)), Wait)


def test_evaluation_waits_while_it_may_be_a_duplicate() -> None:
    earlier = SubmissionKey(B.hotkey, "o/earlier:sample:" + "0" * 40)
    state = make_state(A, B, datasets={A: (), earlier: ()}, downloading=frozenset([B]))
    assert choose(state, at(100)) == EvaluateDataset(A), "they share nothing"
    state = replace(state, possible_duplicates={A: replace(COPY, hotkey=B.hotkey)})
    assert isinstance(choose(state, at(100)), Wait)
    withheld = {B: RetryState(remote_failures=1)}
    assert choose(replace(state, retry_states=withheld), at(100)) == EvaluateDataset(A)


def test_entry_in_backoff_delays_no_evaluation() -> None:
    later = {A: RetryState(remote_failures=1, next_at=NOW + 1)}
    assert choose(make_state(A, B, datasets={B: ()}, retry_states=later), at(100)) == EvaluateDataset(B)


def test_missing_file_is_downloaded_again_without_delays() -> None:
    state = make_state(A, B, datasets={A: (), B: ()}, missing_files=frozenset([A]))
    assert choose(state, at(100)) == FetchDatasets((A,))
    assert choose(replace(state, downloading=frozenset([A])), at(100)) == EvaluateDataset(B)
    done = replace(state, downloading=frozenset([A]), verdicts={B: REFUSED})
    assert isinstance(choose(done, at(100)), Wait), "weights wait for it"


def test_downloads_of_other_rounds_delay_no_weights() -> None:
    assert choose(make_state(A, verdicts={A: SCORED}, downloading=frozenset([B])), at(100)) == SetWeights()


def test_duplicates_and_verdicts_are_not_evaluated() -> None:
    state = make_state(A, B, C, datasets={A: (), B: (), C: ()}, duplicates={A: COPY}, verdicts={B: REFUSED})
    assert choose(state, at(100)) == EvaluateDataset(C)


def test_only_losses_count_as_samples() -> None:
    known = dict.fromkeys([A, B, C], ())
    policy = replace(POLICY, miner_sample_size=1)
    assert choose(make_state(A, B, C, datasets=known, verdicts={A: REFUSED}), at(100), policy) == EvaluateDataset(B)
    assert choose(make_state(A, B, C, datasets=known, verdicts={A: SCORED}), at(100), policy) == SetWeights()


def test_losses_of_earlier_rounds_are_no_samples() -> None:
    policy = replace(POLICY, miner_sample_size=1)
    assert choose(make_state(B, datasets={B: ()}, verdicts={A: SCORED}), at(100), policy) == EvaluateDataset(B)


def test_deregistered_hotkeys_are_skipped() -> None:
    assert choose(make_state(A, B), at(100, gone="a")) == FetchDatasets((B,))


def test_running_evaluation_is_not_started_twice() -> None:
    state = make_state(A, B, datasets={A: (), B: ()}, running=frozenset([A]))
    assert choose(state, at(100)) == EvaluateDataset(B)
    assert isinstance(choose(replace(state, idle_workers=0), at(100)), Wait)
    assert isinstance(choose(replace(state, running=frozenset([A, B])), at(100)), Wait)


def test_running_evaluations_count_as_samples() -> None:
    state = make_state(A, B, datasets={A: (), B: ()}, running=frozenset([A]))
    assert isinstance(choose(state, at(100), replace(POLICY, miner_sample_size=1)), Wait)


def test_downloads_continue_during_an_evaluation() -> None:
    assert choose(make_state(A, B, datasets={A: ()}, running=frozenset([A]), idle_workers=0), at(100)) == FetchDatasets(
        (B,)
    )


def test_retry_waits_while_others_continue() -> None:
    state = make_state(A, B, retry_states={A: RetryState(remote_failures=1, next_at=NOW + 1)})
    assert choose(state, at(100)) == FetchDatasets((B,))
    state = replace(state, verdicts={B: REFUSED})
    waiting = choose(state, at(100))
    assert isinstance(waiting, Wait)
    assert "1 submissions" in waiting.why
    assert choose(state, at(100), now=NOW + 1) == FetchDatasets((A,))


def test_retry_beyond_the_sample_delays_nothing() -> None:
    retry_states = {B: RetryState(remote_failures=1, next_at=NOW + 1)}
    state = make_state(A, B, datasets={A: (), B: ()}, verdicts={A: SCORED}, retry_states=retry_states)
    assert isinstance(choose(state, at(100)), Wait)
    assert choose(state, at(100), replace(POLICY, miner_sample_size=1)) == SetWeights()
    assert choose(replace(state, duplicates={B: COPY}), at(100)) == SetWeights()


def test_repeated_host_failures_suspend_an_entry() -> None:
    state = make_state(A, retry_states={A: RetryState(host_failures=MAX_HOST_FAILURES - 1)})
    assert choose(state, at(100)) == FetchDatasets((A,))
    assert (
        choose(replace(state, retry_states={A: RetryState(host_failures=MAX_HOST_FAILURES, next_at=math.inf)}), at(100))
        == SetWeights()
    )


# Weights


def test_weights_are_set_when_work_is_done_or_time_is_up() -> None:
    busy = make_state(A)
    assert choose(busy, at(409)) == FetchDatasets((A,))
    assert choose(busy, at(410)) == SetWeights()
    assert choose(make_state(), at(100)) == SetWeights()
    late = make_state(A, retry_states={A: RetryState(remote_failures=1, next_at=NOW + 1)})
    assert isinstance(choose(late, at(409)), Wait)
    assert choose(late, at(410)) == SetWeights()


@pytest.mark.parametrize(("end", "closing"), [(120, 110), (101, 101), (199, 150), (200, 150), (201, 151)])
def test_short_round_keeps_its_first_half_for_work(end: int, closing: int) -> None:
    state = make_state(A, end=end)
    assert choose(state, at(closing - 1)) == FetchDatasets((A,))
    assert choose(state, at(closing)) == SetWeights()


def test_work_continues_after_weights_until_the_end() -> None:
    done = make_state(A, intents=[intent(410, ACCEPTED)])
    assert choose(done, at(420)) == FetchDatasets((A,))
    assert isinstance(choose(replace(done, verdicts={A: SCORED}, datasets={A: ()}), at(420)), Wait)
    assert choose(done, at(460)) == CloseRound(is_settled=True)


@pytest.mark.parametrize("registered", [0, 95], ids=["after weights", "after the registration alone"])
def test_rate_limit_delays_weights_but_not_work(registered: int) -> None:
    view = at(110, last_update=95, registered=registered, weights_rate_limit=20)
    state = make_state(A, end=120)
    assert choose(state, view) == FetchDatasets((A,))
    waiting = choose(replace(state, verdicts={A: SCORED}, datasets={A: ()}), view)
    assert isinstance(waiting, Wait)
    assert "115" in waiting.why
    assert choose(state, replace(view, block=115)) == SetWeights()


def test_hotkey_without_an_update_has_no_rate_limit() -> None:
    assert choose(make_state(), at(100, last_update=0, weights_rate_limit=1000)) == SetWeights()


def test_rate_limit_longer_than_the_round_delays_weights() -> None:
    view = at(461, last_update=400, weights_rate_limit=100)
    assert isinstance(choose(make_state(), view), Wait)
    assert choose(make_state(), replace(view, block=500)) == SetWeights()


def test_weights_of_another_process_do_not_keep_a_round_open() -> None:
    view = at(560, last_update=555, weights_rate_limit=100)
    assert choose(make_state(), view) == SetWeights()
    assert choose(make_state(intents=[intent(560, TOO_FAST)]), replace(view, block=561)) == CloseRound(is_settled=False)


def test_rejected_weights_are_retried_with_backoff() -> None:
    block, pauses = 100, []
    intents: list[WeightIntent] = []
    while len(pauses) < 7:
        intents.append(intent(block, TOO_FAST, len(intents) + 1))
        tried = block
        while choose(make_state(intents=intents), at(block)) != SetWeights():
            block += 1
        pauses.append(block - tried)
    assert pauses == [2, 4, 8, 16, 16, 16, 16]
    assert max(pauses) == MAX_WEIGHTS_PAUSE_BLOCKS


def test_backoff_of_weights_is_bounded() -> None:
    intents = [intent(100, TOO_FAST, number) for number in range(5000)]
    assert choose(make_state(intents=intents), at(116)) == SetWeights()


def test_round_with_rejected_weights_closes_at_its_end() -> None:
    state = make_state(A, intents=[intent(450, TOO_FAST)])
    assert choose(state, at(459)) == SetWeights()
    assert choose(state, at(460)) == CloseRound(is_settled=False)


def test_weights_are_set_once_after_a_missed_round_end() -> None:
    assert choose(make_state(A), at(100_000)) == SetWeights()
    assert choose(make_state(A, intents=[intent(100_000, TOO_FAST)]), at(100_000)) == CloseRound(is_settled=False)
    assert choose(make_state(A, intents=[intent(100_000, ACCEPTED)]), at(100_000)) == CloseRound(is_settled=True)


def test_deregistered_validator_still_submits_weights() -> None:
    assert choose(make_state(), make_view(100, weights_rate_limit=100)) == SetWeights()


def test_weights_do_not_wait_for_a_running_evaluation() -> None:
    state = make_state(A, datasets={A: ()}, running=frozenset([A]), idle_workers=0)
    assert isinstance(choose(state, at(409)), Wait)
    assert choose(state, at(410)) == SetWeights()
    assert isinstance(choose(replace(state, intents=[intent(410, ACCEPTED)]), at(411)), Wait)
    assert choose(replace(state, intents=[intent(410, ACCEPTED)]), at(460)) == CloseRound(is_settled=True)


# Resubmitted weights


def lasting(**changes: Any) -> State:
    return make_state(A, retry_states={A: RetryState(next_at=NOW + 1)}, has_last_shares=True, **changes)


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
    assert keep_alive(lasting(intents=[intent(380)]), view, POLICY) is None
    lost = replace(view, block=380 + UNKNOWN_OUTCOME_BLOCKS)
    assert keep_alive(lasting(intents=[intent(380)]), lost, POLICY) == ResolveIntent(1, False)


def test_resubmission_keeps_rate_limit_and_backoff() -> None:
    view = at(375, last_update=300, activity_cutoff=100, weights_rate_limit=90)
    assert keep_alive(lasting(), view, POLICY) is None
    assert keep_alive(lasting(), replace(view, block=390), POLICY) == ResubmitWeights()
    once = lasting(repeats=[intent(390, TOO_FAST)])
    assert keep_alive(once, replace(view, block=391), POLICY) is None
    assert keep_alive(once, replace(view, block=392), POLICY) == ResubmitWeights()


def test_pending_resubmission_is_resolved_by_the_chain() -> None:
    state = lasting(repeats=[intent(380)])
    view = at(383, last_update=300, activity_cutoff=100)
    assert keep_alive(state, view, POLICY) is None
    assert keep_alive(state, replace(view, block=380 + UNKNOWN_OUTCOME_BLOCKS), POLICY) == ResolveIntent(1, False)
    assert keep_alive(state, at(383, last_update=381, activity_cutoff=100), POLICY) == ResolveIntent(1, True)


def test_pending_weights_of_an_earlier_round_block_new_ones() -> None:
    state = make_state(A, verdicts={A: SCORED}, pending_intents=[intent(380)])
    assert isinstance(choose(state, at(400)), Wait)
    assert choose(state, at(400, last_update=390)) == ResolveIntent(1, True)
    assert choose(make_idle(pending_intents=[intent(380)]), at(413)) == ResolveIntent(1, False)


def test_pending_weights_expire_without_a_uid_or_weights() -> None:
    state = make_idle(pending_intents=[intent(380)])
    late = 380 + UNKNOWN_OUTCOME_BLOCKS
    assert choose(state, make_view(late)) == ResolveIntent(1, False)
    assert choose(state, at(late), replace(POLICY, sets_weights=False)) == ResolveIntent(1, False)


def test_resubmission_does_not_count_as_the_rounds_weights() -> None:
    state = make_state(A, intents=[intent(410, TOO_FAST)], repeats=[intent(411, ACCEPTED, 2)], has_last_shares=True)
    assert choose(state, at(412, last_update=411)) == SetWeights()


# Pending weights


def test_pending_weights_are_resolved_by_the_chain() -> None:
    state = make_state(intents=[intent(120)])
    assert isinstance(choose(state, at(121, last_update=120)), Wait)
    assert choose(state, at(123, last_update=121)) == ResolveIntent(1, is_accepted=True)
    assert choose(state, at(120 + UNKNOWN_OUTCOME_BLOCKS)) == ResolveIntent(1, is_accepted=False)
    assert isinstance(choose(state, at(119 + UNKNOWN_OUTCOME_BLOCKS)), Wait)


def test_new_registration_does_not_count_as_weights() -> None:
    state = make_state(intents=[intent(120)])
    assert isinstance(choose(state, at(123, last_update=121, registered=121)), Wait)


def test_work_continues_while_weights_are_pending() -> None:
    state = make_state(A, intents=[intent(420)])
    assert choose(state, at(421)) == FetchDatasets((A,))
    assert isinstance(choose(replace(state, verdicts={A: SCORED}, datasets={A: ()}), at(421)), Wait)


def test_round_stays_open_until_weights_are_resolved() -> None:
    state = make_state(A, intents=[intent(455)])
    assert isinstance(choose(state, at(460)), Wait)
    assert choose(state, at(461, last_update=458)) == ResolveIntent(1, is_accepted=True)
    assert choose(state, at(455 + UNKNOWN_OUTCOME_BLOCKS)) == ResolveIntent(1, is_accepted=False)


def test_every_pending_intent_is_resolved() -> None:
    intents = [intent(120, None, 1), intent(130, None, 2)]
    state = make_state(intents=intents)
    assert choose(state, at(140, last_update=135)) == ResolveIntent(2, is_accepted=True)
    state = replace(state, intents=[intents[0], replace(intents[1], outcome=ACCEPTED)], pending_intents=[intents[0]])
    assert choose(state, at(140, last_update=135)) == ResolveIntent(1, is_accepted=True)


def test_weights_that_land_late_count() -> None:
    lost = intent(120, WeightOutcome(is_accepted=False, error="Lost"), 1)
    second = intent(160, TOO_FAST, 2)
    state = make_state(intents=[lost, second])
    assert isinstance(choose(state, at(170, last_update=158, weights_rate_limit=100)), Wait)
    assert choose(state, at(460, last_update=158, weights_rate_limit=100)) == CloseRound(is_settled=True)
    assert choose(state, at(460, last_update=110, weights_rate_limit=100)) == CloseRound(is_settled=False)


# Without weights, and the last round


WATCHING = replace(POLICY, sets_weights=False)


def test_unset_weights_still_make_a_leaderboard() -> None:
    state = make_state(A, verdicts={A: SCORED})
    assert choose(state, at(100), WATCHING) == SetWeights()
    state = replace(state, has_leaderboard=True)
    assert isinstance(choose(state, at(100), WATCHING), Wait)
    assert choose(state, at(460), WATCHING) == CloseRound(is_settled=True)


def test_unset_weights_ignore_the_rate_limit() -> None:
    view = at(100, last_update=99, weights_rate_limit=1000)
    assert choose(make_state(A, verdicts={A: SCORED}), view, WATCHING) == SetWeights()


def test_round_without_entries_needs_no_leaderboard() -> None:
    assert isinstance(choose(make_state(), at(100), WATCHING), Wait)
    assert choose(make_state(), at(460), WATCHING) == CloseRound(is_settled=True)
    assert choose(make_state(), at(460), replace(WATCHING, max_rounds=1)) == CloseRound(is_settled=True)


def test_last_round_closes_when_its_work_is_done() -> None:
    policy = replace(POLICY, max_rounds=2)
    state = make_state(A, verdicts={A: SCORED}, intents=[intent(110, ACCEPTED)])
    assert isinstance(choose(state, at(111), policy), Wait)
    assert choose(replace(state, rounds_done=1), at(111), policy) == CloseRound(is_settled=True)
    assert choose(replace(state, rounds_done=1, verdicts={}, datasets={}), at(111), policy) == FetchDatasets((A,))
    assert choose(replace(state, rounds_done=1, intents=()), at(111), policy) == SetWeights()


def test_validator_stops_after_the_last_round() -> None:
    assert choose(make_idle(rounds_done=2), at(500), replace(POLICY, max_rounds=2)) == Stop()
    assert isinstance(choose(make_idle(rounds_done=1), at(500), replace(POLICY, max_rounds=2)), OpenRound)


def test_round_of_an_earlier_process_is_finished_first() -> None:
    state = make_state(A, rounds_done=0)
    assert choose(state, at(100), replace(POLICY, max_rounds=1)) == FetchDatasets((A,))
