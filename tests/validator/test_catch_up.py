"""A validator that starts late, or was away, arrives at the state of one that was not."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from template.competition import Reward, Seeds
from template.errors import Reason
from template.localnet.network import make_hotkey
from template.records import RoundEvaluation
from template.rules.schedule import Policy
from tests.fixtures.network import Net, SteppingChain, make_line, use_hub
from tests.fixtures.validator import QUICK, Bench, open_bench

PERIOD = 20
GAME = dataclasses.replace(
    QUICK, reward=Reward.IMPROVEMENT, seeds=Seeds.CHAIN, sd=0.02, evaluations=4, hold=6, slots=6, half_life_blocks=400
)
ROWS = [make_line(number) for number in range(300)]


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    """A network with a larger pool, and a second validator `late`."""
    with Net(tmp_path / "network", ["alice", "bob", "carol"], pool=ROWS) as net, use_hub(net):
        make_hotkey(net.parts, "late")
        net.admin.register(net.hotkey("late"), is_validator=True)
        net.align(PERIOD)
        yield net


def open_game(net: Net, name: str = "validator", *, start_block: int = 0, **changes: Any) -> Any:
    policy = Policy(blocks_per_epoch=PERIOD, block_threshold=5, start_block=start_block)
    values = {"policy": policy, "incentives": GAME, "chain": SteppingChain(net, name), "lucky_num": None, **changes}
    return open_bench(net, name, **values)


def run_side_by_side(rounds: int, *benches: Bench) -> None:
    """Tick in turn until each has closed this many rounds more of those that were not over when they opened."""
    goals = {id(bench): live_rounds(bench) + rounds for bench in benches}
    while waiting := [bench for bench in benches if live_rounds(bench) < goals[id(bench)]]:
        for bench in waiting:
            bench.tick()


def live_rounds(bench: Bench) -> int:
    query = "SELECT count(*) FROM rounds WHERE closed_at IS NOT NULL AND opened_block < end_block"
    return int(bench.store.rows(query)[0][0])


def read_round(bench: Bench, start_block: int) -> tuple[list[RoundEvaluation], object, dict[str, float]]:
    """The plan, the ledger and the weights of a round."""
    (row,) = bench.store.rows("SELECT id FROM rounds WHERE start_block = ?", start_block)
    rows = {line.hotkey: line.weight for line in bench.store.leaderboard(row["id"]) if line.weight > 0.0}
    return list(bench.store._read_plan(row["id"])), bench.store.ledger(row["id"]), rows


def test_late_validator_sets_the_same_weights(net: Net) -> None:
    start = net.admin.block()
    net.submit("alice", ROWS[:60])
    with open_game(net, start_block=start) as first:
        run_side_by_side(3, first)
        net.submit("bob", ROWS[100:200])
        run_side_by_side(3, first)
        net.submit("alice", ROWS[:35] + ROWS[200:240])
        net.submit("carol", ROWS[2:60])
        run_side_by_side(4, first)
        with open_game(net, "late", start_block=start) as late:
            run_side_by_side(3, first, late)
            last = min(first.store.last_round().start_block, late.store.last_round().start_block)
            for block in range(start + PERIOD, last + PERIOD, PERIOD):
                assert read_round(late, block) == read_round(first, block), block
            assert late.store.losses(late.eval_config) == first.store.losses(first.eval_config)
            assert late.lines()[net.hotkey("carol")].reason is Reason.DUPLICATE
            assert len(first.weights()) == 2
    assert net.admin.weights(net.hotkey("late")) == net.admin.weights(net.hotkey("validator"))
