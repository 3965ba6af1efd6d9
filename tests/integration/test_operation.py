"""A validator over rounds, restarts and outages, against the local network."""

import dataclasses
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from neurons import validator
from template import constants
from template.errors import ConfigError, Reason, RemoteError
from template.localnet.hub import store as hub_store
from template.localnet.network import make_hotkey
from template.rules.schedule import Policy
from template.store.store import Store
from template.validator import evaluation
from tests.fixtures.chain import CountingSubstrate
from tests.fixtures.faulty_hub import FaultKind, HubFault, set_faults
from tests.fixtures.logs import log_lines
from tests.fixtures.network import (
    LARGE,
    POOL,
    ROOT,
    SMALL,
    VALIDATOR,
    Net,
    Process,
    SteppingChain,
    make_content,
    run_bounded,
    write_training_args,
)
from tests.fixtures.observers import SHORT, about, hub_requests, weights_of
from tests.fixtures.validator import open_bench

pytestmark = pytest.mark.slow


def test_one_file_of_a_repo_is_downloaded(net: Net) -> None:
    files = {"data.jsonl": make_content(SMALL), "weights.bin": b"x" * 10_000, "more/data.jsonl": b"{}"}
    commit = hub_store.upload_files(net.hub.store.root, "alice/data", {**files})
    net.commit("alice", f"alice/data:{net.competition.id}:{commit}")
    with hub_requests() as asked, open_bench(net) as bench:
        bench.executor.hold = True
        bench.tick_until(lambda: bool(bench.executor.running()))
        files_on_disk = sorted(path.name for path in bench.validator.config.data_dir.rglob("*") if path.is_file())
    assert files_on_disk == [".source.json", "data.jsonl"]
    assert [first.rpartition("/resolve/")[2] for first in about(asked, "alice/data/resolve/")] == [
        f"{commit}/data.jsonl"
    ]


def test_download_that_never_ends_is_given_up(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = net.submit("alice", POOL[:10])
    net.submit("bob", SMALL)
    monkeypatch.setattr(evaluation, "TIMEOUT_FIRST_S", 0.4)
    monkeypatch.setattr(constants, "DOWNLOAD_DEADLINE_S", 0.4)
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.DRIP, seconds=0.02, pattern="alice/data/resolve"))
    with open_bench(net, policy=SHORT) as bench:
        run_bounded(bench.validator)
        assert bench.store.retry_states(bench.eval_config)[slow].remote_failures >= 1
    assert weights_of(net) == {net.uid("bob"): 65535}


def test_next_hotkey_on_a_uid_inherits_no_file(net: Net) -> None:
    net.submit("alice", LARGE)
    uid = net.uid("alice")
    with open_bench(net, policy=dataclasses.replace(SHORT, max_rounds=3)) as bench:
        bench.executor.hold = True
        bench.tick_until(lambda: bool(bench.executor.running()))
        net.admin.deregister(net.hotkey("alice"), replacement=make_hotkey(net.parts, "newcomer"))
        bare = net.submit("newcomer", b"x", file="other.txt")
        bench.tick_until(lambda: bare in bench.store.verdicts(bench.eval_config))
        assert list(bench.validator.config.data_dir.glob("*/*/data.jsonl")), "alice's is still there"
        bench.executor.hold = False
        run_bounded(bench.validator)
        line = bench.lines()[bare.hotkey]
        assert (line.uid, line.reason, line.loss) == (uid, Reason.MISSING_FILE, None)
        assert len(bench.evaluator.scored) == 1, "alice's, who has left"
    assert weights_of(net) == {0: 65535}


def test_downloads_are_kept_and_failures_back_off(net: Net) -> None:
    for number, name in enumerate(("alice", "bob", "carol")):
        net.submit(name, POOL[30 * number : 30 * number + 30])
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=503, pattern="carol/data"))
    with hub_requests() as asked, open_bench(net, policy=dataclasses.replace(SHORT, max_rounds=3)) as bench:
        run_bounded(bench.validator)
        failed = bench.store.retry_states(bench.eval_config)[bench.lines()[net.hotkey("carol")].key]
    assert [len(about(asked, f"{name}/data/resolve/")) for name in ("alice", "bob")] == [1, 1]
    assert len(about(asked, "carol/data")) == failed.remote_failures < 10


def test_round_without_scores_ends(net: Net) -> None:
    with log_lines() as logged, open_bench(net, policy=dataclasses.replace(SHORT, max_rounds=2)) as bench:
        run_bounded(bench.validator)
        assert bench.validator.rounds_done == 2
    assert weights_of(net) == {0: 65535}
    assert not [line for line in logged if "bug" in line]


def test_commitment_made_during_downtime_is_evaluated(net: Net) -> None:
    with open_bench(net) as bench:
        run_bounded(bench.validator)
    key = net.submit("alice", SMALL)
    net.admin.advance(20_000)
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0
    assert weights_of(net) == {net.uid("alice"): 65535}


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


def test_resubmitted_weights_follow_hotkeys(net: Net) -> None:
    for name, rows in (("alice", LARGE), ("bob", SMALL)):
        net.submit(name, rows)
    with open_bench(net) as bench:
        run_bounded(bench.validator)
    before = weights_of(net)
    assert before is not None and set(before) == {net.uid("alice"), net.uid("bob")}
    net.admin.deregister(net.hotkey("alice"), replacement=make_hotkey(net.parts, "stranger"))
    for number in range(3):
        net.admin.register(make_hotkey(net.parts, f"late-{number}"))
    _let_repeat(net)
    with open_bench(net) as bench:
        for _ in range(100):
            with suppress(RemoteError):
                bench.validator.tick()
        assert [first.is_repeat for first in bench.store.intents(1)] == [False, True]
    assert weights_of(net) == {net.uid("bob"): 65535}


def _let_repeat(net: Net) -> None:
    """Make the evaluation set unavailable and the last weights soon too old."""
    net.admin.set_hyperparameter("Tempo", 10)
    net.admin.set_hyperparameter("ActivityCutoffFactorMilli", 10_000)
    shutil.rmtree(net.parts.folder / "state" / "eval_data")
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=503))


def test_commit_reveal_weights_need_no_process_state(net: Net) -> None:
    net.submit("alice", SMALL)
    net.admin.set_hyperparameter("Tempo", 360)
    net.admin.set_hyperparameter("CommitRevealWeightsEnabled", True)
    for _ in range(2):
        with open_bench(net, policy=SHORT) as bench:
            run_bounded(bench.validator)
            assert bench.outcomes() == [True]
    assert len(net.admin.weight_commits(net.hotkey("validator"))) == 2
    assert {call for _, call in net.calls()} >= {"commit_timelocked_mechanism_weights"}
    assert not [call for _, call in net.calls() if "reveal" in call]


class CountingChain(SteppingChain):
    """A chain connection that counts its reads."""

    def __init__(self, net: Net, name: str) -> None:
        super().__init__(net, name)
        self.reads = self._substrate = CountingSubstrate(net.parts.chain_file)


def test_chain_reads_do_not_grow_with_the_subnet(net: Net) -> None:
    counts = []
    chain = CountingChain(net, "validator")
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
            chain.reads.calls.clear()
            bench.validator.tick()
            counts.append(dict(chain.reads.calls))
    assert counts[0] == counts[1] and 0 < sum(counts[0].values()) < 20
    assert asked == []


def test_two_validators_share_a_machine(net: Net, tiny_model: Path) -> None:
    key = net.submit("alice", SMALL)
    before = sorted(Path("/").iterdir())
    folders = [net.parts.folder / name for name in ("one", "two")]
    arguments = [
        *(*net.chain_arguments("validator"), "--dont_set_weights", "--max_epochs", "1", "--poll_seconds", "0.05"),
        *("--model_path", tiny_model, "--training_args", write_training_args(net.parts.folder / "args.yaml")),
        *("--blocks_per_epoch", "20", "--block_threshold", "5", "--lucky_num", "5", "--wandb.off"),
    ]
    starts = [(VALIDATOR, *arguments, "--state_dir", folder) for folder in folders]
    with (
        Process(*starts[0], env=net.environment("validator")) as first,
        Process(*starts[1], env=net.environment("validator")) as second,
    ):
        assert [first.finish(), second.finish()] == [0, 0], [*first.logs[-5:], *second.logs[-5:]]
    losses = []
    for folder in folders:
        with Store(folder / "validator.sqlite3", is_read_only=True) as store:
            losses += [line.loss for line in store.leaderboard(1) if line.key == key]
    assert len(losses) == 2 and losses[0] is not None and losses[0] == losses[1]
    assert sorted(Path("/").iterdir()) == before
