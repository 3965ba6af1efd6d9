"""Faults of hub, chain, machine and clock, and stops: none costs a miner anything."""

import re
from collections.abc import Callable

import pytest

from template.chain_records import ChainView
from template.errors import ConfigError, HostError, Reason, RemoteError, UnknownSubnetError
from template.localnet.chain.ledger import ChainFault
from template.records import RetryState, Verdict
from template.rules.schedule import MAX_HOST_FAILURES, Policy
from template.validator.evaluation import RETRY_MOST_S, SUSPENDED_S
from template.validator.loop import MISSING_RETRY_S
from template.validator.reporting import REPORT_EVERY_S
from tests.fixtures.faulty_hub import FaultKind, FaultyHub, HubFault, set_faults
from tests.fixtures.logs import log_lines
from tests.fixtures.network import LARGE, SMALL, Net, SteppingChain, run_bounded
from tests.fixtures.validator import open_bench

SHORT_ROUNDS = Policy(blocks_per_epoch=20, block_threshold=5)


@pytest.mark.parametrize("kind", [FaultKind.STATUS, FaultKind.DROP])
def test_failing_hub_leaves_the_submission_pending(net: Net, kind: FaultKind) -> None:
    key = net.submit("alice", LARGE)
    net.submit("bob", SMALL)
    set_faults(net.hub.store.root, HubFault(kind=kind, status=503, pattern="alice/data"))
    with open_bench(net, policy=SHORT_ROUNDS) as bench:
        bench.tick_until(lambda: bench.evaluator.scored)
        bench.tick(30)
        assert key not in bench.verdicts()
        assert bench.retry_states()[key].remote_failures >= 2
        set_faults(net.hub.store.root)
        bench.tick_until(lambda: key.hotkey in bench.scored_hotkeys())
        bench.run_rounds()
        line = bench.lines()[key.hotkey]
        assert line.loss is not None and line.weight > 0 and line.reason is None
        assert key not in bench.retry_states()


def test_missing_hub_at_the_start_is_retried(net: Net) -> None:
    key = net.submit("alice", SMALL)
    root, port = net.hub.store.root, int(net.hub.endpoint.rsplit(":", 1)[1])
    net.hub.close()
    with open_bench(net) as bench:
        for _ in range(3):
            with pytest.raises(RemoteError):
                bench.validator.tick()
        with FaultyHub(root, port):
            run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0


@pytest.mark.parametrize("fault", [ChainFault.LOSE_ANSWER, ChainFault.ERROR, ChainFault.DISCONNECT])
def test_pending_weights_are_set_once(net: Net, fault: ChainFault) -> None:
    net.submit("alice", SMALL)
    net.admin.set_fault("write", fault)
    with open_bench(net, policy=Policy(max_rounds=1, blocks_per_epoch=80, block_threshold=5)) as bench:
        run_bounded(bench.validator)
        outcomes = bench.outcomes()
    assert outcomes == ([True] if fault is ChainFault.LOSE_ANSWER else [False, True])
    assert net.admin.weights(net.hotkey("validator")) == {net.uid("alice"): 65535}
    assert net.count_calls("validator", "set_mechanism_weights") == 1


def test_pending_intent_is_resolved_by_the_next_process(net: Net) -> None:
    net.submit("alice", SMALL)
    net.admin.set_fault("write", ChainFault.LOSE_ANSWER)
    with open_bench(net) as bench, pytest.raises(RemoteError):
        bench.tick_until(lambda: False)
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        assert bench.outcomes() == [True]
        assert bench.evaluator.scored == []
    assert net.count_calls("validator", "set_mechanism_weights") == 1


def test_weights_wait_for_the_rate_limit(net: Net) -> None:
    net.submit("alice", SMALL)
    chain = net.chain("validator")
    assert chain.set_weights(chain.prepare_weights({0: 1.0})).is_accepted
    due = net.admin.block() + 10
    net.admin.set_hyperparameter("WeightsSetRateLimit", 10)
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        assert bench.outcomes() == [True]
    assert net.admin.block() >= due
    assert net.count_calls("validator", "set_mechanism_weights") == 2


@pytest.mark.parametrize("error", [HostError("the GPU fell off"), ZeroDivisionError("a bug")])
def test_host_failure_is_retried_twice_then_suspended(net: Net, error: Exception) -> None:
    key = net.submit("alice", LARGE)
    net.submit("bob", SMALL)
    failures: list[Callable[[], object] | Exception] = [error] * MAX_HOST_FAILURES
    with open_bench(net, before=failures) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].reason is None, "suspended, not rejected"
        assert bench.lines()[net.hotkey("bob")].weight == 1.0
        retry = bench.retry_states()[key]
    assert retry.host_failures == MAX_HOST_FAILURES and str(error) in retry.last_error
    assert len(bench.evaluator.scored) == 1


def test_missing_worker_at_the_start_ends_the_process(net: Net) -> None:
    with open_bench(net) as bench:
        bench.executor.load_errors.append(HostError("no such GPU"))
        with pytest.raises(HostError, match="no such GPU"):
            bench.validator.run()
        assert bench.executor.is_closed


def test_worker_lost_later_does_not_end_the_process(net: Net) -> None:
    net.submit("alice", SMALL)
    with log_lines() as lines, open_bench(net) as bench:
        bench.tick_until(bench.store.last_round)
        bench.executor.load_errors += [HostError("out of memory"), RemoteError("the Hub is down")]
        run_bounded(bench.validator)
        assert bench.outcomes() == [True]
    assert sum("no worker" in line for line in lines) == 2


def test_bug_in_a_check_is_a_host_failure(net: Net) -> None:
    key = net.submit("alice", SMALL)
    with log_lines() as lines, open_bench(net) as bench:
        bench.tick_until(bench.store.last_round)
        bench.validator.evaluator._eval_set = None  # type: ignore[union-attr, assignment]
        with pytest.raises(AttributeError):
            bench.tick_until(lambda: False)
        assert bench.retry_states()[key].host_failures == 1
        bench.validator.evaluator._eval_set = bench.validator._eval_set  # type: ignore[union-attr, assignment]
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0
    assert sum("host failure" in line for line in lines) == 1


class FailingChain(SteppingChain):
    """A chain whose next view raises `error`, if there is one."""

    error: Exception | None = None

    def view(self) -> ChainView:
        error, self.error = self.error, None
        if error is not None:
            raise error
        return super().view()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ZeroDivisionError("a bug"), "ZeroDivisionError"),
        (ConfigError("--netuid 96 never runs an epoch"), "unusable answer from the chain: .* never runs an epoch"),
        (UnknownSubnetError("it has no 96"), "it has no 96: the subnet .* was dissolved; the next endpoint is asked"),
    ],
)
def test_failed_view_of_a_running_validator_is_retried(net: Net, error: Exception, sentence: str) -> None:
    key = net.submit("alice", SMALL)
    chain = FailingChain(net, "validator")
    with log_lines() as lines, open_bench(net, chain=chain) as bench:
        bench.tick()
        chain.error = error
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0
    assert sum(re.search(sentence, line) is not None for line in lines) == 1


@pytest.mark.parametrize(
    ("age_s", "is_scored"),
    [(MISSING_RETRY_S + 60, True), (60, False), (-10 * MISSING_RETRY_S, True)],
    ids=["half an hour ago", "just now", "by a clock that was fast"],
)
def test_missing_repo_is_retried_after_half_an_hour(net: Net, age_s: float, is_scored: bool) -> None:
    key = net.submit("alice", SMALL)
    with open_bench(net) as bench:
        bench.tick_until(lambda: bench.validator.evaluator)
        refusal = Verdict(reason=Reason.MISSING_REPO, message="not there")
        bench.store.record_rejection(bench.eval_config, key, refusal, bench.validator._now() - age_s)
        run_bounded(bench.validator)
        assert (bench.lines()[key.hotkey].loss is not None) == is_scored


def test_stop_during_an_evaluation_records_nothing(net: Net) -> None:
    net.submit("alice", LARGE)
    with open_bench(net, lucky_num=None) as bench:
        bench.executor.hold = True
        bench.tick_until(bench.executor.running)
        bench.validator.stop.set()
        bench.validator.run()
        assert bench.executor.is_closed
        assert bench.losses() == bench.verdicts() == bench.retry_states() == {}
        assert not list((net.parts.folder / "state" / "receipts").glob("*"))
        opened = bench.store.open_round(bench.eval_config)
    with open_bench(net, lucky_num=None) as bench:
        run_bounded(bench.validator)
        assert opened is not None and bench.store.last_round() == opened
        assert len(bench.evaluator.scored) == 1


def test_round_waits_for_its_running_evaluation(net: Net) -> None:
    key = net.submit("bob", LARGE)
    with open_bench(net, policy=SHORT_ROUNDS) as bench:
        bench.executor.hold = True
        bench.tick_until(bench.executor.running)
        bench.tick(50)
        assert [running.key for running in bench.executor.running()] == [key] and bench.store.last_round_id() == 1
        assert net.admin.weights(net.hotkey("validator")) is None, "nothing is evaluated, so nothing is burned"
        bench.executor.hold = False
        bench.tick_until(lambda: bench.outcomes() == [True])
        assert len(bench.evaluator.scored) == 1
    assert net.admin.weights(net.hotkey("validator")) == {net.uid("bob"): 65535}


def test_update_waits_for_the_end_of_a_round(net: Net) -> None:
    net.submit("alice", SMALL)
    asked: list[tuple[bool, int]] = []

    def update() -> bool:
        asked.append((bench.store.open_round(bench.eval_config) is None, len(bench.executor.running())))
        return len(asked) == 2

    with open_bench(net, policy=SHORT_ROUNDS, update=update) as bench:
        bench.executor.hold = True
        bench.tick_until(bench.executor.running)
        bench.validator._update_at = 0.0
        bench.tick(30)
        assert len(asked) == 1 and bench.validator.rounds_done == 0
        bench.executor.hold = False
        run_bounded(bench.validator)
        assert bench.validator.is_updated
    assert asked == [(True, 0), (True, 0)]


# Jumps of the clock


NOW = 1_000_000.0
YEAR_S = 365 * 86_400.0


@pytest.mark.parametrize(("failures", "rest_s"), [(1, RETRY_MOST_S), (MAX_HOST_FAILURES, SUSPENDED_S)])
def test_longer_rest_than_any_was_set_by_a_fast_clock(net: Net, failures: int, rest_s: float) -> None:
    now = [NOW]
    key = net.submit("alice", SMALL)
    with open_bench(net, now=lambda: now[0]) as bench:
        bench.tick_until(lambda: bench.validator.evaluator)
        evaluator = bench.validator.evaluator
        assert evaluator is not None
        bench.store.record_retry_state(bench.eval_config, key, RetryState(1, failures, NOW + rest_s, "it failed"))
        assert evaluator.retry_states()[key].next_at == NOW + rest_s
        now[0] = NOW - 2.0
        assert evaluator.retry_states()[key].next_at == now[0]


def test_update_check_runs_after_the_clock_was_set_back(net: Net) -> None:
    now, asked = [NOW + YEAR_S], list[float]()

    def update() -> bool:
        asked.append(now[0])
        return False

    policy = Policy(blocks_per_epoch=10, block_threshold=2, max_rounds=3)
    with open_bench(net, policy=policy, update=update, now=lambda: now[0]) as bench:
        bench.run_rounds()
        now[0] = NOW
        run_bounded(bench.validator)
    assert asked == [NOW + YEAR_S, NOW]


def test_heartbeat_continues_after_the_clock_was_set_back(net: Net) -> None:
    now = [NOW + YEAR_S]
    with open_bench(net, policy=Policy(max_rounds=2), blocks=0, now=lambda: now[0]) as bench:
        bench.tick_until(lambda: "round ends" in getattr(bench.store.heartbeat(), "doing", ""))
        for now[0], last in ((NOW, NOW), (NOW + 1.0, NOW), (NOW + REPORT_EVERY_S, NOW + REPORT_EVERY_S)):
            bench.tick()
            heartbeat = bench.store.heartbeat()
            assert heartbeat is not None and heartbeat.now == last
