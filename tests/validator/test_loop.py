"""Verdicts and weights on a local chain and hub; the evaluator needs no model."""

import dataclasses

import pytest

from template.chain.client import verify_signature
from template.errors import Reason, SubmissionError
from template.localnet.network import make_hotkey
from template.receipts.files import read_round
from template.receipts.verify import check_against_chain, check_consistency, check_signatures
from template.records import SubmissionKey
from template.rules.schedule import Policy
from template.rules.scoring import score_of
from template.validator.config import LuckyNumFrom
from tests.fixtures.chain import register_again
from tests.fixtures.logs import log_lines
from tests.fixtures.network import LARGE, POOL, SMALL, Net, SteppingChain, make_copy, make_line, run_bounded
from tests.fixtures.observers import BackwardChain
from tests.fixtures.validator import QUICK, open_bench


def test_every_rejection_is_in_the_leaderboard(net: Net) -> None:
    for name in ("early", "mute", "foreign", "bare", "torn", "hollow", "elsewhere", "gone", "deaf", "hidden"):
        make_hotkey(net.parts, name)
        net.admin.register(net.hotkey(name))
    own = net.competition.id
    bare = net.upload("bare", b"x", file="other.txt")
    hidden = net.upload("hidden", SMALL, private=True)
    deaf = b'{"conversations": [{"role": "user", "content": "anyone?"}]}\n'
    expected: dict[SubmissionKey, Reason | None] = {
        net.submit("early", SMALL): Reason.BEFORE_REGISTRATION,
        net.commit("mute", "anything at all"): Reason.BAD_COMMITMENT,
        net.submit("foreign", [*POOL[:3], make_line(10**6)]): Reason.NOT_IN_POOL,
        net.commit("bare", f"bare/data:{own}:{bare}"): Reason.MISSING_FILE,
        net.submit("torn", b'{"conversations": [}\n'): Reason.MALFORMED,
        net.submit("hollow", b"\n\n"): Reason.EMPTY,
        net.commit("elsewhere", f"alice/data:other:{'0' * 40}"): Reason.WRONG_COMPETITION,
        net.commit("gone", f"gone/data:{own}:{'0' * 40}"): Reason.MISSING_REPO,
        net.submit("deaf", deaf): Reason.NOT_IN_POOL,
        net.commit("hidden", f"hidden/data:{own}:{hidden}"): Reason.MISSING_REPO,
        net.submit("alice", LARGE): None,
        net.submit("bob", make_copy()): Reason.DUPLICATE,
    }
    register_again(net.admin, net.hotkey("early"))
    with open_bench(net, hub_token="hf_local_hidden") as bench:
        run_bounded(bench.validator)
        lines = bench.lines()
        assert {line.key: line.reason for line in lines.values()} == expected
        assert all(line.message for line in lines.values() if line.reason)
        assert bench.weights() == {net.hotkey("alice"): 1.0}


def test_rejection_by_training_is_a_verdict(net: Net) -> None:
    key = net.submit("alice", SMALL)
    with open_bench(net, before=[SubmissionError(Reason.DIVERGED, "not finite at step 3")]) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].reason is Reason.DIVERGED
        assert bench.evaluator.scored == []


def test_weights_are_the_scores_and_receipts_are_signed(net: Net) -> None:
    keys = {
        name: net.submit(name, rows) for name, rows in (("alice", POOL[:60]), ("bob", SMALL), ("carol", POOL[60:100]))
    }
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        lines, receipts = bench.lines(), bench.receipts()
    scores = {name: score_of(receipts[key.hotkey].result.loss, net.competition) for name, key in keys.items()}
    assert len(set(scores.values())) == 3 and min(scores.values()) > 0
    weights = net.admin.weights(net.hotkey("validator"))
    assert weights is not None
    for name, score in scores.items():
        assert lines[net.hotkey(name)].weight == pytest.approx(score / sum(scores.values()))
        assert weights[net.uid(name)] == pytest.approx(score / max(scores.values()) * 65535, abs=1)
        receipt = receipts[net.hotkey(name)]
        assert receipt.signer == net.hotkey("validator") and receipt.signature is not None
        assert verify_signature(receipt.signer, receipt.message(), receipt.signature)


def test_without_an_owner_uid_no_weights_are_set(net: Net) -> None:
    with net.admin.write() as state:
        state.put("SubnetOwnerHotkey", "", "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY")
    with log_lines() as lines, open_bench(net, policy=Policy(max_rounds=1, blocks_per_epoch=30)) as bench:
        run_bounded(bench.validator)
        assert set(bench.outcomes()) == {False}
    assert net.admin.weights(net.hotkey("validator")) is None
    assert any("no weights set: " in line for line in lines)


@pytest.mark.parametrize("way", ["one by one", "backwards"])
def test_order_and_slots_change_no_result(net: Net, way: str) -> None:
    # The original's hotkey sorts after the duplicate's, so that sorting by name would fail here.
    copycat, author = sorted(("alice", "bob"), key=net.hotkey)
    for name, rows in ((author, POOL[:60]), (copycat, make_copy(POOL[:60])), ("carol", SMALL), ("owner", POOL[62:100])):
        net.submit(name, rows)
    with open_bench(net, "plain") as bench:
        run_bounded(bench.validator)
        expected, in_plain_order = bench.lines(), list(bench.evaluator.scored)
    policy = Policy(blocks_per_epoch=20, block_threshold=5, max_rounds=4, miner_duplicate_sample_size=2)
    slots, kind = (1, SteppingChain) if way == "one by one" else (10, BackwardChain)
    incentives = dataclasses.replace(QUICK, slots=slots)
    with open_bench(net, "other", policy=policy, incentives=incentives, chain=kind(net, "validator")) as bench:
        run_bounded(bench.validator)
        # A credit is worth less in a later round.
        lines = {
            hotkey: dataclasses.replace(line, credit=expected[hotkey].credit) for hotkey, line in bench.lines().items()
        }
        assert lines == expected
        assert sorted(bench.evaluator.scored) == sorted(in_plain_order)
    assert sum(line.loss is not None for line in expected.values()) == 3
    assert expected[net.hotkey(copycat)].reason is Reason.DUPLICATE


@pytest.mark.parametrize("is_offline", [True, False], ids=["offline", "no weights"])
def test_without_weights_nothing_is_written_to_the_chain(net: Net, is_offline: bool) -> None:
    key = net.submit("alice", SMALL)
    calls = net.calls()
    chain = SteppingChain(net, None if is_offline else "validator")
    policy = Policy(max_rounds=1, blocks_per_epoch=20, block_threshold=5, sets_weights=False)
    with open_bench(net, policy=policy, chain=chain, is_offline=is_offline) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0 and bench.outcomes() == []
        assert (bench.receipts()[key.hotkey].signature is None) == is_offline
    assert net.calls() == calls


@pytest.mark.parametrize("seeds", list(LuckyNumFrom))
def test_every_round_leaves_a_valid_signed_file(net: Net, seeds: LuckyNumFrom) -> None:
    for name, rows in (("alice", LARGE), ("bob", SMALL), ("carol", make_copy()), ("owner", b"no json")):
        net.submit(name, rows)
    fixed = 7 if seeds is LuckyNumFrom.FIXED else None
    policy = Policy(blocks_per_epoch=30, block_threshold=5, max_rounds=3)
    source = None if seeds is LuckyNumFrom.FIXED else seeds
    incentives = dataclasses.replace(QUICK, slots=1)
    with open_bench(net, policy=policy, incentives=incentives, lucky_num=fixed, lucky_num_from=source) as bench:
        bench.run_rounds(2)
        net.admin.deregister(net.hotkey("bob"))
        run_bounded(bench.validator)
        files = [read_round(path) for path in sorted(bench.store.path.with_name("rounds").iterdir())]
    files.sort(key=lambda file: file.header.start_block)
    assert [len(file.receipts) for file in files] == [1, 1, 0]
    receipts = {receipt.digest: receipt for file in files for receipt in file.receipts}
    for file in files:
        assert check_signatures(file, verify_signature) == (None, {})
        assert check_consistency(file, receipts) == []
        assert check_against_chain(file.header, net.chain("alice").block_hash) == []
    assert all(len(file.header.weights) == 1 and file.header.weights[0].is_accepted for file in files)
