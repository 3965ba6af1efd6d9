"""A validator with a real chain, hub and state file, and a scorer that needs no model."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fakes import FakeExecutor, FakeScorer, PromptFetcher
from loguru import logger
from net_fixtures import (
    Net,
    SteppingChain,
    write_training_args,
)

from template.fetching import Fetcher
from template.receipt import Receipt
from template.schedule import Policy
from template.settings import load_training_args
from template.state import Contest, Standing
from template.store import Store
from template.validator import Validator
from template.validator_config import ValidatorConfig, Watcher

SEED = 11
DOWNLOADS = 8
ONE_ROUND = Policy(max_rounds=1)


# A clock that moves twelve seconds, a block's time, whenever it is read.
_SECONDS = itertools.count(1_000_000, 12)


@dataclasses.dataclass
class Bench:
    """A validator and what it works with."""

    validator: Validator
    store: Store
    scorer: FakeScorer
    executor: FakeExecutor

    @property
    def contest(self) -> Contest:
        return self.validator.contest

    def lines(self) -> dict[str, Standing]:
        """The last round's table by hotkey."""
        last = self.store.last_round()
        assert last is not None
        return {line.key.hotkey: line for line in self.store.standings(last.id)}

    def outcomes(self) -> list[bool | None]:
        """Of the last round's weight submissions, which were accepted; None where that is not known."""
        last = self.store.last_round()
        assert last is not None
        return [one.outcome.is_accepted if one.outcome else None for one in self.store.intents(last.id)]

    def receipts(self) -> dict[str, Receipt]:
        """What was scored, by hotkey, from the store."""
        found = {key.hotkey: self.store.receipt(self.contest, key) for key in self.store.verdicts(self.contest)}
        return {hotkey: Receipt.from_json(text, hotkey) for hotkey, text in found.items() if text is not None}

    def tick_until(self, is_reached: Callable[[], bool], *, ticks: int = 100) -> None:
        for _ in range(ticks):
            if is_reached():
                return
            assert not self.validator.tick(), "the validator was done before"
        raise AssertionError("not reached")


@contextmanager
def open_bench(
    net: Net,
    state: str = "state",
    *,
    policy: Policy = ONE_ROUND,
    chain: SteppingChain | None = None,
    before: list[Callable[[], object] | Exception] | None = None,
    workers: int = 1,
    fetcher: Fetcher | None = None,
    watcher: Watcher | None = None,
    update: Callable[[], bool] | None = None,
    now: Callable[[], float] = lambda: float(next(_SECONDS)),
    **settings: object,
) -> Iterator[Bench]:
    folder = net.parts.folder / state
    config = ValidatorConfig(
        competition=net.competition,
        policy=policy,
        data_dir=folder / "data",
        eval_data_dir=folder / "eval_data",
        receipt_dir=folder / "receipts",
        round_dir=folder / "rounds",
        poll_s=0.001,
        **{"lucky_num": SEED, **settings},  # type: ignore[arg-type]
    )
    folder.mkdir(exist_ok=True)
    scorer = FakeScorer(
        competition=net.competition,
        training_args=load_training_args(write_training_args(folder / "args.yaml")),
        eval_data_dir=config.eval_data_dir,
        before=before or [],
    )
    with chain or SteppingChain(net, "validator") as link, Store(folder / "validator.sqlite3") as store:
        executor = FakeExecutor(scorer, workers=workers)
        validator = Validator(
            config, link, store, executor, fetcher or PromptFetcher(DOWNLOADS), watcher=watcher, update=update, now=now
        )
        yield Bench(validator, store, scorer, executor)


@contextmanager
def log_lines() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="INFO")
    try:
        yield lines
    finally:
        logger.remove(sink)
