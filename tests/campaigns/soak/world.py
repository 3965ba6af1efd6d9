"""The world of a soak run: a chain and a hub full of miners who do everything that miners do, by a seeded generator.

What is done is written into the diary, by content: a dataset is the numbers of its pool rows and what is wrong with
it. Keys are throwaways made from their names, so the same seed is the same story, blocks and hashes apart.
"""

import hashlib
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from template.chain.client import Chain, beacon_round_at, bt
from template.constants import DATA_FILE
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.substrate import LocalSubstrate
from template.localnet.hub.server import HubServer
from template.localnet.hub.store import upload_files
from template.localnet.network import NETUID, LocalNet, write_competition
from tests.campaigns.clock import SoakClock
from tests.campaigns.soak.diary import Diary

COMPETITION_ID = "soak"
POOL_ROWS = 150
MAX_ROWS = 110
# More than 100 shared rows make a copy, so what is to be copied has more.
LARGE_ROWS = 104

# Losses of the tiny model after these few rows lie on both sides of every limit.
_CURVE = {"bench": 5.95, "minb": 5.70, "maxb": 6.07, "bheight": 0.3, "pow": 1}

# What a miner does when it publishes, by weight.
_DEEDS = {
    "small": 30,
    "large": 14,
    "copy": 12,
    "promise": 8,
    "late promise": 4,
    "broken promise": 2,
    "seal": 10,
    "sealed copy": 3,
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
_FLAWS = {"malformed": "malformed", "foreign rows": "not_in_pool", "empty": "empty"}
_RETURN_AFTER_BLOCKS = 200

# What is sealed is opened by hand; the beacon's own round must lie in the future.
_FAR_S = 86_400.0


@dataclass
class _Miner:
    """One hotkey: what it committed, last in which block, and since when it has no uid."""

    name: str
    key: Any
    texts: list[str] = field(default_factory=list)
    commit_block: int | None = None
    left_block: int | None = None

    @property
    def hotkey(self) -> str:
        return str(self.key.ss58_address)


@dataclass(frozen=True)
class _Due:
    """Something promised for a block: an upload, or the opening of what `miner` sealed at `sealed_block`."""

    block: int
    miner: _Miner
    text: str
    content: bytes | None = None
    sealed_block: int | None = None


class World:
    """The chain, the hub and the miners, in `folder`. `step` makes time pass."""

    def __init__(self, folder: Path, hub: HubServer, *, miners: int, validators: int, quiet_blocks: int, seed: int):
        self.rng = random.Random(seed)
        self.hub = hub
        self.net = LocalNet(folder.resolve(), hub.endpoint)
        self._write_competition(folder / "sample")
        self.owner = _make_key("soak-owner")
        LocalChain.create(self.net.chain_file, netuid=NETUID, owner_hotkey=self.owner.ss58_address).close()
        self.chain = LocalChain(self.net.chain_file)
        self.clock = SoakClock(self.chain)
        self.diary = Diary(folder, self.clock)
        self._count = 0
        self._quiet_until = quiet_blocks
        self._due: list[_Due] = []
        self._larges: list[list[int]] = []
        self._gone: list[_Miner] = []
        self.chain.set_hyperparameter("MaxAllowedUids", miners + validators + 1)
        # Half an epoch: whoever sets no weights for a few rounds has to give earlier ones again.
        self.chain.set_hyperparameter("ActivityCutoffFactorMilli", 500)
        self._register(self.owner.ss58_address)
        for at in range(validators):
            self._register(validator_key(at).ss58_address, is_validator=True)
        self._miners = [self._new_miner() for _ in range(miners)]
        for miner in self._miners:
            self._register(miner.hotkey)
        self._silent = self.rng.sample(self._miners, len(self._miners))
        self.first_block = self.chain.block()
        self._quiet_until += self.first_block

    def _write_competition(self, sample: Path) -> None:
        sample.mkdir(parents=True)
        (sample / "pool.jsonl").write_bytes(_as_file(range(POOL_ROWS)))
        values = {"id": COMPETITION_ID, "repo": "soak/pool", "rows": MAX_ROWS, **_CURVE}
        (sample / "competition.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        write_competition(self.net, self.hub, sample)

    def close(self) -> None:
        self.diary.close()
        self.chain.close()

    def connect(self, key: Any, kind: type[Chain] = Chain) -> Any:
        """A connection of its own that signs with `key`."""
        wallet: Any = SimpleNamespace(hotkey=key)
        substrate = LocalSubstrate(self.net.chain_file)
        return kind(self.net.network, NETUID, wallet=wallet, substrate=substrate, deadline_s=10.0)

    @property
    def silent(self) -> int:
        """Miners who never committed anything yet."""
        return len(self._silent)

    def step(self, *, events: float) -> None:
        """Some blocks, and before them with probability `events` something that a miner does."""
        for due in [due for due in self._due if due.block <= self.chain.block()]:
            self._due.remove(due)
            self._keep_promise(due)
        for _ in range(min(len(self._silent), 3)):
            self._publish(self._silent.pop())
        if self.rng.random() < events:
            if not self._silent and self.rng.random() < 0.12:
                self._replace_miner()
            else:
                self._publish(self.rng.choice(self._miners))
        self.chain.advance(self.rng.randint(1, 3))

    def _new_miner(self) -> _Miner:
        self._count += 1
        name = f"soak-miner-{self._count}"
        return _Miner(name, _make_key(name))

    def _register(self, hotkey: str, *, is_validator: bool = False) -> None:
        uid = self.chain.register(hotkey, is_validator=is_validator)
        self.diary.write("registered", block=self.chain.block(), hotkey=hotkey, uid=uid)

    def _replace_miner(self) -> None:
        """Somebody loses its uid to a newcomer, or to one who had lost its own before."""
        index = self.rng.randrange(len(self._miners))
        leaver, head = self._miners[index], self.chain.block()
        back = [one for one in self._gone if head - (one.left_block or 0) > _RETURN_AFTER_BLOCKS]
        is_back = bool(back) and self.rng.random() < 0.3
        comer = self.rng.choice(back) if is_back else self._new_miner()
        uid = self.chain.deregister(leaver.hotkey, replacement=comer.hotkey)
        leaver.left_block, comer.left_block = head, None
        self._gone = [one for one in [*self._gone, leaver] if one is not comer]
        self._miners[index] = comer
        self.diary.write("registered", block=self.chain.block(), hotkey=comer.hotkey, uid=uid)
        self.diary.write("uid recycled", is_back=is_back)

    def _publish(self, miner: _Miner) -> None:
        deeds = _HARMLESS if self.chain.block() < self._quiet_until else tuple(_DEEDS)
        deed = self.rng.choices(deeds, [_DEEDS[deed] for deed in deeds])[0]
        if deed in ("again", "an earlier one") and not miner.texts:
            deed = "small"
        if deed in ("copy", "sealed copy") and not self._larges:
            deed = "large"
        self.diary.write("deed", deed=deed)
        if deed in ("again", "an earlier one"):
            self._commit(miner, miner.texts[-1] if deed == "again" else self.rng.choice(miner.texts))
        elif deed == "no commitment":
            self._commit(miner, self.rng.choice(["hello", f"{miner.name}/data", "a:b:c", ":" * 9, "x" * 128]))
        elif deed == "no repo":
            self._commit(miner, self._text(f"{miner.name}/{self.rng.randrange(99)}", "0" * 40))
        elif deed == "no file":
            self._commit(miner, self._text(f"{miner.name}/empty", self._upload(f"{miner.name}/empty", None)))
        elif deed in ("promise", "late promise", "broken promise", "seal", "sealed copy", "broken seal"):
            self._promise(miner, deed, self._compose(deed))
        else:
            repo = f"{miner.name}/data"
            commit = self._upload(repo, self._compose(deed))
            is_other = deed == "another competition"
            self._commit(miner, self._text(repo, commit, "another" if is_other else COMPETITION_ID))

    def _promise(self, miner: _Miner, deed: str, content: bytes) -> None:
        """A commitment by digest, sealed or not, and what is to become of it."""
        head, repo = self.chain.block(), f"{miner.name}/data"
        text = self._text(repo, hashlib.sha256(content).hexdigest())
        if deed == "promise":
            self._upload(repo, content)
        if "promise" in deed:
            self._commit(miner, text)
            if deed == "late promise":
                self._due.append(_Due(head + self.rng.randint(5, 250), miner, text, content))
            return
        with self.connect(miner.key) as chain:
            outcome = chain.publish_sealed(text, beacon_round_at(time.time() + _FAR_S))
        _require(outcome.is_accepted, outcome)
        miner.commit_block = outcome.block
        self.diary.write("sealed", block=outcome.block, hotkey=miner.hotkey, text=text)
        reveal = head + self.rng.randint(6, 60)
        self._due.append(_Due(reveal, miner, text, sealed_block=outcome.block))
        if deed != "broken seal":
            self._due.append(_Due(reveal + self.rng.randint(0, 40), miner, text, content))

    def _keep_promise(self, due: _Due) -> None:
        if due.content is not None:
            self._upload(f"{due.miner.name}/data", due.content)
            return
        if due.miner.commit_block == due.sealed_block:
            self.chain.reveal(due.miner.hotkey, due.text)
            due.miner.texts.append(due.text)
            self.diary.write("revealed", block=self.chain.block(), hotkey=due.miner.hotkey, text=due.text)

    def _text(self, repo: str, revision: str, competition: str = COMPETITION_ID) -> str:
        return f"{repo}:{competition}:{revision}"

    def _commit(self, miner: _Miner, text: str) -> None:
        with self.connect(miner.key) as chain:
            outcome = chain.publish(text)
        _require(outcome.is_accepted, outcome)
        miner.commit_block = outcome.block
        miner.texts.append(text)
        self.diary.write("committed", block=outcome.block, hotkey=miner.hotkey, text=text)

    def _upload(self, repo: str, content: bytes | None) -> str:
        """Puts the file on the hub, or a repo without it, and returns the commit."""
        files = {"README.md": repo.encode()} if content is None else {DATA_FILE: content}
        commit = upload_files(self.hub.store.root, repo, files)
        sha256 = None if content is None else hashlib.sha256(content).hexdigest()
        self.diary.write("uploaded", repo=repo, commit=commit, sha256=sha256)
        return commit

    def _compose(self, deed: str) -> bytes:
        """A data.jsonl; what it holds goes into the diary."""
        numbers = self.rng.sample(range(POOL_ROWS), self.rng.randint(8, 20))
        if deed == "large" or (deed == "seal" and self.rng.random() < 0.3):
            numbers = self.rng.sample(range(POOL_ROWS), LARGE_ROWS)
            self._larges.append(numbers)
        elif "copy" in deed:
            numbers = self.rng.choice(self._larges)[self.rng.randint(0, 6) :]
            self.rng.shuffle(numbers)
        elif deed == "foreign rows":
            numbers[self.rng.randrange(len(numbers))] += POOL_ROWS
        elif deed == "foreign rows past the limit":
            numbers = [*self.rng.sample(range(POOL_ROWS), MAX_ROWS), POOL_ROWS, POOL_ROWS + 1]
        content = {"malformed": _as_file(numbers)[:-9], "empty": b"\n\n"}.get(deed, _as_file(numbers))
        flaw, sha256 = _FLAWS.get(deed), hashlib.sha256(content).hexdigest()
        self.diary.write("composed", sha256=sha256, flaw=flaw, rows=numbers, text=content.decode())
        return content


def validator_key(at: int) -> Any:
    """The keypair of the validator number `at`."""
    return _make_key(f"soak-validator-{at}")


def _make_key(name: str) -> Any:
    """A keypair that anyone can make from its name."""
    return bt.sp_core.Keypair.create_from_uri(f"//{name}")


def _as_file(numbers: Any) -> bytes:
    return "".join(f"{_make_line(number)}\n" for number in numbers).encode()


def _make_line(number: int) -> str:
    turns = [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": f"it is {number * 7}"}]
    return json.dumps({"conversations": turns})


def _require(is_accepted: bool, outcome: object) -> None:
    if not is_accepted:
        raise RuntimeError(f"the chain refused a miner: {outcome}")
