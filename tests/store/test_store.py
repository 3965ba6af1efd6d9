"""Records of the state file round-trip, once and in order."""

import math
import os
import random
import sqlite3
from dataclasses import replace
from typing import Any

import pytest

from template.chain_records import WeightOutcome
from template.errors import Reason
from template.records import (
    Absence,
    Confirmed,
    ContentKey,
    Dataset,
    EvalConfig,
    Leaderboard,
    Metrics,
    Rank,
    RetryState,
    RunningEvaluation,
    SubmissionKey,
    Verdict,
)
from template.store.store import Store
from tests.fixtures.store import (
    COMPETITION,
    DIGEST,
    KEY,
    LINE,
    OPENED,
    RESULT,
    make_evaluation,
    make_member,
    make_row,
    record_dataset,
    record_intent,
)
from tests.fixtures.views import make_key, make_stand

E, F = SubmissionKey("a", "e"), SubmissionKey("a", "f")


# Evaluations and rejections


def test_floats_round_trip_exactly(store: Store, eval_config: EvalConfig) -> None:
    draw = random.Random(1)
    losses = [5e-324, 1.7976931348623157e308, 0.1 + 0.2, math.pi, 0.0, *(draw.uniform(0, 10) for _ in range(50))]
    for number, loss in enumerate(losses, start=1):
        result = replace(RESULT, loss=loss, seconds=loss)
        store.record_evaluation(eval_config, make_evaluation(number=number), result, now=1.0)
    content = ContentKey("alice", DIGEST)
    assert store.losses(eval_config) == {content: losses}
    assert [result.seconds for result in store.results(eval_config, content).values()] == losses
    round_id = store.begin_round(eval_config, OPENED, now=1.0).id
    weights = {uid: draw.random() for uid in range(20)}
    rows = [make_row(f"h{number}", uid=number, loss=losses[number], weight=draw.random()) for number in range(5)]
    record_intent(store, round_id, Leaderboard(rows, [LINE]), weights=weights, now=0.1 + 0.2)
    (intent,) = store.intents(round_id)
    assert (intent.weights, intent.created_at) == (weights, 0.1 + 0.2)
    assert {row.weight for row in store.leaderboard(round_id)} == {row.weight for row in rows}
    assert store.ledger(round_id) == [LINE]


def test_every_rejection_round_trips(store: Store, eval_config: EvalConfig) -> None:
    rejections = {make_key(reason): Verdict(reason=reason, message=f"it is {reason}\n\x00é") for reason in Reason}
    for key, verdict in rejections.items():
        store.record_rejection(eval_config, key, verdict, now=1.0)
    path = store.path
    store.close()
    with Store(path) as again:
        assert again.verdicts(eval_config) == rejections
        assert all(type(verdict.reason) is Reason for verdict in again.verdicts(eval_config).values())


@pytest.mark.parametrize("loss", [math.nan, None])
def test_evaluation_without_a_loss_is_refused(store: Store, eval_config: EvalConfig, loss: Any) -> None:
    store.record_retry_state(eval_config, KEY, RetryState(1))
    with pytest.raises(sqlite3.IntegrityError):
        store.record_evaluation(eval_config, make_evaluation(), replace(RESULT, loss=loss), now=1.0)
    assert store.losses(eval_config) == {} and store.retry_states(eval_config) == {KEY: RetryState(1)}


def test_evaluation_and_rejection_are_recorded_once(store: Store, eval_config: EvalConfig) -> None:
    store.record_evaluation(eval_config, make_evaluation(), RESULT, now=1.0)
    store.record_rejection(eval_config, KEY, Verdict(reason=Reason.EMPTY), now=1.0)
    other = make_evaluation(SubmissionKey("alice", "the same rows"))
    with pytest.raises(sqlite3.IntegrityError):
        store.record_evaluation(eval_config, other, replace(RESULT, loss=1.0), now=2.0)
    with pytest.raises(sqlite3.IntegrityError):
        store.record_rejection(eval_config, KEY, Verdict(reason=Reason.MALFORMED), now=2.0)
    assert store.results(eval_config, other.content) == {1: RESULT}
    assert store.verdicts(eval_config) == {KEY: Verdict(reason=Reason.EMPTY)}


def test_config_changes_with_each_of_its_inputs(store: Store, eval_config: EvalConfig) -> None:
    other = replace(COMPETITION, bench=2.61)
    assert store.get_or_create_config(COMPETITION, "h" * 64, "org/model@abc", now=9.0) == eval_config
    inputs = (
        (other, "h" * 64, "org/model@abc"),
        (COMPETITION, "i" * 64, "org/model@abc"),
        (COMPETITION, "h" * 64, "org/model@abd"),
    )
    others = [store.get_or_create_config(*values, now=1.0) for values in inputs]
    configs = [eval_config, *others]
    assert len({config.id for config in configs}) == len({config.digest for config in configs}) == 4
    store.record_rejection(eval_config, KEY, Verdict(reason=Reason.EMPTY), now=1.0)
    store.record_evaluation(eval_config, make_evaluation(), RESULT, now=1.0)
    store.record_retry_state(eval_config, KEY, RetryState(1, 0, 5.0, "x"))
    confirmed = Confirmed(rank=Rank(20, 3, b"t" * 32), registration_block=1, row_keys=(b"k" * 32,))
    store.record_confirmed(eval_config, {ContentKey("a", DIGEST): confirmed}, now=1.0)
    store.begin_round(eval_config, OPENED, now=1.0)
    for config in others:
        assert store.verdicts(config) == store.losses(config) == store.retry_states(config) == {}
        assert store.confirmed(config, 32) == {} and store.open_round(config) is None
    assert store.last_inputs() == (COMPETITION.to_dict(), "h" * 64, "org/model@abc")


def test_datasets_belong_to_the_competition(store: Store) -> None:
    record_dataset(store, KEY, [b"k" * 32])
    assert store.datasets(COMPETITION, 32) == {KEY: Dataset(digest=DIGEST, row_keys=(b"k" * 32,))}
    assert store.datasets(replace(COMPETITION, bench=2.61), 32) == {}


def test_confirmed_dataset_keeps_its_first_record(store: Store, eval_config: EvalConfig) -> None:
    key, rank = ContentKey("a", DIGEST), Rank(20, 3, b"t" * 32)
    first = Confirmed(rank=rank, registration_block=1, row_keys=(b"k" * 32, b"l" * 32), public=rank._replace(block=10))
    store.record_confirmed(eval_config, {key: first}, now=1.0)
    store.record_confirmed(eval_config, {key: replace(first, registration_block=9)}, now=2.0)
    assert store.confirmed(eval_config, 32) == {key: first}


# Stands and files


def test_stands_round_trip_in_order(store: Store) -> None:
    later, first = make_stand(F, 40, 60, reveal_block=55), make_stand(E, 20, missing_block=20)
    store.record_stands([later, first])
    assert store.stands() == {"a": [first, later]}
    store.record_stands([replace(later, last_block=80)])
    assert store.stands()["a"][1].last_block == 80
    store.replace_stands("a", [first])
    assert store.stands() == {"a": [first]}


def test_hostile_text_round_trips(store: Store) -> None:
    texts = ["", "a\x00b", "a\x00c", "'; DROP TABLE stands; --", "\U0001f600" * 32, "0x00", "1", "1.0"]
    store.record_stands([make_stand(SubmissionKey("a", text), block) for block, text in enumerate(texts)])
    assert [stand.key.commitment for stand in store.stands()["a"]] == texts


def test_missing_file_marks_the_stand_of_its_round(store: Store) -> None:
    store.record_stands([make_stand(E, 20, 60), make_stand(F, 80, 100)])
    for block in (40, 20, 80):
        store.record_missing_file(E, block)
    assert [stand.missing_block for stand in store.stands()["a"]] == [40, 0]


def test_search_for_files_is_recorded_at_once(store: Store) -> None:
    stand, absence = make_stand(E, 20, 60), Absence(first_block=40, last_block=60, rounds=2)
    store.record_stands([stand])
    store.record_availability(returned=[F], missing={E: absence}, stands=[replace(stand, last_block=20)])
    assert store.absences() == {E: absence} and store.stands() == {"a": [replace(stand, last_block=20)]}
    with store.atomic() as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON stands BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(sqlite3.IntegrityError):
        store.record_availability(returned=[E], missing={}, stands=[stand])
    assert store.absences() == {E: absence}, "all or nothing"


def test_datasets_round_trip_and_end_retries(store: Store, eval_config: EvalConfig) -> None:
    other = make_key("bob")
    for key in (KEY, other):
        store.record_retry_state(eval_config, key, RetryState(1, 2, 3.5, "late"))
    row_keys = [os.urandom(32) for _ in range(5)]
    for rows in (row_keys, row_keys[:2]):
        record_dataset(store, KEY, rows)
        assert store.datasets(COMPETITION, 32)[KEY].row_keys == tuple(rows)
    assert store.retry_states(eval_config) == {other: RetryState(1, 2, 3.5, "late")}


def test_last_retry_state_counts_until_the_verdict(store: Store, eval_config: EvalConfig) -> None:
    store.record_retry_state(eval_config, KEY, RetryState(1, 0, 1e10, "first"))
    store.record_retry_state(eval_config, KEY, RetryState(2, 1, 1764000000.123, "second"))
    assert store.retry_states(eval_config) == {KEY: RetryState(2, 1, 1764000000.123, "second")}
    store.record_rejection(eval_config, KEY, Verdict(reason=Reason.EMPTY), now=1.0)
    assert store.retry_states(eval_config) == {}


def test_commit_blocks_round_trip(store: Store) -> None:
    for commit_blocks in ({("a", 20): 5}, {("a", 30): 21, ("b", 7): 1}, {("a", 20): 5}, {}):
        store.record_commit_blocks(commit_blocks)
    assert store.commit_blocks() == {("a", 20): 5, ("a", 30): 21, ("b", 7): 1}


# Rounds


def test_round_round_trips_and_is_open_until_closed(store: Store, eval_config: EvalConfig) -> None:
    assert store.open_round(eval_config) is store.last_round() is None
    keys = tuple(make_key(name) for name in ["zoe", "adam", "mia", *(f"h{number}" for number in range(60, 0, -1))])
    members = tuple(make_member(key, uid) for uid, key in enumerate(sorted(keys)))
    first = store.begin_round(eval_config, replace(OPENED, entries=members, queue=keys[:-3]), now=1.0)
    assert first == replace(OPENED, entries=members, queue=keys[:-3], id=first.id)
    assert store.open_round(eval_config) == store.last_round() == first
    with Store(store.path, is_read_only=True) as reader:
        assert reader.last_round() == first, "as it is in the file"
    store.close_round(first.id, now=2.0)
    assert store.open_round(eval_config) is None
    assert store.last_round() == first
    second = store.begin_round(eval_config, replace(OPENED, start_block=370, start_block_hash="0xcd"), now=3.0)
    assert second.id > first.id
    assert store.last_round() == store.open_round(eval_config) == second
    assert store.block_hashes() == {10: "0xab", 370: "0xcd"}


@pytest.mark.parametrize("numbers", [(), (3, 1, 2)], ids=["nothing to do", "three"])
def test_plan_of_a_round_survives_in_order(store: Store, eval_config: EvalConfig, numbers: tuple[int, ...]) -> None:
    opened = store.begin_round(eval_config, OPENED, now=1.0)
    assert opened.evaluations is None
    plan = tuple(make_evaluation(number=number, seed_block=number if number > 1 else None) for number in numbers)
    store.record_plan(replace(opened, evaluations=plan))
    with Store(store.path, is_read_only=True) as reader:
        read = reader.open_round(eval_config)
    assert read is not None and read.evaluations == plan


def test_drawn_seed_is_the_first_of_its_evaluation(store: Store, eval_config: EvalConfig) -> None:
    for start_block, seed in ((10, 7), (370, 8)):
        opened = store.begin_round(eval_config, replace(OPENED, start_block=start_block), now=1.0)
        store.record_plan(replace(opened, evaluations=(make_evaluation(lucky_num=seed),)))
    assert store.drawn_seeds(eval_config) == {(ContentKey("alice", DIGEST), 1): 7}
    assert store.recent_runs(eval_config, after_block=9) == {"alice": 2}
    assert store.recent_runs(eval_config, after_block=10) == {"alice": 1}


def test_intent_is_pending_until_its_outcome(store: Store, eval_config: EvalConfig) -> None:
    round_id = store.begin_round(eval_config, OPENED, now=1.0).id
    weights, registrations = {0: 0.25, 65535: 0.75}, {"a": 5, "b": 6}
    empty = Leaderboard([], [])
    first = record_intent(store, round_id, empty, weights=weights, shares={"a": 1.0}, registrations=registrations)
    (intent,) = store.intents(round_id)
    assert store.pending_intents() == [intent]
    assert (intent.id, intent.block, dict(intent.weights)) == (first, 20, weights)
    assert intent.outcome is intent.finished_at is None
    refused = WeightOutcome(is_accepted=False, error="SettingWeightsTooFast", message="wait")
    sealed = WeightOutcome(is_accepted=True, block=31, is_revealed_later=True, reveal_round=123)
    store.record_outcome(first, refused, now=3.5)
    second = record_intent(store, round_id, None)
    store.record_outcome(second, sealed, now=5.0)
    intents = store.intents(round_id)
    assert [intent.outcome for intent in intents] == [refused, sealed]
    assert [(intent.id, intent.finished_at) for intent in intents] == [(first, 3.5), (second, 5.0)]
    assert [intent.is_repeat for intent in intents] == [False, True]
    assert store.intents(round_id + 1) == []
    assert store.last_accepted() == store.last_accepted(eval_config) == intents[1]
    assert intents[0].registrations == {"a": 5}, "only those with a share"
    assert store.last_accepted(EvalConfig(eval_config.id + 1, "other")) is None and store.pending_intents() == []


def test_resubmission_keeps_the_rounds_leaderboard(store: Store, eval_config: EvalConfig) -> None:
    round_id = store.begin_round(eval_config, OPENED, now=1.0).id
    store.record_leaderboard(round_id, Leaderboard([make_row("a")], [LINE]))
    record_intent(store, round_id, None)
    assert [line.key.hotkey for line in store.leaderboard(round_id)] == ["a"] and store.ledger(round_id) == [LINE]
    assert store.last_accepted() is None


def test_leaderboard_is_the_newest_best_first(store: Store, eval_config: EvalConfig) -> None:
    round_id = store.begin_round(eval_config, OPENED, now=1.0).id
    store.record_leaderboard(round_id, Leaderboard([make_row("old", uid=9)], []))
    lines = [
        make_row("refused", uid=0, reason=Reason.NOT_IN_POOL, message="line 3"),
        make_row("second", uid=2, loss=2.5, score=0.3, weight=0.3, digest=DIGEST, mean=2.4, spread=0.1, runs=3),
        make_row("waits", uid=1, message="waits for its turn"),
        make_row("first", uid=3, loss=2.4, score=0.7, weight=0.7, credit=0.4),
        make_row("copy", uid=4, loss=2.4, reason=Reason.DUPLICATE, message="shares"),
        make_row("tiny", uid=6, loss=2.3, score=0.9),
        make_row("hopeless", uid=5, loss=3.5),
    ]
    record_intent(store, round_id, Leaderboard(lines, []))
    rows = store.leaderboard(round_id)
    assert [line.key.hotkey for line in rows] == ["first", "second", "tiny", "copy", "hopeless", "refused", "waits"]
    assert sorted(rows, key=lambda line: line.uid) == sorted(lines, key=lambda line: line.uid)
    store.record_leaderboard(round_id, Leaderboard([], []))
    assert store.leaderboard(round_id) == []


def test_heartbeat_round_trips(store: Store) -> None:
    assert store.heartbeat() is None
    running = RunningEvaluation(
        key=KEY, device="cuda:0", started_at=1.5, stage="train", done=3, total=10, memory_bytes=7
    )
    metrics = Metrics(now=2.5, block=9, block_time=1.25, doing="evaluating", round_id=None, queue=3, unscored=4)
    for heartbeat in (metrics, replace(metrics, running=(running,), weights_block=4, tokens_per_s=0.1)):
        store.record_heartbeat(heartbeat, now=3.0)
        assert store.heartbeat() == heartbeat
