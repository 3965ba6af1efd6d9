"""Verdicts and weights of a whole validator loop against the local network."""

import dataclasses

import pytest

from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError, SubnetError
from template.localnet.hub.store import upload_files
from template.localnet.network import NETUID
from template.rules.schedule import Policy
from tests.fixtures.chain import submit
from tests.fixtures.faulty_hub import FaultKind, HubFault, set_faults
from tests.fixtures.logs import log_lines
from tests.fixtures.network import (
    LARGE,
    POOL,
    SMALL,
    Net,
    SteppingChain,
    make_content,
    make_copy,
    make_line,
    run_bounded,
)
from tests.fixtures.observers import SHORT, BackwardChain, weights_of
from tests.fixtures.validator import open_bench

pytestmark = pytest.mark.slow

FAILURES: dict[str, tuple[Exception, type[SubnetError]]] = {
    "no memory": (MemoryError("full"), HostError),
    "a device that fails": (RuntimeError("CUDA error: device-side assert triggered"), HostError),
    "a full disk": (OSError(28, "No space left on device"), HostError),
    "a bad row": (SubmissionError(Reason.MALFORMED, "line 3"), SubmissionError),
    "no Hub": (RemoteError("no answer"), RemoteError),
    "a bug": (KeyError("conversations"), KeyError),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failed_training_earns_nothing(net: Net, name: str) -> None:
    """Only the miner's own fault becomes a verdict; every other failure stays pending."""
    key = net.submit("alice", LARGE)
    with open_bench(net, policy=SHORT, before=[FAILURES[name][0]] * 50) as bench:
        run_bounded(bench.validator)
        line = bench.lines()[key.hotkey]
        verdict = bench.store.verdicts(bench.eval_config).get(key)
    is_refused = FAILURES[name][1] is SubmissionError
    assert (line.loss, line.weight, line.reason) == (None, 0.0, Reason.MALFORMED if is_refused else None)
    assert (verdict is not None) == is_refused, "only what the miner did is a verdict"
    assert weights_of(net) == ({0: 65535} if is_refused else None)


def test_unreadable_commitments_are_skipped(net: Net) -> None:
    net.submit("alice", SMALL)
    two_fields = {"fields": [{"Raw1": b"a"}, {"Raw1": b"b"}]}
    key = net.chain("bob")._key
    assert submit(net.admin, key, "Commitments", "set_commitment", netuid=NETUID, info=two_fields).success
    net.submit("carol", LARGE)
    net.admin.deregister(net.hotkey("carol"))
    with log_lines() as logged, open_bench(net) as bench:
        run_bounded(bench.validator)
        assert set(bench.lines()) == {net.hotkey("alice")}
    assert weights_of(net) == {net.uid("alice"): 65535}
    assert not [line for line in logged if "bug" in line]


def test_eval_set_stays_at_its_commit(net: Net) -> None:
    root = net.hub.store.root
    upload_files(root, "sample/pool", {"pool.jsonl": make_content([make_line(10**6 + n) for n in range(50)])})
    keys = net.submit("alice", SMALL), net.submit("bob", [make_line(10**6)])
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        assert [bench.lines()[key.hotkey].reason for key in keys] == [None, Reason.NOT_IN_POOL]
        content = (bench.validator.config.eval_data_dir / "data.jsonl").read_bytes()
    assert content == make_content(POOL)
    with pytest.raises(ConfigError, match="eval_commit"):
        dataclasses.replace(net.competition, eval_commit="main")


def test_every_entry_is_evaluated_once(net: Net) -> None:
    for number, name in enumerate(("alice", "bob", "carol", "owner")):
        net.submit(name, POOL[20 * number : 20 * number + 20])
    policy = Policy(
        blocks_per_epoch=15, block_threshold=0, miner_sample_size=1, miner_duplicate_sample_size=1, max_rounds=4
    )
    with open_bench(net, policy=policy) as bench:
        run_bounded(bench.validator)
        assert len(bench.evaluator.scored) == len({sha256 for sha256, _ in bench.evaluator.scored}) == 4
        assert all(line.loss is not None for line in bench.lines().values())


def test_copy_evaluated_before_its_original_loses_its_weight(net: Net) -> None:
    net.submit("alice", LARGE)
    copied = net.submit("bob", make_copy())
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=503, pattern="alice/data"))
    policy = dataclasses.replace(SHORT, miner_sample_size=1, miner_duplicate_sample_size=2, max_rounds=3)
    with open_bench(net, policy=policy) as bench:
        bench.tick_until(lambda: bench.validator.rounds_done == 1)
        assert weights_of(net) == {net.uid("bob"): 65535}
        set_faults(net.hub.store.root)
        run_bounded(bench.validator)
        line = bench.lines()[copied.hotkey]
        assert line.reason is Reason.DUPLICATE and line.loss is not None and line.weight == 0.0
    assert weights_of(net) == {net.uid("alice"): 65535}


@pytest.mark.parametrize("kind", [SteppingChain, BackwardChain])
def test_foreign_rows_are_found_in_any_order(net: Net, kind: type[SteppingChain]) -> None:
    foreign = make_line(10**6)
    net.submit("bob", [*LARGE[:103], foreign])
    original = net.submit("alice", LARGE)
    net.submit("carol", [*make_copy()[:103], foreign])
    with open_bench(net, chain=kind(net, "validator")) as bench:
        run_bounded(bench.validator)
        reasons = {name: bench.lines()[net.hotkey(name)].reason for name in ("alice", "bob", "carol")}
        assert bench.lines()[original.hotkey].weight == 1.0, "what is refused is nobody's original"
    assert reasons == {"alice": None, "bob": Reason.NOT_IN_POOL, "carol": Reason.NOT_IN_POOL}


def test_every_curve_parameter_moves_the_weights(net: Net) -> None:
    for name, rows in (("alice", LARGE), ("bob", SMALL), ("carol", POOL[40:80])):
        net.submit(name, rows)
    plain = net.competition
    tables = []
    for changed in ({}, {"bench": 6.15}, {"minb": 5.7}, {"maxb": 6.9}, {"pow": 2.0}, {"bheight": 0.4}):
        net.competition = dataclasses.replace(plain, **changed)  # type: ignore[arg-type]
        with open_bench(net, f"state-{len(tables)}") as bench:
            run_bounded(bench.validator)
            tables.append(tuple(sorted(line.weight for line in bench.lines().values())))
    assert all(0.0 < weight < 1.0 for table in tables for weight in table)
    assert len(set(tables)) == len(tables)
