"""Decisions about opening a round, downloads and evaluations."""

import math
from dataclasses import replace
from typing import Any

import pytest

from template.records import RetryState, SubmissionKey
from template.rules.schedule import (
    MAX_HOST_FAILURES,
    Action,
    EvaluateDataset,
    FetchDatasets,
    OpenRound,
    SetWeights,
    State,
    Wait,
)
from tests.fixtures.schedule import DUPLICATE, NOW, POLICY, REJECTED, SCORED, at, choose, make_idle, make_state, plan
from tests.fixtures.views import make_entry, make_key

A, B, C, D, E = (make_key(name) for name in "abcde")


def test_queue_is_in_rank_order_despite_backoffs() -> None:
    retry_states = {A: RetryState(remote_failures=1, next_at=NOW + 1), B: RetryState(host_failures=1, next_at=NOW)}
    assert plan({A: 1, B: 2, C: 50, D: 40, E: 40}, retry_states=retry_states) == (A, B, D, E, C)


def test_failed_download_no_longer_delays_evaluations() -> None:
    for downloading in (frozenset[SubmissionKey](), frozenset([A, B])):
        first = make_state(A, B, C, datasets={C: ()}, available_slots=0, downloading=downloading)
        assert isinstance(choose(first, at(100)), Wait)
        failed = {A: RetryState(remote_failures=1), B: RetryState(remote_failures=3)}
        assert choose(replace(first, retry_states=failed), at(100)) == EvaluateDataset(C)


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
    [(360, 360, 460), (1000, 1000, 460), (51, 360, 151), (50, 360, 460), (0, 100, 200), (1, 2, 103), (0, 0, 101)],
    ids=["whole", "long tempo", "just enough", "too near", "now", "tiny tempo", "no tempo"],
)
def test_round_ends_with_a_nearer_epoch_of_the_chain(until_epoch: int, tempo: int, end: int) -> None:
    assert choose(make_idle(), at(100, blocks_until_epoch=until_epoch, tempo=tempo)) == OpenRound(100, end)


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


def test_missing_file_is_downloaded_again_without_delays() -> None:
    state = make_state(A, B, datasets={A: (), B: ()}, missing_files=frozenset([A]))
    assert choose(state, at(100)) == FetchDatasets((A,))
    assert choose(replace(state, downloading=frozenset([A])), at(100)) == EvaluateDataset(B)
    done = replace(state, downloading=frozenset([A]), verdicts={B: REJECTED})
    assert isinstance(choose(done, at(100)), Wait), "weights wait for it"


FAILED, FAILED_TWICE = RetryState(remote_failures=1), RetryState(remote_failures=2)
RESTING = RetryState(remote_failures=1, next_at=NOW + 1)
SUSPENDED = RetryState(host_failures=MAX_HOST_FAILURES, next_at=math.inf)
ONE_SAMPLE = replace(POLICY, miner_sample_size=1)
READ: dict[SubmissionKey, tuple[bytes, ...]] = dict.fromkeys([A, B, C], ())
SCORED_A: dict[str, Any] = {"datasets": READ, "verdicts": {A: SCORED}}
RUNNING_A: dict[str, Any] = {"datasets": READ, "running": frozenset([A])}

SITUATIONS: dict[str, tuple[State, Action | type[Wait]]] = {
    "downloads come before evaluations": (make_state(A, B, C, datasets={A: ()}), FetchDatasets((B,))),
    "evaluations are in rank order": (make_state(A, B, C, datasets=READ), EvaluateDataset(A)),
    "the fewest failures download first": (
        make_state(A, B, C, D, retry_states={A: FAILED_TWICE, B: FAILED, D: FAILED}, available_slots=3),
        FetchDatasets((C, B, D)),
    ),
    "downloads fill the slots": (
        make_state(A, B, C, D, available_slots=2, downloading=frozenset([B])), FetchDatasets((A, C)),
    ),
    "no slot is free": (make_state(A, B, available_slots=0, downloading=frozenset([B])), Wait),
    "no download starts twice": (make_state(A, B, available_slots=2, downloading=frozenset([A, B])), Wait),
    "an entry in backoff delays no evaluation": (
        make_state(A, B, datasets={B: ()}, retry_states={A: RESTING}), EvaluateDataset(B),
    ),
    "downloads of other rounds delay no weights": (
        make_state(A, verdicts={A: SCORED}, downloading=frozenset([B])), SetWeights(),
    ),
    "neither duplicates nor verdicts are evaluated": (
        make_state(A, B, C, datasets=READ, duplicates={A: DUPLICATE}, verdicts={B: REJECTED}), EvaluateDataset(C),
    ),
    "no evaluation starts twice": (make_state(A, B, **RUNNING_A), EvaluateDataset(B)),
    "no worker is idle": (make_state(A, B, idle_workers=0, **RUNNING_A), Wait),
    "all evaluations run": (make_state(A, B, datasets=READ, running=frozenset([A, B])), Wait),
    "a retry in backoff delays weights": (make_state(A, B, retry_states={B: RESTING}, **SCORED_A), Wait),
    "a duplicate in backoff does not": (
        make_state(A, B, retry_states={B: RESTING}, duplicates={B: DUPLICATE}, **SCORED_A), SetWeights(),
    ),
    "failures of this machine below the limit": (
        make_state(A, retry_states={A: RetryState(host_failures=MAX_HOST_FAILURES - 1)}), FetchDatasets((A,)),
    ),
    "a suspended entry is not waited for": (make_state(A, retry_states={A: SUSPENDED}), SetWeights()),
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_work_of_a_round(situation: str) -> None:
    state, expected = SITUATIONS[situation]
    action = choose(state, at(100))
    assert isinstance(action, Wait) if expected is Wait else action == expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        pytest.param(make_state(A, B, C, datasets=READ, verdicts={A: REJECTED}), EvaluateDataset(B), id="rejection"),
        pytest.param(make_state(A, B, C, **SCORED_A), SetWeights(), id="loss"),
        pytest.param(make_state(B, **SCORED_A), EvaluateDataset(B), id="loss of an earlier round"),
        pytest.param(
            make_state(A, B, **RUNNING_A), Wait("1 evaluations running, 0 waiting for a worker"), id="running"
        ),
        pytest.param(make_state(A, B, retry_states={B: RESTING}, **SCORED_A), SetWeights(), id="loss, and a retry"),
    ],
)
def test_losses_of_the_round_count_as_samples(state: State, expected: Action) -> None:
    assert choose(state, at(100), ONE_SAMPLE) == expected


def test_deregistered_hotkeys_are_skipped() -> None:
    assert choose(make_state(A, B), at(100, gone="a")) == FetchDatasets((B,))


def test_retry_waits_while_others_continue() -> None:
    state = make_state(A, B, retry_states={A: RESTING})
    assert choose(state, at(100)) == FetchDatasets((B,))
    state = replace(state, verdicts={B: REJECTED})
    assert choose(state, at(100)) == Wait("1 submissions waiting for a retry")
    assert choose(state, at(100), now=NOW + 1) == FetchDatasets((A,))
