"""Attacks on the reader of the chain: nodes that lie, blocks that are not final.

A node lies for some ticks, in which the validator must do nothing but try again; then it tells the truth, and the
validator's rounds must come out as if nothing had been.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from template.chain.client import bt
from template.errors import RemoteError
from template.localnet.chain.chain import LocalChain
from template.localnet.network import NETUID
from tests.campaigns.attack.environment import HONEST, POOL, Environment, in_environment, shared_environment
from tests.campaigns.attack.runner import Attack, judge
from tests.campaigns.synthetic_subnet import OWNER, SyntheticSubnet
from tests.fixtures.substrate import LocalSubstrate

_RETRIED = "again later, then evaluated"
_TICKS = 3

Graph = Callable[[dict[str, Any], int], object]
Rows = Callable[[str, list[Any], int], object]


class LyingNode(LocalSubstrate):
    """A node that lies as its attributes demand.

    graph changes the metagraph, given it and the newest block; rows changes a storage map, given its name too; head
    replaces the newest final block; every read ends with `error`; is_head_final: nothing waits for finality; path:
    another chain's file, from the next connection on.
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
        """End every lie; the next connection is to the node's own chain."""
        self.path = self._truth
        self.graph: Graph | None = None
        self.rows: Rows | None = None
        self.head: int | None = None
        self.error: Exception | None = None
        self.is_head_final = False


Lie = Callable[[Any, Environment], object]


def _lied(what: str, lie: Lie, expected: str = _RETRIED) -> Attack:
    """Return the attack of a node that lies in the middle of a round."""

    def run(_: Path) -> str:
        env = shared_environment(LyingNode)
        node = env.node
        assert isinstance(node, LyingNode)
        env.tick()
        lie(node, env)
        verdicts = {judge(env.tick) for _ in range(_TICKS)}
        node.be_honest()
        env.pass_rounds(2)
        return f"{' or '.join(sorted(verdicts))}, then {env.verdict('ann')}"

    return Attack(f"a node tells of {what}", run, expected, max_seconds=60.0, max_memory=96, max_disk=32)


def _set(name: str, value: object) -> Lie:
    return lambda node, _: setattr(node, name, value)


def _graph(change: Graph) -> Lie:
    return _set("graph", change)


def _put(column: str, value: Any) -> Lie:
    """Lie about the neuron with uid 2, who is ann."""
    return _graph(lambda graph, block: graph[column].__setitem__(2, value(block) if callable(value) else value))


def _row(item: str, value: Callable[[int], object]) -> Lie:
    """Add a row to a map, of a hotkey without a uid."""

    def add(name: str, rows: list[Any], block: int) -> None:
        if name == item:
            rows.append(("5" * 48, value(block)))

    return _set("rows", add)


def _spell(record: Callable[[Any], object]) -> Lie:
    """Spell every commitment differently, as another runtime might."""

    def change(name: str, rows: list[Any], _: int) -> None:
        if name == "CommitmentOf":
            rows[:] = [(hotkey, record(value)) for hotkey, value in rows]

    return _set("rows", change)


def _committed(block: int) -> dict[str, Any]:
    return {"deposit": 0, "block": block, "info": {"fields": [{"Raw1": "0x61"}]}}


def _create_chain(env: Environment, path: Path) -> LocalChain:
    """Return another chain with the same subnet and hotkeys."""
    owner = env.subnet.hotkey(OWNER)
    chain = LocalChain.create(path, netuid=NETUID, owner_hotkey=owner, tempo=100_000, commit_reveal=False)
    chain.register(owner)
    chain.register(env.subnet.validator_hotkey(), is_validator=True)
    for name in HONEST:
        chain.register(env.subnet.hotkey(name))
    return chain


def _other_chain(node: LyingNode, env: Environment) -> None:
    """Another chain with the same subnet, hotkeys and commitments, and longer."""
    path = env.folder / "other.sqlite3"
    with _create_chain(env, path) as other:
        other.advance(env.chain.block() + 100)
    env.connection.close()
    node.path = path


_LIES: dict[str, Lie] = {
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
    "a newest block of 2**64 - 1": _set("head", 2**64 - 1),
    "a newest block below 0": _set("head", -1),
    "a node that goes back": lambda node, env: setattr(node, "head", env.chain.block() - 3),
    "another chain of the same subnet": _other_chain,
    "an error with terminal escapes": _set("error", bt.ChainError("\x1b[2J\nINFO forged")),
    "an error without a word": _set("error", bt.ChainError("")),
    "a dropped connection": _set("error", bt.RpcConnectionError("gone")),
}


def _undone(env: Environment) -> str:
    """A commitment in a block that is not final yet, which a reorganisation undoes."""
    env.subnet.register("mallory")
    while env.chain.weights(env.subnet.validator_hotkey()) is None:
        env.tick()
    # Within the round, so that no weights wait for a block to become final.
    env.chain.set_finality_lag(3)
    env.chain.advance(3)
    env.enter("mallory", POOL[:20])
    env.tick(0)
    env.chain.reorganise(3)
    env.chain.advance(4)
    env.tick(0)
    env.chain.set_finality_lag(0)
    env.pass_rounds(2)
    is_recorded = env.subnet.hotkey("mallory") in env.store.stands()
    return f"{env.verdict('mallory')}, {'recorded' if is_recorded else 'never recorded'}"


def _fork(env: Environment) -> str:
    """A node continues on a fork behind a block that it called final."""
    env.pass_rounds()
    env.chain.set_finality_lag(10)
    env.chain.advance(10)
    _set("is_head_final", True)(env.node, env)
    verdict = judge(env.tick)
    env.chain.reorganise(5)
    env.chain.advance(20)
    try:
        env.tick()
    except RemoteError as error:
        # Weights that no block makes final would be another reason to try again.
        return f"{verdict}, then {'left as a fork' if 'has the hashes' in str(error) else error}"
    return f"{verdict}, then taken"


def _foreign_state(env: Environment) -> str:
    """The validator's state is of another chain."""
    env.pass_rounds()
    env.close_validator()
    env.subnet.close()
    path = env.subnet.net.chain_file
    path.rename(env.folder / "first.sqlite3")
    with _create_chain(env, path) as other:
        other.advance(200)
    env.subnet = SyntheticSubnet(env.folder)
    env.open()
    return judge(env.tick)


ATTACKS: tuple[Attack, ...] = (
    *(_lied(what, lie) for what, lie in _LIES.items()),
    _lied("a registration in block 0", _put("block_at_registration", 0), "taken, then evaluated"),
    in_environment("a commitment that a reorganisation undoes", "absent, never recorded", _undone),
    in_environment("a fork behind what was final", "taken, then left as a fork", _fork, node=LyingNode),
    in_environment("a state of another chain", "operator", _foreign_state),
)
