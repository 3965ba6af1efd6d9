"""Two validators with seeds from the chain set identical weights.

Both train the tiny model in worker processes; this process makes the blocks.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from template.config import load_training_args
from template.localnet.network import make_hotkey
from template.receipts.receipt import Receipt
from template.records import SubmissionKey
from template.rules.schedule import Policy
from template.store.store import Store
from template.validator.config import LuckyNumFrom, ValidatorConfig
from template.validator.loop import Validator
from template.workers.executor import Evaluator
from template.workers.supervisor import LocalExecutor
from tests.fixtures.fakes import PromptFetcher
from tests.fixtures.network import LARGE, PATIENCE_S, POOL, SMALL, Net, make_copy, write_training_args

pytestmark = pytest.mark.slow

ROUND_BLOCKS = 40
POLICY = Policy(blocks_per_epoch=ROUND_BLOCKS, block_threshold=10, is_aligned=True)


@dataclass
class Post:
    """One validator with its store and executor."""

    name: str
    validator: Validator
    store: Store
    executor: LocalExecutor

    def receipts(self) -> dict[SubmissionKey, tuple[int, float]]:
        """Return seed and loss of every evaluated submission."""
        eval_config = self.validator.eval_config
        texts = {key: self.store.receipt(eval_config, key) for key in self.store.verdicts(eval_config)}
        results = {key: Receipt.from_json(text, key.hotkey).result for key, text in texts.items() if text is not None}
        return {key: (result.lucky_num, result.loss) for key, result in results.items()}


@pytest.fixture
def open_post(net: Net, tiny_model: Path) -> Iterator[Callable[[str], Post]]:
    """Start validators by name; stop all after the test."""
    made: list[Post] = []

    def start(name: str) -> Post:
        folder = net.parts.folder / name
        folder.mkdir()
        config = ValidatorConfig(
            competition=net.competition,
            policy=POLICY,
            data_dir=folder / "data",
            eval_data_dir=folder / "eval_data",
            lucky_num_from=LuckyNumFrom.CHAIN,
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


def test_a_late_validator_agrees_in_every_round_since(net: Net, open_post: Callable[[str], Post]) -> None:
    # Registered in a block in which the subnet exists.
    net.admin.advance(ROUND_BLOCKS)
    net.admin.register(make_hotkey(net.parts, "second"), is_validator=True)
    first = open_post("validator")
    for name, rows in (("alice", SMALL), ("bob", LARGE)):
        net.submit(name, rows)
        run_round(net, first)
    late = open_post("second")
    for name, rows in (("carol", make_copy()), ("alice", POOL[30:60])):
        net.submit(name, rows)
        run_round(net, first, late)
        run_round(net, first, late)
        weights = net.admin.weights(net.hotkey("validator"))
        assert weights == net.admin.weights(net.hotkey("second"))
        assert weights is not None and weights.keys() == {net.uid("alice"), net.uid("bob")}, "a copy has no weight"
    assert late.receipts() == first.receipts()
    seeds = [seed for seed, _ in late.receipts().values()]
    assert len(seeds) == 3 and len(set(seeds)) > 1, "the seeds are the submissions' own, not a round's"
