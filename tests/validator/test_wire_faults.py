"""Faults of the chain's node at the wire: no verdict changes, and weights arrive once or the reason is logged."""

import re
from pathlib import Path

import pytest

from template.localnet.chain.chain import LocalChain
from template.localnet.network import NETUID
from tests.fixtures.network import Net
from tests.fixtures.wire_world import DEADLINE_S, open_world

pytestmark = pytest.mark.slow

SILENCE = f"no answer within {DEADLINE_S:g} s"

# Method, fault, and the logged reason; None where the client recovers by itself.
READ_FAULTS = (
    ("state_call", "silence", SILENCE),
    ("state_call", "wrong_id", SILENCE),
    ("state_call", "drop_in_answer", None),
    ("state_call", "close", "the connection ended without an answer"),
    ("state_call", "half_of_the_bytes", "invalid answer"),
    ("state_call", "empty_bytes", "invalid answer"),
    ("state_call", "null", "no result from runtime call"),
    ("chain_getHeader", "null", "no header"),
    ("chain_getHeader", "web_page", SILENCE),
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
        assert set(world.bench.outcomes()) == {False} and not world.sent()


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
        assert "result unknown" in warning and SILENCE in warning
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


def test_round_does_not_open_on_empty_maps(net: Net) -> None:
    with open_world(net) as world:
        world.finish_round()
        world.wire.result("localnet_setAnswerFault", "state_getKeysPaged", "empty_list", 1000)
        warnings = world.tick(2)
        assert len(warnings) == 2 and all("the map of commitments lacks" in warning for warning in warnings)
        assert world.bench.store.last_round_id() == 1
        world.wire.result("localnet_setAnswerFault", "state_getKeysPaged", "empty_list", 0)
        assert world.finish_round() == []
        world.check(rounds=2)
