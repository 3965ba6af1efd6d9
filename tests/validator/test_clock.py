"""A node whose newest block is far behind this machine's clock starts nothing."""

import time

import pytest

from template.chain.client import Chain, open_wallet
from template.errors import RemoteError
from template.localnet.chain.chain import LocalChain
from template.localnet.network import NETUID
from template.localnet.node.server import NodeServer
from template.status.health import HealthLimits, find_problems
from template.status.status import read_status
from tests.fixtures.network import SMALL, Net, run_bounded
from tests.fixtures.node import open_wire
from tests.fixtures.validator import open_bench

TOO_OLD = r"the node's newest block is of .* UTC, 6[12] min before this machine's clock, .* or the clock is wrong"


def in_an_hour() -> float:
    return time.time() + 3700


def test_old_newest_block_opens_no_round(net: Net) -> None:
    net.submit("alice", SMALL)
    clock = [in_an_hour]
    with open_bench(net, now=lambda: clock[0]()) as bench:
        for _ in range(3):
            with pytest.raises(RemoteError, match=TOO_OLD):
                bench.tick()
        assert bench.store.last_round() is None and bench.store.subnet() is None
        clock[0] = time.time
        run_bounded(bench.validator)
        assert bench.outcomes() == [True]


def test_old_newest_block_is_named_by_the_status(net: Net) -> None:
    with open_bench(net, now=in_an_hour) as bench:
        with bench.store.recorded_run("1", in_an_hour) as run_id:
            bench.validator._run_with_retry(bench.validator.tick, run_id)
            status = read_status(net.parts.folder / "state", in_an_hour(), measures_disk=False)
        (problem,) = find_problems(status, HealthLimits())
        assert problem.code == "no_report" and "62 min before this machine's clock" in problem.text


def test_old_newest_block_lets_another_endpoint_answer(net: Net) -> None:
    wallet = open_wallet("validator", "default", net.parts.wallets)
    with (
        NodeServer(net.parts.chain_file) as behind,
        open_wire(behind) as wire,
        NodeServer(net.parts.chain_file) as node,
    ):
        chain = Chain(behind.url, NETUID, wallet=wallet, fallback_endpoints=[node.url], deadline_s=20)
        with open_bench(net, chain=chain, now=time.time) as bench:  # type: ignore[arg-type]
            with LocalChain(net.parts.chain_file, now=lambda: time.time() - 3700) as earlier:
                earlier.advance()
            net.admin.advance()
            wire.result("localnet_setMissingBlocks", 1)
            with pytest.raises(RemoteError, match=TOO_OLD):
                bench.tick()
            bench.tick()
            assert bench.store.subnet() == (NETUID, 1)
