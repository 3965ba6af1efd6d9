"""Reads of the chain at one pinned block, in a constant number of calls.

An answer that no chain can give is a ValueError: a future block, a hotkey with two uids, a short column, another hash
for a final block. Such a node is of another chain or fork, or of a runtime that this client does not support, and the
rest of its answer is worthless.

A storage map takes two requests, and everything else one.
"""

import asyncio
from collections.abc import Mapping, Sequence, Set
from typing import Any

import bittensor as bt
from bittensor import storage as st

from template.chain.commitments import parse_commitment
from template.chain_records import ChainCommitment, ChainSnapshot, ChainView, Neuron
from template.errors import ConfigError, UnknownSubnetError

# The runtime's BlockNumber is a u32.
_MAX_BLOCK = 2**32 - 1
_CONCURRENT_READS = 16
_ROOT = 0


async def newest_block(client: bt.Client) -> int:
    """Return the number of the newest finalized block. Raises: ValueError for an impossible one."""
    newest = int(await client.finalized_block())
    if not 0 <= newest <= _MAX_BLOCK:
        raise ValueError(f"the newest finalized block cannot be {newest}")
    return newest


async def snapshot_at(client: bt.Client, block: int | None = None) -> bt.Snapshot:
    """Pin the chain to a block, by default the newest finalized one.

    Raises: bt.ChainError for a block that is not finalized; ValueError for an impossible newest block.
    """
    newest = await newest_block(client)
    if block is not None and not 0 <= block <= newest:
        raise bt.ChainError(f"there is no finalized block {block}: the newest is {newest}")
    return await client.at(newest if block is None else block)


async def read_view(client: bt.Client, substrate: Any, netuid: int, *, last: ChainView | None = None) -> ChainView:
    """Read the subnet at the newest finalized block.

    `last` is an earlier view of this netuid: it is returned when it has the same block hash, and its block must still
    be on the chain. Raises: ValueError for an answer that no chain can give; UnknownSubnetError for an unknown netuid;
    ConfigError for a tempo of 0.
    """
    snapshot = await snapshot_at(client)
    block_hash = await substrate.block_hash(snapshot.block)
    if last is not None and last.block_hash == block_hash:
        return last
    if last is None:
        # The client looks up the runtime's version for each of several reads at once, and so sends 14 requests more.
        await snapshot.query(st.Timestamp.Now)
    # The caller refuses a newest block behind an earlier one.
    elif last.block <= snapshot.block:
        await _check_history(substrate, (last.block, last.block_hash), (snapshot.block, block_hash))
    (graph, commitments), remaining, rate_limit, cutoff_milli, version, now_ms = await asyncio.gather(
        _read_subnet(snapshot, netuid),
        snapshot.epochs.blocks_until_next_epoch(netuid),
        snapshot.query(st.SubtensorModule.WeightsSetRateLimit, [netuid]),
        snapshot.query(st.SubtensorModule.ActivityCutoffFactorMilli, [netuid]),
        snapshot.query(st.SubtensorModule.WeightsVersionKey, [netuid]),
        snapshot.query(st.Timestamp.Now),
    )
    if graph is None:
        if await read_registration(snapshot, netuid) is not None:
            raise ValueError(f"netuid {netuid} exists, and has no metagraph")
        raise UnknownSubnetError(f"--netuid must be a subnet of this network, and it has no {netuid}")
    if remaining is None:
        raise ConfigError(f"--netuid {netuid} never runs an epoch: its tempo is 0")
    subnet = _make_snapshot(graph, commitments, netuid, snapshot.block, block_hash)
    await _check_missing(snapshot, subnet, None if last is None else _committers(last))
    return ChainView(
        **vars(subnet),
        timestamp=int(now_ms) / 1000,
        tempo=graph.tempo,
        blocks_until_epoch=remaining,
        weights_rate_limit=int(rate_limit or 0),
        # The chain's own formula; the older item ActivityCutoff is still readable but obsolete.
        activity_cutoff=int(cutoff_milli or 0) * graph.tempo // 1000,
        weights_version=int(version or 0),
        registered_block=int(graph.network_registered_at),
    )


async def read_registration(snapshot: bt.Snapshot, netuid: int) -> int | None:
    """Read from storage in which block the subnet was registered; None if it does not exist.

    Raises: ValueError for a state without the root subnet, which every state has.
    """
    root, exists = await snapshot.query_batch(st.SubtensorModule.NetworksAdded, [[_ROOT], [netuid]])
    if not root:
        raise ValueError("the root subnet is missing")
    return int(await snapshot.query(st.SubtensorModule.NetworkRegisteredAt, [netuid]) or 0) if exists else None


async def read_snapshot(
    client: bt.Client, substrate: Any, netuid: int, block: int, *, last: ChainView | None = None
) -> ChainSnapshot:
    """Read the subnet at a block, with no more calls than a round needs.

    `last` is a view of the same chain; a block up to it is final. Raises: bt.ChainError for a block that is not
    finalized, whose state the node dropped, or before the subnet; ValueError for an answer that no chain can give.
    """
    is_final = last is not None and 0 <= block <= last.block
    snapshot = await (client.at(block) if is_final else snapshot_at(client, block))
    block_hash = await substrate.block_hash(block)
    if last is not None:
        await _check_history(substrate, (last.block, last.block_hash), (block, block_hash))
    graph, commitments = await _read_subnet(snapshot, netuid)
    if graph is None:
        raise bt.ChainError(f"there was no subnet {netuid} yet")
    subnet = _make_snapshot(graph, commitments, netuid, block, block_hash)
    await _check_missing(snapshot, subnet)
    return subnet


def _make_snapshot(
    graph: Any, commitments: tuple[ChainCommitment, ...], netuid: int, block: int, block_hash: str
) -> ChainSnapshot:
    """Return the neurons and commitments of a block.

    Raises: ValueError for an impossible metagraph.
    """
    neurons = _neurons(graph, netuid, block)
    return ChainSnapshot(
        netuid=netuid,
        block=block,
        block_hash=block_hash,
        neurons=neurons,
        commitments=commitments,
        owner_hotkey=graph.owner_hotkey,
        owner_uid=next((neuron.uid for neuron in neurons if neuron.hotkey == graph.owner_hotkey), None),
    )


async def _read_subnet(snapshot: bt.Snapshot, netuid: int) -> tuple[Any, tuple[ChainCommitment, ...]]:
    """Read the metagraph, None without the subnet, and the commitments."""
    # Not the metagraph's own commitments: see template/chain/commitments.py.
    graph, records, reveals = await asyncio.gather(
        snapshot.subnets.metagraph(netuid, commitments=False),
        snapshot.query_map(st.Commitments.CommitmentOf, [netuid]),
        snapshot.query_map(st.Commitments.RevealedCommitments, [netuid]),
    )
    commitments = _commitments(records, reveals)
    if commitments and not 0 <= commitments[0].block <= commitments[-1].block <= snapshot.block:
        raise ValueError(f"a commitment is of block {commitments[-1].block}, and the newest block is {snapshot.block}")
    return graph, commitments


async def _check_missing(snapshot: bt.Snapshot, subnet: ChainSnapshot, among: Set[str] | None = None) -> None:
    """Read by its hotkey each commitment that the maps lack; `among` restricts this to some hotkeys.

    A node that answers with an empty page, or with no values, would make a round without entries, which burns.
    Raises: ValueError for a commitment that the maps lack, and for a node that has no value at all.
    """
    present = _committers(subnet)
    missing = [
        neuron.hotkey
        for neuron in subnet.neurons
        if neuron.hotkey not in present and (among is None or neuron.hotkey in among)
    ]
    if not missing:
        return
    keys = [[subnet.netuid, hotkey] for hotkey in missing]
    records, reveals, (uid,) = await asyncio.gather(
        snapshot.query_batch(st.Commitments.CommitmentOf, keys),
        snapshot.query_batch(st.Commitments.RevealedCommitments, keys),
        # It has a value in any case.
        snapshot.query_batch(st.SubtensorModule.Uids, keys[:1]),
    )
    if uid is None:
        raise ValueError(f"storage has no uid for {missing[0]}, which the metagraph has")
    for hotkey, *values in zip(missing, records, reveals, strict=True):
        if any(values):
            raise ValueError(f"the map of commitments lacks that of {hotkey}")


def _committers(snapshot: ChainSnapshot) -> Set[str]:
    return {commitment.hotkey for commitment in snapshot.commitments}


async def _check_history(substrate: Any, *views: tuple[int, str]) -> None:
    """Raise ValueError unless the older of two blocks, each with its hash, is an ancestor of the newer.

    The newer block's own state decides. A read of a hash by number would return what the client remembers, even after
    it switched to another endpoint by itself.
    """
    (older, expected), (newer, actual) = sorted(views)
    if older < newer:
        actual = await substrate.query("System", "BlockHash", [older], actual)
        # The state has the last 2,400 or so.
        if not int(actual, 16):
            actual = await substrate.block_hash(older)
    if actual != expected:
        raise ValueError(f"block {older} has the hashes {expected} and {actual}: another chain or fork")


def _neurons(graph: Any, netuid: int, block: int) -> tuple[Neuron, ...]:
    """Return the neurons of a complete metagraph of this subnet and block.

    The client fills missing values with zeros, and a registration in block 0 would make every commitment valid. It
    numbers the neurons by position, so no uid can be missing or doubled.

    Raises: ValueError for a metagraph that is incomplete or of another subnet or block.
    """
    raw = graph.raw
    # A node may run the call in the next block.
    if raw["netuid"] != netuid or graph.block not in (block, block + 1):
        raise ValueError(f"the metagraph is of block {graph.block} and netuid {raw['netuid']}")
    for column, maximum in (("block_at_registration", block), ("last_update", _MAX_BLOCK)):
        values = raw[column][: len(graph.neurons)]
        if len(values) < len(graph.neurons):
            raise ValueError(f"{len(values)} values of {column} for {len(graph.neurons)} hotkeys")
        if not all(type(value) is int and 0 <= value <= maximum for value in values):
            raise ValueError(f"{column} must hold blocks up to {maximum}")
    if len({neuron.hotkey for neuron in graph.neurons}) != len(graph.neurons):
        raise ValueError("a hotkey has two uids")
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
    """Parse all commitments, ordered by block, then by hotkey."""
    by_hotkey = {str(hotkey): record for hotkey, record in records}
    revealed = {str(hotkey): pairs for hotkey, pairs in reveals}
    parsed = [parse_commitment(hotkey, by_hotkey.get(hotkey), revealed.get(hotkey)) for hotkey in by_hotkey | revealed]
    return tuple(sorted(filter(None, parsed), key=lambda commitment: (commitment.block, commitment.hotkey)))


async def read_commitment(client: bt.Client, netuid: int, hotkey: str) -> ChainCommitment | None:
    """Read a hotkey's commitment at the newest finalized block."""
    snapshot, keys = await snapshot_at(client), [netuid, hotkey]
    record, revealed = await asyncio.gather(
        snapshot.query(st.Commitments.CommitmentOf, keys), snapshot.query(st.Commitments.RevealedCommitments, keys)
    )
    return parse_commitment(hotkey, record, revealed)


async def read_commit_blocks(client: bt.Client, netuid: int, reveals: Mapping[str, int]) -> dict[str, int]:
    """Read the commit block of each hotkey's timelocked commitment, given its reveal block.

    The chain drops the record at the reveal, so it is read one block before. That state is exact: the chain reveals
    before it runs a block's calls. Leaves out hotkeys without a timelocked commitment there.
    Raises: bt.ChainError for a block that is not finalized or whose state is dropped.
    """

    async def read(hotkey: str, reveal_block: int) -> ChainCommitment | None:
        snapshot = await snapshot_at(client, reveal_block - 1)
        return parse_commitment(hotkey, await snapshot.query(st.Commitments.CommitmentOf, [netuid, hotkey]), None)

    pairs, records = list(reveals.items()), list[ChainCommitment | None]()
    for start in range(0, len(pairs), _CONCURRENT_READS):
        records += await asyncio.gather(*(read(*pair) for pair in pairs[start : start + _CONCURRENT_READS]))
    return {record.hotkey: record.block for record in records if record and record.reveal_round is not None}


async def read_weights(client: bt.Client, netuid: int, uid: int, block: int) -> dict[int, int]:
    """Read the weights of a uid at a block, as the chain stores them."""
    snapshot = await snapshot_at(client, block)
    pairs = await snapshot.query(st.SubtensorModule.Weights, [netuid, uid])
    return {int(target): int(weight) for target, weight in pairs or ()}


async def read_weight_commits(client: bt.Client, netuid: int, hotkey: str, block: int) -> list[int]:
    """Read in which blocks a hotkey set the timelocked weights that are not revealed yet at a block."""
    snapshot = await snapshot_at(client, block)
    epochs = await snapshot.query_map(st.SubtensorModule.TimelockedWeightCommits, [netuid])
    commits = [commit for _, epoch in epochs for commit in epoch or ()]
    return sorted(int(commit_block) for signer, commit_block, *_ in commits if str(signer) == hotkey)
