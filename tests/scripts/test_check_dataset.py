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
from template.localnet.hub.answers import Answer, Rule, set_answers
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
# The rows of LARGE with a trailing space in each text, which no model reads.
SPACED = [line.replace('"}', ' "}') for line in LARGE]


def run(net: Net, lines: Sequence[str], *more: object, is_online: bool = True) -> Ended:
    where = ["--netuid", NETUID, "--subtensor.network", net.network] if is_online else ["--offline"]
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


def by_hotkey(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["hotkey"]: row for row in content["subnet"]["others"]}


def promise(net: Net, name: str, lines: Sequence[str]) -> str:
    """Return the commitment by sha256 of a file."""
    return str(CommitmentRecord(f"{name}/data", net.competition.id, hashlib.sha256(make_content(lines)).hexdigest()))


@pytest.fixture(scope="module")
def subnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    """A network in which alice has committed LARGE; tests commit nothing."""
    with Net(tmp_path_factory.mktemp("subnet"), ["alice"], pool=[*POOL, LONG, *SPACED]) as net, use_hub(net):
        net.submit("alice", LARGE)
        yield net


def test_valid_dataset_is_ok(subnet: Net) -> None:
    ended = run(subnet, SMALL, "--hf_repo_id", "me/data")
    assert ended.status == 0, ended.logs
    assert "24 rows, 24 of them well formed and counted, 0 problems" in ended.output
    assert "1 datasets compared" in ended.output
    assert "may share 9 of its 24 different rows with an earlier one" in ended.output
    assert "commitment me/data:sample:DIGEST, 79 of 128 bytes" in ended.output
    assert ended.output.endswith("OK: no problem found\n")


def test_all_problems_of_a_file_are_listed_by_line(subnet: Net) -> None:
    lines = [*POOL[:2], "{]", *POOL[2:6], make_line(10**6), '{"conversations": 5}', POOL[0]]
    ended = run(subnet, lines, is_online=False)
    assert ended.status == 6
    problems = [line.strip().split(": ")[:2] for line in ended.output.splitlines() if line.startswith("  line")]
    rejected = [["line 3", "malformed"], ["line 8", "not_in_pool"], ["line 9", "malformed"]]
    assert problems == [*rejected, ["line 10 repeats line 1"]]
    assert ended.output.endswith("REJECTED: a validator would not count this dataset\n")


def test_row_that_looks_like_a_pool_row_is_explained(subnet: Net) -> None:
    ended = run(subnet, [*POOL[110:113], POOL[120].replace('it is 120"', 'it is 120\\n"')], is_online=False)
    where = "looks like line 121 of the evaluation set, differs in message 2: ends with '\\n', not ''"
    assert f"  line 4: not_in_pool: not in the evaluation set; {where}\n" in ended.output


def test_problems_past_the_twentieth_are_counted(subnet: Net) -> None:
    lines = [make_line(10**6 + number) for number in range(33)]
    ended = run(subnet, lines, is_online=False)
    assert ended.output.count("not_in_pool") == 20
    assert "  line 20: not_in_pool" in ended.output and "  and 13 more\n" in ended.output
    assert len(check(subnet, lines, "--offline", status=6)["file"]["faults"]) == 33


def test_rows_past_the_limit_are_listed(subnet: Net) -> None:
    content = check(subnet, [*POOL[:112], make_line(10**6)], "--offline")
    assert content["file"]["spare_lines"] == [111, 112, 113]
    assert content["subnet"] is None


def test_repo_id_too_long_for_a_commitment_is_rejected(subnet: Net) -> None:
    content = check(subnet, SMALL, "--offline", "--hf_repo_id", f"{'m' * 40}/{'d' * 55}", status=6)
    assert "the chain's limit is 128" in content["bad_commitment"]
    assert content["file"]["faults"] == []


def test_models_tokens_decide_whether_an_answer_is_cut(subnet: Net, tiny_model: Path, tmp_path: Path) -> None:
    model = ("--training_args", write_training_args(tmp_path / "args.yaml"), "--model_path", tiny_model)
    content = check(subnet, [*POOL[:2], LONG], "--offline", *model, status=6)
    assert [(fault["line"], fault["reason"]) for fault in content["file"]["faults"]] == [(3, Reason.NO_TARGET)]


def test_duplicate_is_rejected_with_its_lines(subnet: Net) -> None:
    hotkey = subnet.hotkey("alice")
    ended = run(subnet, make_copy())
    assert ended.status == 6
    assert f"{hotkey} (uid {subnet.uid('alice')}" in ended.output
    assert "earlier: shares 102 of 104 rows (over limit 41)" in ended.output
    content = check(subnet, make_copy(), status=6)
    (overlap,) = content["subnet"]["overlaps"]
    foreign = {number for number, line in enumerate(make_copy(), start=1) if line not in LARGE}
    assert set(overlap["lines"]) == set(range(1, 105)) - foreign and len(foreign) == 2
    assert content["subnet"]["copy_of"]["hotkey"] == hotkey


def test_terminal_gets_tables_with_red_problems(subnet: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    red = "\x1b[31m"
    output = run(subnet, [*POOL[:2], "{]"], is_online=False).output
    assert f"line 3  {red}malformed" in output and "─────" in output
    output = run(subnet, make_copy()).output
    assert subnet.hotkey("alice") in output and f"{red}   102" in output
    assert output.endswith(f"{red}REJECTED: a validator would not count this dataset\x1b[0m\n")


def test_duplicate_with_other_whitespace_is_rejected(subnet: Net) -> None:
    content = check(subnet, SPACED, status=6)
    (overlap,) = content["subnet"]["overlaps"]
    assert overlap["shared"] == len(LARGE) and overlap["lines"] == list(range(1, len(LARGE) + 1))
    assert content["subnet"]["copy_of"]["hotkey"] == subnet.hotkey("alice")
    assert content["file"]["faults"] == []


def test_shared_rows_below_the_limit_are_listed(subnet: Net) -> None:
    ended = run(subnet, POOL[90:130])
    assert ended.status == 0
    assert "earlier: shares 14 of 40 rows (limit 16), line 1-14\n" in ended.output


def test_new_dataset_counts_from_the_next_round(subnet: Net) -> None:
    ended = run(subnet, SMALL)
    assert "committed now, it counts from block 360 at the earliest, in 71 min\n" in ended.output


def test_committed_rows_in_another_order_count_already(net: Net) -> None:
    key = net.submit("alice", LARGE)
    net.align(360)
    net.admin.advance(5)
    content = check(net, LARGE[::-1], "--hotkey", key.hotkey)
    assert content["counts_from"] == 360
    ended = run(net, LARGE[::-1], "--hotkey", key.hotkey)
    assert "its rows, in any order, count since block 360: a new commitment to them changes nothing\n" in ended.output


def test_own_earlier_commitment_is_not_compared(subnet: Net) -> None:
    hotkey = subnet.hotkey("alice")
    assert check(subnet, make_copy(), status=6)
    content = check(subnet, make_copy(), "--hotkey", hotkey)
    assert content["subnet"]["own"]["hotkey"] == hotkey
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
    net.chain("validator").announce_rounds("validator/rounds")
    for name in ("elsewhere", "torn", "gone", "left"):
        make_hotkey(net.parts, name)
        net.admin.register(net.hotkey(name))
    net.commit("alice", "\x1b[31mgarbage")
    net.submit("torn", b"{]\n")
    net.commit("elsewhere", f"alice/data:other:{'0' * 40}")
    net.commit("gone", f"gone/data:sample:{'0' * 40}")
    net.submit("left", LARGE)
    net.admin.deregister(net.hotkey("left"))
    reasons = {"alice": Reason.BAD_COMMITMENT, "torn": Reason.MALFORMED}
    reasons |= {"elsewhere": Reason.WRONG_COMPETITION, "gone": Reason.MISSING_REPO}
    shown = {hotkey: row["reason"] for hotkey, row in by_hotkey(check(net, LARGE)).items()}
    assert shown == {net.hotkey(name): reason for name, reason in reasons.items()}
    ended = run(net, LARGE)
    assert ended.status == 0 and all(f"1 {reason}" in ended.output for reason in reasons.values())
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


def test_survey_waits_when_the_hub_asks_for_it(net: Net) -> None:
    net.submit("alice", LARGE)
    net.submit("bob", POOL[40:60])
    set_answers(net.hub.store.root, Rule(answer=Answer.QUOTA, pattern="/api/datasets/.*/data/", count=3, seconds=1))
    ended = run(net, SMALL)
    assert ended.status == 0 and "unknown" not in ended.output, ended.output
    assert any("waiting, as the Hub asks" in line for line in ended.logs)


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
    net.upload("alice", LARGE)
    text = promise(net, "alice", LARGE)
    assert net.chain("alice").publish_sealed(text, beacon_round_at(time.time() + 3600)).is_accepted
    content = check(net, make_copy(), status=5)
    assert content["subnet"]["doubtful_hotkeys"] == [net.hotkey("alice")]
    assert "sealed until round" in by_hotkey(content)[net.hotkey("alice")]["doubt"]
    net.admin.reveal(net.hotkey("alice"), text)
    content = check(net, make_copy(), status=6)
    assert by_hotkey(content)[net.hotkey("alice")]["entry"] == text
    assert content["subnet"]["copy_of"]["hotkey"] == net.hotkey("alice")


def test_missing_file_is_inconclusive_in_its_grace_period(net: Net) -> None:
    key = net.commit("alice", promise(net, "alice", LARGE))
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


def test_disk_error_ends_with_its_own_status(net: Net) -> None:
    keys = [net.submit(name, SMALL) for name in ("alice", "bob")]
    check(net, POOL[:9])
    (folder,) = (net.parts.folder / "work").glob(f"*/neighbours/{keys[0].hotkey}")
    shutil.rmtree(folder)
    folder.write_text("in the way")
    ended = run(net, POOL[:9])
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
def test_wrong_setting_is_named(subnet: Net, words: list[str], status: int, sentence: str) -> None:
    ended = run(subnet, SMALL, *words)
    assert (ended.status, ended.output) == (status, "")
    assert any(sentence in line for line in ended.logs)


def test_netuid_is_required_unless_offline(subnet: Net) -> None:
    ended = run(subnet, SMALL, is_online=False)
    assert ended.status == 0
    assert call_main(check_dataset.main, "--dataset_path", "x").status == 2
