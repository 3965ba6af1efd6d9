"""Decisions about opening a round, downloads and evaluations."""

import math
from dataclasses import replace
from typing import Any

import pytest

from template.records import RetryState, SubmissionKey
from template.rules.schedule import (
    MAX_HOST_FAILURES,
    EvaluateDataset,
    FetchDatasets,
    OpenRound,
    SetWeights,
    Wait,
)
from tests.fixtures.schedule import (
    DUPLICATE,
    NOW,
    POLICY,
    REJECTED,
    SCORED,
    A,
    B,
    C,
    D,
    E,
    at,
    choose,
    make_idle,
    make_state,
    plan,
)
from tests.fixtures.views import make_entry, make_key


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
    fields: dict[str, Any] = {"datasets": {C: ()}, "available_slots": 0}
    for first in (frozenset[SubmissionKey](), frozenset([A, B])):
        assert isinstance(choose(make_state(A, B, C, downloading=first, **fields), at(100)), Wait), "the first try"
        failed = {"retry_states": {A: RetryState(remote_failures=1), B: RetryState(remote_failures=3)}}
        assert choose(make_state(A, B, C, downloading=first, **fields, **failed), at(100)) == EvaluateDataset(C)


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
        rejected=[A],
        verdicts={B: SCORED, C: REJECTED},
        datasets={B: ()},
        duplicates={D: DUPLICATE},
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
    state = make_state(A, B, C, datasets={B: ()}, downloading=frozenset([C]), verdicts={A: REJECTED})
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
    state = replace(state, possible_duplicates={A: replace(DUPLICATE, hotkey=B.hotkey)})
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
    done = replace(state, downloading=frozenset([A]), verdicts={B: REJECTED})
    assert isinstance(choose(done, at(100)), Wait), "weights wait for it"


def test_downloads_of_other_rounds_delay_no_weights() -> None:
    assert choose(make_state(A, verdicts={A: SCORED}, downloading=frozenset([B])), at(100)) == SetWeights()


def test_duplicates_and_verdicts_are_not_evaluated() -> None:
    state = make_state(A, B, C, datasets={A: (), B: (), C: ()}, duplicates={A: DUPLICATE}, verdicts={B: REJECTED})
    assert choose(state, at(100)) == EvaluateDataset(C)


def test_only_losses_count_as_samples() -> None:
    datasets: dict[SubmissionKey, tuple[bytes, ...]] = dict.fromkeys([A, B, C], ())
    policy = replace(POLICY, miner_sample_size=1)
    assert choose(make_state(A, B, C, datasets=datasets, verdicts={A: REJECTED}), at(100), policy) == EvaluateDataset(B)
    assert choose(make_state(A, B, C, datasets=datasets, verdicts={A: SCORED}), at(100), policy) == SetWeights()


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


def test_retry_waits_while_others_continue() -> None:
    state = make_state(A, B, retry_states={A: RetryState(remote_failures=1, next_at=NOW + 1)})
    assert choose(state, at(100)) == FetchDatasets((B,))
    state = replace(state, verdicts={B: REJECTED})
    waiting = choose(state, at(100))
    assert isinstance(waiting, Wait)
    assert "1 submissions" in waiting.why
    assert choose(state, at(100), now=NOW + 1) == FetchDatasets((A,))


def test_retry_beyond_the_sample_delays_nothing() -> None:
    retry_states = {B: RetryState(remote_failures=1, next_at=NOW + 1)}
    state = make_state(A, B, datasets={A: (), B: ()}, verdicts={A: SCORED}, retry_states=retry_states)
    assert isinstance(choose(state, at(100)), Wait)
    assert choose(state, at(100), replace(POLICY, miner_sample_size=1)) == SetWeights()
    assert choose(replace(state, duplicates={B: DUPLICATE}), at(100)) == SetWeights()


def test_repeated_host_failures_suspend_an_entry() -> None:
    state = make_state(A, retry_states={A: RetryState(host_failures=MAX_HOST_FAILURES - 1)})
    assert choose(state, at(100)) == FetchDatasets((A,))
    assert (
        choose(replace(state, retry_states={A: RetryState(host_failures=MAX_HOST_FAILURES, next_at=math.inf)}), at(100))
        == SetWeights()
    )
