"""What a node may say of the chain, and what becomes of blocks that are not final: attacks on the chain's reader.

A lie is told for a while, and the validator must do nothing on it but try again; then the truth is told, and its rounds
must come out as if nothing had been.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from template.chain.client import bt
from template.errors import RemoteError
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.substrate import LocalSubstrate
from template.localnet.network import NETUID
from tests.campaigns.attack.environment import POOL, Arena, arena
from tests.campaigns.attack.runner import Attack, judge

_LOST = "again later, then scored"
_TICKS = 3

Graph = Callable[[dict[str, Any], int], object]
Rows = Callable[[str, list[Any], int], object]


class LyingNode(LocalSubstrate):
    """A node that says something else than the chain while it is told what.

    graph: changes the metagraph, given it and the newest block. rows: changes a storage map, given its name and rows as
    well. head: in place of the newest final block. error: what every read ends with. is_head_final: nothing waits for
    finality. path: another chain's file, from the next connection on.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._truth = path
        self.be_honest()

    async def finalized_block_number(self) -> int:
        if self.error is not None:
            raise self.error
        if self.head is not None:
            return self.head
        return await (self.block_number() if self.is_head_final else super().finalized_block_number())

    async def runtime_call(self, api: str, method: str, params: list[Any], block_hash: str | None = None) -> Any:
        answer = await super().runtime_call(api, method, params, block_hash)
        if self.graph is not None and method == "get_metagraph":
            self.graph(answer, answer["block"])
        return answer

    async def query_map(
        self, module: str, storage_function: str, params: list[Any] | None = None, block_hash: str | None = None
    ) -> list[tuple[Any, Any]]:
        answer = await super().query_map(module, storage_function, params, block_hash)
        if self.rows is not None:
            self.rows(storage_function, answer, await self.block_number())
        return answer

    def be_honest(self) -> None:
        """Ends every lie; the next connection is to the chain that the node was made for."""
        self.path = self._truth
        self.graph: Graph | None = None
        self.rows: Rows | None = None
        self.head: int | None = None
        self.error: Exception | None = None
        self.is_head_final = False


def _lied(what: str, lie: Callable[[LyingNode, Arena], object], expected: str = _LOST) -> Attack:
    """A node lies in the middle of a round."""

    def run(folder: Path) -> str:
        with arena(folder, node=LyingNode) as here:
            assert isinstance(here.node, LyingNode)
            here.pass_rounds()
            lie(here.node, here)
            told = {judge(here.tick) for _ in range(_TICKS)}
            here.node.be_honest()
            here.pass_rounds(2)
            return f"{' or '.join(sorted(told))}, then {here.verdict('ann')}"

    return Attack(name=what, run=run, expected=expected, max_seconds=60.0, max_memory=96, max_disk=32)


def _graph(change: Graph) -> Callable[[LyingNode, Arena], object]:
    return lambda node, _: setattr(node, "graph", change)


def _put(column: str, value: Any) -> Callable[[LyingNode, Arena], object]:
    """Says this of the neuron with uid 2, who is ann."""
    return _graph(lambda graph, block: graph[column].__setitem__(2, value(block) if callable(value) else value))


def _row(item: str, value: Callable[[int], object]) -> Callable[[LyingNode, Arena], object]:
    """Adds a row to a map, of a hotkey without a uid."""

    def add(asked: str, answer: list[Any], block: int) -> None:
        if asked == item:
            answer.append(("5" * 48, value(block)))

    return lambda node, _: setattr(node, "rows", add)


def _spell(record: Callable[[Any], object]) -> Callable[[LyingNode, Arena], object]:
    """Spells every commitment otherwise, as another runtime might."""

    def change(asked: str, answer: list[Any], _: int) -> None:
        if asked == "CommitmentOf":
            answer[:] = [(hotkey, record(value)) for hotkey, value in answer]

    return lambda node, _: setattr(node, "rows", change)


def _committed(block: int) -> dict[str, Any]:
    return {"deposit": 0, "block": block, "info": {"fields": [{"Raw1": "0x61"}]}}


def _other_chain(node: LyingNode, here: Arena) -> None:
    """Another chain with the same subnet, hotkeys and commitments, and longer."""
    path = here.folder / "other.sqlite3"
    with LocalChain.create(path, netuid=NETUID, owner_hotkey=here.hotkey("owner"), tempo=100_000) as other:
        for name in ("owner", "validator", "ann", "ben"):
            other.register(here.hotkey(name), is_validator=name == "validator")
        other.advance(here.chain.block() + 100)
    here.link.close()
    node.path = path


_LIES: dict[str, Callable[[LyingNode, Arena], object]] = {
    "a registration in the future": _put("block_at_registration", lambda block: block + 1),
    "a registration in block 2**64 - 1": _put("block_at_registration", 2**64 - 1),
    "a registration below 0": _put("block_at_registration", -1),
    "a registration that is no number": _put("block_at_registration", None),
    "a neuron without a registration": _graph(lambda graph, _: graph["block_at_registration"].pop()),
    "no registrations at all": _graph(lambda graph, _: graph.pop("block_at_registration")),
    "last weights in block 2**64 - 1": _put("last_update", 2**64 - 1),
    "no last weights": _graph(lambda graph, _: graph.pop("last_update")),
    "one hotkey with two uids": _graph(lambda graph, _: graph["hotkeys"].__setitem__(2, graph["hotkeys"][3])),
    "hotkeys that are no list": _graph(lambda graph, _: graph.update(hotkeys=5)),
    "a price that is no record": _graph(lambda graph, _: graph.update(moving_price=5)),
    "another subnet's metagraph": _graph(lambda graph, _: graph.update(netuid=NETUID + 1)),
    "an earlier block's metagraph": _graph(lambda graph, block: graph.update(block=block - 5)),
    "a tempo that is no number": _graph(lambda graph, _: graph.update(tempo="long")),
    "a commitment from the future": _row("CommitmentOf", lambda block: _committed(block + 1)),
    "a commitment in block 2**64": _row("CommitmentOf", lambda _: _committed(2**64)),
    "a commitment below block 0": _row("CommitmentOf", lambda _: _committed(-1)),
    "an opening from the future": _row("RevealedCommitments", lambda block: [("\x04a", block + 1)]),
    "an opening in block 2**64": _row("RevealedCommitments", lambda _: [("\x04a", 2**64)]),
    "openings that are no pairs": _row("RevealedCommitments", lambda _: [("\x04a",)]),
    "a runtime that calls the block otherwise": _spell(lambda record: {"at": record["block"], "info": record["info"]}),
    "a runtime that wraps the fields": _spell(lambda record: {**record, "info": record["info"]["fields"]}),
    "a runtime that spells commitments as bytes": _spell(lambda _: "0x00"),
    "a newest block of 2**64 - 1": lambda node, _: setattr(node, "head", 2**64 - 1),
    "a newest block below 0": lambda node, _: setattr(node, "head", -1),
    "a node that goes back": lambda node, here: setattr(node, "head", here.chain.block() - 3),
    "another chain of the same subnet": _other_chain,
    "an error with terminal escapes": lambda node, _: setattr(node, "error", bt.ChainError("\x1b[2J\nINFO forged")),
    "an error without a word": lambda node, _: setattr(node, "error", bt.ChainError("")),
    "a dropped connection": lambda node, _: setattr(node, "error", bt.RpcConnectionError("gone")),
}


def _played(what: str, expected: str, play: Callable[[Arena], str]) -> Attack:
    def run(folder: Path) -> str:
        with arena(folder, node=LyingNode) as here:
            return play(here)

    return Attack(name=what, run=run, expected=expected, max_seconds=60.0, max_memory=96, max_disk=32)


def _undone(here: Arena) -> str:
    """A commitment in a block that is not final yet, which a reorganisation undoes."""
    here.register("mallory")
    while here.chain.weights(here.hotkey("validator")) is None:
        here.tick()
    # Within the round, so that no weights wait for a block to become final.
    here.chain.set_finality_lag(3)
    here.chain.advance(3)
    here.enter("mallory", POOL[:20])
    here.tick(0)
    here.chain.reorganise(3)
    here.chain.advance(4)
    here.tick(0)
    here.chain.set_finality_lag(0)
    here.pass_rounds(2)
    seen = {key.hotkey for key in here.store.submissions()}
    return f"{here.verdict('mallory')}, {'recorded' if here.hotkey('mallory') in seen else 'never recorded'}"


def _fork(here: Arena) -> str:
    """A node takes back what it called final, and goes on with another fork."""
    assert isinstance(here.node, LyingNode)
    here.pass_rounds()
    here.chain.set_finality_lag(10)
    here.chain.advance(10)
    here.node.is_head_final = True
    told = judge(here.tick)
    here.chain.reorganise(5)
    here.chain.advance(20)
    try:
        here.tick()
    except RemoteError as error:
        # Weights that no block makes final would be another reason to try again.
        return f"{told}, then {'left as a fork' if 'another fork' in str(error) else error}"
    return f"{told}, then taken"


def _foreign_state(here: Arena) -> str:
    """The state of another chain is put where this one's should be."""
    here.pass_rounds()
    here.close_validator()
    last = here.state / "validator.sqlite3"
    copy = here.folder / "kept.sqlite3"
    shutil.copy(last, copy)
    path = here.net.chain_file
    here.chain.close()
    path.rename(here.folder / "first.sqlite3")
    here.chain = LocalChain.create(path, netuid=NETUID, owner_hotkey=here.hotkey("owner"), tempo=100_000)
    here.register("owner", "validator", "ann", "ben")
    here.chain.advance(200)
    here.open()
    return judge(here.tick)


ATTACKS: tuple[Attack, ...] = (
    *(_lied(f"a node tells of {what}", lie) for what, lie in _LIES.items()),
    _lied("a node tells of a registration in block 0", _put("block_at_registration", 0), "taken, then scored"),
    _played("a commitment that a reorganisation undoes", "not there, never recorded", _undone),
    _played("a fork behind what was final", "taken, then left as a fork", _fork),
    _played("a state of another chain", "operator", _foreign_state),
)
