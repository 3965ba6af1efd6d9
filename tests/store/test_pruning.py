"""Rows that the state file prunes, and rows that it keeps forever."""

from dataclasses import replace

import pytest

from template.chain_records import WeightOutcome
from template.errors import Reason
from template.records import Absence, ContentKey, EvalConfig, Leaderboard, RetryState, SubmissionKey, Verdict
from template.rules.entries import prune_commit_blocks
from template.store import submissions
from template.store.store import Store
from tests.fixtures.store import (
    COMPETITION,
    DIGEST,
    KEY,
    LINE,
    OPENED,
    RESULT,
    make_evaluation,
    make_row,
    record_dataset,
    record_intent,
)
from tests.fixtures.views import make_key, make_stand


def test_old_stands_of_others_are_pruned(store: Store) -> None:
    store.record_stands([make_stand(SubmissionKey(name, "e"), block) for name in "ab" for block in (0, 20)])
    commit_blocks = {("a", 0): 0, ("a", 1): 0, ("b", 1): 0, ("b", 2): 1}
    store.record_commit_blocks(commit_blocks)
    store.prune_submissions(keep={"a"}, before_block=2)
    assert [stand.first_block for stand in store.stands()["a"]] == [0, 20]
    assert [stand.first_block for stand in store.stands()["b"]] == [20]
    assert set(store.commit_blocks()) == {("a", 1), ("b", 2)}, "the newest of a kept hotkey stays"
    assert set(prune_commit_blocks(commit_blocks, before_block=2)) == {("a", 1), ("b", 1), ("b", 2)}


def test_datasets_beyond_the_limit_are_pruned(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submissions, "MAX_DATASETS", 3)
    keys = [make_key(f"h{number}") for number in range(6)]
    for number, key in enumerate(keys):
        record_dataset(store, key, [b"k" * 32, b"l" * 32], 100.0 + number)
    store.prune_results(keep={keys[1]}, datasets_before=0.0, receipts_before=0.0)
    assert store.dataset_keys(COMPETITION) == {keys[1], *keys[3:]}
    own = b"k" * 32
    shared = store.datasets(COMPETITION, 32, lambda row_keys: tuple(own if key == own else key for key in row_keys))
    assert all(dataset.row_keys[0] is own and dataset.row_keys[1] == b"l" * 32 for dataset in shared.values())


def test_pruning_keeps_every_loss(store: Store, eval_config: EvalConfig) -> None:
    bob, carol = make_key("bob"), make_key("carol")
    for number, key in enumerate((KEY, bob, carol)):
        record_dataset(store, key, [b"k" * 32], number)
        store.record_evaluation(eval_config, make_evaluation(key), RESULT, now=number)
        store.record_rejection(eval_config, key, Verdict(reason=Reason.EMPTY), now=number)
        store.record_availability(returned=[], missing={key: Absence(first_block=1, last_block=1)}, stands=[])
    store.record_retry_state(eval_config, make_key("gone"), RetryState(next_at=1.0))
    store.prune_results(keep={bob}, datasets_before=2.0, receipts_before=2.0)
    assert store.dataset_keys(COMPETITION) == set(store.datasets(COMPETITION, 32)) == {bob, carol}
    losses = store.losses(eval_config)
    assert list(losses.values()) == [[2.5]] * 3
    receipts = [store.results(eval_config, key)[1].receipt for key in sorted(losses)]
    assert receipts == ["", "", RESULT.receipt], "receipts are files too"
    assert set(store.verdicts(eval_config)) == {bob, carol} and set(store.absences()) == {bob}
    assert store.retry_states(eval_config) == {}


def test_old_rounds_keep_their_last_weights_only(store: Store, eval_config: EvalConfig) -> None:
    opened = store.begin_round(eval_config, OPENED, now=1.0)
    store.record_plan(replace(opened, evaluations=(make_evaluation(), make_evaluation(number=2))))
    store.record_evaluation(eval_config, make_evaluation(), RESULT, now=1.0)
    board = Leaderboard([make_row("a")], [LINE])
    weights, taken = {0: 1.0}, WeightOutcome(is_accepted=True, block=9)
    for attempt in range(3):
        number = record_intent(store, opened.id, board, weights=weights, shares={"a": 1.0}, registrations={"a": 5})
        store.record_outcome(number, replace(taken, is_accepted=attempt < 2), now=1.0)
    store.close_round(opened.id, now=5.0)
    store.prune_rounds(before=5.0)
    assert store.leaderboard(opened.id) != []
    store.prune_rounds(before=5.1)
    assert store.leaderboard(opened.id) == store.ledger(opened.id) == []
    assert [intent.weights for intent in store.intents(opened.id)] == [{}, weights, {}], "the last accepted ones stay"
    assert list(store.drawn_seeds(eval_config)) == [(ContentKey("alice", DIGEST), 2)], "its evaluation is to come"
    last = store.last_round()
    assert last is not None
    assert (last.id, last.entries, last.queue) == (opened.id, (), ())


def test_rejections_expire_by_age_and_reason(store: Store, eval_config: EvalConfig) -> None:
    bob, carol, dave = (make_key(name) for name in ("bob", "carol", "dave"))
    for key, reason in ((KEY, Reason.MISSING_FILE), (bob, Reason.MALFORMED), (carol, Reason.MISSING_REPO)):
        store.record_rejection(eval_config, key, Verdict(reason=reason), now=1.0)
    store.record_rejection(eval_config, dave, Verdict(reason=Reason.MISSING_FILE), now=9.0)
    missing = (Reason.MISSING_FILE, Reason.MISSING_REPO)
    store.expire_rejections(eval_config, missing, before=5.0)
    assert set(store.verdicts(eval_config)) == {bob, dave}
    store.record_rejection(eval_config, carol, Verdict(reason=Reason.EMPTY), now=9.0)
    assert set(store.verdicts(eval_config)) == {bob, carol, dave}
