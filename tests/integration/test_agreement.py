"""Two validators with seeds from the chain set identical weights.

The second starts later. Both train the tiny model in worker processes; this process makes the blocks.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from template.competition import Incentives
from template.config import load_training_args
from template.errors import Reason
from template.localnet.network import make_hotkey
from template.records import LeaderboardRow, LedgerLine
from template.rules.schedule import Policy
from template.store.store import Store
from template.validator.config import ValidatorConfig
from template.validator.loop import Validator
from template.workers.executor import Evaluator
from template.workers.supervisor import LocalExecutor
from tests.fixtures.fakes import PromptFetcher
from tests.fixtures.network import PATIENCE_S, POOL, SMALL, Net, write_training_args

pytestmark = pytest.mark.slow

ROUND_BLOCKS = 40
INCENTIVES = Incentives(
    epsilon=0.001, evaluations=2, hold=3, slots=4, half_life_blocks=400, update_blocks=ROUND_BLOCKS,
    blocks_per_epoch=ROUND_BLOCKS, start_block=ROUND_BLOCKS,
)  # fmt: skip
POLICY = Policy(blocks_per_epoch=ROUND_BLOCKS, start_block=ROUND_BLOCKS, block_threshold=10)


@dataclass
class Post:
    """One validator with its store and executor."""

    name: str
    validator: Validator
    store: Store
    executor: LocalExecutor

    def table(self) -> tuple[list[LeaderboardRow], list[LedgerLine]]:
        """Return the leaderboard and the ledger of the newest round that has them."""
        last = self.store.last_round(with_leaderboard=True)
        assert last is not None
        return self.store.leaderboard(last.id), self.store.ledger(last.id)

    def newest_start(self) -> int:
        last = self.store.last_round()
        return 0 if last is None else last.start_block


@pytest.fixture
def open_post(net: Net, tiny_model: Path) -> Iterator[Callable[[str], Post]]:
    """Start validators by name; stop all after the test."""
    made: list[Post] = []

    def start(name: str) -> Post:
        folder = net.parts.folder / name
        folder.mkdir()
        config = ValidatorConfig(
            competition=net.competition,
            incentives=INCENTIVES,
            policy=POLICY,
            data_dir=folder / "data",
            eval_data_dir=folder / "eval_data",
            poll_s=0.001,
        )
        evaluator = Evaluator(
            competition=net.competition,
            training_args=load_training_args(write_training_args(folder / "args.yaml")),
            eval_data_dir=config.eval_data_dir,
            model_path=tiny_model,
            device="cpu",
        )
        store, executor = Store(folder / "validator.sqlite3"), LocalExecutor(evaluator, [None])
        validator = Validator(config, net.chain(name), store, executor, PromptFetcher(8))
        made.append(Post(name, validator, store, executor))
        return made[-1]

    try:
        yield start
    finally:
        for post in made:
            with closing(post.store):
                post.executor.close()


def catch_up(net: Net, post: Post) -> None:
    """Let a validator work through the missed rounds before the next block."""
    deadline = time.monotonic() + PATIENCE_S
    newest = net.admin.block() - net.admin.block() % ROUND_BLOCKS
    while post.newest_start() < newest:
        assert time.monotonic() < deadline, "the missed rounds do not come to an end"
        post.validator.tick()


def run_round(net: Net, *posts: Post) -> None:
    """Advance one block past the round, waiting while a worker is busy."""
    deadline = time.monotonic() + PATIENCE_S
    end = (net.admin.block() // ROUND_BLOCKS + 1) * ROUND_BLOCKS
    while net.admin.block() <= end:
        for post in posts:
            post.validator.tick()
        busy = [post for post in posts if not post.executor.idle_workers()]
        assert time.monotonic() < deadline, "the workers do not come to an end"
        if busy:
            busy[0].executor.wait(0.5)
        else:
            net.admin.advance(1)


def play_ten_rounds(net: Net, first: Post) -> None:
    """Play ten rounds with an update, a copy, a repeated commit and a new miner."""
    net.submit("alice", SMALL)
    run_round(net, first)
    net.submit("bob", POOL[:60])
    for _ in range(2):
        run_round(net, first)
    net.submit("carol", [*POOL[59:4:-1], *POOL[90:93]])
    run_round(net, first)
    net.submit("bob", POOL[30:90])
    run_round(net, first)
    net.submit("alice", SMALL[::-1])
    for _ in range(5):
        run_round(net, first)


def test_a_validator_ten_rounds_late_sets_the_same_weights(net: Net, open_post: Callable[[str], Post]) -> None:
    # Registered in a block in which the subnet exists.
    net.admin.advance(ROUND_BLOCKS)
    net.admin.register(make_hotkey(net.parts, "second"), is_validator=True)
    net.admin.register(make_hotkey(net.parts, "dave"))
    first = open_post("validator")
    play_ten_rounds(net, first)
    late = open_post("second")
    catch_up(net, late)
    for name, rows in ((None, []), ("dave", POOL[90:110]), (None, [])):
        if name is not None:
            net.submit(name, rows)
        run_round(net, first, late)
        weights = net.admin.weights(net.hotkey("validator"))
        assert weights is not None and weights == net.admin.weights(net.hotkey("second"))
        assert first.table() == late.table(), "losses, ranks, credits and weights, to the last bit"
    rows, ledger = late.table()
    by_hotkey = {row.hotkey: row for row in rows}
    assert by_hotkey[net.hotkey("carol")].reason is Reason.DUPLICATE, "the copy of a version that was replaced"
    assert {net.hotkey("alice"), net.hotkey("bob")} <= {line.hotkey for line in ledger}
    assert all(replace(row, weight=0.0) == row for row in rows if row.reason is not None)
