"""The subnet of a load run: a chain whose blocks come by the clock, a hub, and miners who all do the same at once.

Datasets are written straight into the hub's content and commitments straight into a block, as so many miners at once
could, which no single client could do for them.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from template.constants import DATA_FILE, DEFAULT_DUPLICATE_COUNT, MAX_SUBMISSION_BYTES, MAX_SUBMISSION_ROWS
from template.localnet.chain import pallets
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.ledger import Ledger
from template.localnet.chain.scale_codec import Call
from template.localnet.hub.store import upload_files
from template.localnet.network import NETUID, VALIDATOR, LocalNet, make_hotkey
from tests.campaigns.synthetic_subnet import COMPETITION, make_key, make_lines

# Blocks between two commitments of one hotkey that the chain allows for: its space for an epoch holds 31 of them.
RECOMMIT_BLOCKS = 12

# Fewer blocks than a validator opens a round for, see `template.rules.schedule`: it takes those of the next epoch
# with them.
_LEFT_BLOCKS = 45

_CHUNK_ROWS = 10_000
# Characters of a row of one word: the roles, the number, and what JSON needs.
_FRAME_CHARS, _WORD_CHARS = 110, 6.9


def make_pool(rows: int, row_bytes: int) -> list[str]:
    """So many different rows of about so many bytes each."""
    words = max(8, int((row_bytes - _FRAME_CHARS) / _WORD_CHARS))
    chunks = [make_lines(min(_CHUNK_ROWS, rows - at), seed=at, words=words) for at in range(0, rows, _CHUNK_ROWS)]
    return [line for chunk in chunks for line in chunk]


@dataclass
class Miner:
    """One hotkey, its repo, and how often it committed."""

    hotkey: str
    repo: str
    commits: int = 0


class LoadWorld:
    """Everything around the validator, in the new folder `folder`, whose hub is to be served from `hub_root`."""

    def __init__(self, folder: Path, *, miners: int, pool: Sequence[str], rows: int, tempo: int) -> None:
        self.net = LocalNet(folder, "")
        self.hub_root = folder / "hub"
        self._pool = pool
        self._rows = rows
        self.largest_bytes = 0
        folder.mkdir(parents=True, exist_ok=True)
        (pool_file := folder / "pool.jsonl").write_text("\n".join(pool), encoding="utf-8")
        self.pool_bytes = pool_file.stat().st_size
        commit = upload_files(self.hub_root, COMPETITION.repo, {"pool.jsonl": pool_file})
        values = {**COMPETITION.to_dict(), "rows": rows, "eval_commit": commit}
        self.net.competition.write_text(yaml.safe_dump(values), encoding="utf-8")
        owner = make_key("load-owner").ss58_address
        self.chain = LocalChain.create(
            self.net.chain_file, netuid=NETUID, owner_hotkey=owner, tempo=tempo, weights_rate_limit=min(100, tempo // 4)
        )
        self.chain.set_hyperparameter("MaxAllowedUids", miners + 2)
        self.chain.register(owner)
        self.validator = make_hotkey(self.net, VALIDATOR)
        self.chain.register(self.validator, is_validator=True)
        self.miners = [
            Miner(str(make_key(f"load-{number}").ss58_address), f"miner-{number}/data") for number in range(miners)
        ]
        for miner in self.miners:
            self.chain.register(miner.hotkey)
        self._ledger = Ledger(self.net.chain_file)

    def close(self) -> None:
        self._ledger.close()
        self.chain.close()

    def datasets(self, kind: str) -> Iterator[bytes]:
        """One for each miner.

        different: rows drawn for each. same: one for all. near: as many common rows as just make no copies, and others
        of its own. large: the same, filled up to the byte limit with rows past those that count.
        """
        draw, common = random.Random(1), DEFAULT_DUPLICATE_COUNT
        own = self._rows - common
        filling = _make_filling(self._rows) if kind == "large" else b""
        for number in range(len(self.miners)):
            at = common + number * own
            rows = [*self._pool[:common], *self._pool[at : at + own]]
            if kind in ("different", "same"):
                rows = draw.sample(self._pool, self._rows) if kind == "different" else list(self._pool[: self._rows])
            content = "".join(f"{line}\n" for line in rows).encode()
            yield content + filling[: filling.rfind(b"\n", 0, max(0, MAX_SUBMISSION_BYTES - len(content))) + 1]

    def publish(self, kind: str) -> None:
        """Puts everybody's dataset on the hub."""
        for miner, content in zip(self.miners, self.datasets(kind), strict=True):
            upload_files(self.hub_root, miner.repo, {DATA_FILE: content})
            self.largest_bytes = max(self.largest_bytes, len(content))

    def commit(self, miners: Sequence[Miner]) -> int:
        """All of these commit in one block, each another version of the same rows; returns the block."""
        texts = [(miner.hotkey, self._next_version(miner)) for miner in miners]
        with self._ledger.write() as state:
            for hotkey, text in texts:
                fields = [{f"Raw{len(text)}": "0x" + text.encode().hex()}]
                call = Call("Commitments", "set_commitment", {"netuid": NETUID, "info": {"fields": fields}})
                pallets.dispatch(state, NETUID, hotkey, call)
            return int(state.block)

    def start_clock(self, block_s: float) -> None:
        """Has blocks come by the clock, from so near an epoch's end that a validator's first round is a whole one."""
        head = self.chain.block()
        state = self._ledger.at()
        left = (pallets.schedule(state).next_block or head) - head - _LEFT_BLOCKS
        if left % pallets.parameter(state, "Tempo"):
            self.chain.advance(left % pallets.parameter(state, "Tempo"))
        self.chain.set_block_time(block_s)

    def _next_version(self, miner: Miner) -> str:
        miner.commits += 1
        commit = upload_files(self.hub_root, miner.repo, {"README.md": f"version {miner.commits}".encode()})
        return f"{miner.repo}:{COMPETITION.id}:{commit}"

    def weights_blocks(self) -> list[int]:
        """The blocks in which the validator's calls are, all of which set weights."""
        head = self.chain.block()
        taken = [self._ledger.extrinsics(block) for block in range(1, head + 1)]
        return [at for at, calls in enumerate(taken, start=1) if any(signer == self.validator for _, signer in calls)]


def _make_filling(rows: int) -> bytes:
    """Rows that are in no pool and, after so many others, fill the limits on bytes and on rows alike."""
    frame = '{"conversations": [{"role": "user", "content": "%d"}, {"role": "assistant", "content": "%s"}]}'
    body = "x" * (MAX_SUBMISSION_BYTES // MAX_SUBMISSION_ROWS - len(frame))
    return "".join(f"{frame % (number, body)}\n" for number in range(MAX_SUBMISSION_ROWS - rows)).encode()
