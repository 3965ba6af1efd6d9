"""The work of a validator that starts late, counted in reads of the chain."""

from collections import Counter

from template.rules.schedule import Policy
from tests.fixtures.chain import CountingSubstrate
from tests.fixtures.network import LARGE, SMALL, Net, SteppingChain
from tests.fixtures.validator import open_bench

PERIOD = 20


def test_missed_round_takes_the_same_few_reads(net: Net) -> None:
    """Sixty days are 1,200 rounds and 24,000 reads, most from the client's cache."""
    net.submit("alice", LARGE)
    net.submit("bob", SMALL)
    net.align(PERIOD)
    start_block = net.admin.block()
    net.admin.advance(13 * PERIOD)
    node = CountingSubstrate(net.parts.chain_file)
    late = SteppingChain(net, "validator", blocks=0, node=node)
    policy = Policy(blocks_per_epoch=PERIOD, block_threshold=5, start_block=start_block)
    with open_bench(net, policy=policy, chain=late) as bench:
        bench.run_rounds(3)
        before = Counter(node.calls)
        bench.run_rounds(10)
        last = bench.store.last_round()
        assert last is not None and last.is_past
    reads = {name: count / 10 for name, count in (node.calls - before).items()}
    # Three ticks ask for the newest block. A snapshot is a metagraph, two maps, a look at the newest block's past, and
    # three batches for the three neurons without a commitment, which are seven single reads in process.
    expected = {"finalized_block_number": 3, "block_hash": 10, "runtime_call": 1, "query_map": 2, "query": 8}
    assert reads == {**expected, "query_batch": 3}


def test_hashes_of_rank_blocks_are_read_once(net: Net) -> None:
    net.submit("alice", LARGE)
    node = CountingSubstrate(net.parts.chain_file)
    with SteppingChain(net, "validator", blocks=0, node=node) as chain:
        chain.view()
        node.calls.clear()
        first = [chain.block_hash(block) for block in (1, 2, 1, 2)]
        assert first[:2] == first[2:] and node.calls["block_hash"] == 2
        chain.close()
        assert chain.block_hash(1) == first[0] and node.calls["block_hash"] == 3, "a new endpoint is asked again"
