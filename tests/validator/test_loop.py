"""Verdicts and weights on a real local chain and hub, with an evaluator that needs no model."""

import dataclasses
from typing import Any

import pytest

from template.chain.client import verify_signature
from template.errors import Reason, SubmissionError
from template.localnet.network import make_hotkey
from template.receipts.files import read_round
from template.receipts.verify import check_against_chain, check_consistency, check_signatures
from template.records import ChainView
from template.rules.schedule import Policy
from template.rules.scoring import score_of
from template.rules.seeds import seed_block, seed_from_hash
from template.validator import submission_index
from template.validator.config import LuckyNumFrom
from tests.fixtures.logs import log_lines
from tests.fixtures.network import (
    LARGE,
    POOL,
    SMALL,
    Net,
    SteppingChain,
    make_copy,
    make_line,
    run_bounded,
)
from tests.fixtures.validator import open_bench


def test_every_rejection_is_in_the_leaderboard(net: Net) -> None:
    names = ["early", "mute", "foreign", "bare", "torn", "hollow", "elsewhere", "gone", "deaf"]
    keys = {}
    for name in names:
        make_hotkey(net.parts, name)
        net.admin.register(net.hotkey(name))
    bare = net.upload("bare", b"x", file="other.txt")
    keys["early"] = net.submit("early", SMALL)
    net.admin.deregister(net.hotkey("early"))
    net.admin.register(net.hotkey("early"))
    keys["mute"] = net.commit("mute", "anything at all")
    keys["foreign"] = net.submit("foreign", [*POOL[:3], make_line(10**6)])
    keys["bare"] = net.commit("bare", f"bare/data:{net.competition.id}:{bare}")
    keys["torn"] = net.submit("torn", b'{"conversations": [}\n')
    keys["hollow"] = net.submit("hollow", b"\n\n")
    keys["elsewhere"] = net.commit("elsewhere", f"alice/data:other:{'0' * 40}")
    keys["gone"] = net.commit("gone", f"gone/data:{net.competition.id}:{'0' * 40}")
    keys["deaf"] = net.submit("deaf", b'{"conversations": [{"role": "user", "content": "anyone?"}]}\n')
    keys["alice"] = net.submit("alice", LARGE)
    keys["bob"] = net.submit("bob", make_copy())
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        lines = bench.lines()
    assert {name: lines[key.hotkey].reason for name, key in keys.items()} == {
        "early": Reason.BEFORE_REGISTRATION,
        "mute": Reason.BAD_COMMITMENT,
        "foreign": Reason.NOT_IN_POOL,
        "bare": Reason.MISSING_FILE,
        "torn": Reason.MALFORMED,
        "hollow": Reason.EMPTY,
        "elsewhere": Reason.WRONG_COMPETITION,
        "gone": Reason.MISSING_REPO,
        "deaf": Reason.NOT_IN_POOL,
        "alice": None,
        "bob": Reason.DUPLICATE,
    }
    assert all(line.message and line.weight == 0.0 for line in lines.values() if line.reason)
    assert lines[net.hotkey("alice")].weight == 1.0


def test_rejection_by_training_is_a_verdict(net: Net) -> None:
    key = net.submit("alice", SMALL)
    with open_bench(net, before=[SubmissionError(Reason.DIVERGED, "not finite at step 3")]) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].reason is Reason.DIVERGED
        assert bench.evaluator.scored == []


def test_weights_are_the_scores_and_receipts_are_signed(net: Net) -> None:
    keys = {name: net.submit(name, rows) for name, rows in (("alice", LARGE), ("bob", SMALL), ("carol", POOL[40:80]))}
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


def test_without_scores_all_is_burned(net: Net) -> None:
    key = net.submit("alice", [make_line(10**6)])
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 0.0
    assert net.admin.weights(net.hotkey("validator")) == {0: 65535}


def test_without_an_owner_uid_no_weights_are_set(net: Net) -> None:
    with net.admin.write() as state:
        state.put("SubnetOwnerHotkey", "", "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY")
    with log_lines() as lines, open_bench(net, policy=Policy(max_rounds=1, blocks_per_epoch=30)) as bench:
        run_bounded(bench.validator)
        assert set(bench.outcomes()) == {False}
    assert net.admin.weights(net.hotkey("validator")) is None
    assert any("no weights set: " in line for line in lines)


def test_recycled_uid_inherits_nothing(net: Net) -> None:
    net.submit("alice", LARGE)
    net.submit("bob", SMALL)
    uid = net.uid("alice")
    stranger = make_hotkey(net.parts, "stranger")
    with open_bench(net) as bench:
        bench.tick_until(lambda: len(bench.evaluator.scored) == 1)
        net.admin.deregister(net.hotkey("alice"), replacement=stranger)
        run_bounded(bench.validator)
        assert bench.lines()[net.hotkey("alice")].weight > 0 and stranger not in bench.lines()
        assert list(bench.validator.config.data_dir.iterdir()) == [], "datasets with a verdict are removed"
    weights = net.admin.weights(net.hotkey("validator"))
    assert weights == {net.uid("bob"): 65535} and uid not in weights


def test_hotkey_registered_again_has_to_commit_again(net: Net) -> None:
    key = net.submit("alice", LARGE)
    net.submit("bob", SMALL)
    with open_bench(net) as bench:
        bench.tick_until(lambda: len(bench.evaluator.scored) == 1)
        net.admin.deregister(key.hotkey)
        net.admin.register(key.hotkey)
        run_bounded(bench.validator)
    assert net.admin.weights(net.hotkey("validator")) == {net.uid("bob"): 65535}
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].reason is Reason.BEFORE_REGISTRATION


class BackwardChain(SteppingChain):
    """Returns the commitments and neurons of every view in reverse."""

    def view(self, block: int | None = None) -> ChainView:
        view = super().view(block)
        return dataclasses.replace(view, commitments=view.commitments[::-1])


@pytest.mark.parametrize("way", ["one by one", "backwards"])
def test_order_and_sampling_change_no_verdict(net: Net, way: str) -> None:
    # The original's hotkey sorts after the duplicate's, so that sorting by name would fail here.
    copycat, author = sorted(("alice", "bob"), key=net.hotkey)
    for name, rows in ((author, LARGE), (copycat, make_copy()), ("carol", SMALL), ("owner", POOL[50:70])):
        net.submit(name, rows)
    with open_bench(net, "plain") as bench:
        run_bounded(bench.validator)
        expected = bench.lines()
        in_plain_order = list(bench.evaluator.scored)
    small = Policy(
        blocks_per_epoch=15, block_threshold=0, miner_sample_size=1, miner_duplicate_sample_size=1, max_rounds=4
    )
    policy, kind = (small, SteppingChain) if way == "one by one" else (Policy(max_rounds=1), BackwardChain)
    with open_bench(net, "other", policy=policy, chain=kind(net, "validator")) as bench:
        run_bounded(bench.validator)
        assert bench.lines() == expected
        assert sorted(bench.evaluator.scored) == sorted(in_plain_order)
    assert sum(line.loss is not None for line in expected.values()) == 3
    assert expected[net.hotkey(copycat)].reason is Reason.DUPLICATE


def test_every_round_draws_its_own_seed(net: Net) -> None:
    policy = Policy(blocks_per_epoch=5, block_threshold=0, max_rounds=2, sets_weights=False)
    with open_bench(net, policy=policy, lucky_num=None) as bench:
        bench.tick_until(lambda: bench.store.last_round() is not None)
        first = bench.store.last_round()
        run_bounded(bench.validator)
        second = bench.store.last_round()
    assert first is not None and second is not None
    assert (first.id, second.id) == (1, 2) and first.lucky_num != second.lucky_num


def test_offline_evaluates_without_wallet_or_writes(net: Net) -> None:
    key = net.submit("alice", SMALL)
    calls = net.calls()
    policy = Policy(max_rounds=1, sets_weights=False)
    with open_bench(net, policy=policy, chain=SteppingChain(net, None), is_offline=True) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0
        assert bench.outcomes() == []
        assert bench.receipts()[key.hotkey].signature is None
    assert net.calls() == calls


def test_weights_can_be_left_unset(net: Net) -> None:
    key = net.submit("alice", SMALL)
    calls = net.calls()
    with open_bench(net, policy=Policy(max_rounds=1, sets_weights=False)) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0
        assert bench.receipts()[key.hotkey].signature is not None
    assert net.calls() == calls


ALIGNED = Policy(blocks_per_epoch=30, block_threshold=5, is_aligned=True)


def test_chain_seeds_belong_to_the_submission(net: Net) -> None:
    keys = {name: net.submit(name, rows) for name, rows in (("alice", LARGE), ("bob", SMALL))}
    net.admin.advance(30)
    policy = dataclasses.replace(ALIGNED, miner_sample_size=1, max_rounds=3)
    with open_bench(net, policy=policy, lucky_num=None, lucky_num_from=LuckyNumFrom.CHAIN) as bench:
        bench.tick_until(lambda: bench.store.last_round() is not None)
        opened = bench.store.last_round()
        assert opened is not None and bench.evaluator.scored == []
        run_bounded(bench.validator)
        receipts = bench.receipts()
    assert opened.start_block % 30 == 0 and opened.end_block == opened.start_block + 30
    commits = {entry.key.hotkey: entry for entry in opened.entries}
    for name, key in keys.items():
        entry = commits[key.hotkey]
        block = seed_block(entry.reveal_block, 30)
        assert entry.seed_block == block and entry.reveal_block <= block <= opened.start_block
        expected = seed_from_hash(net.chain(name).block_hash(block))
        assert entry.lucky_num == receipts[key.hotkey].result.lucky_num == expected


@pytest.mark.parametrize("seeds", list(LuckyNumFrom))
def test_every_round_leaves_a_valid_signed_file(net: Net, seeds: LuckyNumFrom) -> None:
    for name, rows in (("alice", LARGE), ("bob", SMALL), ("carol", make_copy()), ("owner", b"no json")):
        net.submit(name, rows)
    net.admin.advance(30)
    fixed = 7 if seeds is LuckyNumFrom.FIXED else None
    policy = dataclasses.replace(ALIGNED, is_aligned=seeds is LuckyNumFrom.CHAIN, miner_sample_size=1, max_rounds=3)
    random = LuckyNumFrom.RANDOM if seeds is LuckyNumFrom.FIXED else seeds
    with open_bench(net, policy=policy, lucky_num=fixed, lucky_num_from=random) as bench:
        bench.tick_until(lambda: bench.validator.rounds_done == 2)
        net.admin.deregister(net.hotkey("bob"))
        run_bounded(bench.validator)
        files = [read_round(path) for path in sorted(bench.store.path.with_name("rounds").iterdir())]
    files.sort(key=lambda file: file.header.start_block)
    assert [len(file.receipts) for file in files] == [1, 1, 0]
    known = {receipt.digest: receipt for file in files for receipt in file.receipts}
    for file in files:
        assert check_signatures(file, verify_signature) == (None, {})
        assert check_consistency(file, known) == []
        assert check_against_chain(file.header, net.chain("alice").block_hash) == []
    assert all(len(file.header.weights) == 1 and file.header.weights[0].is_accepted for file in files)


def test_superseded_commitments_are_not_kept_in_memory(net: Net) -> None:
    policy = Policy(blocks_per_epoch=10_000)
    alice = net.submit("alice", SMALL)
    with open_bench(net, policy=policy, chain=SteppingChain(net, "validator", blocks=0)) as bench:
        bench.tick_until(lambda: bool(bench.evaluator.scored))
        for number in range(30):
            last = net.commit("alice", f"alice/data:{net.competition.id}:{number:040x}")
            net.admin.advance(1)
            assert not bench.validator.tick()
        assert len(bench.store.submissions()) == 31
        assert set(bench.validator.index.submissions) == {alice, last}


def test_new_loss_does_not_search_duplicates_again(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    find_duplicates = submission_index.find_duplicates

    def look(entries: Any, seen: Any, datasets: Any) -> Any:
        looks.append(len(datasets))
        return find_duplicates(entries, seen, datasets)

    monkeypatch.setattr(submission_index, "find_duplicates", look)
    for name, rows in (("alice", LARGE), ("bob", SMALL), ("carol", POOL[5:9])):
        net.submit(name, rows)
    with open_bench(net, policy=Policy(blocks_per_epoch=10_000)) as bench:
        bench.tick_until(lambda: len(bench.evaluator.scored) == 3 and bool(bench.outcomes()), ticks=300)
    assert len(looks) <= 6 and max(looks) == 3, "one at the opening, and one for each dataset"
