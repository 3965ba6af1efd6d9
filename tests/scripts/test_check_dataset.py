"""The dataset check against a local chain and hub."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts import check_dataset
from template.chain.timelock import beacon_round_at
from template.competition import CommitmentRecord
from template.constants import SEAL_GRACE_BLOCKS
from template.errors import Reason
from template.localnet.chain.ledger import ChainFault
from template.localnet.chain.substrate import LocalSubstrate
from template.localnet.network import NETUID, make_hotkey
from tests.fixtures.faulty_hub import FaultKind, HubFault, set_faults
from tests.fixtures.network import (
    LARGE,
    POOL,
    SMALL,
    Ended,
    Net,
    call_main,
    make_content,
    make_copy,
    make_line,
    use_hub,
    write_dataset,
    write_training_args,
)

TALK = [{"role": "user", "content": "word " * 1500}, {"role": "assistant", "content": "yes"}]
LONG = json.dumps({"conversations": TALK})


def run(net: Net, lines: Sequence[str], *more: object, is_online: bool = True) -> Ended:
    where = ["--netuid", NETUID, "--subtensor.network", net.parts.network] if is_online else ["--offline"]
    return call_main(
        check_dataset.main,
        *("--dataset_path", write_dataset(net.parts.folder / "mine", lines)),
        *("--competition", net.parts.competition, "--work_dir", net.parts.folder / "work"),
        *where,
        *more,
    )


def check(net: Net, lines: Sequence[str], *more: object, status: int = 0) -> dict[str, Any]:
    """Return the JSON that the command prints."""
    ended = run(net, lines, "--json", *more)
    assert ended.status == status, (ended.output, ended.logs)
    content: dict[str, Any] = json.loads(ended.output)
    return content


def spell_otherwise(line: str) -> str:
    """Return the row with a trailing space in each text, which no model reads."""
    row = json.loads(line)
    for turn in row["conversations"]:
        turn["content"] += " "
    return json.dumps(row)


def by_hotkey(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["hotkey"]: row for row in content["subnet"]["others"]}


def submit_by_digest(net: Net, name: str, lines: Sequence[str]) -> str:
    """Upload a file and return its commitment by sha256."""
    net.upload(name, lines)
    digest = hashlib.sha256(make_content(lines)).hexdigest()
    return str(CommitmentRecord(f"{name}/data", net.competition.id, digest))


def commit_sealed(net: Net, name: str, text: str) -> None:
    outcome = net.chain(name).publish_sealed(text, beacon_round_at(time.time() + 3600))
    assert outcome.is_accepted, outcome


def test_valid_dataset_is_ok(net: Net) -> None:
    net.submit("alice", LARGE)
    ended = run(net, SMALL, "--hf_repo_id", "me/data")
    assert ended.status == 0, ended.logs
    assert "24 rows, 24 of them well formed and counted, 0 problems" in ended.output
    assert "1 datasets compared" in ended.output
    assert "commitment me/data:sample:COMMIT, 55 of 128 bytes" in ended.output
    assert ended.output.endswith("OK: no problem found\n")


def test_all_problems_of_a_file_are_listed_by_line(net: Net) -> None:
    lines = [*POOL[:2], "{]", *POOL[2:6], make_line(10**6), '{"conversations": 5}', POOL[0]]
    ended = run(net, lines, is_online=False)
    assert ended.status == 6
    problems = [line.strip().split(": ")[:2] for line in ended.output.splitlines() if line.startswith("  line")]
    assert problems == [
        ["line 3", "malformed"],
        ["line 8", "not_in_pool"],
        ["line 9", "malformed"],
        ["line 10 repeats line 1"],
    ]
    assert ended.output.endswith("REJECTED: a validator would not count this dataset\n")


def test_problems_past_the_twentieth_are_counted(net: Net) -> None:
    lines = [make_line(10**6 + number) for number in range(33)]
    ended = run(net, lines, is_online=False)
    assert ended.output.count("not_in_pool") == 20
    assert "  line 20: not_in_pool" in ended.output and "  and 13 more\n" in ended.output
    assert len(check(net, lines, "--offline", status=6)["file"]["faults"]) == 33


def test_rows_past_the_limit_are_listed(net: Net) -> None:
    content = check(net, [*POOL[:112], make_line(10**6)], "--offline")
    assert content["file"]["spare_lines"] == [111, 112, 113]
    assert content["subnet"] is None


def test_repo_id_too_long_for_a_commitment_is_rejected(net: Net) -> None:
    content = check(net, SMALL, "--offline", "--hf_repo_id", f"{'m' * 40}/{'d' * 55}", status=6)
    assert "the chain's limit is 128" in content["bad_commitment"]
    assert content["file"]["faults"] == []


@pytest.fixture
def long_net(tmp_path: Path) -> Iterator[Net]:
    """A network whose evaluation set has a row that may lose its answer."""
    with Net(tmp_path / "network", ["alice"], pool=[*POOL, LONG]) as net, use_hub(net):
        yield net


def test_models_tokens_decide_whether_an_answer_is_cut(long_net: Net, tiny_model: Path) -> None:
    training_args = write_training_args(long_net.parts.folder / "args.yaml")
    model = ("--training_args", training_args, "--model_path", tiny_model)
    content = check(long_net, [*POOL[:2], LONG], "--offline", *model, status=6)
    assert [(fault["line"], fault["reason"]) for fault in content["file"]["faults"]] == [(3, Reason.NO_TARGET)]


def test_duplicate_is_rejected_with_its_lines(net: Net) -> None:
    key = net.submit("alice", LARGE)
    ended = run(net, make_copy())
    assert ended.status == 6
    assert f"{key.hotkey} (uid {net.uid('alice')}" in ended.output
    assert "earlier: shares 102 of 104 rows (over limit 100)" in ended.output
    content = check(net, make_copy(), status=6)
    (overlap,) = content["subnet"]["overlaps"]
    foreign = {number for number, line in enumerate(make_copy(), start=1) if line not in LARGE}
    assert set(overlap["lines"]) == set(range(1, 105)) - foreign and len(foreign) == 2
    assert content["subnet"]["copy_of"]["hotkey"] == key.hotkey


def test_duplicate_with_other_whitespace_is_rejected(tmp_path: Path) -> None:
    other = [spell_otherwise(line) for line in LARGE]
    with Net(tmp_path / "network", ["alice"], pool=[*POOL, *other]) as net, use_hub(net):
        net.submit("alice", LARGE)
        content = check(net, other, status=6)
        (overlap,) = content["subnet"]["overlaps"]
        assert overlap["shared"] == len(LARGE) and overlap["lines"] == list(range(1, len(LARGE) + 1))
        assert content["subnet"]["copy_of"]["hotkey"] == net.hotkey("alice")
        assert content["file"]["faults"] == []


def test_shared_rows_below_the_limit_are_listed(net: Net) -> None:
    net.submit("alice", LARGE)
    ended = run(net, POOL[24:124])
    assert ended.status == 0
    assert "earlier: shares 80 of 100 rows (limit 100), line 1-80\n" in ended.output


def test_own_earlier_commitment_is_not_compared(net: Net) -> None:
    key = net.submit("alice", LARGE)
    assert check(net, make_copy(), status=6)
    content = check(net, make_copy(), "--hotkey", key.hotkey)
    assert content["subnet"]["own"]["hotkey"] == key.hotkey
    assert content["subnet"]["others"] == []
    block = content["subnet"]["block"]
    assert content["subnet"]["committed_between"] == [block + 1, block + 1]


def test_later_duplicate_of_the_committed_file_is_ok(net: Net) -> None:
    key = net.submit("alice", LARGE)
    block = net.admin.block()
    net.submit("bob", make_copy())
    content = check(net, LARGE, "--hotkey", key.hotkey)
    assert content["subnet"]["committed_between"] == [block, block]
    (overlap,) = content["subnet"]["overlaps"]
    assert overlap["is_over_limit"] and not overlap["is_earlier"]
    wallet = ("--wallet.path", net.parts.wallets, "--wallet.name", "alice")
    assert check(net, LARGE, *wallet) == content
    assert check(net, LARGE, *wallet, "--hf_repo_id", "alice/elsewhere", status=6)["subnet"]["copy_of"]
    assert check(net, LARGE[:-1], "--hotkey", key.hotkey, status=6)  # A commit of this file would be later.


def test_unusable_commitments_are_counted_by_reason(net: Net) -> None:
    for name in ("elsewhere", "torn", "gone", "left"):
        make_hotkey(net.parts, name)
        net.admin.register(net.hotkey(name))
    net.commit("alice", "\x1b[31mgarbage")
    net.submit("torn", b"{]\n")
    net.commit("elsewhere", f"alice/data:other:{'0' * 40}")
    net.commit("gone", f"gone/data:sample:{'0' * 40}")
    net.submit("left", LARGE)
    net.admin.deregister(net.hotkey("left"))
    content = check(net, LARGE)
    assert {hotkey: row["reason"] for hotkey, row in by_hotkey(content).items()} == {
        net.hotkey("alice"): Reason.BAD_COMMITMENT,
        net.hotkey("torn"): Reason.MALFORMED,
        net.hotkey("elsewhere"): Reason.WRONG_COMPETITION,
        net.hotkey("gone"): Reason.MISSING_REPO,
    }
    ended = run(net, LARGE)
    assert ended.status == 0
    for reason in (Reason.BAD_COMMITMENT, Reason.MALFORMED, Reason.WRONG_COMPETITION, Reason.MISSING_REPO):
        assert f"1 {reason}" in ended.output
    assert "\x1b" not in ended.output and "a missing commit may still be uploaded" in ended.output


def test_dataset_that_cannot_be_downloaded_is_inconclusive(net: Net) -> None:
    net.submit("alice", LARGE)
    key = net.submit("bob", POOL[40:60])
    fault = HubFault(kind=FaultKind.STATUS, status=503, pattern="bob/data")
    set_faults(net.hub.store.root, fault)
    ended = run(net, SMALL)
    assert ended.status == 5
    assert "unknown, and may decide: 1" in ended.output
    assert f"  {key.hotkey} (uid {net.uid('bob')}" in ended.output and "HTTP 503" in ended.output
    assert ended.output.endswith("INCONCLUSIVE: not enough could be read\n")
    assert check(net, make_copy(), status=6)["subnet"]["copy_of"]
    assert check(net, [make_line(10**6)], status=6)
    set_faults(net.hub.store.root)
    assert check(net, SMALL)["outcome"] == "nothing_found"


def test_second_run_downloads_nothing(net: Net) -> None:
    key = net.submit("alice", LARGE)
    first = check(net, make_copy(), status=6)
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=503))
    assert check(net, make_copy(), status=6) == first
    folders = list((net.parts.folder / "work").glob("*/neighbours/*"))
    assert [folder.name for folder in folders] == [key.hotkey]
    set_faults(net.hub.store.root)
    net.admin.deregister(key.hotkey)
    check(net, make_copy())
    assert not folders[0].exists()


def test_sealed_commitment_is_inconclusive_until_its_reveal(net: Net) -> None:
    text = submit_by_digest(net, "alice", LARGE)
    commit_sealed(net, "alice", text)
    content = check(net, make_copy(), status=5)
    assert content["subnet"]["doubtful_hotkeys"] == [net.hotkey("alice")]
    assert "sealed until round" in by_hotkey(content)[net.hotkey("alice")]["doubt"]
    net.admin.reveal(net.hotkey("alice"), text)
    content = check(net, make_copy(), status=6)
    assert by_hotkey(content)[net.hotkey("alice")]["entry"] == text
    assert content["subnet"]["copy_of"]["hotkey"] == net.hotkey("alice")


def test_missing_file_is_inconclusive_in_its_grace_period(net: Net) -> None:
    digest = hashlib.sha256(make_content(LARGE)).hexdigest()
    key = net.commit("alice", str(CommitmentRecord("alice/data", net.competition.id, digest)))
    content = check(net, make_copy(), status=5)
    assert content["subnet"]["doubtful_hotkeys"] == [key.hotkey]
    net.admin.advance(SEAL_GRACE_BLOCKS)
    assert check(net, make_copy(), status=5)["subnet"]["block"] == net.admin.block()
    net.admin.advance(1)
    ended = run(net, make_copy())
    assert ended.status == 0 and "1 missing_file" in ended.output
    assert "may still be uploaded" not in ended.output


def test_unreachable_chain_still_lists_problems_of_the_file(net: Net) -> None:
    net.admin.set_fault("connect", ChainFault.ERROR, calls=100)
    net.admin.set_fault("read", ChainFault.ERROR, calls=100)
    content = check(net, [POOL[0]], status=5)
    assert content["subnet"] is None and content["unread"]
    content = check(net, [POOL[0], "{]"], status=6)
    assert [fault["line"] for fault in content["file"]["faults"]] == [2]


def test_number_of_chain_reads_does_not_grow(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    original = LocalSubstrate._fault

    async def counted(self: LocalSubstrate, kind: str) -> str | None:
        reads.append(kind)
        return await original(self, kind)

    monkeypatch.setattr(LocalSubstrate, "_fault", counted)
    counts = []
    for name in ("alice", "bob", "carol"):
        net.submit(name, SMALL)
        reads.clear()
        check(net, SMALL)
        counts.append(len(reads))
    assert counts[0] == counts[2] > 1


def test_disk_error_ends_with_its_own_status(net: Net) -> None:
    keys = [net.submit(name, SMALL) for name in ("alice", "bob")]
    check(net, SMALL)
    (folder,) = (net.parts.folder / "work").glob(f"*/neighbours/{keys[0].hotkey}")
    shutil.rmtree(folder)
    folder.write_text("in the way")
    ended = run(net, SMALL)
    assert (ended.status, ended.output) == (4, "")
    assert keys[0].hotkey in ended.logs[-1]


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["--hotkey", "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"], 3, "is not registered on netuid"),
        (["--hotkey", "5Grwva", "--wallet.name", "alice"], 2, "exclude each other"),
        (["--wallet.name", "nobody"], 3, "--wallet.name"),
        (["--dataset_path", "/nowhere.jsonl"], 3, "--dataset_path /nowhere.jsonl: cannot be read"),
    ],
)
def test_wrong_setting_is_named(net: Net, words: list[str], status: int, sentence: str) -> None:
    ended = run(net, SMALL, *words)
    assert (ended.status, ended.output) == (status, "")
    assert sentence in ended.logs[-1]


def test_netuid_is_required_unless_offline(net: Net) -> None:
    ended = run(net, SMALL, is_online=False)
    assert ended.status == 0
    assert call_main(check_dataset.main, "--dataset_path", "x").status == 2
