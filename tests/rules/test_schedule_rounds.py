"""Whole rounds of a simulated world."""

import random

import pytest

from template.records import RetryState
from template.rules.schedule import (
    MAX_HOST_FAILURES,
    CloseRound,
    EvaluateDataset,
    OpenRound,
    Policy,
    SetWeights,
    Stop,
    Wait,
)
from tests.fixtures.simulation import BLOCK_S, World, keys


def evaluated(world: World) -> list[str]:
    return [action.evaluation.key.hotkey for _, action in world.actions(EvaluateDataset)]


def test_quiet_round_evaluates_all_and_sets_weights_once() -> None:
    world = World()
    world.enter(*keys(5))
    world.run_rounds(1)
    kinds = [type(action).__name__ for _, action in world.played if not isinstance(action, Wait)]
    work = [*["FetchDatasets"] * 5, "PlanRound", *["EvaluateDataset"] * 5]
    assert kinds == ["OpenRound", *work, "SetWeights", "CloseRound"]
    assert world.actions(CloseRound) == [(1080, CloseRound(is_settled=True))]


@pytest.mark.parametrize(
    "world",
    [World(downloads=8, fetch_blocks=10**6), World(slots=100, runs=48, work_blocks=2, remote_chance=0.5)],
    ids=["downloads", "evaluations"],
)
def test_endless_work_does_not_delay_weights(world: World) -> None:
    world.enter(*keys(100))
    world.run_rounds(2)
    assert set(world.accepted.values()) == {1}
    assert all(block - world.rounds[number].start_block <= 320 for number, (block, _) in weights(world))


def weights(world: World) -> "enumerate[tuple[int, object]]":
    return enumerate(world.actions(SetWeights))


@pytest.mark.parametrize(("fetch_blocks", "latest"), [(1, 60), (10, 160)], ids=["refused", "hanging"])
def test_withheld_files_delay_neither_evaluations_nor_weights(fetch_blocks: int, latest: int) -> None:
    world = World(downloads=8, fetch_blocks=fetch_blocks, work_blocks=0)
    entered = keys(40)
    world.withheld = set(entered[::2])
    world.enter(*entered)
    world.run_rounds(3)
    assert sorted(evaluated(world)) == [key.hotkey for key in entered[1::2]]
    assert all(block < world.rounds[number].start_block + latest for number, (block, _) in weights(world))


def test_few_slots_reach_every_dataset_in_rank_order() -> None:
    world = World(slots=2)
    entered = keys(7)
    for key in reversed(entered):
        world.block += 1
        world.enter(key)
    world.retry_states[entered[3]] = RetryState(host_failures=MAX_HOST_FAILURES, next_at=float("inf"))
    world.run_rounds(5)
    assert evaluated(world) == [key.hotkey for key in reversed(entered) if key != entered[3]]
    assert set(world.accepted.values()) == {1}


def test_unreachable_dataset_gets_its_turn_once_reachable() -> None:
    world = World(slots=1)
    entered = keys(3)
    world.enter(*entered)
    world.retry_states[entered[0]] = RetryState(remote_failures=20, next_at=(world.block + 1500) * BLOCK_S)
    world.run_rounds(8)
    assert {key.hotkey for key in entered} == {content.hotkey for content in world.losses}


def test_missed_rounds_are_worked_through_without_weights() -> None:
    world = World(runs=6, work_blocks=0)
    world.enter(*keys(3))
    world.run_rounds(1)
    world.block += 5 * 360
    world.run_rounds(6)
    assert [action.start_block for _, action in world.actions(OpenRound)] == [720 + 360 * n for n in range(7)]
    assert {len(losses) for losses in world.losses.values()} == {6}
    assert [round_id for round_id, count in world.accepted.items() if count] == [0, 6]


@pytest.mark.parametrize("sets_weights", [True, False])
@pytest.mark.parametrize("count", [0, 4])
def test_limited_run_stops_when_done(count: int, sets_weights: bool) -> None:
    world = World(policy=Policy(max_rounds=2, sets_weights=sets_weights))
    world.enter(*keys(count))
    world.run_rounds(3)
    assert world.played[-1][1] == Stop()
    assert world.rounds_done == 2
    assert world.block < world.rounds[1].start_block + 20
    assert len(world.losses) == count


@pytest.mark.parametrize("count", [0, 4])
def test_idle_validator_never_spins(count: int) -> None:
    world = World(policy=Policy(sets_weights=False))
    world.enter(*keys(count))
    world.run_rounds(3)
    assert len(world.actions(SetWeights)) == (3 if count else 0)


@pytest.mark.parametrize("seed", range(20))
def test_random_faults_delay_but_skip_no_entry(seed: int) -> None:
    draw = random.Random(seed)
    policy = Policy(
        blocks_per_epoch=(length := draw.choice([2, 10, 60, 360])),
        block_threshold=draw.randrange(length),
        miner_duplicate_sample_size=draw.choice([1, 5, 50]),
        sets_weights=draw.random() < 0.8,
    )
    world = World(
        policy=policy,
        seed=seed,
        slots=draw.choice([1, 2, 10]),
        runs=draw.choice([1, 3]),
        remote_chance=draw.choice([0.0, 0.3, 0.6]),
        host_chance=draw.choice([0.0, 0.05]),
        rejection_chance=draw.choice([0.0, 0.2]),
        weights_rejected_chance=draw.choice([0.0, 0.5, 1.0]),
        weights_unknown_chance=draw.choice([0.0, 0.3]),
        work_blocks=draw.choice([0, 1, 30]),
        fetch_blocks=draw.choice([0, 1, 7]),
        downloads=draw.choice([1, 3, 8]),
        rate_limit=draw.choice([0, 10, 100]),
    )
    entered = keys(8)
    for key in entered:
        world.block += draw.choice([0, 1])
        world.enter(key)
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
    world.run_rounds(400 if length < 60 else 60)
    parked = {key for key, retry in world.retry_states.items() if retry.host_failures >= MAX_HOST_FAILURES}
    complete = {content.hotkey for content, losses in world.losses.items() if len(losses) == world.runs}
    assert {key.hotkey for key in entered} == complete | {key.hotkey for key in {*world.verdicts, *parked}}
    assert max(world.accepted.values(), default=0) <= (1 if world.weights_unknown_chance == 0.0 else 3)
