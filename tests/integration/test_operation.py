"""A validator over rounds, restarts and outages, against the local network."""

import dataclasses
from collections.abc import Callable

import pytest

from neurons import validator
from template.errors import ConfigError, Reason, RemoteError
from template.localnet.hub.store import upload_files
from template.localnet.network import make_hotkey
from template.rules.schedule import Policy
from tests.fixtures.chain import CountingSubstrate
from tests.fixtures.faulty_hub import FaultKind, HubFault, set_faults
from tests.fixtures.network import (
    LARGE,
    ROOT,
    SMALL,
    Net,
    SteppingChain,
    make_content,
    make_copy,
    run_bounded,
)
from tests.fixtures.observers import SHORT, about, hub_requests, weights_of
from tests.fixtures.validator import QUICK, open_bench

pytestmark = pytest.mark.slow


def test_one_file_of_a_repo_is_downloaded(net: Net) -> None:
    files = {"data.jsonl": make_content(SMALL), "weights.bin": b"x" * 10_000, "more/data.jsonl": b"{}"}
    revision = upload_files(net.hub.store.root, "alice/data", files)
    net.commit("alice", f"alice/data:{net.competition.id}:{revision}")
    with hub_requests() as asked, open_bench(net) as bench:
        bench.executor.hold = True
        bench.tick_until(lambda: bool(bench.executor.running()))
        files_on_disk = sorted(path.name for path in bench.validator.config.data_dir.rglob("*") if path.is_file())
    assert files_on_disk == [".source.json", "data.jsonl"]
    requests = [line.rpartition("/resolve/")[2] for line in about(asked, "alice/data/resolve/")]
    assert requests == [f"{revision}/data.jsonl"]


def test_next_hotkey_on_a_uid_inherits_no_file(net: Net) -> None:
    net.submit("alice", LARGE)
    uid = net.uid("alice")
    with open_bench(net, policy=dataclasses.replace(SHORT, max_rounds=3)) as bench:
        bench.executor.hold = True
        bench.tick_until(lambda: bool(bench.executor.running()))
        net.admin.deregister(net.hotkey("alice"), replacement=make_hotkey(net.parts, "newcomer"))
        bare = net.submit("newcomer", b"x", file="other.txt")
        assert list(bench.validator.config.data_dir.glob("*/*/data.jsonl")), "alice's is still there"
        bench.executor.hold = False
        run_bounded(bench.validator)
        line = bench.lines()[bare.hotkey]
        assert (line.uid, line.reason, line.loss) == (uid, Reason.MISSING_FILE, None)
        assert len(bench.evaluator.scored) == 1, "alice's, who has left"
    assert weights_of(net) == {0: 65535}


def test_updates_need_their_flag(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def refuse() -> Callable[[], bool]:
        made.append("updater")
        raise ConfigError("no updates here")

    monkeypatch.setattr(validator, "make_update", refuse)
    flags = [*net.chain_arguments("nobody"), "--state_dir", str(net.parts.folder / "process"), "--wandb.off"]
    args = validator.build_parser().parse_args(flags)
    with pytest.raises(ConfigError, match=r"--wallet\.name"):
        validator.run(args)
    assert made == []
    with pytest.raises(ConfigError, match="no updates"):
        validator.run(validator.build_parser().parse_args([*flags, "--auto_update"]))
    sources = (path for folder in ("neurons", "template") for path in (ROOT / folder).rglob("*.py"))
    assert [path.name for path in sources if "template.updates" in path.read_text()] == ["validator.py"]


def test_commit_reveal_weights_need_no_process_state(net: Net) -> None:
    net.submit("alice", SMALL)
    net.admin.set_hyperparameter("Tempo", 9 * SHORT.blocks_per_epoch)
    net.admin.set_hyperparameter("CommitRevealWeightsEnabled", True)
    for _ in range(2):
        with open_bench(net, policy=SHORT) as bench:
            run_bounded(bench.validator)
            assert bench.outcomes() == [True]
    assert len(net.admin.weight_commits(net.hotkey("validator"))) == 2
    assert {call for _, call in net.calls()} >= {"commit_timelocked_mechanism_weights"}
    assert not [call for _, call in net.calls() if "reveal" in call]


def test_chain_reads_do_not_grow_with_the_subnet(net: Net) -> None:
    counts = []
    reads = CountingSubstrate(net.parts.chain_file)
    chain = SteppingChain(net, "validator", node=reads)
    with hub_requests() as asked, open_bench(net, policy=Policy(), chain=chain) as bench:
        net.submit("alice", SMALL)
        bench.tick_until(lambda: bool(bench.store.last_round() and bench.outcomes()))
        for size in (0, 12):
            for number in range(size):
                name = f"miner-{number}"
                net.admin.register(make_hotkey(net.parts, name))
                net.commit(name, f"{name}/data:{net.competition.id}:{'0' * 40}")
            bench.validator.tick()
            asked.clear()
            reads.calls.clear()
            bench.validator.tick()
            counts.append(dict(reads.calls))
    assert counts[0] == counts[1] and 0 < sum(counts[0].values()) < 20
    assert asked == []


@pytest.mark.parametrize(
    "error",
    [MemoryError("full"), RuntimeError("CUDA error: device-side assert triggered"), RemoteError("no answer")],
    ids=["no memory", "a device that fails", "no Hub"],
)
def test_failed_training_is_no_verdict(net: Net, error: Exception) -> None:
    key = net.submit("alice", LARGE)
    with open_bench(net, policy=SHORT, before=[error] * 50) as bench:
        run_bounded(bench.validator)
        line = bench.lines()[key.hotkey]
        assert (line.loss, line.weight, line.reason) == (None, 0.0, None)
        assert key not in bench.store.verdicts(bench.eval_config)
    assert weights_of(net) is None


def test_commitment_made_during_downtime_is_evaluated(net: Net) -> None:
    with open_bench(net) as bench:
        run_bounded(bench.validator)
    key = net.submit("alice", SMALL)
    net.admin.advance(100)
    with open_bench(net, policy=dataclasses.replace(SHORT, max_rounds=10)) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0
    assert weights_of(net) == {net.uid("alice"): 65535}


def test_copy_evaluated_before_its_original_loses_its_weight(net: Net) -> None:
    net.submit("alice", LARGE)
    copied = net.submit("bob", make_copy())
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=503, pattern="alice/data"))
    policy = dataclasses.replace(SHORT, miner_duplicate_sample_size=2, max_rounds=3)
    with open_bench(net, policy=policy, incentives=dataclasses.replace(QUICK, slots=1)) as bench:
        bench.tick_until(lambda: bench.validator.rounds_done == 1)
        assert weights_of(net) == {net.uid("bob"): 65535}
        set_faults(net.hub.store.root)
        run_bounded(bench.validator)
        line = bench.lines()[copied.hotkey]
        assert line.reason is Reason.DUPLICATE and line.loss is not None and line.weight == 0.0
    assert weights_of(net) == {net.uid("alice"): 65535}
