"""Faults of hub, chain and machine, and stops by the operator, lose nothing and cost no miner anything."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from template.competition import CommitmentRecord
from template.errors import HostError, Reason, RemoteError
from template.hub.storage import HubFile
from template.localnet.chain.ledger import ChainFault
from template.localnet.hub.store import upload_files
from template.receipts.files import read_round
from template.receipts.verify import check_consistency
from template.records import ChainView, Verdict
from template.rules.schedule import MAX_HOST_FAILURES, Policy
from template.validator.downloads import Downloader
from template.validator.loop import MISSING_RETRY_S
from tests.fixtures.faulty_hub import FaultKind, FaultyHub, HubFault, set_faults
from tests.fixtures.logs import log_lines
from tests.fixtures.network import (
    LARGE,
    POOL,
    SMALL,
    Net,
    SteppingChain,
    make_content,
    run_bounded,
)
from tests.fixtures.validator import open_bench


def test_failing_hub_leaves_the_submission_pending(net: Net) -> None:
    key = net.submit("alice", LARGE)
    net.submit("bob", SMALL)
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=503, pattern="alice/data"))
    with open_bench(net) as bench:
        bench.tick_until(lambda: bool(bench.evaluator.scored))
        for _ in range(30):
            assert not bench.validator.tick()
        assert key not in bench.store.verdicts(bench.eval_config)
        assert bench.store.retry_states(bench.eval_config)[key].remote_failures >= 2
        set_faults(net.hub.store.root)
        run_bounded(bench.validator)
        line = bench.lines()[key.hotkey]
        assert line.loss is not None and line.weight > 0 and line.reason is None
        assert key not in bench.store.retry_states(bench.eval_config)


def test_round_ends_in_time_without_hub_answers(net: Net) -> None:
    key = net.submit("alice", LARGE)
    net.submit("bob", SMALL)
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.DROP, pattern="alice/data"))
    policy = Policy(blocks_per_epoch=40, block_threshold=10, max_rounds=1)
    with open_bench(net, policy=policy) as bench:
        run_bounded(bench.validator)
        line = bench.lines()[key.hotkey]
        assert (line.loss, line.reason, line.weight) == (None, None, 0.0)
    assert net.admin.weights(net.hotkey("validator")) == {net.uid("bob"): 65535}


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
    with open_bench(net) as bench:
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


def test_unanswered_chain_call_is_retried(net: Net) -> None:
    net.submit("alice", SMALL)
    with open_bench(net) as bench:
        bench.tick_until(lambda: bool(bench.evaluator.scored))
        net.admin.set_fault("read", ChainFault.DISCONNECT, calls=3)
        run_bounded(bench.validator)
        assert bench.outcomes() == [True] and len(bench.evaluator.scored) == 1


def test_weights_wait_for_the_rate_limit(net: Net) -> None:
    net.submit("alice", SMALL)
    assert net.chain("validator").set_weights({0: 1.0}).is_accepted
    due = net.admin.block() + 40
    net.admin.set_hyperparameter("WeightsSetRateLimit", 40)
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        assert bench.outcomes() == [True]
    assert net.admin.block() >= due
    assert net.count_calls("validator", "set_mechanism_weights") == 2


def test_rejected_weights_are_retried(net: Net) -> None:
    net.submit("alice", SMALL)
    net.admin.set_hyperparameter("StakeThreshold", 10**18)
    policy = Policy(max_rounds=1, blocks_per_epoch=60, block_threshold=50)
    with open_bench(net, policy=policy) as bench:
        bench.tick_until(lambda: bool(bench.evaluator.scored))
        bench.tick_until(lambda: len(bench.outcomes()) == 2)
        assert bench.outcomes() == [False, False]
        net.admin.set_hyperparameter("StakeThreshold", 0)
        run_bounded(bench.validator)
        assert bench.outcomes() == [False, False, True]


def test_host_failure_is_retried_twice_then_suspended(net: Net) -> None:
    key = net.submit("alice", LARGE)
    net.submit("bob", SMALL)
    faults: list[Callable[[], object] | Exception] = [HostError("the GPU fell off")] * MAX_HOST_FAILURES
    with open_bench(net, before=faults) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].reason is None, "suspended, not rejected"
        assert bench.lines()[net.hotkey("bob")].weight == 1.0
        attempt = bench.store.retry_states(bench.eval_config)[key]
    assert attempt.host_failures == MAX_HOST_FAILURES and attempt.last_error == "the GPU fell off"
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
        bench.tick_until(lambda: bench.store.last_round() is not None)
        bench.executor.load_errors += [HostError("out of memory"), RemoteError("the Hub is down")]
        run_bounded(bench.validator)
        assert bench.outcomes() == [True]
    assert sum("no worker" in line for line in lines) == 2


def test_bug_in_a_check_is_a_host_failure(net: Net) -> None:
    key = net.submit("alice", SMALL)
    with log_lines() as lines, open_bench(net) as bench:
        bench.tick_until(lambda: bool(bench.store.last_round()))
        bench.validator.evaluator._eval_set = None  # type: ignore[union-attr, assignment]
        with pytest.raises(AttributeError):
            bench.tick_until(lambda: False)
        assert bench.store.retry_states(bench.eval_config)[key].host_failures == 1
        bench.validator.evaluator._eval_set = bench.validator._eval_set  # type: ignore[union-attr, assignment]
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0
    assert sum("host failure" in line for line in lines) == 1


def test_unknown_error_of_a_tick_is_logged_and_retried(net: Net) -> None:
    class StumblingChain(SteppingChain):
        stumbles = 1

        def view(self, block: int | None = None) -> ChainView:
            if self.stumbles:
                self.stumbles -= 1
                raise ZeroDivisionError("a bug")
            return super().view(block)

    key = net.submit("alice", SMALL)
    with log_lines() as lines, open_bench(net, chain=StumblingChain(net, "validator")) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0
    assert sum("ZeroDivisionError" in line for line in lines) == 1


def test_unreadable_download_is_a_host_error(net: Net) -> None:
    """Fail to open it, as with too many open files: a fault of the machine, not of the submission."""
    key = net.submit("alice", SMALL)

    def fetch(record: CommitmentRecord, folder: Path, deadline_s: float) -> HubFile:
        return HubFile(path=folder, repo=record.namespace, revision=record.commit, sha256="0" * 64, size=1)

    with open_bench(net, fetcher=Downloader(1, fetch)) as bench:
        with pytest.raises(HostError, match=r"cannot read the dataset of .*Is a directory"):
            bench.tick_until(lambda: False, ticks=1000)
        assert key not in bench.store.retry_states(bench.eval_config)


def test_submission_that_crashes_us_does_not_stop_others(net: Net) -> None:
    key = net.submit("alice", LARGE)
    net.submit("bob", SMALL)
    bugs: list[Callable[[], object] | Exception] = [ZeroDivisionError("a bug")] * MAX_HOST_FAILURES
    with open_bench(net, before=bugs) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].reason is None and bench.lines()[net.hotkey("bob")].weight == 1.0
        assert bench.store.retry_states(bench.eval_config)[key].host_failures == MAX_HOST_FAILURES


@pytest.mark.parametrize(("age_s", "is_scored"), [(MISSING_RETRY_S + 60, True), (60, False)])
def test_missing_repo_is_retried_after_hours(net: Net, age_s: float, is_scored: bool) -> None:
    key = net.submit("alice", SMALL)
    with open_bench(net) as bench:
        bench.tick_until(lambda: bench.validator.evaluator is not None)
        refusal = Verdict(reason=Reason.MISSING_REPO, message="not there")
        bench.store.record_verdict(bench.eval_config, key, refusal, bench.validator._now() - age_s)
        run_bounded(bench.validator)
        assert (bench.lines()[key.hotkey].loss is not None) == is_scored


def test_private_dataset_counts_as_missing(net: Net) -> None:
    commit = upload_files(net.hub.store.root, "alice/hidden", {"data.jsonl": make_content(SMALL)}, private=True)
    key = net.commit("alice", f"alice/hidden:{net.competition.id}:{commit}")
    with open_bench(net, hub_token="hf_local_alice") as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].reason == Reason.MISSING_REPO


def test_stop_during_an_evaluation_records_nothing(net: Net) -> None:
    net.submit("alice", LARGE)
    with open_bench(net) as bench:
        bench.executor.hold = True
        bench.tick_until(lambda: bool(bench.executor.running()))
        bench.validator.stop.set()
        bench.validator.run()
        assert bench.executor.is_closed
        assert bench.store.verdicts(bench.eval_config) == {} and bench.store.retry_states(bench.eval_config) == {}
        assert not list((net.parts.folder / "state" / "receipts").glob("*"))
        opened = bench.store.open_round(bench.eval_config)
    with open_bench(net, lucky_num=None) as bench:
        run_bounded(bench.validator)
        assert opened is not None and bench.store.last_round() == opened
        assert len(bench.evaluator.scored) == 1


def test_restart_keeps_the_seed_and_repeats_no_evaluation(net: Net) -> None:
    for name, rows in (("alice", LARGE), ("bob", SMALL), ("carol", POOL[50:70])):
        net.submit(name, rows)
    with open_bench(net, lucky_num=None) as bench:
        bench.tick_until(lambda: len(bench.evaluator.scored) == 1)
        first = bench.evaluator.scored
        before = bench.store.last_round()
    with open_bench(net, lucky_num=None) as bench:
        run_bounded(bench.validator)
        second = bench.evaluator.scored
        assert bench.store.last_round() == before
    assert len({sha256 for sha256, _ in first + second}) == len(first + second) == 3
    assert len({lucky_num for _, lucky_num in first + second}) == 1


# During an evaluation


def test_weights_are_set_during_an_evaluation(net: Net) -> None:
    net.submit("alice", SMALL)
    policy = Policy(blocks_per_epoch=60, block_threshold=20, max_rounds=2)
    with open_bench(net, policy=policy) as bench:
        bench.tick_until(lambda: bool(bench.evaluator.scored))
        key = net.submit("bob", LARGE)
        bench.tick_until(lambda: bench.validator.rounds_done == 1)
        bench.executor.hold = True
        bench.tick_until(lambda: bool(bench.executor.running()))
        bench.tick_until(lambda: bool(bench.outcomes()))
        assert bench.outcomes() == [True] and key not in bench.store.verdicts(bench.eval_config)
        assert net.admin.weights(net.hotkey("validator")) == {net.uid("alice"): 65535}
        opened = bench.store.last_round()
        assert opened is not None and net.admin.block() < opened.end_block


def test_evaluation_that_outlives_its_round_counts_next(net: Net) -> None:
    key = net.submit("bob", LARGE)
    policy = Policy(blocks_per_epoch=20, block_threshold=5)
    with open_bench(net, policy=policy, lucky_num=None) as bench:
        bench.executor.hold = True
        bench.tick_until(lambda: bench.validator.rounds_done == 2)
        assert [one.key for one in bench.executor.running()] == [key]
        assert net.admin.weights(net.hotkey("validator")) is None, "nothing is evaluated, so nothing is burned"
        bench.executor.hold = False
        bench.tick_until(lambda: bench.validator.rounds_done == 3)
        ((_, lucky_num),) = bench.evaluator.scored
        files = [read_round(path) for path in bench.store.path.with_name("rounds").iterdir()]
    first, last = min(files, key=lambda file: file.header.start_block), next(file for file in files if file.receipts)
    assert first.header.entries[0].lucky_num == lucky_num == last.header.entries[0].lucky_num
    assert first.header.lucky_num != last.header.lucky_num
    assert check_consistency(last, {receipt.digest: receipt for receipt in last.receipts}) == []
    assert net.admin.weights(net.hotkey("validator")) == {net.uid("bob"): 65535}


def test_last_weights_are_resubmitted_without_a_worker(net: Net) -> None:
    net.submit("alice", SMALL)
    with open_bench(net) as bench:
        run_bounded(bench.validator)
    net.admin.set_hyperparameter("Tempo", 10)
    net.admin.set_hyperparameter("ActivityCutoffFactorMilli", 10_000)
    root = net.hub.store.root
    shutil.rmtree(net.parts.folder / "state" / "eval_data")
    set_faults(root, HubFault(kind=FaultKind.STATUS, status=503))
    with open_bench(net) as bench:
        for _ in range(100):
            with suppress(RemoteError):
                bench.validator.tick()
        intents = bench.store.intents(1)
    assert [one.is_repeat for one in intents] == [False, True]
    assert net.admin.weights(net.hotkey("validator")) == {net.uid("alice"): 65535}
    assert net.count_calls("validator", "set_mechanism_weights") == 2


def test_changed_commit_is_another_submission(net: Net) -> None:
    first = net.submit("alice", SMALL)
    with open_bench(net, policy=Policy(max_rounds=2, blocks_per_epoch=30, block_threshold=5)) as bench:
        bench.tick_until(lambda: bool(bench.evaluator.scored))
        second = net.submit("alice", LARGE)
        bench.tick_until(lambda: bench.validator.rounds_done == 1)
        assert net.admin.weights(net.hotkey("validator")) == {net.uid("alice"): 65535}
        run_bounded(bench.validator)
        assert set(bench.store.verdicts(bench.eval_config)) == {first, second}
        assert bench.lines()[net.hotkey("alice")].key == second


def test_update_waits_for_running_evaluations(net: Net) -> None:
    net.submit("alice", SMALL)
    asked: list[tuple[bool, int]] = []

    def update() -> bool:
        asked.append((bench.store.open_round(bench.eval_config) is None, len(bench.executor.running())))
        return len(asked) == 2

    policy = Policy(blocks_per_epoch=20, block_threshold=5)
    with open_bench(net, policy=policy, update=update) as bench:
        bench.executor.hold = True
        bench.tick_until(lambda: bench.validator.rounds_done == 1)
        assert len(asked) == 1 and bench.executor.running()
        bench.validator._update_at = 0.0
        for _ in range(30):
            assert not bench.validator.tick()
        assert len(asked) == 1 and bench.validator.rounds_done == 1, "it waits for the evaluation and opens no round"
        bench.executor.hold = False
        run_ended = bench.validator.tick() or bench.validator.tick()
        assert run_ended and bench.validator.is_updated
    assert asked == [(True, 0), (True, 0)]
