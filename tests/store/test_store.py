"""Records of the state file round-trip, once and in order."""

import math
import os
import random
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from template.competition import Competition
from template.errors import Reason
from template.records import (
    Entry,
    EvalConfig,
    LeaderboardRow,
    Metrics,
    RetryState,
    Round,
    RunningEvaluation,
    SubmissionKey,
    Verdict,
    WeightOutcome,
)
from template.rules.entries import prune_commit_blocks
from template.store import submissions
from template.store.store import Store
from template.store.submissions import VerdictCache
from tests.fixtures.views import make_entry, make_key, make_submission

KEY = make_key("alice")
E, F = SubmissionKey("a", "e"), SubmissionKey("a", "f")
SCORED = Verdict(loss=2.5, seconds=1.5, receipt='{"loss": 2.5}')


def entry(key: SubmissionKey, uid: int = 0, **changes: int | None) -> Entry:
    values = {"rank_block": 6, "registration_block": 5, "lucky_num": 2**32 - 1, "seed_block": 360}
    return make_entry(key, 7, uid=uid, **{**values, **changes})


OPENED = Round(
    start_block=10, start_block_hash="0xab", opened_block=12, end_block=370, lucky_num=2**32 - 1, entries=(entry(KEY),),
    queue=(KEY,),
)  # fmt: skip


def make_row(hotkey: str, uid: int = 0, **changes: Any) -> LeaderboardRow:
    values = {"reason": None, "message": "", "loss": None, "score": 0.0, "weight": 0.0, **changes}
    return LeaderboardRow(key=make_key(hotkey), uid=uid, **values)


def record_dataset(store: Store, config: EvalConfig, key: SubmissionKey, rows: list[bytes], now: float = 1.0) -> None:
    store.record_dataset(config, key, sha256="0" * 64, row_keys=rows, now=now)


def record_intent(store: Store, round_id: int, leaderboard: list[LeaderboardRow] | None, **changes: Any) -> int:
    values = {"block": 20, "weights": {}, "shares": {}, "registrations": {}, "now": 2.0}
    return store.record_intent(round_id, leaderboard=leaderboard, **{**values, **changes})


def test_floats_round_trip_exactly(store: Store, eval_config: EvalConfig) -> None:
    draw = random.Random(1)
    losses = [5e-324, 1.7976931348623157e308, 0.1 + 0.2, math.pi, 0.0, *(draw.uniform(0, 10) for _ in range(50))]
    verdicts = {make_key(f"h{number}"): Verdict(loss=loss, seconds=loss) for number, loss in enumerate(losses)}
    for key, verdict in verdicts.items():
        store.record_verdict(eval_config, key, verdict, now=1.0)
    assert store.verdicts(eval_config) == verdicts
    round_id = store.begin_round(eval_config, OPENED, now=1.0).id
    weights = {uid: draw.random() for uid in range(20)}
    rows = [make_row(f"h{number}", uid=number, loss=losses[number], weight=draw.random()) for number in range(5)]
    record_intent(store, round_id, rows, weights=weights, now=0.1 + 0.2)
    (intent,) = store.intents(round_id)
    assert (intent.weights, intent.created_at) == (weights, 0.1 + 0.2)
    assert {row.weight for row in store.leaderboard(round_id)} == {row.weight for row in rows}


def test_every_kind_of_verdict_round_trips(path: Path, store: Store, eval_config: EvalConfig) -> None:
    rejections = {make_key(reason): Verdict(reason=reason, message=f"it is {reason}\n\x00é") for reason in Reason}
    for key, verdict in {**rejections, KEY: SCORED}.items():
        store.record_verdict(eval_config, key, verdict, now=1.0)
    store.close()
    with Store(path) as again:
        verdicts = again.verdicts(eval_config)
        assert verdicts == {**rejections, KEY: Verdict(loss=2.5, seconds=1.5)}
        assert all(type(verdicts[key].reason) is Reason for key in rejections)
        assert again.receipt(eval_config, KEY) == SCORED.receipt
        assert again.receipt(eval_config, make_key("empty")) is None


@pytest.mark.parametrize(
    "verdict",
    [Verdict(), Verdict(loss=1.0, reason=Reason.EMPTY), Verdict(loss=math.nan)],
    ids=["neither", "both", "not a number"],
)
def test_verdict_has_a_loss_or_a_reason(store: Store, eval_config: EvalConfig, verdict: Verdict) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        store.record_verdict(eval_config, KEY, verdict, now=1.0)
    assert store.verdicts(eval_config) == {}


def test_verdict_is_recorded_once(store: Store, eval_config: EvalConfig) -> None:
    rejected = make_key("bob")
    store.record_verdict(eval_config, KEY, SCORED, now=1.0)
    store.record_verdict(eval_config, rejected, Verdict(reason=Reason.EMPTY), now=1.0)
    for key in (KEY, rejected):
        with pytest.raises(sqlite3.IntegrityError):
            store.record_verdict(eval_config, key, Verdict(loss=1.0, receipt="other"), now=2.0)
    assert store.verdicts(eval_config) == {KEY: Verdict(loss=2.5, seconds=1.5), rejected: Verdict(reason=Reason.EMPTY)}
    assert store.receipt(eval_config, KEY) == SCORED.receipt


def test_config_changes_with_each_of_its_inputs(store: Store, eval_config: EvalConfig) -> None:
    same, other = Competition.from_defaults(), replace(Competition.from_defaults(), bench=2.61)
    assert store.get_or_create_config(same, "h" * 64, "org/model@abc", now=9.0) == eval_config
    inputs = ((other, "h" * 64, "org/model@abc"), (same, "i" * 64, "org/model@abc"), (same, "h" * 64, "org/model@abd"))
    others = [store.get_or_create_config(*values, now=1.0) for values in inputs]
    configs = [eval_config, *others]
    assert len({config.id for config in configs}) == len({config.digest for config in configs}) == 4
    store.record_verdict(eval_config, KEY, SCORED, now=1.0)
    record_dataset(store, eval_config, KEY, [b"k" * 32])
    store.record_retry_state(eval_config, KEY, RetryState(1, 0, 5.0, "x"))
    store.begin_round(eval_config, OPENED, now=1.0)
    for config in others:
        assert store.verdicts(config) == store.datasets(config, 32) == store.retry_states(config) == {}
        assert store.open_round(config) is store.receipt(config, KEY) is None


def test_first_block_stays_while_block_moves(store: Store) -> None:
    for block in (20, 10, 30, 25):
        store.record_submissions([make_submission(E, block)])
    store.record_submissions([make_submission(F, 40)])
    store.record_submissions([])
    assert store.submissions() == {E: make_submission(E, 10, 25), F: make_submission(F, 40)}


def test_first_block_counts_from_the_present_registration(store: Store) -> None:
    def record(block: int, *, registered: int) -> int:
        store.record_submissions([make_submission(E, block)], {"a": registered})
        return store.submissions()[E].first_block

    assert record(10, registered=5) == 10
    assert record(30, registered=20) == 30
    assert record(40, registered=20) == 30


def test_hostile_text_round_trips(store: Store) -> None:
    texts = ["", "a\x00b", "a\x00c", "'; DROP TABLE submissions; --", "\U0001f600" * 32, "0x00", "1", "1.0"]
    store.record_submissions([make_submission(SubmissionKey("a", text), 1) for text in texts])
    assert {key.commitment for key in store.submissions()} == set(texts)


def test_datasets_round_trip_and_end_retries(store: Store, eval_config: EvalConfig) -> None:
    other = make_key("bob")
    for key in (KEY, other):
        store.record_retry_state(eval_config, key, RetryState(1, 2, 3.5, "late"))
    row_keys = [os.urandom(32) for _ in range(5)]
    record_dataset(store, eval_config, KEY, row_keys, 1.0)
    assert store.datasets(eval_config, 32) == {KEY: tuple(row_keys)}
    assert store.retry_states(eval_config) == {other: RetryState(1, 2, 3.5, "late")}
    record_dataset(store, eval_config, KEY, row_keys[:2], 2.0)
    assert store.datasets(eval_config, 32) == {KEY: tuple(row_keys[:2])}


def test_last_retry_state_counts_until_the_verdict(store: Store, eval_config: EvalConfig) -> None:
    store.record_retry_state(eval_config, KEY, RetryState(1, 0, 1e10, "first"))
    store.record_retry_state(eval_config, KEY, RetryState(2, 1, 1764000000.123, "second"))
    assert store.retry_states(eval_config) == {KEY: RetryState(2, 1, 1764000000.123, "second")}
    store.record_verdict(eval_config, KEY, SCORED, now=1.0)
    assert store.retry_states(eval_config) == {}


def test_round_round_trips_and_is_open_until_closed(store: Store, eval_config: EvalConfig) -> None:
    assert store.open_round(eval_config) is store.last_round() is None
    entries = tuple(make_key(name) for name in ["zoe", "adam", "mia", *(f"h{number}" for number in range(60, 0, -1))])
    members = tuple(entry(key, uid, lucky_num=uid or None, seed_block=None) for uid, key in enumerate(sorted(entries)))
    opened = replace(OPENED, entries=members, queue=entries[:-3])
    first = store.begin_round(eval_config, opened, now=1.0)
    assert first == Round(**{**vars(opened), "id": first.id})
    assert store.open_round(eval_config) == store.last_round() == first
    with Store(store.path, is_read_only=True) as reader:
        assert reader.last_round() == first, "as it is in the file"
    store.close_round(first.id, now=2.0)
    assert store.open_round(eval_config) is None
    assert store.last_round() == first
    second = store.begin_round(eval_config, OPENED, now=3.0)
    assert second.id > first.id
    assert store.last_round() == store.open_round(eval_config) == second


def test_intent_is_pending_until_its_outcome(store: Store, eval_config: EvalConfig) -> None:
    round_id = store.begin_round(eval_config, OPENED, now=1.0).id
    weights, registrations = {0: 0.25, 65535: 0.75}, {"a": 5, "b": 6}
    first = record_intent(store, round_id, [], weights=weights, shares={"a": 1.0}, registrations=registrations)
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
    store.record_leaderboard(round_id, [make_row("a")])
    record_intent(store, round_id, None)
    assert [line.key.hotkey for line in store.leaderboard(round_id)] == ["a"]
    assert store.last_accepted() is None


def test_commit_blocks_round_trip(store: Store) -> None:
    for commit_blocks in ({("a", 20): 5}, {("a", 30): 21, ("b", 7): 1}, {("a", 20): 5}, {}):
        store.record_commit_blocks(commit_blocks)
    assert store.commit_blocks() == {("a", 20): 5, ("a", 30): 21, ("b", 7): 1}


def test_missing_block_only_moves_forward(store: Store) -> None:
    store.record_submissions([make_submission(E, 5)])
    store.record_missing_file(E, 10, is_found=True)
    assert store.submissions()[E].missing_block == 0
    for block in (30, 20):
        store.record_missing_file(E, block)
    assert store.submissions()[E].missing_block == 30
    store.record_missing_file(E, 40, is_found=True)
    assert store.submissions()[E].missing_block == 40
    again = make_submission(E, 60)
    store.record_submissions([again], {"a": 50})
    assert store.submissions()[E] == again


def test_old_superseded_commitments_are_pruned(store: Store) -> None:
    texts = ("old", "kept", "new")
    store.record_submissions([make_submission(SubmissionKey("a", text), number) for number, text in enumerate(texts)])
    commit_blocks = {("a", 0): 0, ("a", 1): 0, ("b", 1): 0, ("b", 2): 1}
    store.record_commit_blocks(commit_blocks)
    store.prune_submissions(keep={SubmissionKey("a", "kept")}, before_block=2)
    assert {key.commitment for key in store.submissions()} == {"kept", "new"}
    assert set(store.commit_blocks()) == {("a", 1), ("b", 2)}, "the newest of a kept hotkey stays"
    assert set(prune_commit_blocks(commit_blocks, before_block=2)) == {("a", 1), ("b", 1), ("b", 2)}


def test_submissions_returns_the_requested_keys(store: Store) -> None:
    seen = [make_submission(SubmissionKey("a", str(number)), number) for number in range(5)]
    store.record_submissions(seen)
    asked = [seen[1].key, seen[3].key, SubmissionKey("b", "1")]
    assert store.submissions(asked) == {seen[1].key: seen[1], seen[3].key: seen[3]}
    assert store.submissions([]) == {} and len(store.submissions()) == 5


def test_datasets_beyond_the_limit_are_pruned(
    store: Store, eval_config: EvalConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submissions, "MAX_DATASETS", 3)
    keys = [make_key(f"h{number}") for number in range(6)]
    for number, key in enumerate(keys):
        record_dataset(store, eval_config, key, [b"k" * 32, b"l" * 32], 100.0 + number)
    store.prune_results(keep={keys[1]}, datasets_before=0.0, receipts_before=0.0)
    assert store.dataset_keys(eval_config) == {keys[1], *keys[3:]}
    own = b"k" * 32
    shared = store.datasets(eval_config, 32, lambda row_keys: tuple(own if key == own else key for key in row_keys))
    assert all(rows[0] is own and rows[1] == b"l" * 32 for rows in shared.values())


def test_verdict_cache_holds_only_requested_verdicts(path: Path, store: Store, eval_config: EvalConfig) -> None:
    keys = [make_key(f"h{number}") for number in range(50)]
    for key in keys:
        store.record_verdict(eval_config, key, SCORED, now=1.0)
    store.close()
    with Store(path) as again:
        cache = again.verdicts(eval_config)
        assert isinstance(cache, VerdictCache) and cache.size == 0
        assert keys[3] in cache and cache[keys[4]].loss == SCORED.loss and make_key("x") not in cache
        assert cache.size == 3 and len(cache) == 50 and set(cache) == set(keys)
        again.prune_results(keep=set(), datasets_before=0.0, receipts_before=0.0)
        assert cache.size == 0 and again.verdicts(eval_config)[keys[9]].loss == SCORED.loss
        again.record_verdict(eval_config, make_key("x"), Verdict(reason=Reason.EMPTY), now=1.0)
        assert cache[make_key("x")].reason is Reason.EMPTY
        again.expire_rejections(eval_config, [Reason.EMPTY], before=2.0)
        assert make_key("x") not in cache and keys[3] in cache


def test_heartbeat_round_trips(store: Store) -> None:
    assert store.heartbeat() is None
    running = RunningEvaluation(
        key=KEY, device="cuda:0", started_at=1.5, stage="train", done=3, total=10, memory_bytes=7
    )
    metrics = Metrics(now=2.5, block=9, block_time=1.25, doing="evaluating", round_id=None, queue=3, unscored=4)
    for heartbeat in (metrics, replace(metrics, running=(running,), weights_block=4, tokens_per_s=0.1)):
        store.record_heartbeat(heartbeat, now=3.0)
        assert store.heartbeat() == heartbeat


def test_receipt_belongs_to_the_first_round_that_reads_it(store: Store, eval_config: EvalConfig) -> None:
    bob = make_key("bob")
    store.record_verdict(eval_config, KEY, SCORED, now=1.0)
    first = store.begin_round(eval_config, OPENED, now=1.0).id
    assert store.round_receipts(eval_config, first) == {KEY: SCORED.receipt}
    store.record_verdict(eval_config, bob, SCORED, now=2.0)
    assert store.round_receipts(eval_config, store.begin_round(eval_config, OPENED, now=2.0).id) == {}, (
        "bob is no entry of it"
    )
    assert store.unpublished_receipts(eval_config) == {bob}
    assert store.latest_seeds(eval_config, [KEY, bob]) == {KEY: (2**32 - 1, 360)}
    second = store.begin_round(eval_config, replace(OPENED, entries=(entry(bob),), queue=()), now=3.0).id
    assert store.round_receipts(eval_config, second) == {bob: SCORED.receipt}
    assert store.round_receipts(eval_config, first) == {KEY: SCORED.receipt}


def test_pruning_keeps_every_verdict(store: Store, eval_config: EvalConfig) -> None:
    bob, carol = make_key("bob"), make_key("carol")
    for number, key in enumerate((KEY, bob, carol)):
        record_dataset(store, eval_config, key, [b"k" * 32], number)
        store.record_verdict(eval_config, key, SCORED, now=number)
    members = tuple(entry(key) for key in (KEY, bob, carol))
    opened = store.begin_round(eval_config, replace(OPENED, entries=members), now=1.0)
    weights, taken = {0: 1.0}, WeightOutcome(is_accepted=True, block=9)
    for attempt in range(3):
        number = record_intent(store, opened.id, [], weights=weights, shares={"a": 1.0}, registrations={"a": 5})
        store.record_outcome(number, replace(taken, is_accepted=attempt < 2), now=1.0)
    store.record_retry_state(eval_config, make_key("gone"), RetryState(next_at=1.0))
    store.record_leaderboard(opened.id, [make_row("a")])
    store.round_receipts(eval_config, opened.id)
    store.close_round(opened.id, now=5.0)
    store.prune_results(keep={bob}, datasets_before=2.0, receipts_before=2.0)
    store.prune_rounds(before=5.0)
    assert store.dataset_keys(eval_config) == set(store.datasets(eval_config, 32)) == {bob, carol}
    assert [store.receipt(eval_config, key) is None for key in (KEY, bob, carol)] == [True, False, False]
    assert set(store.verdicts(eval_config)) == {KEY, bob, carol}
    assert store.leaderboard(opened.id) != []
    assert store.retry_states(eval_config) == {}
    store.prune_rounds(before=5.1)
    assert store.leaderboard(opened.id) == []
    assert [intent.weights for intent in store.intents(opened.id)] == [{}, weights, {}], "the last accepted ones stay"
    last = store.last_round()
    assert last is not None
    assert (last.id, last.entries, last.queue) == (opened.id, (), ())


def test_rejections_expire_by_age_and_reason(store: Store, eval_config: EvalConfig) -> None:
    bob, carol, dave = (make_key(name) for name in ("bob", "carol", "dave"))
    for key, reason in ((KEY, Reason.MISSING_FILE), (bob, Reason.MALFORMED), (carol, Reason.MISSING_REPO)):
        store.record_verdict(eval_config, key, Verdict(reason=reason), now=1.0)
    store.record_verdict(eval_config, dave, Verdict(reason=Reason.MISSING_FILE), now=9.0)
    missing = (Reason.MISSING_FILE, Reason.MISSING_REPO)
    store.expire_rejections(eval_config, missing, before=5.0)
    assert set(store.verdicts(eval_config)) == {bob, dave}
    store.record_verdict(eval_config, carol, Verdict(loss=2.5), now=9.0)
    assert set(store.verdicts(eval_config)) == {bob, carol, dave}


def test_leaderboard_is_the_newest_best_first(store: Store, eval_config: EvalConfig) -> None:
    round_id = store.begin_round(eval_config, OPENED, now=1.0).id
    store.record_leaderboard(round_id, [make_row("old", uid=9)])
    lines = [
        make_row("refused", uid=0, reason=Reason.NOT_IN_POOL, message="line 3"),
        make_row("second", uid=2, loss=2.5, score=0.3, weight=0.3),
        make_row("waits", uid=1, message="waits for its turn"),
        make_row("first", uid=3, loss=2.4, score=0.7, weight=0.7),
        make_row("copy", uid=4, loss=2.4, reason=Reason.DUPLICATE, message="shares"),
        make_row("tiny", uid=6, loss=2.3, score=0.9),
        make_row("hopeless", uid=5, loss=3.5),
    ]
    record_intent(store, round_id, lines)
    rows = store.leaderboard(round_id)
    assert [line.key.hotkey for line in rows] == ["first", "second", "tiny", "copy", "hopeless", "refused", "waits"]
    assert sorted(rows, key=lambda line: line.uid) == sorted(lines, key=lambda line: line.uid)
    store.record_leaderboard(round_id, [])
    assert store.leaderboard(round_id) == []
