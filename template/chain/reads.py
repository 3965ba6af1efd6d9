"""What is read of the chain at one pinned block, in a number of calls that does not grow with the subnet.

A node's answer is taken whole or not at all. What no chain could say (a block that is not made yet, a hotkey with two
uids, a column that is too short, another hash for a block that was final) is a ValueError: the node is of another chain
or fork, or of a runtime that this client does not know, and to act on the rest of its answer would be to guess.

On the wire the client fetches a storage map in pages of 100 rows, and everything else in one request.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import bittensor as bt
from bittensor import storage as st

from template.chain.commitments import parse_commitment
from template.errors import ConfigError
from template.records import ChainCommitment, ChainView, Neuron

T = TypeVar("T")

# The largest block number: the runtime's BlockNumber is a u32. Larger ones would not fit the state file either.
_MAX_BLOCK = 2**32 - 1

# Rows of a storage map that are asked for one by one, and not yet answered, at any time.
_READS_AT_ONCE = 16


async def snapshot_at(client: bt.Client, block: int | None = None) -> bt.Snapshot:
    """The chain as of a block, the newest finalized one by default, which no reorganisation can undo.

    Raises: bt.ChainError for a block that is not finalized yet; ValueError for a number that is none.
    """
    newest = await client.finalized_block()
    if not 0 <= newest <= _MAX_BLOCK:
        raise ValueError(f"the newest finalized block cannot be {newest}")
    if block is not None and not 0 <= block <= newest:
        raise bt.ChainError(f"there is no finalized block {block}: the newest is {newest}")
    return await client.at(newest if block is None else block)


async def read_view(
    client: bt.Client, substrate: Any, netuid: int, block: int | None, *, known: ChainView | None = None
) -> ChainView:
    """The subnet as of a block, the newest finalized one by default.

    known: an earlier answer for this netuid, given again when it is of the same block, by its hash; the chain must
    still hold its block. Raises: bt.ChainError, also for a block that is not finalized yet or whose state the node has
    dropped; ValueError for what no chain could say; ConfigError when the network has no such netuid, or the subnet's
    tempo is 0.
    """
    at = await snapshot_at(client, block)
    block_hash = await substrate.block_hash(at.block)
    if known is not None and known.block_hash == block_hash:
        return known
    # A newest block that lies behind an earlier one is for the caller to refuse.
    if known is not None and (block is not None or known.block <= at.block):
        await _check_history(substrate, (known.block, known.block_hash), (at.block, block_hash))
    # Not the metagraph's own commitments: see template/chain/commitments.py.
    graph, remaining, rate_limit, cutoff_milli, version, now_ms, records, reveals = await asyncio.gather(
        at.subnets.metagraph(netuid, commitments=False),
        at.epochs.blocks_until_next_epoch(netuid),
        at.query(st.SubtensorModule.WeightsSetRateLimit, [netuid]),
        at.query(st.SubtensorModule.ActivityCutoffFactorMilli, [netuid]),
        at.query(st.SubtensorModule.WeightsVersionKey, [netuid]),
        at.query(st.Timestamp.Now),
        at.query_map(st.Commitments.CommitmentOf, [netuid]),
        at.query_map(st.Commitments.RevealedCommitments, [netuid]),
    )
    if graph is None and block is not None:
        raise bt.ChainError(f"there was no subnet {netuid} yet")
    if graph is None:
        raise ConfigError(f"--netuid must be a subnet of this network, and it has no {netuid}")
    if remaining is None:
        raise ConfigError(f"--netuid {netuid} never runs an epoch: its tempo is 0")
    _check_graph(graph, netuid, at.block)
    neurons = _neurons(graph)
    commitments = _commitments(records, reveals)
    if commitments and not 0 <= min(one.block for one in commitments) <= commitments[-1].block <= at.block:
        raise ValueError(f"a commitment is of block {commitments[-1].block}, and the newest block is {at.block}")
    return ChainView(
        netuid=netuid,
        block=at.block,
        block_hash=block_hash,
        timestamp=int(now_ms) / 1000,
        tempo=graph.tempo,
        blocks_until_epoch=remaining,
        weights_rate_limit=int(rate_limit or 0),
        # The chain's own formula; the older item ActivityCutoff stays readable and means nothing any more.
        activity_cutoff=int(cutoff_milli or 0) * graph.tempo // 1000,
        weights_version=int(version or 0),
        neurons=neurons,
        commitments=commitments,
        owner_hotkey=graph.owner_hotkey,
        owner_uid=next((neuron.uid for neuron in neurons if neuron.hotkey == graph.owner_hotkey), None),
    )


async def _check_history(substrate: Any, *views: tuple[int, str]) -> None:
    """Raises: ValueError unless the older of two blocks, each with its hash, is an ancestor of the newer.

    The newer one's own state tells. Asking the node for the hash of a number would ask the client's memory, which it
    keeps when it goes on to another endpoint by itself.
    """
    (older, expected), (newer, newer_hash) = sorted(views)
    found = newer_hash
    if older < newer:
        found = await substrate.query("System", "BlockHash", [older], newer_hash)
        if not int(found, 16):
            # The state holds the last 2,400 or so.
            found = await substrate.block_hash(older)
    if found != expected:
        raise ValueError(f"block {older} has the hashes {expected} and {found}: another chain, or another fork")


def _check_graph(graph: Any, netuid: int, block: int) -> None:
    """Raises: ValueError unless the metagraph is of this subnet and block, and complete.

    The client fills up with zeros what the runtime does not send, and a registration in block 0 makes every commitment
    a valid one. Its neurons are numbered by place, so no uid is missing or doubled.
    """
    raw = graph.raw
    # A node may run the call as in the block to come.
    if raw["netuid"] != netuid or graph.block not in (block, block + 1):
        raise ValueError(f"the metagraph of block {graph.block} and netuid {raw['netuid']} was not asked for")
    # When a neuron last set weights is its own affair; when it registered decides what counts.
    for column, most in (("block_at_registration", block), ("last_update", _MAX_BLOCK)):
        values = raw[column][: len(graph.neurons)]
        if len(values) < len(graph.neurons):
            raise ValueError(f"{len(values)} values of {column} for {len(graph.neurons)} hotkeys")
        if not all(type(value) is int and 0 <= value <= most for value in values):
            raise ValueError(f"a {column} is no block up to {most}")
    if len({neuron.hotkey for neuron in graph.neurons}) != len(graph.neurons):
        raise ValueError("a hotkey has two uids")


def _neurons(graph: Any) -> tuple[Neuron, ...]:
    return tuple(
        Neuron(
            uid=neuron.uid,
            hotkey=neuron.hotkey,
            registration_block=neuron.block_at_registration,
            last_update_block=neuron.last_update,
        )
        for neuron in graph.neurons
    )


def _commitments(records: Sequence[tuple[Any, Any]], reveals: Sequence[tuple[Any, Any]]) -> tuple[ChainCommitment, ...]:
    """By block, then by hotkey."""
    by_hotkey = {str(hotkey): record for hotkey, record in records}
    revealed = {str(hotkey): pairs for hotkey, pairs in reveals}
    found = [parse_commitment(hotkey, by_hotkey.get(hotkey), revealed.get(hotkey)) for hotkey in by_hotkey | revealed]
    return tuple(sorted((entry for entry in found if entry), key=lambda entry: (entry.block, entry.hotkey)))


async def read_commitment(client: bt.Client, netuid: int, hotkey: str) -> ChainCommitment | None:
    """A hotkey's commitment as of the newest finalized block, or None when it has none."""
    at, keys = await snapshot_at(client), [netuid, hotkey]
    record, revealed = await asyncio.gather(
        at.query(st.Commitments.CommitmentOf, keys), at.query(st.Commitments.RevealedCommitments, keys)
    )
    return parse_commitment(hotkey, record, revealed)


async def read_commit_blocks(client: bt.Client, netuid: int, reveals: Mapping[str, int]) -> dict[str, int]:
    """The block of each hotkey's commit, given the block in which the chain opened it.

    The chain drops the record when it opens it, so it is read as of the block before. That state is exact: the chain
    opens what is due before it runs a block's calls, so nothing came in between. A hotkey with no sealed commitment
    there is left out. Raises: bt.ChainError, also for a block that is not finalized yet or whose state is dropped.
    """

    async def read(hotkey: str, reveal_block: int) -> ChainCommitment | None:
        at = await snapshot_at(client, reveal_block - 1)
        return parse_commitment(hotkey, await at.query(st.Commitments.CommitmentOf, [netuid, hotkey]), None)

    pairs, found = list(reveals.items()), list[ChainCommitment | None]()
    for start in range(0, len(pairs), _READS_AT_ONCE):
        found += await asyncio.gather(*(read(*pair) for pair in pairs[start : start + _READS_AT_ONCE]))
    return {entry.hotkey: entry.block for entry in found if entry and entry.reveal_round is not None}
