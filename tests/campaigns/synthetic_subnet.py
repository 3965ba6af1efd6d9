"""A subnet in one folder, with miners that are only names.

Miners' keys come from their names, and their commitments go straight into a block, several at a time.
"""

import dataclasses
import hashlib
import json
import random
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from template.chain.client import Chain, open_wallet
from template.competition import Competition
from template.config import load_competition
from template.constants import DATA_FILE
from template.localnet.chain import pallets
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.scale_codec import decode_call, encode_call
from template.localnet.hub.store import upload_files
from template.localnet.network import NETUID, LocalNet, make_hotkey
from template.localnet.node.server import NodeServer
from tests.fixtures import chain
from tests.fixtures.faulty_hub import HubFault, set_faults
from tests.fixtures.substrate import InProcessChain, LocalSubstrate

COMPETITION = dataclasses.replace(Competition.from_defaults(), id="synthetic", repo="synthetic/pool")
# Losses of the tiny model after some short rows lie well inside of this curve.
WIDE_CURVE = {"bench": 6.1, "minb": 5.8, "maxb": 6.8, "bheight": 0.3, "pow": 1}
OWNER, VALIDATOR = "owner", "validator"
# Commitments are revealed by `SyntheticSubnet.reveal`, never by a round of the drand beacon.
FAR_REVEAL_ROUND = 2**40
# Rows of a large dataset.
LARGE_ROWS = 104
_LONG_TEMPO = 100_000
make_key = cache(chain.make_key)
_WORDS = tuple(hashlib.sha256(bytes([index, salt])).hexdigest()[: 2 + index % 9]
               for salt in range(16) for index in range(256))  # fmt: skip


def make_rows(count: int, *, seed: int = 0, words: int = 170) -> list[str]:
    """Return different rows of random words, of some 1.2 KB by default."""
    draw = random.Random(seed)
    return [
        make_row(
            f"{number}: " + " ".join(draw.choices(_WORDS, k=words * 5 // 17)),
            '"' + "\n".join(draw.choices(_WORDS, k=words * 12 // 17)) + '"',
        )
        for number in range(count)
    ]


def make_row(question: str, answer: str) -> str:
    """Return a row of one turn."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"conversations": turns})


def make_short_rows(numbers: Iterable[int], *, factor: int = 1) -> list[str]:
    """Return a row of some twenty tokens for each number."""
    return [make_row(*short_texts(number, factor)) for number in numbers]


def short_texts(number: int, factor: int) -> tuple[str, str]:
    """Return question and answer of a short row."""
    return f"say {number}", f"it is {number * factor}"


def make_file(rows: Iterable[str]) -> bytes:
    """Return the data.jsonl of these rows."""
    return "".join(f"{row}\n" for row in rows).encode()


@dataclass(frozen=True)
class WeightsCall:
    """A setting of weights on the chain, with its error if it failed."""

    block: int
    signer: str
    weights: Mapping[int, int]
    error: str | None


class SyntheticSubnet:
    """A subnet that `create` made in a folder, or a copy of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.net = LocalNet(self.folder, "")
        self.hub_root = self.folder / "hub"
        self.competition = load_competition(self.net.competition)
        self.chain = LocalChain(self.net.chain_file)
        self._node: NodeServer | None = None

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        pool: Sequence[str],
        competition: Mapping[str, object],
        validators: Sequence[str] = (VALIDATOR,),
        tempo: int = _LONG_TEMPO,
        weights_rate_limit: int = 1,
        max_uids: int = 256,
    ) -> "SyntheticSubnet":
        """Make a subnet with an owner and validators, and no miners."""
        net = LocalNet(folder.resolve(), "")
        commit = upload_files(folder / "hub", str(competition["repo"]), {"pool.jsonl": make_file(pool)})
        values = yaml.safe_dump({**competition, "eval_commit": commit})
        net.competition.write_text(values, encoding="utf-8")
        LocalChain.create(
            net.chain_file,
            netuid=NETUID,
            owner_hotkey=make_key(OWNER).ss58_address,
            tempo=tempo,
            weights_rate_limit=weights_rate_limit,
            commit_reveal=False,
        ).close()
        subnet = cls(folder)
        subnet.chain.set_hyperparameter("MaxAllowedUids", max_uids)
        subnet.register(OWNER)
        for name in validators:
            subnet.chain.register(make_hotkey(net, name), is_validator=True)
        return subnet

    @classmethod
    def copy(cls, source: Path, folder: Path) -> "SyntheticSubnet":
        """Copy a subnet that is closed into a new folder, and open the copy."""
        shutil.copytree(source, folder)
        return cls(folder)

    def __enter__(self) -> "SyntheticSubnet":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._node is not None:
            self._node.close()
        self.chain.close()

    # The chain

    @property
    def network(self) -> str:
        """The url of the subnet's node, which starts with its first use."""
        if self._node is None:
            self._node = NodeServer(self.net.chain_file)
        return self._node.url

    @staticmethod
    def hotkey(name: str) -> str:
        """Return a miner's or the owner's address."""
        return str(make_key(name).ss58_address)

    def validator_key(self, name: str = VALIDATOR) -> Any:
        return open_wallet(name, "default", self.net.wallets).hotkey

    def validator_hotkey(self, name: str = VALIDATOR) -> str:
        return str(self.validator_key(name).ss58_address)

    def register(self, *names: str) -> None:
        for name in names:
            self.chain.register(self.hotkey(name))

    def connect(self, key: Any = None, *, node: LocalSubstrate | None = None, deadline_s: float = 10.0) -> Chain:
        """Return a client in this process that signs with `key`, by default the validator's."""
        wallet: Any = SimpleNamespace(hotkey=key or self.validator_key())
        node = node or LocalSubstrate(self.net.chain_file)
        return InProcessChain(node, NETUID, wallet=wallet, deadline_s=deadline_s)

    def text(self, repo: str, revision: str, competition_id: str | None = None) -> str:
        """Return the commitment of a dataset."""
        return f"{repo}:{competition_id or self.competition.id}:{revision}"

    def commit(self, name: str, text: str) -> int:
        """Commit a text; return the block."""
        return self.commit_together({name: text})

    def commit_together(self, texts: Mapping[str, str]) -> int:
        """Commit a text for each miner, all in one block."""
        fields = {name: ({f"Raw{len(raw)}": raw},) for name, text in texts.items() for raw in [text.encode()]}
        return self.commit_fields(fields)

    def commit_fields(self, fields: Mapping[str, Sequence[object]]) -> int:
        """Commit these fields of the chain's `Data` for each miner, all in one block."""
        with self.chain.write() as state:
            for name, data in fields.items():
                info = {"netuid": NETUID, "info": {"fields": list(data)}}
                call = decode_call(encode_call("Commitments", "set_commitment", info))
                pallets.dispatch(state, NETUID, self.hotkey(name), call)
            return int(state.block)

    def seal(self, name: str) -> int:
        """Commit a timelocked text, which `reveal` gives."""
        sealed = {"TimelockEncrypted": {"encrypted": b"sealed", "reveal_round": FAR_REVEAL_ROUND}}
        return self.commit_fields({name: (sealed,)})

    def reveal(self, name: str, text: str) -> int:
        self.chain.reveal(self.hotkey(name), text)
        return self.chain.block()

    @contextmanager
    def one_block(self) -> Iterator[None]:
        """Put everything that is written within into one block."""
        self.chain.set_block_time(3600.0)
        yield
        self.chain.set_block_time(0.0)

    def advance_to(self, block: int) -> None:
        """Raises: RuntimeError when the chain is past the block."""
        head = self.chain.block()
        if head > block:
            raise RuntimeError(f"the chain is at block {head}, past block {block}")
        if head < block:
            self.chain.advance(block - head)

    def weights_calls(self) -> list[WeightsCall]:
        """Return every setting of weights on the chain, in order."""
        calls = []
        with closing(sqlite3.connect(f"{self.net.chain_file.as_uri()}?mode=ro", uri=True)) as db:
            for block, data, signer, error in db.execute(
                "SELECT block, data, signer, error FROM extrinsics ORDER BY block, position"
            ):
                call = decode_call(data)
                if call.function == "set_mechanism_weights":
                    pairs = zip(call.params["dests"], call.params["weights"], strict=True)
                    calls.append(WeightsCall(block, signer, {uid: weight for uid, weight in pairs if weight}, error))
        return calls

    # The hub

    def upload(self, repo: str, rows: Iterable[str] | bytes | None, *, is_private: bool = False) -> str:
        """Publish a data.jsonl, or a README alone for None; return the commit.

        Its message names the file, like the miner's, so that validators find it after the next upload.
        """
        content = rows if isinstance(rows, bytes) or rows is None else make_file(rows)
        files = {"README.md": repo.encode()} if content is None else {DATA_FILE: content}
        message = f"Publish {DATA_FILE} {hashlib.sha256(content or b'').hexdigest()}"
        return upload_files(self.hub_root, repo, files, private=is_private, message=message)

    def set_hub_faults(self, *faults: HubFault) -> None:
        """Let exactly these faults happen from now on."""
        set_faults(self.hub_root, *faults)
