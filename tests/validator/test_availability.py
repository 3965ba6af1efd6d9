"""Paid files must stay readable: a missing day costs pay, a Hub fault does not."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from template.competition import CommitmentRecord, Incentives, Reward, Seeds, bind_digest
from template.constants import DATA_FILE, DAY_BLOCKS
from template.errors import Reason
from template.hub.datasets import upload_dataset
from template.localnet.hub.answers import Answer, Rule, set_answers
from template.localnet.hub.store import upload_files
from template.rules.schedule import Policy
from tests.fixtures.audit import audit_files
from tests.fixtures.faulty_hub import FaultKind, HubFault, set_faults
from tests.fixtures.network import LARGE, POOL, SMALL, Net, make_content
from tests.fixtures.observers import about, hub_requests
from tests.fixtures.validator import Bench, open_bench

# Five rounds are a day.
POLICY = Policy(blocks_per_epoch=DAY_BLOCKS // 5, block_threshold=300)
# Blocks between two ticks: a round has room for each of its steps.
STEP = 120
REFUSED_BY_STORE = HubFault(kind=FaultKind.STATUS, status=403, pattern="GET .*alice/data/resolve")
ALL_DOWN = HubFault(kind=FaultKind.STATUS, status=503, pattern="/data")
LOGIN_WALL = HubFault(kind=FaultKind.STATUS, status=401, pattern=".*")

# One evaluation confirms a dataset, and each is paid for what it improves.
RECORDS = Incentives(
    reward=Reward.IMPROVEMENT, seeds=Seeds.CHAIN, epsilon=0.0, sd=1.0, evaluations=1, hold=1, slots=10, update_blocks=0,
    blocks_per_epoch=POLICY.blocks_per_epoch,
)  # fmt: skip
RECORD, JUNK = POOL[26:], POOL[-5:]


@contextmanager
def open_paid(net: Net) -> Iterator[Bench]:
    """Open a validator that has paid alice and bob in one round."""
    net.submit("alice", LARGE)
    net.submit("bob", SMALL)
    with open_bench(net, policy=POLICY, blocks=STEP) as bench:
        bench.run_rounds()
        assert len(bench.weights()) == 2
        yield bench


@contextmanager
def open_records(net: Net, text: str) -> Iterator[Bench]:
    """Open a validator that has paid a record of bob and then one of alice.

    text: alice's commitment. In the last round she has committed to another dataset.
    """
    net.submit("bob", POOL[:60])
    net.commit("alice", text)
    with open_bench(net, policy=POLICY, incentives=RECORDS, blocks=STEP, lucky_num=None) as bench:
        bench.run_rounds()
        assert len(bench.weights()) == 2
        net.submit("alice", JUNK)
        bench.run_rounds(2)
        assert len(bench.weights()) == 2
        yield bench


def repo_folder(net: Net, name: str, repo: str = "data") -> Path:
    return net.hub.store._folder("datasets", f"{name}/{repo}")


def delete_repo(net: Net, name: str) -> None:
    shutil.rmtree(repo_folder(net, name))


def is_paid(bench: Bench, net: Net, name: str) -> bool:
    return net.hotkey(name) in bench.weights()


def test_file_missing_for_a_day_is_not_paid(net: Net) -> None:
    with open_paid(net) as bench:
        delete_repo(net, "alice")
        bench.run_rounds(5)
        assert is_paid(bench, net, "alice"), "a day is allowed"
        bench.run_rounds(2)
        assert not is_paid(bench, net, "alice") and is_paid(bench, net, "bob")
        assert bench.lines()[net.hotkey("alice")].reason is Reason.MISSING_FILE


def test_missing_file_is_paid_again_after_its_return(net: Net) -> None:
    with open_paid(net) as bench:
        set_faults(net.hub.store.root, REFUSED_BY_STORE)
        bench.run_rounds(7)
        assert not is_paid(bench, net, "alice"), "listed and refused is missing too"
        set_faults(net.hub.store.root)
        bench.run_rounds(3)
        assert is_paid(bench, net, "alice") and bench.store.absences() == {}
        first, second = bench.store.stands()[net.hotkey("alice")]
        assert first.last_block < second.first_block - POLICY.blocks_per_epoch, "its rank is the return"
        assert len(bench.evaluator.scored) == 2, "nothing is evaluated again"


def test_copy_of_a_missing_dataset_stays_a_duplicate(net: Net) -> None:
    with open_paid(net) as bench:
        delete_repo(net, "alice")
        bench.run_rounds(7)
        net.submit("carol", LARGE)
        bench.run_rounds(2)
        assert bench.lines()[net.hotkey("carol")].reason is Reason.DUPLICATE


@pytest.mark.parametrize("fault", [ALL_DOWN, LOGIN_WALL], ids=["down", "login wall"])
def test_fault_of_the_whole_hub_costs_nobody(net: Net, fault: HubFault) -> None:
    with open_paid(net) as bench:
        set_faults(net.hub.store.root, fault)
        bench.run_rounds(7)
        assert len(bench.weights()) == 2 and bench.store.absences() == {}


def test_listed_file_that_is_refused_loses_its_rank(net: Net) -> None:
    attributes = {".gitattributes": b"*.jsonl filter=lfs diff=lfs merge=lfs -text\n"}
    upload_files(net.hub.store.root, "alice/data", attributes)
    net.submit("alice", LARGE)
    set_answers(net.hub.store.root, Rule(answer=Answer.STORE_REFUSES, repo="alice/data"))
    with open_bench(net, policy=POLICY, blocks=STEP) as bench:
        bench.run_rounds(4)
        assert bench.verdicts() == {}
        set_answers(net.hub.store.root)
        bench.run_rounds(4)
        assert is_paid(bench, net, "alice")
        (stand,) = bench.store.stands()[net.hotkey("alice")]
        assert stand.missing_block > stand.first_block, "ranked like a file that came late"


def test_round_is_searched_once_also_after_a_restart(net: Net) -> None:
    with open_paid(net) as bench:
        delete_repo(net, "alice")
        bench.run_rounds()
        bench.tick_until(lambda: [absence.rounds for absence in bench.store.absences().values()] == [2])
    with open_bench(net, policy=POLICY, blocks=0) as bench, hub_requests() as requests:
        bench.tick_until(lambda: about(requests, "bob/data/resolve"))
        bench.tick(2)
        assert len(about(requests, "bob/data/resolve")) == 1, "one read of one byte"
        assert [absence.rounds for absence in bench.store.absences().values()] == [2]


def test_datasets_outside_the_ledger_are_not_searched(net: Net) -> None:
    with open_paid(net) as bench:
        net.submit("carol", POOL[:1])
        bench.evaluator.before[:] = [RuntimeError("the GPU fell off")] * 3
        bench.run_rounds(2)
        with hub_requests() as requests:
            bench.run_rounds()
        assert about(requests, "carol/data") == [] and about(requests, "alice/data") != []


def test_deleted_record_is_unpaid_until_it_is_back(net: Net) -> None:
    commit = upload_files(net.hub.store.root, "alice/first", {DATA_FILE: make_content(RECORD)})
    with open_records(net, str(CommitmentRecord("alice/first", net.competition.id, commit))) as bench:
        folder = repo_folder(net, "alice", "first")
        folder.rename(folder.with_name("hidden"))
        bench.run_rounds(5)
        assert is_paid(bench, net, "alice"), "a day is allowed"
        bench.run_rounds(2)
        row = bench.lines()[net.hotkey("alice")]
        assert not is_paid(bench, net, "alice") and is_paid(bench, net, "bob")
        assert (row.reason, row.credit) == (None, 0.0)
        assert "unpaid records" in row.message and "the file is missing on the Hub" in row.message
        last = bench.store.last_round()
        assert last is not None
        line = bench.store.ledger(last.id)[1]
        assert line.is_absent and line.credit > 0.0, "it still sets the frontier"
        folder.with_name("hidden").rename(folder)
        bench.run_rounds(2)
        assert is_paid(bench, net, "alice") and bench.store.absences() == {}
    report = audit_files(net, [net.parts.folder / "state" / "rounds"], RECORDS)
    assert report.findings == []
    assert any("unpaid for a missing file" in note for note in report.notes)


def test_record_in_the_history_of_its_repo_is_paid(net: Net) -> None:
    content, token = make_content(RECORD), net.hub_token("alice")
    upload_dataset(content, "alice/data", token=token)
    digest = bind_digest(hashlib.sha256(content).hexdigest(), net.hotkey("alice"))
    with open_records(net, str(CommitmentRecord("alice/data", net.competition.id, digest))) as bench:
        # A validator that has no copy downloads one, once.
        shutil.rmtree(bench.validator.config.data_dir / net.hotkey("alice") / f"alice--data-{digest}")
        bench.run_rounds(7)
        assert is_paid(bench, net, "alice")
        with hub_requests() as requests:
            bench.run_rounds()
        assert len(about(requests, "GET /datasets/alice/data/resolve")) == 2, "one byte of each of two files"
        delete_repo(net, "alice")
        net.submit("alice", JUNK)
        bench.run_rounds(7)
        assert not is_paid(bench, net, "alice") and bench.lines()[net.hotkey("alice")].reason is None


def test_hub_without_any_file_leaves_records_paid(net: Net) -> None:
    commit = upload_files(net.hub.store.root, "alice/first", {DATA_FILE: make_content(RECORD)})
    with open_records(net, str(CommitmentRecord("alice/first", net.competition.id, commit))) as bench:
        set_faults(net.hub.store.root, LOGIN_WALL)
        bench.run_rounds(7)
        assert len(bench.weights()) == 2 and bench.store.absences() == {}
