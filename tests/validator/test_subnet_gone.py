"""A subnet that was dissolved, or whose netuid was given to another, stops the validator; a wrong answer does not."""

from pathlib import Path

import pytest

from template.errors import ConfigError, RemoteError, SubnetGoneError
from template.localnet.network import NETUID
from template.store.store import Store
from tests.fixtures.network import Net
from tests.fixtures.validator import open_bench
from tests.fixtures.wire_world import open_world
from tests.validator.test_entry_point import run

GONE = "the subnet of this state, registered in block 1, was dissolved"


@pytest.mark.slow
def test_dissolved_subnet_stops_after_two_reads(net: Net) -> None:
    with open_world(net) as world:
        net.admin.dissolve_subnet()
        (warning,) = world.tick()
        assert GONE in warning and "the next endpoint is asked before this validator stops" in warning
        with pytest.raises(SubnetGoneError, match=GONE):
            world.tick()


@pytest.mark.slow
def test_netuid_of_another_subnet_stops_after_two_reads(net: Net) -> None:
    with open_world(net) as world:
        net.admin.replace_subnet(net.hotkey("bob"))
        block = net.admin.block()
        (warning,) = world.tick()
        assert f"netuid {NETUID} was given to another subnet in block {block}" in warning
        with pytest.raises(SubnetGoneError, match=r"this state is of the one of block 1\."):
            world.tick()


@pytest.mark.slow
def test_wrong_answers_do_not_look_like_a_dissolved_subnet(net: Net) -> None:
    with open_world(net) as world:
        for kind in ("zero_bytes", "null", "empty_bytes"):
            world.wire.result("localnet_setAnswerFault", "*", kind, 1000)
            (warning,) = world.tick()
            assert "could not read the subnet" in warning
            world.wire.result("localnet_setAnswerFault", "*", kind, 0)
        assert world.finish_round() == []
        world.check()


def test_restart_after_the_end_of_the_subnet_stops(net: Net) -> None:
    with open_bench(net) as bench:
        bench.tick()
    net.admin.dissolve_subnet()
    with open_bench(net) as bench:
        with pytest.raises(RemoteError, match=GONE):
            bench.tick()
        with pytest.raises(SubnetGoneError, match=GONE):
            bench.tick()


def test_process_ends_with_a_status_of_its_own(net: Net, tiny_model: Path) -> None:
    net.admin.dissolve_subnet()
    with Store(net.parts.folder / "process" / "validator.sqlite3") as store:
        store.record_subnet(NETUID, 1)
    ended = run(net, offline=True, model_path=tiny_model)
    assert ended.status == 7 and GONE in ended.logs[-1]


def test_state_of_another_netuid_is_refused(net: Net) -> None:
    with open_bench(net) as bench:
        bench.store.record_subnet(NETUID + 1, 1)
        with pytest.raises(ConfigError, match=rf"is of netuid {NETUID + 1}: use another --state_dir for {NETUID}"):
            bench.tick()
