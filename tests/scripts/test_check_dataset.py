"""scripts/check_dataset.py against a real chain and hub of this machine."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts import check_dataset
from template.chain.timelock import beacon_round_at
from template.competition import CommitmentRecord
from template.constants import SEAL_GRACE_BLOCKS
from template.errors import Reason, RemoteError
from template.localnet.chain.ledger import ChainFault
from template.localnet.chain.substrate import LocalSubstrate
from template.localnet.hub.faults import FaultKind, HubFault, set_faults
from template.localnet.network import NETUID, make_hotkey
from tests.fixtures.network import (
    LARGE,
    POOL,
    ROOT,
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


def look(net: Net, lines: Sequence[str], *more: object, status: int = 0) -> dict[str, Any]:
    """What the command prints for programs."""
    ended = run(net, lines, "--json", *more)
    assert ended.status == status, (ended.output, ended.logs)
    found: dict[str, Any] = json.loads(ended.output)
    return found


def spell_otherwise(line: str) -> str:
    """The row with a space more at the end of each text, which no model reads and no reader sees."""
    row = json.loads(line)
    for turn in row["conversations"]:
        turn["content"] += " "
    return json.dumps(row)


def by_hotkey(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["hotkey"]: one for one in found["subnet"]["others"]}


def submit_by_digest(net: Net, name: str, lines: Sequence[str]) -> str:
    """The commitment's text that names the file by its sha256, as a sealed one does."""
    net.upload(name, lines)
    digest = hashlib.sha256(make_content(lines)).hexdigest()
    return str(CommitmentRecord(f"{name}/data", net.competition.id, digest))


def commit_sealed(net: Net, name: str, text: str) -> None:
    outcome = net.chain(name).publish_sealed(text, beacon_round_at(time.time() + 3600))
    assert outcome.is_accepted, outcome


# The file


def test_a_clean_dataset_is_told_to_be_clean(net: Net) -> None:
    net.submit("alice", LARGE)
    ended = run(net, SMALL, "--hf_repo_id", "me/data")
    assert ended.status == 0, ended.logs
    assert "24 rows, 24 of them well formed and counted, 0 problems" in ended.output
    assert "1 datasets compared" in ended.output
    assert "commitment me/data:sample:COMMIT, 55 of 128 bytes" in ended.output
    assert ended.output.endswith("OK: no problem found\n")


def test_all_three_faults_are_told_by_line_although_the_first_would_do(net: Net) -> None:
    lines = [*POOL[:2], "{]", *POOL[2:6], make_line(10**6), '{"conversations": 5}', POOL[0]]
    ended = run(net, lines, is_online=False)
    assert ended.status == 6
    told = [line.strip().split(": ")[:2] for line in ended.output.splitlines() if line.startswith("  line")]
    assert told == [
        ["line 3", "malformed"],
        ["line 8", "not_in_pool"],
        ["line 9", "malformed"],
        ["line 10 repeats line 1"],
    ]
    assert ended.output.endswith("REJECTED: a validator would not count this dataset\n")


def test_of_many_faults_twenty_are_shown_and_the_rest_counted(net: Net) -> None:
    lines = [make_line(10**6 + number) for number in range(33)]
    ended = run(net, lines, is_online=False)
    assert ended.output.count("not_in_pool") == 20
    assert "  line 20: not_in_pool" in ended.output and "  and 13 more\n" in ended.output
    assert len(look(net, lines, "--offline", status=6)["file"]["faults"]) == 33


def test_rows_that_do_not_count_are_told(net: Net) -> None:
    found = look(net, [*POOL[:112], make_line(10**6)], "--offline")
    assert found["file"]["spare_lines"] == [111, 112, 113]
    assert found["subnet"] is None


def test_a_repo_id_that_cannot_be_committed_is_refused(net: Net) -> None:
    found = look(net, SMALL, "--offline", "--hf_repo_id", f"{'m' * 40}/{'d' * 55}", status=6)
    assert "the chain's limit is 128" in found["bad_commitment"]
    assert found["file"]["faults"] == []


@pytest.fixture
def long_net(tmp_path: Path) -> Iterator[Net]:
    """A network with a pool that has a row whose answer may be cut."""
    with Net(tmp_path / "network", ["alice"], pool=[*POOL, LONG]) as net, use_hub(net):
        yield net


def test_the_models_own_tokens_decide_whether_an_answer_is_cut(long_net: Net, tiny_model: Path) -> None:
    training_args = write_training_args(long_net.parts.folder / "args.yaml")
    model = ("--training_args", training_args, "--model_path", tiny_model)
    found = look(long_net, [*POOL[:2], LONG], "--offline", *model, status=6)
    assert [(fault["line"], fault["reason"]) for fault in found["file"]["faults"]] == [(3, Reason.NO_TARGET)]


def test_without_the_models_tokens_it_cannot_say(long_net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RemoteError("the Hub did not deliver the model")

    # The client itself would try for half a minute.
    monkeypatch.setattr("template.training.model.load_tokenizer", refuse)
    training_args = write_training_args(long_net.parts.folder / "args.yaml")
    found = look(long_net, [*POOL[:2], LONG], "--offline", "--training_args", training_args, status=5)
    assert found["outcome"] == "cannot_say"
    assert found["file"]["undecided_lines"] == [3] and found["file"]["faults"] == []


# Against what is committed


def test_a_copy_above_the_limit_is_refused_with_its_lines(net: Net) -> None:
    key = net.submit("alice", LARGE)
    ended = run(net, make_copy())
    assert ended.status == 6
    assert f"{key.hotkey} (uid {net.uid('alice')}" in ended.output
    assert "earlier: shares 102 of 104 rows (over limit 100)" in ended.output
    found = look(net, make_copy(), status=6)
    (overlap,) = found["subnet"]["overlaps"]
    foreign = {at for at, line in enumerate(make_copy(), start=1) if line not in LARGE}
    assert set(overlap["lines"]) == set(range(1, 105)) - foreign and len(foreign) == 2
    assert found["subnet"]["copy_of"]["hotkey"] == key.hotkey


def test_a_copy_in_the_pools_other_spelling_is_refused(tmp_path: Path) -> None:
    other = [spell_otherwise(line) for line in LARGE]
    with Net(tmp_path / "network", ["alice"], pool=[*POOL, *other]) as net, use_hub(net):
        net.submit("alice", LARGE)
        found = look(net, other, status=6)
        (overlap,) = found["subnet"]["overlaps"]
        assert overlap["shared"] == len(LARGE) and overlap["lines"] == list(range(1, len(LARGE) + 1))
        assert found["subnet"]["copy_of"]["hotkey"] == net.hotkey("alice")
        assert found["file"]["faults"] == []


def test_sharing_below_the_limit_is_told_and_not_held_against_it(net: Net) -> None:
    net.submit("alice", LARGE)
    ended = run(net, POOL[24:124])
    assert ended.status == 0
    assert "earlier: shares 80 of 100 rows (limit 100), line 1-80\n" in ended.output


def test_own_earlier_commitment_is_no_original(net: Net) -> None:
    key = net.submit("alice", LARGE)
    assert look(net, make_copy(), status=6)
    found = look(net, make_copy(), "--hotkey", key.hotkey)
    assert found["subnet"]["own"]["hotkey"] == key.hotkey
    assert found["subnet"]["others"] == []
    block = found["subnet"]["block"]
    assert found["subnet"]["committed_between"] == [block + 1, block + 1]


def test_a_later_copy_of_the_committed_file_is_not_held_against_it(net: Net) -> None:
    key = net.submit("alice", LARGE)
    block = net.admin.block()
    net.submit("bob", make_copy())
    found = look(net, LARGE, "--hotkey", key.hotkey)
    assert found["subnet"]["committed_between"] == [block, block]
    (overlap,) = found["subnet"]["overlaps"]
    assert overlap["is_over_limit"] and not overlap["is_earlier"]
    wallet = ("--wallet.path", net.parts.wallets, "--wallet.name", "alice")
    assert look(net, LARGE, *wallet) == found
    assert look(net, LARGE, *wallet, "--hf_repo_id", "alice/elsewhere", status=6)["subnet"]["copy_of"]
    assert look(net, LARGE[:-1], "--hotkey", key.hotkey, status=6), "another file would be committed later"


def test_whatever_stands_on_chain_is_counted_and_named(net: Net) -> None:
    for name in ("elsewhere", "torn", "gone", "left"):
        make_hotkey(net.parts, name)
        net.admin.register(net.hotkey(name))
    net.commit("alice", "\x1b[31mgarbage")
    net.submit("torn", b"{]\n")
    net.commit("elsewhere", f"alice/data:other:{'0' * 40}")
    net.commit("gone", f"gone/data:sample:{'0' * 40}")
    net.submit("left", LARGE)
    net.admin.deregister(net.hotkey("left"))
    found = look(net, LARGE)
    assert {hotkey: one["reason"] for hotkey, one in by_hotkey(found).items()} == {
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


def test_a_dataset_that_the_hub_does_not_deliver_leaves_it_open_and_is_named(net: Net) -> None:
    net.submit("alice", LARGE)
    key = net.submit("bob", POOL[40:60])
    fault = HubFault(kind=FaultKind.STATUS, status=503, pattern="bob/data")
    set_faults(net.hub.store.root, fault)
    ended = run(net, SMALL)
    assert ended.status == 5
    assert "unknown, and may decide: 1" in ended.output
    assert f"  {key.hotkey} (uid {net.uid('bob')}" in ended.output and "HTTP 503" in ended.output
    assert ended.output.endswith("INCONCLUSIVE: not enough could be read\n")
    assert look(net, make_copy(), status=6)["subnet"]["copy_of"], "alice's is known, and earlier than bob's"
    assert look(net, [make_line(10**6)], status=6), "a fault of the file is one whatever the others have"
    set_faults(net.hub.store.root)
    assert look(net, SMALL)["outcome"] == "nothing_found"


def test_a_second_run_downloads_nothing_again(net: Net) -> None:
    key = net.submit("alice", LARGE)
    first = look(net, make_copy(), status=6)
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=503))
    assert look(net, make_copy(), status=6) == first
    kept = list((net.parts.folder / "work").glob("*/neighbours/*"))
    assert [folder.name for folder in kept] == [key.hotkey]
    set_faults(net.hub.store.root)
    net.admin.deregister(key.hotkey)
    look(net, make_copy())
    assert not kept[0].exists()


def test_a_sealed_commitment_leaves_it_open_until_it_is_opened(net: Net) -> None:
    text = submit_by_digest(net, "alice", LARGE)
    commit_sealed(net, "alice", text)
    found = look(net, make_copy(), status=5)
    assert found["subnet"]["doubtful_hotkeys"] == [net.hotkey("alice")]
    assert "sealed until round" in by_hotkey(found)[net.hotkey("alice")]["doubt"]
    net.admin.reveal(net.hotkey("alice"), text)
    found = look(net, make_copy(), status=6)
    assert by_hotkey(found)[net.hotkey("alice")]["entry"] == text
    assert found["subnet"]["copy_of"]["hotkey"] == net.hotkey("alice")


def test_a_promised_file_leaves_it_open_until_its_time_is_over(net: Net) -> None:
    digest = hashlib.sha256(make_content(LARGE)).hexdigest()
    key = net.commit("alice", str(CommitmentRecord("alice/data", net.competition.id, digest)))
    found = look(net, make_copy(), status=5)
    assert found["subnet"]["doubtful_hotkeys"] == [key.hotkey]
    net.admin.advance(SEAL_GRACE_BLOCKS)
    assert look(net, make_copy(), status=5)["subnet"]["block"] == net.admin.block()
    net.admin.advance(1)
    ended = run(net, make_copy())
    assert ended.status == 0 and "1 missing_file" in ended.output
    assert "may still be uploaded" not in ended.output, "its time is over"


def test_a_seal_that_is_later_than_the_committed_file_does_not_matter(net: Net) -> None:
    key = net.submit("alice", LARGE)
    text = submit_by_digest(net, "bob", make_copy())
    commit_sealed(net, "bob", text)
    found = look(net, LARGE, "--hotkey", key.hotkey)
    assert by_hotkey(found)[net.hotkey("bob")]["doubt"] and found["subnet"]["doubtful_hotkeys"] == []
    assert "unknown, but committed later: 1" in run(net, LARGE, "--hotkey", key.hotkey).output
    net.admin.reveal(net.hotkey("bob"), text)
    assert look(net, LARGE, "--hotkey", key.hotkey, status=5)["subnet"]["doubtful_hotkeys"] == [net.hotkey("bob")]


def test_own_commitment_that_cannot_be_read_is_said_where_it_decides(net: Net) -> None:
    key = net.submit("alice", LARGE)
    net.submit("bob", make_copy())
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=503, pattern="alice/data"))
    assert look(net, LARGE, "--hotkey", key.hotkey, status=5)["subnet"]["doubtful_hotkeys"] == [key.hotkey]
    assert look(net, SMALL, "--hotkey", key.hotkey)["subnet"]["doubtful_hotkeys"] == []


def test_a_chain_that_does_not_answer_leaves_the_faults_of_the_file_told(net: Net) -> None:
    net.admin.set_fault("connect", ChainFault.ERROR, calls=100)
    net.admin.set_fault("read", ChainFault.ERROR, calls=100)
    found = look(net, [POOL[0]], status=5)
    assert found["subnet"] is None and found["unread"]
    found = look(net, [POOL[0], "{]"], status=6)
    assert [fault["line"] for fault in found["file"]["faults"]] == [2]


def test_the_chain_is_read_no_more_often_for_more_commitments(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
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
        look(net, SMALL)
        counts.append(len(reads))
    assert counts[0] == counts[2] > 1


def test_a_disk_that_does_not_play_along_is_no_doubt_but_this_machines_fault(net: Net) -> None:
    keys = [net.submit(name, SMALL) for name in ("alice", "bob")]
    look(net, SMALL)
    (folder,) = (net.parts.folder / "work").glob(f"*/neighbours/{keys[0].hotkey}")
    shutil.rmtree(folder)
    folder.write_text("in the way")
    ended = run(net, SMALL)
    assert (ended.status, ended.output) == (4, "")
    assert keys[0].hotkey in ended.logs[-1]


# The command line


def test_help_names_every_flag_and_loads_neither_model_nor_client() -> None:
    parser = check_dataset.build_parser()
    assert [action.dest for action in parser._actions if not action.help] == []
    assert check_dataset.__doc__ and check_dataset.__doc__ in parser.format_help()
    code = (
        "import sys\nfrom scripts import check_dataset\ncheck_dataset.build_parser().format_help()\n"
        "print(sorted({'torch', 'transformers', 'peft', 'bittensor', 'huggingface_hub'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["--hotkey", "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"], 3, "is not registered on netuid"),
        (["--hotkey", "5Grwva", "--wallet.name", "alice"], 2, "do not go together"),
        (["--wallet.name", "nobody"], 3, "--wallet.name"),
        (["--dataset_path", "/nowhere.jsonl"], 3, "--dataset_path /nowhere.jsonl: cannot be read"),
    ],
)
def test_the_command_names_the_setting_that_is_wrong(net: Net, words: list[str], status: int, sentence: str) -> None:
    ended = run(net, SMALL, *words)
    assert (ended.status, ended.output) == (status, "")
    assert sentence in ended.logs[-1]


def test_a_subnet_is_needed_unless_offline(net: Net) -> None:
    ended = run(net, SMALL, is_online=False)
    assert ended.status == 0
    assert call_main(check_dataset.main, "--dataset_path", "x").status == 2
