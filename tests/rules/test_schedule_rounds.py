"""Whole rounds of a simulated world, in which every decision is carried out and checked."""

import itertools
import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace
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
    UNKNOWN_OUTCOME_BLOCKS,
    Action,
    CloseRound,
    EvaluateDataset,
    FetchDatasets,
    OpenRound,
    Policy,
    ResolveIntent,
    SetWeights,
    State,
    Stop,
    Wait,
    decide,
    plan_queue,
)
from tests.fixtures.views import make_entry, make_key, make_neuron, make_view

BLOCK_S = 12.0


COPY = Duplicate(hotkey="x", commit="y", block=1, shared=101)


@dataclass
class World:
    """A simulated chain, machine and validator state. Chances are per attempt; a lost call may land blocks later.

    played: every action, with its block. accepted: rounds by number of accepted weights. tempo: epochs are at its
    multiples. downloading: the block at which each download ends. held: files on the disk.
    """

    policy: Policy = field(default_factory=Policy)
    seed: int = 0
    remote_chance: float = 0.0
    host_chance: float = 0.0
    refusal_chance: float = 0.0
    weights_refused_chance: float = 0.0
    weights_unknown_chance: float = 0.0
    work_blocks: int = 1
    fetch_blocks: int = 0
    downloads: int = 1
    downloading: dict[SubmissionKey, int] = field(default_factory=dict)
    held: set[SubmissionKey] = field(default_factory=set)
    tempo: int = 360
    rate_limit: int = 0
    block: int = 100
    last_update: int = 5
    duplicates: dict[SubmissionKey, Duplicate] = field(default_factory=dict)
    entries: dict[SubmissionKey, Entry] = field(default_factory=dict)
    verdicts: dict[SubmissionKey, Verdict] = field(default_factory=dict)
    datasets: dict[SubmissionKey, object] = field(default_factory=dict)
    retry_states: dict[SubmissionKey, RetryState] = field(default_factory=dict)
    intents: list[WeightIntent] = field(default_factory=list)
    current: Round | None = None
    has_leaderboard: bool = False
    rounds_done: int = 0
    landing_block: int | None = None
    played: list[tuple[int, Action]] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    accepted: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def enter(self, *keys: SubmissionKey) -> None:
        """Commit these in the present block."""
        for key in keys:
            self.entries[key] = make_entry(key, self.block, uid=len(self.entries) + 1)

    def view(self) -> ChainView:
        me = make_neuron(0, "me", registration_block=5, last_update_block=self.last_update)
        until = self.tempo - self.block % self.tempo
        miners = [make_neuron(entry.uid, key.hotkey) for key, entry in self.entries.items()]
        return make_view(
            self.block,
            neurons=[me, *miners],
            tempo=self.tempo,
            blocks_until_epoch=until,
            weights_rate_limit=self.rate_limit,
        )

    def state(self) -> State:
        return State(
            hotkey="me",
            round=self.current,
            rounds_done=self.rounds_done,
            datasets=self.datasets,
            verdicts=self.verdicts,
            duplicates={key: copy for key, copy in self.duplicates.items() if key in self.datasets},
            retry_states=self.retry_states,
            intents=self.intents,
            pending_intents=[intent for intent in self.intents if intent.outcome is None],
            has_leaderboard=self.has_leaderboard,
            downloading=frozenset(self.downloading),
            available_slots=self.downloads - len(self.downloading),
        )

    def tick(self) -> Action:
        self.collect()
        action = decide(self.state(), self.view(), self.block * BLOCK_S, self.policy)
        self.played.append((self.block, action))
        self.perform(action)
        if self.landing_block is not None and self.block >= self.landing_block:
            self.last_update, self.landing_block = self.landing_block, None
        return action

    def perform(self, action: Action) -> None:
        match action:
            case OpenRound(start_block, end_block):
                assert self.current is None
                assert start_block == self.block < end_block
                self.open(end_block)
            case FetchDatasets(keys):
                assert keys and not self.downloading.keys() & set(keys)
                self.downloading |= {key: self.block + (key not in self.held) * self.fetch_blocks for key in keys}
                assert len(self.downloading) <= self.downloads
                self.collect()
            case EvaluateDataset(key):
                assert key in self.datasets
                assert key not in self.duplicates
                rank_block = self.entries[key].rank_block
                assert all(self.entries[other].rank_block > rank_block for other in self.downloading)
                self.work(key)
            case SetWeights():
                self.set_weights()
            case ResolveIntent(intent_id, is_accepted):
                self.settle(intent_id, WeightOutcome(is_accepted=is_accepted))
            case CloseRound():
                assert all(intent.outcome is not None for intent in self.intents)
                self.current = None
                self.rounds_done += 1
            case Wait():
                self.block += 1

    def collect(self) -> None:
        """Collect ended downloads; drop those that no round waits for, but keep their files."""
        for key in [key for key, block in self.downloading.items() if block <= self.block]:
            del self.downloading[key]
            self.held.add(key)
            if self.current is not None and key in self.current.queue and key not in self.datasets:
                self.work(key)

    def open(self, end_block: int) -> None:
        duplicates = {key: copy for key, copy in self.duplicates.items() if key in self.datasets}
        now = self.block * BLOCK_S
        queue = plan_queue(self.entries, self.verdicts, duplicates, self.datasets, self.retry_states, now, self.policy)
        self.current = Round(
            id=len(self.rounds), start_block=self.block, start_block_hash="", opened_block=self.block,
            end_block=end_block, lucky_num=0, queue=queue,
            entries=tuple(replace(e, lucky_num=7 if e.key in queue else None) for e in self.entries.values()),
        )  # fmt: skip
        self.rounds.append(self.current)
        self.intents, self.has_leaderboard = [], False

    def work(self, key: SubmissionKey) -> None:
        assert self.current is not None
        assert key in self.current.queue
        assert key not in self.verdicts
        before = self.retry_states.get(key, RetryState())
        assert before.next_at <= self.block * BLOCK_S
        assert before.host_failures < MAX_HOST_FAILURES
        self.block += self.work_blocks
        draw = self.random.random()
        if draw < self.remote_chance:
            later = self.block * BLOCK_S + 30 * 2 ** min(before.remote_failures, 6)
            self.retry_states[key] = replace(before, remote_failures=before.remote_failures + 1, next_at=later)
        elif draw < self.remote_chance + self.host_chance:
            failures = before.host_failures + 1
            parked_until = math.inf if failures >= MAX_HOST_FAILURES else before.next_at
            self.retry_states[key] = replace(before, host_failures=failures, next_at=parked_until)
        elif draw < self.remote_chance + self.host_chance + self.refusal_chance:
            self.give_verdict(key, Verdict(reason=Reason.MALFORMED))
        elif key in self.datasets:
            self.give_verdict(key, Verdict(loss=2.5))
        else:
            self.datasets[key] = ()
            self.retry_states.pop(key, None)

    def give_verdict(self, key: SubmissionKey, verdict: Verdict) -> None:
        self.verdicts[key] = verdict
        self.retry_states.pop(key, None)

    def set_weights(self) -> None:
        assert self.current is not None
        if not self.policy.sets_weights:
            self.has_leaderboard = bool(self.entries)
            return
        assert all(intent.outcome is not None for intent in self.intents)
        assert not self.accepted[self.current.id], "accepted weights are set again"
        intent = WeightIntent(
            id=len(self.intents),
            block=self.block,
            weights={},
            shares={},
            registrations={},
            created_at=0.0,
            outcome=None,
            finished_at=None,
        )
        self.intents.append(intent)
        self.has_leaderboard = True
        self.block += 1
        draw = self.random.random()
        if self.last_update and self.block - self.last_update < self.rate_limit:
            self.settle(intent.id, WeightOutcome(is_accepted=False, error="SettingWeightsTooFast"))
        elif draw < self.weights_unknown_chance:
            if self.random.random() < 0.5:
                self.landing_block = self.block + self.random.randrange(UNKNOWN_OUTCOME_BLOCKS + 5)
        elif draw < self.weights_unknown_chance + self.weights_refused_chance:
            self.settle(intent.id, WeightOutcome(is_accepted=False, error="NotEnoughStakeToSetWeights"))
        else:
            self.last_update = self.block
            self.settle(intent.id, WeightOutcome(is_accepted=True, block=self.block))

    def settle(self, intent_id: int, outcome: WeightOutcome) -> None:
        assert self.current is not None
        self.intents[intent_id] = replace(self.intents[intent_id], outcome=outcome)
        self.accepted[self.current.id] += outcome.is_accepted

    def run_rounds(self, count: int) -> None:
        """Tick until this many more rounds have closed, or fail."""
        target = self.rounds_done + count
        for _ in range(1000 * count):
            if self.rounds_done >= target or isinstance(self.tick(), Stop):
                return
        raise AssertionError(f"no end in sight: {self.played[-5:]}")

    def actions(self, kind: type[Action]) -> list[tuple[int, Any]]:
        return [(block, action) for block, action in self.played if isinstance(action, kind)]


def keys(count: int, prefix: str = "h") -> list[SubmissionKey]:
    return [make_key(f"{prefix}{number:03}") for number in range(count)]


# Without faults


def test_quiet_round_evaluates_all_and_sets_weights_once() -> None:
    world = World()
    world.enter(*keys(5))
    world.run_rounds(1)
    kinds = [type(action).__name__ for _, action in world.played if not isinstance(action, Wait)]
    assert kinds == ["OpenRound", *["FetchDatasets"] * 5, *["EvaluateDataset"] * 5, "SetWeights", "CloseRound"]
    assert world.rounds[0].end_block == 360
    assert world.actions(CloseRound) == [(360, CloseRound(is_settled=True))]
    assert len(world.verdicts) == 5


def test_parallel_downloads_delay_later_commitments_only() -> None:
    world = World(downloads=4, fetch_blocks=10)
    for key in keys(6):
        world.block += 1
        world.enter(key)
    world.run_rounds(1)
    assert [len(action.keys) for _, action in world.actions(FetchDatasets)] == [4, 2]
    first_fetch, last_fetch = (block for block, _ in world.actions(FetchDatasets))
    (first_score, _), *_ = world.actions(EvaluateDataset)
    assert first_score == last_fetch == first_fetch + 10 + 4, "evaluated while the last two are downloading"
    assert len(world.verdicts) == 6 and set(world.accepted.values()) == {1}


def test_endless_downloads_do_not_delay_weights() -> None:
    world = World(downloads=8, fetch_blocks=10**6)
    world.enter(*keys(256))
    world.run_rounds(3)
    assert set(world.accepted.values()) == {1}
    for block, _ in world.actions(SetWeights):
        assert 0 < 360 - block % 360 <= 50


def test_rounds_follow_epochs_with_weights_before_each() -> None:
    world = World(tempo=200, rate_limit=100)
    world.enter(*keys(3))
    world.run_rounds(6)
    assert [opened.end_block for opened in world.rounds] == [200, 400, 600, 800, 1000, 1200]
    for opened in world.rounds:
        (when,) = [block for block, _ in world.actions(SetWeights) if opened.start_block <= block < opened.end_block]
        assert when < opened.end_block


def test_one_sample_per_round_reaches_everyone_in_order() -> None:
    world = World(policy=Policy(miner_sample_size=1))
    entered = keys(7)
    world.duplicates = {entered[1]: COPY}
    for key in reversed(entered):
        world.block += 1
        world.enter(key)
    world.retry_states[entered[3]] = RetryState(host_failures=MAX_HOST_FAILURES, next_at=math.inf)
    world.run_rounds(5)
    scored = [action.key for _, action in world.actions(EvaluateDataset)]
    assert scored == [key for key in reversed(entered) if key not in (entered[1], entered[3])]
    assert set(world.accepted.values()) == {1}


def test_newcomers_do_not_overtake_earlier_entries() -> None:
    world = World(policy=Policy(miner_sample_size=1, miner_duplicate_sample_size=3))
    first = keys(4)
    world.enter(*first)
    for number in range(4):
        world.run_rounds(1)
        world.enter(*keys(2, prefix=f"new{number}-"))
    assert set(first) == set(world.verdicts)


def test_unreachable_dataset_gets_its_turn_once_reachable() -> None:
    world = World(policy=Policy(miner_sample_size=1))
    entered = keys(3)
    world.enter(*entered)
    world.retry_states[entered[0]] = RetryState(remote_failures=20, next_at=(world.block + 1500) * BLOCK_S)
    world.run_rounds(8)
    assert set(entered) == set(world.verdicts)


def test_endless_work_does_not_delay_weights() -> None:
    world = World(policy=Policy(miner_sample_size=100), work_blocks=7, remote_chance=0.5)
    world.enter(*keys(200))
    world.run_rounds(3)
    assert set(world.accepted.values()) == {1}
    for block, _ in world.actions(SetWeights):
        assert 0 < 360 - block % 360 <= 50


def test_validator_continues_after_a_day_offline() -> None:
    world = World()
    world.enter(*keys(3))
    world.tick()
    world.tick()
    world.block += 7200
    world.run_rounds(1)
    assert [type(action) for _, action in world.played[-2:]] == [SetWeights, CloseRound]
    world.run_rounds(1)
    assert len(world.verdicts) == 3


def test_rate_limit_longer_than_a_round_slows_rounds_only() -> None:
    world = World(policy=Policy(blocks_per_epoch=20, block_threshold=5), tempo=20, rate_limit=100)
    world.enter(*keys(3))
    world.run_rounds(6)
    assert list(world.accepted.values()) == [1] * 6
    blocks = [block for block, _ in world.actions(SetWeights)]
    assert all(later - earlier >= 100 for earlier, later in itertools.pairwise(blocks))


@pytest.mark.parametrize("sets_weights", [True, False])
@pytest.mark.parametrize("count", [0, 4])
def test_limited_run_stops_when_done(count: int, sets_weights: bool) -> None:
    world = World(policy=Policy(max_rounds=2, sets_weights=sets_weights))
    world.enter(*keys(count))
    world.run_rounds(3)
    assert world.played[-1][1] == Stop()
    assert world.rounds_done == 2
    if sets_weights or count:
        assert world.block < world.rounds[1].start_block + 20
    assert len(world.verdicts) == count


@pytest.mark.parametrize("count", [0, 4])
def test_idle_validator_never_spins(count: int) -> None:
    world = World(policy=Policy(sets_weights=False), tempo=50)
    world.enter(*keys(count))
    world.run_rounds(3)
    assert len(world.actions(SetWeights)) == (3 if count else 0)


# Random faults


@pytest.mark.parametrize("seed", range(60))
def test_random_faults_delay_but_skip_no_entry(seed: int) -> None:
    draw = random.Random(seed)
    policy = Policy(
        blocks_per_epoch=(length := draw.choice([2, 10, 60, 360])),
        block_threshold=draw.randrange(length),
        miner_sample_size=draw.choice([1, 2, 10]),
        miner_duplicate_sample_size=draw.choice([1, 5, 50]),
        sets_weights=draw.random() < 0.8,
    )
    world = World(
        policy=policy,
        seed=seed,
        remote_chance=draw.choice([0.0, 0.3, 0.6]),
        host_chance=draw.choice([0.0, 0.05]),
        refusal_chance=draw.choice([0.0, 0.2]),
        weights_refused_chance=draw.choice([0.0, 0.5, 1.0]),
        weights_unknown_chance=draw.choice([0.0, 0.3]),
        work_blocks=draw.choice([0, 1, 30]),
        fetch_blocks=draw.choice([0, 1, 7]),
        downloads=draw.choice([1, 3, 8]),
        tempo=draw.choice([1, 20, 99, 360]),
        rate_limit=draw.choice([0, 10, 100]),
    )
    entered = keys(8)
    for key in entered:
        world.block += draw.choice([0, 1])
        world.enter(key)
    world.duplicates = {key: COPY for key in entered if draw.random() < 0.2}
    for _ in range(30):
        world.run_rounds(1)
        world.block += draw.choice([0, 0, 0, 1, 500])
        # The process crashes: only stored state is left.
        world.rounds_done = 0
        world.downloading.clear()
    for key in draw.sample(entered, 2):
        # The operator repaired the machine and clears the suspension.
        world.retry_states.pop(key, None)
    world.remote_chance = world.host_chance = 0.0
    world.block += 200  # longer than anything rests
    world.run_rounds(60)
    parked = {key for key, attempt in world.retry_states.items() if attempt.host_failures >= MAX_HOST_FAILURES}
    assert set(entered) == set(world.verdicts) | set(world.duplicates) | parked
    if policy.sets_weights and world.weights_refused_chance == world.weights_unknown_chance == 0.0:
        assert set(world.accepted.values()) == {1}
        assert len(world.accepted) == len(world.rounds)
    assert max(world.accepted.values(), default=0) <= (1 if world.weights_unknown_chance == 0.0 else 3)
