"""Whole rounds of a simulated world."""

import math
import random

import pytest

from template.records import RetryState
from template.rules.schedule import MAX_HOST_FAILURES, CloseRound, EvaluateDataset, Policy, SetWeights, Stop, Wait
from tests.fixtures.simulation import BLOCK_S, DUPLICATE, World, keys


def test_quiet_round_evaluates_all_and_sets_weights_once() -> None:
    world = World()
    world.enter(*keys(5))
    world.run_rounds(1)
    kinds = [type(action).__name__ for _, action in world.played if not isinstance(action, Wait)]
    assert kinds == ["OpenRound", *["FetchDatasets"] * 5, *["EvaluateDataset"] * 5, "SetWeights", "CloseRound"]
    assert world.rounds[0].end_block == 360
    assert world.actions(CloseRound) == [(360, CloseRound(is_settled=True))]
    assert len(world.verdicts) == 5


@pytest.mark.parametrize(
    "world",
    [
        World(downloads=8, fetch_blocks=10**6),
        World(policy=Policy(miner_sample_size=100), work_blocks=7, remote_chance=0.5),
    ],
    ids=["downloads", "evaluations"],
)
def test_endless_work_does_not_delay_weights(world: World) -> None:
    world.enter(*keys(100))
    world.run_rounds(3)
    assert set(world.accepted.values()) == {1}
    assert all(0 < 360 - block % 360 <= 50 for block, _ in world.actions(SetWeights))


def test_one_sample_per_round_reaches_everyone_in_order() -> None:
    world = World(policy=Policy(miner_sample_size=1))
    entered = keys(7)
    world.duplicates = {entered[1]: DUPLICATE}
    for key in reversed(entered):
        world.block += 1
        world.enter(key)
    world.retry_states[entered[3]] = RetryState(host_failures=MAX_HOST_FAILURES, next_at=math.inf)
    world.run_rounds(5)
    scored = [action.key for _, action in world.actions(EvaluateDataset)]
    assert scored == [key for key in reversed(entered) if key not in (entered[1], entered[3])]
    assert set(world.accepted.values()) == {1}


def test_unreachable_dataset_gets_its_turn_once_reachable() -> None:
    world = World(policy=Policy(miner_sample_size=1))
    entered = keys(3)
    world.enter(*entered)
    world.retry_states[entered[0]] = RetryState(remote_failures=20, next_at=(world.block + 1500) * BLOCK_S)
    world.run_rounds(8)
    assert set(entered) == set(world.verdicts)


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


@pytest.mark.parametrize("seed", range(40))
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
        rejection_chance=draw.choice([0.0, 0.2]),
        weights_rejected_chance=draw.choice([0.0, 0.5, 1.0]),
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
    world.duplicates = {key: DUPLICATE for key in entered if draw.random() < 0.2}
    for _ in range(12):
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
    if policy.sets_weights and world.weights_rejected_chance == world.weights_unknown_chance == 0.0:
        assert set(world.accepted.values()) == {1}
        assert len(world.accepted) == len(world.rounds)
    assert max(world.accepted.values(), default=0) <= (1 if world.weights_unknown_chance == 0.0 else 3)
