"""Defects of the public reference, second part: a validator that runs for months.

Each test is named after one defect, whose story its docstring tells, and says what holds here instead. The other parts
are `test_reference_defects` and `test_reference_defects_project`.
"""

import dataclasses
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from neurons import validator
from template import constants
from template.errors import ConfigError, Reason, RemoteError
from template.localnet.chain.chain import ChainFault
from template.localnet.hub import store as hub_store
from template.localnet.hub.faults import FaultKind, HubFault, set_faults
from template.localnet.network import make_hotkey
from template.records import ChainView
from template.rules.schedule import Policy
from template.updates import Release, Updater
from template.validator import evaluation
from tests.fixtures.chain import CountingSubstrate
from tests.fixtures.network import LARGE, POOL, ROOT, SMALL, Net, SteppingChain, make_content, make_line, run_bounded
from tests.fixtures.reference_defects import SHORT, about, hub_requests, weights_of
from tests.fixtures.validator import log_lines, open_bench


def test_16a_a_file_over_the_limit_is_refused_without_being_fetched(net: Net) -> None:
    """Size and time of a download were without limit, and the file was parsed whole before it was cut."""
    key = net.submit("alice", b"x" * (constants.MAX_SUBMISSION_BYTES + 1))
    with hub_requests() as asked, open_bench(net) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].reason is Reason.TOO_LARGE
    assert about(asked, "alice/data") and not about(asked, "alice/data/resolve/")


def test_16b_of_a_repository_one_file_is_fetched(net: Net) -> None:
    """The whole repository of a miner was downloaded."""
    files = {"data.jsonl": make_content(SMALL), "weights.bin": b"x" * 10_000, "more/data.jsonl": b"{}"}
    commit = hub_store.upload_files(net.hub.store.root, "alice/data", {**files})
    net.commit("alice", f"alice/data:{net.competition.id}:{commit}")
    with hub_requests() as asked, open_bench(net) as bench:
        bench.executor.hold = True
        bench.tick_until(lambda: bool(bench.executor.running()))
        held = sorted(path.name for path in bench.validator.config.data_dir.rglob("*") if path.is_file())
    assert held == [".source.json", "data.jsonl"]
    assert [one.rpartition("/resolve/")[2] for one in about(asked, "alice/data/resolve/")] == [f"{commit}/data.jsonl"]


def test_16c_a_download_that_never_ends_is_given_up(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """One miner's slow server held everybody up."""
    slow = net.submit("alice", POOL[:10])
    net.submit("bob", SMALL)
    monkeypatch.setattr(evaluation, "PATIENCE_FIRST_S", 0.4)
    monkeypatch.setattr(constants, "DOWNLOAD_DEADLINE_S", 0.4)
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.DRIP, seconds=0.02, pattern="alice/data/resolve"))
    with open_bench(net, policy=SHORT) as bench:
        run_bounded(bench.validator)
        assert bench.store.retry_states(bench.eval_config)[slow].remote_failures >= 1
    assert weights_of(net) == {net.uid("bob"): 65535}


def test_17_the_next_miner_on_a_uid_inherits_no_file(net: Net) -> None:
    """Folders were named by uid, so a newcomer without a file was scored on its predecessor's."""
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


def test_18_what_was_fetched_is_kept_and_what_failed_rests(net: Net) -> None:
    """Each pair of miners had both datasets fetched again, and each pair asked anew for what had failed."""
    for number, name in enumerate(("alice", "bob", "carol")):
        net.submit(name, POOL[30 * number : 30 * number + 30])
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=503, pattern="carol/data"))
    with hub_requests() as asked, open_bench(net, policy=dataclasses.replace(SHORT, max_rounds=3)) as bench:
        run_bounded(bench.validator)
        failed = bench.store.retry_states(bench.eval_config)[bench.lines()[net.hotkey("carol")].key]
    assert [len(about(asked, f"{name}/data/resolve/")) for name in ("alice", "bob")] == [1, 1]
    assert len(about(asked, "carol/data")) == failed.remote_failures < 10


class StumblingChain(SteppingChain):
    """Fails at every other view, each time in another way."""

    def __init__(self, net: Net, name: str) -> None:
        super().__init__(net, name)
        self._turns = itertools.count()

    def view(self, block: int | None = None) -> ChainView:
        turn = next(self._turns)
        if turn % 2:
            raise (ZeroDivisionError("a bug"), RemoteError("no answer"), TimeoutError())[turn // 2 % 3]
        return super().view(block)


def test_19a_no_error_of_a_step_ends_the_validator(net: Net) -> None:
    """Any error of chain, Hub or database ended the process."""
    key = net.submit("alice", SMALL)
    with open_bench(net, policy=SHORT, chain=StumblingChain(net, "validator")) as bench:
        bench.validator.config = dataclasses.replace(bench.validator.config, poll_s=1e-6)
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0 and bench.outcomes() == [True]


def test_19b_a_round_in_which_nobody_has_a_score_ends_like_any_other(net: Net) -> None:
    """Without a scored row the reference ended, was restarted and ended again."""
    with log_lines() as told, open_bench(net, policy=dataclasses.replace(SHORT, max_rounds=2)) as bench:
        run_bounded(bench.validator)
        assert bench.validator.rounds_done == 2
    assert weights_of(net) == {0: 65535}
    assert not [line for line in told if "bug" in line]


def test_20_a_hub_that_is_down_at_the_start_leaves_nothing_half_made(net: Net) -> None:
    """The competition was stored without a revision, and the next step died of storing it twice."""
    net.submit("alice", SMALL)
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=503, pattern="sample/pool"))
    for _ in range(2):
        with open_bench(net) as bench:
            for _ in range(2):
                with pytest.raises(RemoteError):
                    bench.validator.tick()
    set_faults(net.hub.store.root)
    for _ in range(2):
        with open_bench(net) as bench:
            run_bounded(bench.validator)
            assert bench.eval_config.id == 1 and bench.outcomes() == [True]


def test_21_what_was_committed_while_the_validator_was_down_is_scored(net: Net) -> None:
    """Commitments were read for half an hour a day; who was down then had nothing to score."""
    with open_bench(net) as bench:
        run_bounded(bench.validator)
    key = net.submit("alice", SMALL)
    net.admin.advance(20_000)
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0
    assert weights_of(net) == {net.uid("alice"): 65535}


def test_22a_nothing_is_updated_without_being_asked(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step fetched, checked out and restarted, and nothing switched that off."""
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


def test_22b_an_update_comes_between_rounds_and_ends_the_process(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """It came in the middle of whatever was going on, and what waited to be revealed was lost."""
    net.submit("alice", SMALL)
    monkeypatch.setattr("template.validator.loop.UPDATE_EVERY_S", 0.0)
    with open_bench(net, policy=dataclasses.replace(SHORT, max_rounds=None)) as bench:
        states: list[tuple[bool, int, list[bool | None]]] = []

        def update() -> bool:
            is_open = bench.store.open_round(bench.eval_config) is not None
            outcomes = bench.outcomes() if bench.store.last_round() else []
            states.append((is_open, len(bench.executor.running()), outcomes))
            return len(states) == 3

        bench.validator._update = update
        run_bounded(bench.validator)
        assert states == [(False, 0, []), (False, 0, [True]), (False, 0, [True])]
        assert bench.validator.is_updated and bench.executor.is_closed
        assert bench.store.open_round(bench.eval_config) is None


def test_22c_work_of_the_operators_own_is_never_checked_out_over(tmp_path: Path) -> None:
    """A forced checkout threw local changes away."""
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "contrib").mkdir()
    (clone / "contrib" / "allowed_signers").write_text("# none\n")
    (clone / "mine.py").write_text("as released\n")
    git = ["git", "-c", "user.name=owner", "-c", "user.email=owner@example.org", "-C", str(clone)]
    for words in (["init", "-q"], ["remote", "add", "origin", str(clone)], ["add", "."], ["commit", "-qm", "1"]):
        subprocess.run([*git, *words], check=True)
    shown = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    (clone / "mine.py").write_text("my own\n")
    updater = Updater(clone, running="0.1.0", python=Path(sys.executable))
    with pytest.raises(ConfigError, match=r"changes of its own: mine\.py"):
        updater.install(Release("v9.9.9", "0" * 40, shown.stdout.strip()))
    assert (clone / "mine.py").read_text() == "my own\n"


@pytest.mark.parametrize("fault", [ChainFault.LOSE_ANSWER, ChainFault.ERROR])
def test_23a_weights_whose_answer_is_lost_are_neither_forgotten_nor_set_twice(net: Net, fault: ChainFault) -> None:
    """Weights that failed were noted as set for the epoch; those that may have landed were made again."""
    net.submit("alice", SMALL)
    net.admin.set_fault("write", fault)
    with open_bench(net) as bench, suppress(RemoteError):
        bench.tick_until(lambda: False)
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        assert bench.outcomes()[-1] is True
    assert weights_of(net) == {net.uid("alice"): 65535}
    assert net.count_calls("validator", "set_mechanism_weights") == 1


def test_23b_refused_weights_are_tried_again_for_those_who_still_hold_their_uids(net: Net) -> None:
    """A refusal ended the epoch's only try, and weights were made for uids long before they were set."""
    for name, rows in (("alice", LARGE), ("bob", SMALL)):
        net.submit(name, rows)
    net.admin.set_hyperparameter("StakeThreshold", 10**18)
    with open_bench(net, policy=Policy(max_rounds=1, blocks_per_epoch=60)) as bench:
        bench.tick_until(lambda: len(bench.evaluator.scored) == 2)
        bench.tick_until(lambda: bench.outcomes() == [False, False])
        net.admin.deregister(net.hotkey("alice"), replacement=make_hotkey(net.parts, "stranger"))
        net.admin.set_hyperparameter("StakeThreshold", 0)
        run_bounded(bench.validator)
    assert weights_of(net) == {net.uid("bob"): 65535}


def test_23c_weights_kept_over_a_restart_belong_to_hotkeys_and_fit_a_subnet_that_grew(net: Net) -> None:
    """They were kept by uid: whoever took one over inherited, and a subnet that had grown broke the length."""
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
        assert [one.is_repeat for one in bench.store.intents(1)] == [False, True]
    assert weights_of(net) == {net.uid("bob"): 65535}


def _let_repeat(net: Net) -> None:
    """From here on no evaluation set can be had, and the last weights will soon be too old."""
    net.admin.set_hyperparameter("Tempo", 10)
    net.admin.set_hyperparameter("ActivityCutoffFactorMilli", 10_000)
    shutil.rmtree(net.parts.folder / "state" / "eval_data")
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=503))


def test_23d_an_owner_without_a_uid_is_not_burned_to(net: Net) -> None:
    """`weights[None] = 1` gave the same weight to everybody."""
    net.submit("alice", [make_line(10**6)])
    with net.admin._ledger.write() as state:
        state.put("SubnetOwnerHotkey", "", make_hotkey(net.parts, "absent"))
    with open_bench(net, policy=SHORT) as bench:
        run_bounded(bench.validator)
        assert set(bench.outcomes()) == {False}
    assert weights_of(net) is None and net.count_calls("validator", "set_mechanism_weights") == 0


def test_23e_sealed_weights_need_nothing_of_this_process_to_be_revealed(net: Net) -> None:
    """The salt was kept in memory only, and a new commit replaced one that was still to be revealed."""
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
    """Counts the reads that reach the chain."""

    def __init__(self, net: Net, name: str) -> None:
        super().__init__(net, name)
        self.reads = self._substrate = CountingSubstrate(net.parts.chain_file)


def test_24a_a_look_at_the_chain_takes_as_many_reads_whatever_the_subnets_size(net: Net) -> None:
    """Two calls for every miner, and a look at the Hub for those that were scored already."""
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


def test_24b_weights_are_set_while_a_score_goes_on_and_on(net: Net) -> None:
    """A training longer than the window for weights let it pass."""
    net.submit("alice", SMALL)
    with open_bench(net, policy=SHORT) as bench:
        run_bounded(bench.validator)
    before = net.count_calls("validator", "set_mechanism_weights")
    net.submit("bob", LARGE)
    with open_bench(net, policy=SHORT) as bench:
        bench.executor.hold = True
        run_bounded(bench.validator)
        assert bench.outcomes() == [True] and bench.executor.evaluator.scored == []
    assert net.count_calls("validator", "set_mechanism_weights") == before + 1
    assert weights_of(net) == {net.uid("alice"): 65535}
