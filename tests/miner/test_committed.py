"""The seeds of a committed dataset, compared with those that a validator uses."""

import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256

import pytest

from template.chain.timelock import beacon_round_at
from template.chain_records import ChainSnapshot
from template.competition import Seeds, bind_digest
from template.data.eval_set import read_eval_set_index
from template.errors import ConfigError, RemoteError, SubmissionError
from template.hub.datasets import fetch_eval_set
from template.localnet.network import make_hotkey
from template.miner.committed import CommittedDataset, Reader, find_committed
from template.receipts.receipt import Receipt
from template.records import ContentKey
from template.rules.stands import align
from tests.fixtures.miner import publish
from tests.fixtures.network import POOL, SMALL, Net, SteppingChain, make_content, make_line, use_hub
from tests.fixtures.validator import ONE_ROUND, QUICK, Bench, open_bench

INCENTIVES = replace(
    QUICK, seeds=Seeds.CHAIN, blocks_per_epoch=ONE_ROUND.blocks_per_epoch, evaluations=6, hold=6, update_blocks=40
)
FOREVER = replace(ONE_ROUND, max_rounds=None)


@pytest.fixture
def bench(net: Net) -> Iterator[Bench]:
    """A validator that reads alice's commitments."""
    with use_hub(net), open_bench(net, incentives=INCENTIVES, policy=FOREVER, lucky_num=None) as bench:
        yield bench


def find(net: Net, count: int = 100, chain: SteppingChain | None = None, **changes: object) -> CommittedDataset:
    folder = net.parts.folder / "committed"
    pool = read_eval_set_index(fetch_eval_set(net.competition, folder / "pool", None, None))
    incentives = replace(INCENTIVES, **changes)  # type: ignore[arg-type]
    reader = Reader(chain or net.chain("alice"), net.competition, incentives, pool, folder)
    return find_committed(reader, net.hotkey("alice"), count)


def used_seeds(net: Net, bench: Bench, digest: str) -> list[int]:
    """Return the seeds of the dataset's evaluations, by number."""
    results = bench.store.results(bench.eval_config, ContentKey(net.hotkey("alice"), digest))
    return [Receipt.from_json(results[number].receipt, "x").result.lucky_num for number in sorted(results)]


def test_seeds_are_those_of_a_validator(net: Net, bench: Bench) -> None:
    publish(net)
    bench.run_rounds(4)
    committed = find(net)
    used = used_seeds(net, bench, committed.digest)
    assert len(used) >= 4 and used == list(committed.seeds[: len(used)])
    assert committed.has_history and committed.rank_block == committed.seed_blocks[0]


def test_update_counts_a_day_after_the_earlier_dataset(net: Net, bench: Bench) -> None:
    publish(net)
    first = align(net.admin.block(), INCENTIVES.blocks_per_epoch)
    bench.run_rounds(1)
    publish(net, POOL[:30])
    with pytest.raises(ConfigError, match=f"counts from block {first + INCENTIVES.update_blocks}"):
        find(net)
    bench.run_rounds(4)
    committed = find(net)
    assert committed.rank_block == first + INCENTIVES.update_blocks
    used = used_seeds(net, bench, committed.digest)
    assert len(used) >= 2 and used == list(committed.seeds[: len(used)])


def test_same_rows_in_another_order_keep_their_seeds(net: Net, bench: Bench) -> None:
    publish(net)
    bench.run_rounds(1)
    before = find(net)
    publish(net, SMALL[::-1])
    bench.run_rounds(2)
    after = find(net)
    assert (after.digest, after.rank_block, after.seeds[:2]) == (before.digest, before.rank_block, before.seeds[:2])
    assert after.key != before.key


def test_revealed_dataset_ranks_by_commit_with_later_seeds(net: Net) -> None:
    text = f"alice/data:sample:{sha256(make_content(SMALL)).hexdigest()}"
    net.upload("alice", SMALL)
    assert net.chain("alice").publish_sealed(text, beacon_round_at(time.time() + 3600)).is_accepted
    first = align(net.admin.block(), INCENTIVES.blocks_per_epoch)
    with pytest.raises(ConfigError, match="no readable commitment"):
        find(net)
    net.admin.advance(60)
    net.admin.reveal(net.hotkey("alice"), text)
    revealed = align(net.admin.block(), INCENTIVES.blocks_per_epoch)
    with pytest.raises(ConfigError, match=f"counts from block {revealed}: its seeds are known from then on"):
        find(net)
    net.align(INCENTIVES.blocks_per_epoch)
    found = find(net)
    assert (found.rank_block, found.seed_blocks[0]) == (first, revealed)


def test_history_that_no_node_has_is_told(net: Net) -> None:
    net.admin.advance(40)
    publish(net)
    net.align(INCENTIVES.blocks_per_epoch)

    class Pruned(SteppingChain):
        def snapshot(self, block: int) -> ChainSnapshot:
            if block < net.admin.block():
                raise RemoteError("state dropped")
            return super().snapshot(block)

    with Pruned(net, None, blocks=0) as chain:
        committed = find(net, chain=chain)
    assert not committed.has_history and committed.rank_block == net.admin.block()


def test_number_of_seeds_is_what_was_asked_for(net: Net) -> None:
    publish(net)
    net.align(INCENTIVES.blocks_per_epoch)
    net.admin.advance(60)
    assert [len(find(net, count).seeds) for count in (1, 3, 100)] == [1, 3, 6]
    assert find(net, 100, hold=7).seed_count == 7


def test_dataset_that_validators_reject_is_rejected(net: Net) -> None:
    net.submit("alice", [*SMALL, make_line(10**6)])
    with pytest.raises(SubmissionError, match="not in the evaluation set"):
        find(net)


def test_random_seeds_cannot_be_known(net: Net) -> None:
    publish(net)
    with pytest.raises(ConfigError, match="draws its seeds at random"):
        find(net, seeds=Seeds.RANDOM)


def test_copied_commitment_is_not_evaluated(net: Net, bench: Bench) -> None:
    make_hotkey(net.parts, "bob")
    net.admin.register(net.hotkey("bob"))
    digest = bind_digest(sha256(make_content(SMALL)).hexdigest(), net.hotkey("alice"))
    net.commit("bob", f"alice/data:sample:{digest}")
    publish(net)
    bench.run_rounds(2)
    lines = bench.lines()
    assert lines[net.hotkey("alice")].loss is not None
    assert (lines[net.hotkey("bob")].digest, lines[net.hotkey("bob")].loss) == (None, None)
