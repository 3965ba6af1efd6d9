"""A validator that starts late or was offline arrives at the same state."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from template.chain.timelock import beacon_round_at
from template.chain_records import ChainSnapshot
from template.competition import Reward, Seeds
from template.errors import Reason, RemoteError
from template.localnet.network import make_hotkey
from template.receipts import files
from template.records import RoundEvaluation
from template.rules.schedule import Policy
from template.validator.weights import resubmit_weights
from tests.fixtures.audit import audit_files
from tests.fixtures.fakes import FakeEvaluator
from tests.fixtures.logs import log_lines
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


def open_game(net: Net, name: str = "validator", *, start_block: int = 0, season_block: int = 0, **changes: Any) -> Any:
    policy = Policy(blocks_per_epoch=PERIOD, block_threshold=5, start_block=start_block, season_block=season_block)
    incentives = dataclasses.replace(GAME, season_block=season_block)
    values = {
        "policy": policy,
        "incentives": incentives,
        "chain": SteppingChain(net, name),
        "lucky_num": None,
        **changes,
    }
    return open_bench(net, name, **values)


def run_side_by_side(rounds: int, *benches: Bench) -> None:
    """Tick in turn until each has closed `rounds` more rounds that it opened in time."""
    goals = {id(bench): live_rounds(bench) + rounds for bench in benches}
    while waiting := [bench for bench in benches if live_rounds(bench) < goals[id(bench)]]:
        for bench in waiting:
            bench.tick()


def live_rounds(bench: Bench) -> int:
    query = "SELECT count(*) FROM rounds WHERE closed_at IS NOT NULL AND opened_block < end_block"
    return int(bench.store.rows(query)[0][0])


def tick_until_weights(bench: Bench) -> int:
    """Tick until the open round has weights on chain; return its start block."""
    query = "SELECT start_block FROM rounds JOIN weight_intents ON rounds.id = round_id"
    query += " WHERE closed_at IS NULL AND outcome IS NOT NULL"
    bench.tick_until(lambda: bool(bench.store.rows(query)))
    return int(bench.store.rows(query)[0][0])


def read_round(bench: Bench, start_block: int) -> tuple[list[RoundEvaluation], object, dict[str, float]]:
    """Return the plan, the ledger and the weights of a round."""
    (row,) = bench.store.rows("SELECT id FROM rounds WHERE start_block = ?", start_block)
    rows = {line.hotkey: line.weight for line in bench.store.leaderboard(row["id"]) if line.weight > 0.0}
    return list(bench.store._read_plan(row["id"])), bench.store.ledger(row["id"]), rows


def test_late_validator_sets_the_same_weights(net: Net) -> None:
    start = net.admin.block()
    net.submit("alice", ROWS[:60])
    with open_game(net, start_block=start) as first:
        run_side_by_side(3, first)
        text = f"bob/data:{net.competition.id}:{net.upload('bob', ROWS[100:200])}"
        sealed = net.admin.block()
        assert net.chain("bob").publish_sealed(text, beacon_round_at(time.time()) + 1000).is_accepted
        run_side_by_side(2, first)
        net.admin.reveal(net.hotkey("bob"), text)
        run_side_by_side(1, first)
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
            reveals = [bench.store.stands()[net.hotkey("bob")][0].reveal_block for bench in (first, late)]
            assert reveals[0] == reveals[1] > sealed + 2 * PERIOD
            assert len(first.weights()) == 2
    assert net.admin.weights(net.hotkey("late")) == net.admin.weights(net.hotkey("validator"))


def test_plan_survives_a_restart_in_the_middle(net: Net) -> None:
    for name, rows in (("alice", ROWS[:60]), ("bob", ROWS[100:200]), ("carol", ROWS[210:290])):
        net.submit(name, rows)
    with open_game(net) as bench:
        bench.tick_until(lambda: len(bench.evaluator.scored) == 1)
        bench.executor.hold = True
        bench.tick(2)
        opened, losses = bench.store.open_round(bench.eval_config), bench.losses()
        assert opened is not None and opened.evaluations is not None and len(opened.evaluations) == 3
    with open_game(net) as bench:
        bench.tick()
        assert bench.store.open_round(bench.eval_config) == opened and bench.losses() == losses
        bench.tick_until(lambda: len(bench.scored_hotkeys()) == 3)
        assert len(bench.evaluator.scored) == 2, "nothing is evaluated twice"
        seeds = {lucky_num for _, lucky_num in bench.evaluator.scored}
        assert seeds < {evaluation.lucky_num for evaluation in opened.evaluations}


def test_validator_that_was_away_catches_up(net: Net) -> None:
    net.submit("alice", ROWS[:60])
    with open_game(net) as first, open_game(net, "late") as other:
        run_side_by_side(1, first, other)
    net.submit("bob", ROWS[100:200])
    with open_game(net) as first:
        run_side_by_side(3, first)
        with open_game(net, "late") as other:
            run_side_by_side(2, first, other)
            assert other.losses() == first.losses()
    assert net.admin.weights(net.hotkey("late")) == net.admin.weights(net.hotkey("validator"))


def test_without_old_state_rounds_are_left_out(net: Net) -> None:
    start = net.admin.block()
    net.submit("alice", ROWS[:60])
    net.admin.advance(10 * PERIOD)

    class PrunedChain(SteppingChain):
        def snapshot(self, block: int) -> ChainSnapshot:
            if block < net.admin.block() - 2 * PERIOD:
                raise RemoteError(f"the state of block {block} is dropped")
            return super().snapshot(block)

    with log_lines() as lines, open_game(net, start_block=start, chain=PrunedChain(net, "validator")) as bench:
        while bench.validator.rounds_done < 4:
            with suppress(RemoteError):
                bench.tick()
        assert bench.weights() == {net.hotkey("alice"): 1.0}
    assert sum("left out" in line for line in lines) == 1


def test_new_season_agrees_with_a_late_start(net: Net) -> None:
    start = net.admin.block()
    net.submit("alice", ROWS[:60])
    with open_game(net, start_block=start) as first:
        run_side_by_side(2, first)
        net.submit("alice", [*ROWS[:30], *ROWS[100:110]])
        run_side_by_side(1, first)
        old = first.store.last_start_block()
    net.submit("carol", ROWS[2:60])
    net.competition = dataclasses.replace(net.competition, bench=6.2)
    season = old + 4 * PERIOD
    with open_game(net, start_block=start, season_block=season) as first:
        run_side_by_side(5, first)
        assert first.store.first_start_block(first.eval_config) == old + PERIOD
        with open_game(net, "late", start_block=start, season_block=season) as late:
            run_side_by_side(2, first, late)
            assert late.store.first_start_block(late.eval_config) == start
            assert late.losses() == first.losses() and len(late.losses()) == 1
            assert late.lines()[net.hotkey("carol")].reason is Reason.DUPLICATE
            blocks = late.store.rows(
                "SELECT min(start_block), min(seed_block) FROM rounds JOIN round_evaluations ON id = round_id"
            )
            assert tuple(blocks[0]) == (season, season)
    assert net.admin.weights(net.hotkey("late")) == net.admin.weights(net.hotkey("validator"))


def test_repeated_round_takes_no_dataset_before_its_reveal(net: Net) -> None:
    """A new season without a block of its own repeats all rounds, when later stands are known."""
    start = net.admin.block()
    net.submit("bob", ROWS[:60])
    with open_game(net, start_block=start) as first:
        run_side_by_side(2, first)
        text = f"bob/data:{net.competition.id}:{net.upload('bob', ROWS[100:200])}"
        assert net.chain("bob").publish_sealed(text, beacon_round_at(time.time()) + 1000).is_accepted
        run_side_by_side(2, first)
        net.admin.reveal(net.hotkey("bob"), text)
        reveal_block = net.admin.block()
        run_side_by_side(2, first)
    net.competition = dataclasses.replace(net.competition, bench=6.2)
    with open_game(net, start_block=start) as again:
        run_side_by_side(1, again)
        blocks = again.store.rows(
            "SELECT start_block FROM rounds JOIN round_members ON rounds.id = round_id WHERE entry = ?", text
        )
    assert len(blocks) > 1 and min(row["start_block"] for row in blocks) >= reveal_block


def test_round_of_another_model_is_published_and_closed(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    net.submit("alice", ROWS[:60])
    with open_game(net) as bench:
        run_side_by_side(4, bench)
        last = tick_until_weights(bench)
    monkeypatch.setattr(
        FakeEvaluator, "load_model", lambda self: f"{self.training_args.model_id}@{'0' * 64} none other"
    )
    with open_game(net) as bench:
        run_side_by_side(2, bench)
    folder = net.parts.folder / "validator" / "rounds"
    assert len(list(folder.glob(f"round-*-{last}-*.jsonl"))) == 1, "its weights are on chain"
    assert audit_files(net, [folder], dataclasses.replace(GAME, blocks_per_epoch=PERIOD)).findings == []


def test_round_of_another_competition_is_published(net: Net) -> None:
    """A new season begins with a restart in mid-round."""
    net.submit("alice", ROWS[:60])
    with open_game(net) as bench:
        run_side_by_side(4, bench)
        last, block = tick_until_weights(bench), net.admin.block()
    net.competition = dataclasses.replace(net.competition, bench=net.competition.bench + 0.1)
    with open_game(net, season_block=block) as bench:
        run_side_by_side(2, bench)
        assert bench.store.rows("SELECT count(*) FROM rounds WHERE closed_at IS NULL")[0][0] <= 1
    folder = net.parts.folder / "validator" / "rounds"
    (path,) = folder.glob(f"round-*-{last}-*.jsonl")
    assert [line.is_accepted for line in files.read_round(path).header.weights] == [True]


def test_validator_far_behind_resubmits_its_newest_table(net: Net) -> None:
    net.submit("alice", ROWS[:60])
    with open_game(net) as bench:
        run_side_by_side(4, bench)
        assert net.admin.weights(net.hotkey("validator")) == {net.uid("alice"): 65535}
    net.submit("bob", ROWS[100:200])
    net.admin.advance(20 * PERIOD)
    with open_game(net) as bench:
        bench.tick_until(lambda: len(bench.weights()) == 2)
        view = net.chain("validator").view()
        assert bench.store.last_start_block() < view.block - 5 * PERIOD, "still behind"
        resubmit_weights(bench.validator._context, None, view)
        assert net.admin.weights(net.hotkey("validator")) == {net.uid("alice"): 65535}
        bench.run_rounds(2)
        resubmit_weights(bench.validator._context, bench.validator.evaluator, net.chain("validator").view())
        shares = {net.uid(name): bench.weights()[net.hotkey(name)] for name in ("alice", "bob")}
        weights = net.admin.weights(net.hotkey("validator"))
        assert weights == {uid: round(share / max(shares.values()) * 65535) for uid, share in shares.items()}
        bench.run_rounds()
    folder = net.parts.folder / "validator" / "rounds"
    assert audit_files(net, [folder], dataclasses.replace(GAME, blocks_per_epoch=PERIOD)).findings == []


def test_weights_between_rounds_are_in_the_next_file(net: Net) -> None:
    """The validator stays active while it loads its model."""
    for name, rows in (("alice", ROWS[:60]), ("bob", ROWS[100:200])):
        net.submit(name, rows)
    incentives = dataclasses.replace(GAME, reward=Reward.PROPORTIONAL, blocks_per_epoch=PERIOD)
    with open_game(net, incentives=incentives) as bench:
        run_side_by_side(4, bench)
    net.admin.deregister(net.hotkey("bob"))
    net.admin.advance(5 * PERIOD)
    with open_game(net, incentives=incentives) as bench:
        resubmit_weights(bench.validator._context, None, net.chain("validator").view())
        run_side_by_side(2, bench)
    folder = net.parts.folder / "validator" / "rounds"
    assert audit_files(net, [folder], incentives).findings == []


class Crash(BaseException):
    """The process is killed."""


def crash_at(bench: Bench, write: int, *, is_recorded: bool) -> None:
    """Kill the validator at its n-th state write, before or after the commit."""
    atomic, left = bench.store.atomic, [write]

    @contextmanager
    def crash() -> Iterator[Any]:
        left[0] -= 1
        with atomic() as db:
            yield db
            if not left[0] and not is_recorded:
                raise Crash
        if not left[0]:
            raise Crash

    bench.store.atomic = crash  # type: ignore[method-assign]
    bench.store.record_heartbeat = lambda *_: None  # type: ignore[method-assign]


def test_crash_at_any_write_changes_no_result(net: Net) -> None:
    start = net.admin.block()
    for name, rows in (("alice", ROWS[:60]), ("bob", ROWS[100:200]), ("carol", ROWS[:58])):
        net.submit(name, rows)
    with open_game(net, start_block=start) as first:
        run_side_by_side(4, first)
    crashes = 0
    for write in range(1, 40):
        with open_game(net, "late", start_block=start) as bench:
            crash_at(bench, 1 + write // 4, is_recorded=bool(write % 2))
            try:
                bench.tick_until(lambda: live_rounds(bench) > 3)
            except Crash:
                crashes += 1
    assert crashes > 20
    with open_game(net, start_block=start) as first, open_game(net, "late", start_block=start) as other:
        run_side_by_side(2, first, other)
        assert other.losses() == first.losses()
        last = min(bench.store.last_start_block(bench.eval_config) or 0 for bench in (first, other))
        for block in range(start + PERIOD, last, PERIOD):
            assert read_round(other, block) == read_round(first, block), block
    assert net.admin.weights(net.hotkey("late")) == net.admin.weights(net.hotkey("validator"))
