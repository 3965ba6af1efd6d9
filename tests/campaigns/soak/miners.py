"""The miners of a soak run, who do everything that miners do.

Their actions are written to the event log. A dataset is logged as the numbers of its pool rows and its fault; the same
seed gives the same actions, but for blocks and hashes.
"""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from template.localnet.chain import pallets
from tests.campaigns.soak.event_log import EventLog
from tests.campaigns.soak.game_state import FACTOR
from tests.campaigns.synthetic_subnet import SyntheticSubnet, make_file, make_short_rows

# So many that datasets drawn from them rarely share two fifths of their rows.
POOL_ROWS = 400
MAX_ROWS = 44
_LARGE_ROWS = 40
# Losses of the tiny model after some short rows lie on both sides of every limit.
CURVE = {"bench": 6.032, "minb": 5.98, "maxb": 6.04, "bheight": 0.3, "pow": 1}
BLOCKS_PER_EPOCH = 24
# Few evaluations and short times, so that a run of some rounds has everything.
INCENTIVES = {
    "epsilon": 0.001,
    "sd": 0.002,
    "evaluations": 2,
    "hold": 5,
    "slots": 10,
    "half_life_blocks": 240,
    "update_blocks": 2 * BLOCKS_PER_EPOCH,
    "blocks_per_epoch": BLOCKS_PER_EPOCH,
}
# Actions of a miner that publishes, by weight.
_ACTIONS = {
    "small": 30,
    "large": 14,
    "copy": 12,
    "promise": 8,
    "late promise": 4,
    "broken promise": 2,
    "seal": 10,
    "sealed copy": 3,
    "borrow": 5,
    "borrow too much": 3,
    "broken seal": 2,
    "malformed": 3,
    "foreign rows": 3,
    "foreign rows past the limit": 2,
    "empty": 1,
    "no file": 2,
    "no repo": 2,
    "another competition": 2,
    "no commitment": 2,
    "again": 4,
    "an earlier one": 4,
}
_HARMLESS = ("malformed", "foreign rows", "no file", "no repo", "another competition", "no commitment")
_FAULTS = {"malformed": "malformed", "foreign rows": "not_in_pool", "empty": "empty"}
_PROMISES = ("promise", "late promise", "broken promise", "seal", "sealed copy", "broken seal")
_RETURN_AFTER_BLOCKS = 200


@dataclass(eq=False)
class _Miner:
    """A hotkey with its commitments, and the block at which it lost its uid."""

    name: str
    texts: list[str] = field(default_factory=list)
    commit_block: int | None = None
    left_block: int | None = None

    @property
    def repo(self) -> str:
        return f"{self.name}/data"


@dataclass(frozen=True)
class _Due:
    """An upload, or the reveal of a sealed commitment, promised for a block."""

    block: int
    miner: _Miner
    text: str
    content: bytes | None = None
    sealed_block: int | None = None


def make_rows(numbers: Iterable[int]) -> bytes:
    return make_file(make_short_rows(numbers, factor=FACTOR))


def create_subnet(folder: Path, *, miners: int, validators: Sequence[str]) -> SyntheticSubnet:
    """Make the subnet of a run without its miners."""
    folder.mkdir(parents=True, exist_ok=True)
    incentives = {**INCENTIVES, "start_block": miners + 2 * BLOCKS_PER_EPOCH}
    subnet = SyntheticSubnet.create(
        folder,
        pool=make_short_rows(range(POOL_ROWS), factor=FACTOR),
        competition={"id": "soak", "repo": "soak/pool", "rows": MAX_ROWS, **CURVE, "incentives": incentives},
        validators=validators,
        tempo=360,
        max_uids=miners + len(validators) + 1,
    )
    # Half an epoch: a validator that sets no weights for some rounds has to submit earlier ones again.
    subnet.chain.set_hyperparameter("ActivityCutoffFactorMilli", 500)
    return subnet


class Miners:
    """All miners of a subnet; at first they commit nothing that counts."""

    def __init__(self, subnet: SyntheticSubnet, log: EventLog, *, count: int, quiet_blocks: int, seed: int) -> None:
        self._subnet, self._log, self._rng = subnet, log, random.Random(seed)
        self._count = 0
        self._due: list[_Due] = []
        self._large: list[list[int]] = []
        self._gone: list[_Miner] = []
        for neuron in pallets.neurons(subnet.chain.at()):
            log.write("registered", block=neuron.registered_at, hotkey=neuron.hotkey, uid=neuron.uid)
        self._miners = [self._new_miner() for _ in range(count)]
        for miner in self._miners:
            uid = subnet.chain.register(subnet.hotkey(miner.name))
            self._log_registration(miner, uid)
        self._silent = self._rng.sample(self._miners, len(self._miners))
        self.first_block = subnet.chain.block()
        self._quiet_until = quiet_blocks + self.first_block

    def step(self, *, events: float) -> None:
        """Let some blocks pass, with probability `events` after an action."""
        for due in [due for due in self._due if due.block <= self._subnet.chain.block()]:
            self._due.remove(due)
            self._keep_promise(due)
        if self._silent:
            self._publish(self._silent.pop())
        if self._rng.random() < events:
            if not self._silent and self._rng.random() < 0.12:
                self._replace_miner()
            else:
                self._publish(self._rng.choice(self._miners))
        self._subnet.chain.advance(self._rng.randint(1, 3))

    def _new_miner(self) -> _Miner:
        self._count += 1
        return _Miner(f"soak-miner-{self._count}")

    def _log_registration(self, miner: _Miner, uid: int) -> None:
        hotkey = self._subnet.hotkey(miner.name)
        self._log.write("registered", block=self._subnet.chain.block(), hotkey=hotkey, uid=uid)

    def _replace_miner(self) -> None:
        """Give a miner's uid to a new one, or to one who lost its own before."""
        index = self._rng.randrange(len(self._miners))
        leaver, head = self._miners[index], self._subnet.chain.block()
        gone = [miner for miner in self._gone if head - (miner.left_block or 0) > _RETURN_AFTER_BLOCKS]
        is_back = bool(gone) and self._rng.random() < 0.3
        comer = self._rng.choice(gone) if is_back else self._new_miner()
        hotkey = self._subnet.hotkey
        uid = self._subnet.chain.deregister(hotkey(leaver.name), replacement=hotkey(comer.name))
        leaver.left_block, comer.left_block = head, None
        # The chain purged the commitment, so nothing of it is revealed.
        leaver.commit_block = None
        self._gone = [miner for miner in [*self._gone, leaver] if miner is not comer]
        self._miners[index] = comer
        self._log_registration(comer, uid)
        self._log.write("uid recycled", is_back=is_back)

    def _publish(self, miner: _Miner) -> None:
        actions = _HARMLESS if self._subnet.chain.block() < self._quiet_until else tuple(_ACTIONS)
        action = self._rng.choices(actions, [_ACTIONS[action] for action in actions])[0]
        if action in ("again", "an earlier one") and not miner.texts:
            action = "small"
        if action in ("copy", "sealed copy", "borrow", "borrow too much") and not self._large:
            action = "large"
        self._log.write("action", action=action)
        if action in ("again", "an earlier one"):
            self._commit(miner, miner.texts[-1] if action == "again" else self._rng.choice(miner.texts))
        elif action == "no commitment":
            self._commit(miner, self._rng.choice(["hello", miner.repo, "a:b:c", ":" * 9, "x" * 128]))
        elif action == "no repo":
            self._commit(miner, self._subnet.text(f"{miner.name}/{self._rng.randrange(99)}", "0" * 40))
        elif action == "no file":
            repo = f"{miner.name}/empty"
            self._commit(miner, self._subnet.text(repo, self._upload(repo, None)))
        elif action in _PROMISES:
            self._promise(miner, action, self._compose(action))
        else:
            commit = self._upload(miner.repo, self._compose(action))
            competition = "another" if action == "another competition" else None
            self._commit(miner, self._subnet.text(miner.repo, commit, competition))

    def _promise(self, miner: _Miner, action: str, content: bytes) -> None:
        """Commit by digest, sealed or not, and plan the upload and the reveal."""
        head = self._subnet.chain.block()
        text = self._subnet.text(miner.repo, hashlib.sha256(content).hexdigest())
        if action == "promise":
            self._upload(miner.repo, content)
        if "promise" in action:
            self._commit(miner, text)
            if action == "late promise":
                self._due.append(_Due(head + self._rng.randint(5, 250), miner, text, content))
            return
        block = miner.commit_block = self._subnet.seal(miner.name)
        self._log.write("sealed", block=block, hotkey=self._subnet.hotkey(miner.name))
        reveal = head + self._rng.randint(6, 60)
        self._due.append(_Due(reveal, miner, text, sealed_block=block))
        if action != "broken seal":
            self._due.append(_Due(reveal + self._rng.randint(0, 40), miner, text, content))

    def _keep_promise(self, due: _Due) -> None:
        if due.content is not None:
            self._upload(due.miner.repo, due.content)
        elif due.miner.commit_block == due.sealed_block:
            block = self._subnet.reveal(due.miner.name, due.text)
            due.miner.texts.append(due.text)
            self._log.write("revealed", block=block, hotkey=self._subnet.hotkey(due.miner.name), text=due.text)

    def _commit(self, miner: _Miner, text: str) -> None:
        miner.commit_block = self._subnet.commit(miner.name, text)
        miner.texts.append(text)
        hotkey = self._subnet.hotkey(miner.name)
        self._log.write("committed", block=miner.commit_block, hotkey=hotkey, text=text)

    def _upload(self, repo: str, content: bytes | None) -> str:
        commit = self._subnet.upload(repo, content)
        sha256 = None if content is None else hashlib.sha256(content).hexdigest()
        self._log.write("uploaded", repo=repo, commit=commit, sha256=sha256)
        return commit

    def _compose(self, action: str) -> bytes:
        """Return a data.jsonl, whose rows are logged."""
        numbers = self._rng.sample(range(POOL_ROWS), self._rng.randint(8, 20))
        if action == "large" or (action == "seal" and self._rng.random() < 0.3):
            numbers = self._rng.sample(range(POOL_ROWS), _LARGE_ROWS)
            self._large.append(numbers)
        elif "copy" in action:
            numbers = self._rng.choice(self._large)[self._rng.randint(0, 6) :]
            self._rng.shuffle(numbers)
        elif "borrow" in action:
            # The most rows that make no duplicate of the other, or one more.
            taken = _LARGE_ROWS * 2 // 5 + (action == "borrow too much")
            numbers = self._rng.choice(self._large)[:taken]
            others = [number for number in range(POOL_ROWS) if number not in numbers]
            numbers += self._rng.sample(others, _LARGE_ROWS - taken)
        elif action == "foreign rows":
            numbers[self._rng.randrange(len(numbers))] += POOL_ROWS
        elif action == "foreign rows past the limit":
            numbers = [*self._rng.sample(range(POOL_ROWS), MAX_ROWS), POOL_ROWS, POOL_ROWS + 1]
        content = {"malformed": make_rows(numbers)[:-9], "empty": b"\n\n"}.get(action, make_rows(numbers))
        sha256 = hashlib.sha256(content).hexdigest()
        text = content.decode()
        self._log.write("composed", sha256=sha256, fault=_FAULTS.get(action), rows=numbers, text=text)
        return content
