"""Attempts to be paid for the work of others, or for none."""

import dataclasses
import hashlib
import shutil
import time
from pathlib import Path

import pytest

from template.chain.client import beacon_round_at
from template.errors import ConfigError, HostError, Reason, RemoteError
from template.localnet.network import make_hotkey
from template.rules.schedule import MAX_HOST_FAILURES, Policy
from template.validator.weights import resubmit_weights
from tests.fixtures.logs import log_lines
from tests.fixtures.network import LARGE, POOL, SMALL, Net, make_content, make_copy, use_hub
from tests.fixtures.validator import QUICK, open_bench

SHORT = Policy(blocks_per_epoch=12, block_threshold=4)
DAY_S = 86400.0


class Clock:
    """A clock that advances by days on request."""

    now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 2.0
        return self.now


def promise(net: Net, name: str, lines: list[str]) -> str:
    """Return the text of a commitment to these lines by their digest."""
    return f"{name}/data:{net.competition.id}:{hashlib.sha256(make_content(lines)).hexdigest()}"


def test_replaced_timelock_lends_its_rank_to_no_other(net: Net) -> None:
    net.chain("carol").publish_sealed("junk", beacon_round_at(time.time() + 30 * DAY_S))
    with open_bench(net, policy=SHORT) as bench:
        bench.validator.tick()
        net.admin.advance(50)
        net.submit("alice", LARGE)
        bench.run_rounds()
        net.upload("carol", make_copy())
        text = promise(net, "carol", make_copy())
        net.chain("carol").publish_sealed(text, beacon_round_at(time.time() + 3600))
        net.admin.reveal(net.hotkey("carol"), text)
        bench.run_rounds(2)
        assert bench.weights() == {net.hotkey("alice"): 1.0}
        assert bench.lines()[net.hotkey("carol")].reason is Reason.DUPLICATE


def test_timelocked_commitment_ranks_alike_after_downtime(net: Net) -> None:
    text = promise(net, "alice", LARGE)
    net.chain("alice").publish_sealed(text, beacon_round_at(time.time() + 3600))
    sealed_block = net.admin.block()
    net.admin.advance(10)
    net.submit("bob", make_copy())
    net.admin.advance(10)
    net.admin.reveal(net.hotkey("alice"), text)
    net.upload("alice", LARGE)
    with open_bench(net, policy=SHORT) as bench:
        bench.run_rounds()
        assert bench.weights() == {net.hotkey("alice"): 1.0}
        (stand,) = bench.store.stands()[net.hotkey("alice")]
        assert (stand.key.commitment, stand.commit_block) == (text, sealed_block)


def test_copy_of_a_missing_file_is_paid_until_it_is_back(net: Net) -> None:
    text = promise(net, "carol", LARGE)
    net.commit("carol", text)
    clock = Clock()
    policy = Policy(blocks_per_epoch=60, block_threshold=10)
    with open_bench(net, policy=policy, now=clock, blocks=12) as bench:
        bench.run_rounds(8)
        assert bench.lines()[net.hotkey("carol")].reason is Reason.MISSING_FILE
        net.submit("alice", make_copy())
        bench.run_rounds(3)
        assert bench.weights() == {net.hotkey("alice"): 1.0}
        net.upload("carol", LARGE)
        clock.now += DAY_S
        bench.run_rounds(3)
        # The commitment names the file's digest, so nobody else had these rows first.
        assert bench.weights() == {net.hotkey("carol"): 1.0}
        assert bench.lines()[net.hotkey("alice")].reason is Reason.DUPLICATE


def test_same_rows_under_another_text_draw_no_seed(net: Net) -> None:
    net.submit("alice", LARGE)
    with open_bench(net, policy=SHORT, incentives=dataclasses.replace(QUICK, hold=3), lucky_num=None) as bench:
        bench.run_rounds()
        net.submit("alice", LARGE[::-1])
        bench.run_rounds(4)
        (losses,) = bench.losses().values()
        assert len(losses) == 3 and bench.weights() == {net.hotkey("alice"): 1.0}


def test_suspended_entry_does_not_keep_an_old_winner_paid(net: Net) -> None:
    net.submit("carol", SMALL)
    with open_bench(net, policy=SHORT) as bench:
        bench.run_rounds()
        assert bench.weights() == {net.hotkey("carol"): 1.0}
        net.commit("carol", promise(net, "carol", POOL[60:80]))
        bench.evaluator.before[:] = [HostError("the GPU fell off")] * MAX_HOST_FAILURES
        bob, alice = net.submit("bob", POOL[:60]), net.submit("alice", POOL[90:91])
        bench.tick_until(lambda: bob in bench.retry_states() and alice.hotkey in bench.scored_hotkeys())
        assert bench.retry_states()[bob].host_failures == MAX_HOST_FAILURES
        bench.tick_until(lambda: net.admin.weights(net.hotkey("validator")) == {0: 65535})


def test_new_season_repeats_the_last_shares(net: Net) -> None:
    net.submit("carol", LARGE)
    with open_bench(net, policy=SHORT) as bench:
        bench.run_rounds()
    net.competition = dataclasses.replace(net.competition, bench=6.2)
    with log_lines() as lines, open_bench(net, policy=SHORT) as bench:
        bench.executor.hold = True
        bench.tick_until(lambda: bench.store.last_round_id() == 2 and bench.outcomes() == [True])
        assert bench.losses() == {} and net.admin.weights(net.hotkey("validator")) == {net.uid("carol"): 65535}
    assert any("every dataset is evaluated again: bench of the competition is 6.2, was 6.1" in line for line in lines)


def test_hotkey_registered_again_is_not_paid_for_old_shares(net: Net) -> None:
    net.submit("alice", LARGE)
    net.submit("bob", SMALL)
    with open_bench(net, policy=SHORT) as bench:
        bench.run_rounds()
        net.admin.deregister(net.hotkey("alice"), replacement=make_hotkey(net.parts, "stranger"))
        net.admin.register(net.hotkey("alice"))
        resubmit_weights(bench.validator._context, None, net.chain("validator").view())
    assert net.admin.weights(net.hotkey("validator")) == {net.uid("bob"): 65535}


def test_state_of_another_chain_is_refused_at_the_start(net: Net, tmp_path: Path) -> None:
    net.admin.advance(36)
    net.submit("alice", SMALL)
    with open_bench(net, policy=SHORT) as bench:
        bench.run_rounds()
        last = bench.store.last_round()
        assert last is not None
        state = bench.store.path
    with Net(tmp_path / "other", ("alice",)) as other, use_hub(other):
        folder = other.parts.folder / "state"
        shutil.copytree(state.parent, folder)
        with open_bench(other, policy=SHORT) as bench:
            with pytest.raises(RemoteError, match=rf"before the start of round {last.id} of this state"):
                bench.validator.tick()
            other.admin.advance(last.start_block)
            with pytest.raises(ConfigError, match=r"is of another chain: .*; use another --state_dir"):
                bench.validator.tick()
            assert bench.store.last_round_id() == last.id, "no round was opened"
    with open_bench(net, policy=SHORT) as bench:
        bench.run_rounds()
        assert bench.weights() == {net.hotkey("alice"): 1.0}


def test_missing_gpu_after_a_restart_raises_host_error(net: Net) -> None:
    def restart(device: str, **settings: object) -> None:
        with open_bench(net, policy=SHORT, **settings) as bench:  # type: ignore[arg-type]
            bench.evaluator.__dict__["load_model"] = lambda: f"some/model@0 {device} bfloat16"
            bench.run_rounds()

    restart("cuda")
    with pytest.raises(HostError, match="evaluations ran on a GPU before"):
        restart("cpu", is_device_chosen=False)
    restart("cpu", is_device_chosen=True)
