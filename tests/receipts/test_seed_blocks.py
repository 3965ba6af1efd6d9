"""Honest validators whose datasets left and came back: no audit may doubt the blocks of their seeds."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from template.chain.client import beacon_round_at
from template.receipts.files import read_round
from template.receipts.findings import Kind
from template.receipts.round_file import EvaluationLine
from template.records import SubmissionKey
from template.rules.schedule import Policy
from tests.fixtures.audit import PERIOD, RULES, audit_files
from tests.fixtures.network import POOL, Net
from tests.fixtures.validator import Bench, open_bench

RETURN_RULES = dataclasses.replace(RULES, evaluations=6, hold=30, slots=4)
DOUBTS = {Kind.RANK, Kind.PLAN, Kind.SEED, Kind.INCONSISTENT, Kind.WEIGHTS}


@contextmanager
def opened(net: Net) -> Iterator[tuple[Bench, SubmissionKey]]:
    """A validator of two datasets before its first round, and the first dataset."""
    key = net.submit("alice", POOL[:60])
    net.submit("bob", POOL[60:100])
    net.align(PERIOD)
    policy = Policy(max_rounds=30, blocks_per_epoch=PERIOD, block_threshold=5, start_block=PERIOD)
    with open_bench(net, policy=policy, incentives=RETURN_RULES, lucky_num=None) as bench:
        yield bench, key


def doubts(net: Net) -> list[str]:
    """Audit all files, and return the findings about ranks, plans, seeds and weights."""
    report = audit_files(net, [net.parts.folder / "state" / "rounds"], RETURN_RULES)
    return [finding.text for finding in report.findings if finding.kind in DOUBTS]


def evaluations_of(net: Net, name: str) -> list[EvaluationLine]:
    """Return the planned evaluations of a hotkey, by round."""
    folder: Path = net.parts.folder / "state" / "rounds"
    files = sorted((read_round(path) for path in folder.iterdir()), key=lambda file: file.header.start_block)
    return [line for file in files for line in file.header.evaluations if line.hotkey == net.hotkey(name)]


@pytest.mark.slow
def test_record_registered_again_is_audited_clean(net: Net) -> None:
    with opened(net) as (bench, key):
        bench.run_rounds(5)
        net.admin.deregister(net.hotkey("alice"))
        bench.run_rounds(1)
        net.admin.register(net.hotkey("alice"))
        net.commit("alice", key.commitment)
        bench.run_rounds(3)
    assert [line.number for line in evaluations_of(net, "alice")][-1] > RETURN_RULES.evaluations
    assert doubts(net) == []


@pytest.mark.slow
def test_sealed_return_keeps_seeds_and_is_audited_clean(net: Net) -> None:
    with opened(net) as (bench, key):
        bench.run_rounds(1)
        net.commit("alice", "junk:other:" + "0" * 64)
        bench.run_rounds(2)
        sealed = net.chain("alice").publish_sealed(key.commitment, beacon_round_at(time.time()) + 1000)
        assert sealed.is_accepted
        bench.run_rounds(6)
        net.admin.reveal(net.hotkey("alice"), key.commitment)
        bench.run_rounds(6)
    revealed = 11 * PERIOD
    for line in evaluations_of(net, "alice"):
        first = PERIOD if line.number <= RETURN_RULES.evaluations else revealed
        assert line.seed_block == first + (line.number - 1) // 2 * PERIOD, line
    assert line.number > RETURN_RULES.evaluations
    assert doubts(net) == []
