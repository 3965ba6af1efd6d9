"""Jumps of the clock, forward or back, prolong no backoff, pause or rejection."""

from collections.abc import Callable

import pytest

from template.errors import HostError, Reason
from template.records import RetryState, Verdict
from template.rules.schedule import MAX_HOST_FAILURES, Policy
from template.validator.downloads import Downloader
from template.validator.evaluation import RETRY_MOST_S, SUSPENDED_S
from template.validator.loop import MISSING_RETRY_S
from template.validator.reporting import REPORT_EVERY_S
from tests.fixtures.faulty_hub import FaultKind, HubFault, set_faults
from tests.fixtures.network import SMALL, Net, run_bounded
from tests.fixtures.validator import open_bench
from tests.validator.test_downloads import still, tick_until

NOW = 1_000_000.0
YEAR_S = 365 * 86_400.0


def test_retry_set_by_a_fast_clock_is_due_after_correction(net: Net) -> None:
    now = [NOW + YEAR_S]
    key = net.submit("alice", SMALL)
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=503, pattern="alice/data"))
    with open_bench(net, chain=still(net), now=lambda: now[0]) as bench:
        tick_until(bench, lambda: bool(bench.validator.evaluator and bench.store.retry_states(bench.eval_config)))
        set_faults(net.hub.store.root)
        for _ in range(5):
            assert not bench.validator.tick()
        assert not bench.store.verdicts(bench.eval_config), "not before its time"
        now[0] = NOW
        tick_until(bench, lambda: key in bench.store.verdicts(bench.eval_config))


@pytest.mark.parametrize(("failures", "rest_s"), [(1, RETRY_MOST_S), (MAX_HOST_FAILURES, SUSPENDED_S)])
def test_longest_backoff_is_kept(net: Net, failures: int, rest_s: float) -> None:
    now = [NOW]
    key = net.submit("alice", SMALL)
    with open_bench(net, now=lambda: now[0]) as bench:
        bench.tick_until(lambda: bench.validator.evaluator is not None)
        judge = bench.validator.evaluator
        assert judge is not None
        bench.store.record_retry_state(bench.eval_config, key, RetryState(1, failures, NOW + rest_s, "it failed"))
        assert judge.retry_states()[key].next_at == NOW + rest_s
        now[0] = NOW - 2.0
        assert judge.retry_states()[key].next_at == now[0]


def test_suspension_by_a_fast_clock_ends_with_the_next_round(net: Net) -> None:
    now = [NOW + YEAR_S]
    net.submit("alice", SMALL)
    faults: list[Callable[[], object] | Exception] = [HostError("the GPU fell off")] * MAX_HOST_FAILURES
    policy = Policy(blocks_per_epoch=20, block_threshold=5, max_rounds=2)
    with open_bench(net, policy=policy, before=faults, now=lambda: now[0]) as bench:
        bench.tick_until(lambda: bench.validator.rounds_done == 1)
        assert bench.lines()[net.hotkey("alice")].loss is None
        now[0] = NOW
        run_bounded(bench.validator)
        assert bench.lines()[net.hotkey("alice")].weight == 1.0


def test_pause_set_by_a_fast_clock_ends(net: Net) -> None:
    now = [NOW + YEAR_S]
    key = net.submit("alice", SMALL)
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=429, retry_after="100", pattern="alice/data"))
    with open_bench(net, fetcher=Downloader(1), chain=still(net), now=lambda: now[0]) as bench:
        tick_until(bench, lambda: bool(bench.validator.evaluator and bench.store.retry_states(bench.eval_config)))
        set_faults(net.hub.store.root)
        judge = bench.validator.evaluator
        assert judge is not None and judge.available_slots() == 0
        now[0] = NOW
        assert judge.available_slots() == 1
        tick_until(bench, lambda: key in bench.store.verdicts(bench.eval_config))


def test_missing_repo_of_a_fast_clock_is_retried(net: Net) -> None:
    key = net.submit("alice", SMALL)
    with open_bench(net, now=lambda: NOW) as bench:
        bench.tick_until(lambda: bench.validator.evaluator is not None)
        refusal = Verdict(reason=Reason.MISSING_REPO, message="not there")
        bench.store.record_verdict(bench.eval_config, key, refusal, NOW + MISSING_RETRY_S + 1.0)
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].loss is not None


def test_update_check_runs_after_the_clock_was_set_back(net: Net) -> None:
    now, asked = [NOW + YEAR_S], list[float]()

    def update() -> bool:
        asked.append(now[0])
        return False

    policy = Policy(blocks_per_epoch=10, block_threshold=2, max_rounds=3)
    with open_bench(net, policy=policy, update=update, now=lambda: now[0]) as bench:
        bench.tick_until(lambda: bench.validator.rounds_done == 1)
        now[0] = NOW
        run_bounded(bench.validator)
    assert asked == [NOW + YEAR_S, NOW]


def test_heartbeat_continues_after_the_clock_was_set_back(net: Net) -> None:
    now = [NOW + YEAR_S]
    with open_bench(net, policy=Policy(max_rounds=2), chain=still(net), now=lambda: now[0]) as bench:
        tick_until(bench, lambda: "round ends" in (told.doing if (told := bench.store.heartbeat()) else ""))
        for at in (NOW, NOW + 1.0, NOW + REPORT_EVERY_S):
            now[0] = at
            assert not bench.validator.tick()
            told = bench.store.heartbeat()
            assert told is not None and told.now == (NOW if at < NOW + REPORT_EVERY_S else at)
