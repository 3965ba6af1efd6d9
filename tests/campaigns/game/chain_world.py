"""Play a game in the simulation and on the local chain at once.

Each registration and commitment is made on the local chain too, each file is in a repo of the local Hub, and a
`Validator` works through each round; only the training is replaced, by the simulated loss of the dataset and the seed.
After each round the validator's plan, leaderboard, ledger and weights must equal the simulation's.
"""

import dataclasses
import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from template.competition import Incentives
from template.config import TrainingArgs
from template.constants import DATA_FILE
from template.data.rows import SUBMISSION_LIMITS, content_digest, parse_rows
from template.localnet.chain import pallets
from template.localnet.hub.store import HubStore
from template.records import LeaderboardRow, LedgerLine, Progress, SubmissionKey, TrainResult
from template.rules.schedule import Policy
from template.stop_request import StopRequest
from template.store.store import Store
from template.validator.config import ValidatorConfig
from template.validator.loop import Validator
from tests.campaigns.clock import block_time
from tests.campaigns.fake_executors import HYPERPARAMETERS, MODEL_ID
from tests.campaigns.game.submissions import ROWS, Commitment, Rows
from tests.campaigns.game.world import OWNER, ROUNDS_PER_DAY, Game, Settings
from tests.campaigns.synthetic_subnet import COMPETITION, SyntheticSubnet, make_file, make_short_rows
from tests.fixtures import fakes
from tests.fixtures.faulty_hub import FaultyHub
from tests.fixtures.hub import use_endpoint
from tests.fixtures.results import fake_result

# Rows of the evaluation set. A row of the simulation takes the next one when it is first used.
POOL_ROWS = 32_000
MAX_UIDS = 1024

# More than all datasets and files that are looked up in one round.
_DOWNLOADS = 512

# Ticks after the first idle one, for lookups of files.
_LAST_TICKS = 4

# Largest rounding of a weight on the chain, as a part of all weights.
_ROUNDING = 1e-4


class DifferenceError(Exception):
    """The validator and the simulation differ in a round."""


@dataclass
class File:
    """A commitment's file. is_public: None before its upload."""

    repo: str
    text: str
    content: bytes
    is_public: bool | None = None


@dataclass(frozen=True, kw_only=True)
class _Evaluator(fakes.FakeEvaluator):
    """Returns simulated losses, by the sha256 of the file and the seed."""

    loss_of: Callable[[str, int], float]

    def evaluate(
        self, data_dir: Path, lucky_num: int, on_progress: Callable[[Progress], None] | None = None
    ) -> TrainResult:
        sha256 = hashlib.sha256((data_dir / DATA_FILE).read_bytes()).hexdigest()
        result = fake_result(self, sha256, rows=ROWS, lucky_num=lucky_num)
        return dataclasses.replace(result, loss=self.loss_of(sha256, lucky_num))


class _IdleStop(StopRequest):
    """A request to stop whose wait returns at once and is noted."""

    is_idle = False

    def wait(self, timeout: float | None = None) -> bool:
        self.is_idle = True
        return self.is_set()


def _create_subnet(folder: Path, seed: int) -> SyntheticSubnet:
    pool = make_short_rows(range(POOL_ROWS))
    subnet = SyntheticSubnet.create(folder, pool=pool, competition=COMPETITION.to_dict(), tempo=360, max_uids=MAX_UIDS)
    subnet.close()
    # The hashes of all blocks follow from the genesis: a game can be played again.
    with closing(sqlite3.connect(subnet.net.chain_file)) as db, db:
        db.execute("UPDATE chain SET genesis = ?", ("0x" + hashlib.sha256(str(seed).encode()).hexdigest(),))
    return SyntheticSubnet(folder)


class ChainGame(Game):
    """A game that a validator on the local chain plays too. To be closed."""

    def __init__(self, folder: Path, incentives: Incentives, seed: int, settings: Settings) -> None:
        self.subnet = _create_subnet(folder, seed)
        super().__init__(self.subnet.competition, incentives, seed, settings)
        self._folder = self.subnet.folder
        self._hashes: dict[int, str] = {}
        self._lines: dict[int, str] = {}
        self._digests: dict[str, str] = {}
        self._files: dict[SubmissionKey, File] = {}
        self._keys: dict[SubmissionKey, SubmissionKey] = {}
        self._rows_of: dict[str, Rows] = {}
        self._registered: set[str] = set()
        self._sent: dict[str, Commitment] = {}
        self._sealed: dict[str, Commitment] = {}
        with ExitStack() as stack:
            stack.enter_context(self.subnet)
            hub = stack.enter_context(FaultyHub(self.subnet.hub_root))
            use_endpoint(hub, stack.enter_context(pytest.MonkeyPatch.context()))
            self._chain = stack.enter_context(self.subnet.connect())
            self.store = Store(self._folder / "validator.sqlite3")
            stack.callback(lambda: self.store.close())
            self._executor = fakes.FakeExecutor(self._make_evaluator(), workers=incentives.slots)
            self._downloader = fakes.PromptFetcher(_DOWNLOADS)
            self._start_validator()
            self._stack = stack.pop_all()

    def __enter__(self) -> "ChainGame":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _make_evaluator(self) -> _Evaluator:
        # Each season has its own model.
        model_id, season = f"{MODEL_ID}-{self.season}", self.season
        return _Evaluator(
            competition=self.competition,
            training_args=TrainingArgs(model_id=model_id, revision=None, hyperparameters=HYPERPARAMETERS),
            eval_data_dir=Path(),
            loss_of=lambda sha256, seed: self.simulate_loss(self._rows_of[sha256], seed, season),
        )

    def _start_validator(self) -> None:
        config = ValidatorConfig(
            competition=self.competition,
            incentives=self.incentives,
            policy=Policy(blocks_per_epoch=self.period, miner_duplicate_sample_size=_DOWNLOADS),
            data_dir=self._folder / "data",
            eval_data_dir=self._folder / "eval_data",
            poll_s=0.0,
        )
        self.validator = Validator(config, self._chain, self.store, self._executor, self._downloader, now=self._now)
        self._idle = self.validator.stop = _IdleStop()
        # The first tick loads the model.
        self.validator.tick()

    def _restart_validator(self) -> None:
        self.store.close()
        self.store = Store(self._folder / "validator.sqlite3")
        self._start_validator()

    def _now(self) -> float:
        return block_time(self.subnet.chain.block())

    def start_season(self) -> None:
        super().start_season()
        self._executor.evaluator = self._make_evaluator()
        self._restart_validator()

    # The simulation, with the chain's hashes and the digests of real files

    def block_hash(self, block: int) -> str:
        if block not in self._hashes:
            self._hashes[block] = self.subnet.chain.hash_of(block)
        return self._hashes[block]

    def digest_of(self, rows: Rows) -> str:
        if rows.digest not in self._digests:
            parsed = parse_rows(self._make_content(rows), name=DATA_FILE, limits=SUBMISSION_LIMITS)
            self._digests[rows.digest] = content_digest(row.key for row in parsed)
        return self._digests[rows.digest]

    def _make_content(self, rows: Rows) -> bytes:
        for number in rows.numbers:
            if number not in self._lines:
                self._lines[number] = make_short_rows([len(self._lines)])[0]
        return make_file(self._lines[number] for number in rows.numbers)

    # The miners' actions, on the chain and the Hub

    def reach_aligned_block(self) -> None:
        """Put registrations, commitments and reveals on the chain."""
        self._register()
        new = [
            (name, commitment)
            for name, commitment in self.commitments.items()
            if self._sent.get(name) is not commitment
        ]
        for name, commitment in sorted(new, key=lambda item: item[1].commit_block):
            self._commit(name, commitment)
        for name in self._sent.keys() - self.commitments.keys():
            self.subnet.commit_fields({name: []})
            del self._sent[name]
            self._sealed.pop(name, None)
        self._reveal()
        self.subnet.advance_to(self.block)

    def _register(self) -> None:
        new = [name for name in self.registrations if name not in self._registered]
        gone = [name for name in self._registered if name not in self.registrations]
        if not new and not gone:
            return
        with self.subnet.one_block():
            for name in gone:
                replacement = self.subnet.hotkey(new.pop()) if new else None
                self.subnet.chain.deregister(self.subnet.hotkey(name), replacement=replacement)
            self.subnet.register(*new)
        self._registered = set(self.registrations)
        blocks = {neuron.hotkey: neuron.registered_at for neuron in pallets.neurons(self.subnet.chain.at())}
        self.registrations.update({name: blocks[self.subnet.hotkey(name)] for name in self.registrations})

    def _commit(self, name: str, commitment: Commitment) -> None:
        file = self._file(commitment)
        self._sent[name] = commitment
        self._sealed.pop(name, None)
        if commitment.reveal_block > commitment.commit_block:
            self._sealed[name] = commitment
            commitment.commit_block = self.subnet.seal(name)
        else:
            commitment.commit_block = commitment.reveal_block = self.subnet.commit(name, file.text)

    def _file(self, commitment: Commitment) -> File:
        """Return the file of a commitment, in a repo of its own."""
        key = commitment.key
        if key not in self._files:
            content, repo = self._make_content(commitment.rows), f"{key.hotkey}/data-{len(self._files)}"
            sha256 = hashlib.sha256(content).hexdigest()
            self.digest_of(commitment.rows)
            self._files[key] = file = File(repo, self.subnet.text(repo, sha256), content)
            self._keys[SubmissionKey(self.subnet.hotkey(key.hotkey), file.text)] = key
            self._rows_of[sha256] = commitment.rows
        return self._files[key]

    def _reveal(self) -> None:
        for name, commitment in list(self._sealed.items()):
            if commitment.reveal_block <= self.block:
                commitment.reveal_block = self.subnet.reveal(name, self._files[commitment.key].text)
                del self._sealed[name]

    def _show_files(self) -> None:
        """Upload files, and make repos public or private."""
        for key, file in self._files.items():
            is_public = key not in self.hidden
            if file.is_public is None and is_public:
                self.subnet.upload(file.repo, file.content)
                file.is_public = True
            elif file.is_public is not None and file.is_public != is_public:
                HubStore(self.subnet.hub_root).set_private("datasets", file.repo, not is_public)
                file.is_public = is_public

    # The validator, and the comparison

    def follow_rules(self) -> None:
        """Follow the rules, and let the validator work through the round."""
        super().follow_rules()
        self._show_files()
        if self.round and self.round % ROUNDS_PER_DAY == 0:
            self._restart_validator()
        self._idle.is_idle = False
        while not self._idle.is_idle:
            self.validator.tick()
        for _ in range(_LAST_TICKS):
            self.validator.tick()
        if differences := list(self._differences()):
            raise DifferenceError(f"round {self.round}: " + "; ".join(differences))

    @property
    def _names(self) -> dict[str, str]:
        return {self.subnet.hotkey(name): name for name in [OWNER, *self.registrations, *self._sent]}

    @property
    def paid(self) -> Mapping[str, float]:
        """The shares in the weights that the validator set on the chain."""
        chain = self.subnet.chain
        weights = chain.weights(self.subnet.validator_hotkey()) or {}
        names, total = self._names, sum(weights.values())
        neurons = {neuron.uid: neuron.hotkey for neuron in pallets.neurons(chain.at())}
        return {names[neurons[uid]]: weight / total for uid, weight in weights.items()}

    def _differences(self) -> Iterator[str]:
        """Describe each difference between the validator and the simulation."""
        current, last = self.store.last_round(), self.store.last_accepted()
        assert current is not None
        assert current.start_block == self.block, "the validator did not reach the round"
        names, digests = self._names, {product: digest for digest, product in self._digests.items()}
        plan = {
            (names[run.key.hotkey], digests[run.digest], run.number): run.seed_block
            for run in current.evaluations or ()
        }
        expected = {(*run.content.key, run.number): run.seed_block for run in self.planned}
        yield from _compare("the seed block of evaluation", plan, expected)
        rows = (self._translate_row(row, digests) for row in self.store.leaderboard(current.id))
        expected_rows = (dataclasses.replace(row, uid=0, message="") for row in self.rows.values())
        yield from _compare("the row of", {row.hotkey: row for row in rows}, {row.hotkey: row for row in expected_rows})
        ledger = [
            dataclasses.replace(line, hotkey=names.get(line.hotkey, line.hotkey), digest=digests[line.digest])
            for line in self.store.ledger(current.id)
        ]
        yield from _compare("the ledger line", _number(ledger), _number(self.ledger))
        shares = {} if last is None else {names.get(hotkey, hotkey): share for hotkey, share in last.shares.items()}
        yield from _compare("the share of", shares, dict(self.shares))
        paid = self.paid
        for name in paid.keys() | shares.keys():
            if abs(paid.get(name, 0.0) - shares.get(name, 0.0)) > _ROUNDING:
                yield f"the weight of {name} on the chain is {paid.get(name)}, its share {shares.get(name)}"

    def _translate_row(self, row: LeaderboardRow, digests: Mapping[str, str]) -> LeaderboardRow:
        digest = None if row.digest is None else digests[row.digest]
        return dataclasses.replace(row, key=self._keys[row.key], digest=digest, uid=0, message="")


def _number(ledger: Sequence[LedgerLine]) -> dict[int, LedgerLine]:
    return dict(enumerate(ledger, start=1))


def _compare(what: str, actual: Mapping[Any, Any], expected: Mapping[Any, Any]) -> Iterator[str]:
    for key in sorted(actual.keys() | expected.keys()):
        if actual.get(key) != expected.get(key):
            yield f"{what} {key} is {actual.get(key)}, in the simulation {expected.get(key)}"
