"""Faults of the chain's node at the wire: no verdict changes, and weights arrive once or the reason is logged."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from template.chain.client import Chain, open_wallet
from template.chain_records import ChainView
from template.localnet.chain.chain import LocalChain
from template.localnet.network import NETUID
from template.localnet.node.server import NodeServer
from template.rules.schedule import Policy
from tests.fixtures.logs import log_lines
from tests.fixtures.network import LARGE, SMALL, Net
from tests.fixtures.node import Wire, open_wire
from tests.fixtures.validator import Bench, open_bench

pytestmark = pytest.mark.slow

DEADLINE_S = 3.0
# A tick makes a few exchanges, and closing a connection takes up to four seconds.
LONGEST_TICK_S = 30.0
ROUNDS = Policy(blocks_per_epoch=40, block_threshold=5)


class WireChain(Chain):
    """A chain that makes a block before every view, read over a WebSocket."""

    def __init__(self, net: Net, url: str) -> None:
        wallet = open_wallet("validator", "default", net.parts.wallets)
        super().__init__(url, NETUID, wallet=wallet, deadline_s=DEADLINE_S)
        self._admin = net.admin

    def view(self) -> ChainView:
        self._admin.advance()
        return super().view()


@dataclass
class World:
    """A validator in the middle of a round, and the admin methods of its node."""

    net: Net
    bench: Bench
    wire: Wire
    lines: list[str]

    def tick(self, count: int = 1) -> list[str]:
        """Tick; return the warnings and errors."""
        start = len(self.lines)
        for _ in range(count):
            started = time.monotonic()
            self.bench.validator._run_with_retry(self.bench.validator.tick, 0)
            assert time.monotonic() - started < LONGEST_TICK_S
        lines = [line for line in self.lines[start:] if line.startswith(("WARNING", "ERROR"))]
        # The client's own line about a frame comes beside the validator's.
        return [line for line in lines if "bittensor.transport" not in line]

    def finish_round(self, ticks: int = 3 * ROUNDS.blocks_per_epoch) -> list[str]:
        """Tick to the end of the round; return the warnings and errors."""
        self.bench.executor.hold = False
        rounds, warnings = self.bench.validator.rounds_done, list[str]()
        for _ in range(ticks):
            if self.bench.validator.rounds_done > rounds:
                return warnings
            warnings += self.tick()
        raise AssertionError(f"the round does not end: {warnings}")

    def sent(self) -> int:
        return self.net.count_calls("validator", "set_mechanism_weights")

    def check(self, rounds: int = 1) -> None:
        """Check verdicts and weights, which must be as without the fault."""
        rows = self.bench.lines().values()
        assert {row.reason for row in rows} == {None} and all(row.loss for row in rows)
        weights = self.net.admin.weights(self.net.hotkey("validator"))
        assert weights is not None and weights.keys() == {self.net.uid("alice"), self.net.uid("bob")}
        assert self.sent() == rounds


@contextmanager
def open_world(net: Net) -> Iterator[World]:
    for name, rows in (("alice", LARGE), ("bob", SMALL)):
        net.submit(name, rows)
    with (
        log_lines() as lines,
        NodeServer(net.parts.chain_file) as node,
        open_wire(node) as wire,
        open_bench(net, policy=ROUNDS, chain=WireChain(net, node.url)) as bench,  # type: ignore[arg-type]
    ):
        bench.executor.hold = True
        bench.tick_until(bench.executor.running)
        yield World(net, bench, wire, lines)


# Method, fault, and the logged reason; None where the client recovers by itself.
READ_FAULTS = (
    ("state_call", "silence", "no answer within 3 s"),
    ("state_call", "wrong_id", "no answer within 3 s"),
    ("state_call", "drop_in_answer", None),
    ("state_call", "close", "the connection ended without an answer"),
    ("state_call", "half_of_the_bytes", "invalid answer"),
    ("state_call", "empty_bytes", "invalid answer"),
    ("state_call", "null", "no result from runtime call"),
    ("chain_getHeader", "null", "no header"),
    ("chain_getHeader", "web_page", "no answer within 3 s"),
    ("chain_getHeader", "error", "the node failed"),
)


def test_wrong_answer_to_a_read_costs_one_tick(net: Net) -> None:
    with open_world(net) as world:
        for method, kind, reason in READ_FAULTS:
            world.wire.result("localnet_setAnswerFault", method, kind, 1)
            warnings = world.tick(2)
            assert len(warnings) == (reason is not None), (kind, warnings)
            assert reason is None or reason in warnings[0]
        assert world.finish_round() == []
        world.check()


def test_validator_pauses_as_long_as_a_node_asks(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_world(net) as world:
        pauses: list[float | None] = []
        monkeypatch.setattr(world.bench.validator.stop, "wait", pauses.append)
        world.wire.result("localnet_setAnswerFault", "chain_getHeader", "rate_limit", 1)
        world.tick()
        assert pauses == [7.0]


def test_node_behind_is_named_and_left(net: Net) -> None:
    with open_world(net) as world:
        world.wire.result("localnet_setMissingBlocks", 5)
        (warning,) = world.tick()
        assert re.search(r"the node is at block \d+, behind block \d+", warning)
        world.wire.result("localnet_setMissingBlocks", 0)
        assert world.finish_round() == []
        world.check()


def test_another_chain_is_named_and_left(net: Net, tmp_path: Path) -> None:
    with LocalChain.create(tmp_path / "other.sqlite3", netuid=NETUID, owner_hotkey=net.hotkey("bob")) as other:
        other.advance(1000)
    with open_world(net) as world:
        world.wire.result("localnet_replaceChain", str(other.path))
        (warning,) = world.tick()
        assert "another chain or fork" in warning
        world.wire.result("localnet_replaceChain", str(net.parts.chain_file))
        assert world.finish_round() == []
        world.check()


def test_discarded_state_is_named(net: Net) -> None:
    with open_world(net) as world:
        world.wire.result("localnet_setKeptStates", 0)
        (warning,) = world.tick()
        assert "archive node" in warning
        world.wire.result("localnet_setKeptStates", None)
        assert world.finish_round() == []
        world.check()


def test_runtime_upgrade_costs_one_attempt_at_most(net: Net) -> None:
    with open_world(net) as world:
        world.wire.result("localnet_upgradeRuntime")
        warnings = world.finish_round()
        assert len(warnings) <= 1 and all("its signature is refused" in warning for warning in warnings), warnings
        world.check()


def test_second_writer_costs_no_attempt(net: Net) -> None:
    with open_world(net) as world:
        world.finish_round()
        world.wire.result("localnet_useNonce", net.hotkey("validator"))
        assert world.finish_round() == []
        world.check(rounds=2)


def test_pool_refusal_is_named_and_weights_arrive_once(net: Net) -> None:
    with open_world(net) as world:
        world.wire.result("localnet_refuseExtrinsics", 1010, "Invalid Transaction", "Custom error: 6")
        (warning,) = world.finish_round()
        assert "weights rejected error=RateLimitExceeded" in warning
        world.check()


def test_refusal_without_a_name_leaves_nothing_to_wait_for(net: Net) -> None:
    with open_world(net) as world:
        world.wire.result("localnet_refuseExtrinsics", 1010, "Invalid Transaction", "Custom error: 77")
        (warning,) = world.finish_round()
        assert "will retry: could not set weights: the node's transaction pool refuses" in warning
        assert world.bench.outcomes() == [False, True]
        world.check()


def test_runtime_of_another_age_leaves_nothing_to_wait_for(net: Net) -> None:
    with open_world(net) as world:
        world.wire.result("localnet_downgradeRuntime")
        warnings = world.finish_round()
        assert len(warnings) > 1 and all("SubnetEpochConsensus not found" in warning for warning in warnings[:-1])
        assert set(world.bench.outcomes()) == {False} and world.sent() == 0


def test_weights_without_events_are_set_once(net: Net) -> None:
    with open_world(net) as world:
        world.wire.result("localnet_hideEvents", True)
        (warning,) = world.finish_round()
        assert "result unknown" in warning and "no event there tells whether it succeeded" in warning
        assert world.bench.outcomes() == [True]
        world.check()


def test_weights_are_set_once_while_finality_lags(net: Net) -> None:
    with open_world(net) as world:
        world.wire.result("localnet_setFinalityLag", 100)
        (warning,) = world.finish_round(ticks=300)
        assert "result unknown" in warning and "no answer within 3 s" in warning
        assert world.bench.outcomes() == [True]
        world.check()


# Of weights that land, while their sender cannot learn of it.
WRITE_FAULTS = (
    ("author_extrinsicUpdate", "silence"),
    ("author_submitAndWatchExtrinsic", "drop_in_answer"),
    ("author_submitAndWatchExtrinsic", "wrong_id"),
    ("chain_getBlock", "null"),
)


def test_weights_of_an_unknown_result_are_set_once(net: Net) -> None:
    with open_world(net) as world:
        for rounds, (method, kind) in enumerate(WRITE_FAULTS, start=1):
            # One notification that is missing is made good by the next.
            world.wire.result("localnet_setAnswerFault", method, kind, 100 if kind == "silence" else 1)
            warnings = world.finish_round()
            world.wire.result("localnet_setAnswerFault", method, kind, 0)
            assert any("result unknown" in warning for warning in warnings), (kind, warnings)
            world.check(rounds)
