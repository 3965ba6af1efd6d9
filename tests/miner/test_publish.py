"""The miner against a real chain and hub on this machine."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from template.constants import MAX_SUBMISSION_BYTES
from template.data.rows import Row
from template.errors import ConfigError, Reason, RemoteError, SubmissionError
from template.localnet.chain.ledger import ChainFault
from template.localnet.hub.faults import FaultKind, HubFault, set_faults
from template.localnet.hub.store import HubStore
from template.localnet.network import make_hotkey
from template.miner.publish import publish_dataset
from tests.fixtures.miner import (
    ERA_BLOCKS,
    LaggingChain,
    commits,
    configure,
    head,
    publish,
    run,
    run_miner,
    stepping,
)
from tests.fixtures.network import LARGE, POOL, SMALL, Net, make_content, make_line, use_hub, write_dataset

TEMPO = 30


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    with Net(tmp_path / "network", ["alice"], tempo=TEMPO) as net, use_hub(net, "alice"):
        yield net


def test_what_is_published_is_what_stands_on_chain_and_on_the_hub(net: Net) -> None:
    published = publish(net)
    held = net.chain("alice").commitment(net.hotkey("alice"))
    assert held is not None
    assert (held.text, held.block) == (f"alice/data:sample:{head(net)}", published.block)
    assert str(published.record) == held.text
    store = HubStore(net.hub.store.root)
    files = store.commit_at(store.repo("datasets", "alice/data"), published.record.commit).files
    assert store.blob_path(files["data.jsonl"]).read_bytes() == make_content(SMALL)


def test_running_again_changes_nothing(net: Net) -> None:
    first, before = publish(net), head(net)
    net.admin.advance(5)
    assert publish(net) == first
    assert head(net) == before and commits(net) == 1


def test_a_changed_file_is_committed_anew(net: Net) -> None:
    first = publish(net)
    second = publish(net, POOL[:30])
    assert second.record.commit != first.record.commit and second.block > first.block
    assert commits(net) == 2


def test_a_new_registration_needs_a_new_commitment(net: Net) -> None:
    first = publish(net)
    net.admin.deregister(net.hotkey("alice"))
    net.admin.register(net.hotkey("alice"))
    second = publish(net)
    assert second.record == first.record and second.block > first.block
    assert commits(net) == 2


def test_a_file_may_be_given_instead_of_its_folder(net: Net) -> None:
    path = write_dataset(net.parts.folder / "elsewhere", SMALL) / "data.jsonl"
    assert publish(net, dataset_path=path.rename(path.with_name("mine.jsonl"))).record.namespace == "alice/data"


@pytest.mark.parametrize(
    ("lines", "reason", "where"),
    [
        ([*POOL[:2], make_line(10**6), *POOL[3:5]], Reason.NOT_IN_POOL, "line 3"),
        ([*POOL[:4], '{"conversations": 5}'], Reason.MALFORMED, "line 5"),
        ([], Reason.EMPTY, "at least one row"),
        (["x" * MAX_SUBMISSION_BYTES], Reason.TOO_LARGE, str(MAX_SUBMISSION_BYTES)),
    ],
)
def test_what_a_validator_would_refuse_is_not_even_uploaded(
    net: Net, lines: list[str], reason: Reason, where: str
) -> None:
    with pytest.raises(SubmissionError, match=where) as caught:
        publish(net, lines)
    assert caught.value.reason is reason
    assert head(net) is None and commits(net) == 0


def test_rows_beyond_those_that_count_may_be_anything_well_formed(net: Net) -> None:
    publish(net, [*LARGE, *POOL[110:116], make_line(10**6)])
    assert commits(net) == 1


def test_a_forced_dataset_is_published_although_it_will_be_refused(net: Net) -> None:
    publish(net, [make_line(10**6)], is_forced=True)
    assert commits(net) == 1


def test_a_row_so_long_that_its_answer_may_be_cut_is_asked_about(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "word " * 1500}, {"role": "assistant", "content": "yes"}]
    long = json.dumps({"conversations": talk})
    asked: list[int] = []

    def has_target(row: Row) -> bool:
        asked.append(row.line)
        return False

    with Net(tmp_path / "network", ["alice"], pool=[*POOL, long]) as net, use_hub(net, "alice"):
        with pytest.raises(SubmissionError, match="line 3: expected an answer within 2048 tokens") as caught:
            publish(net, [*POOL[:2], long], has_target=has_target)
        assert caught.value.reason is Reason.NO_TARGET
        assert asked == [3] and head(net) is None


def test_a_used_up_commit_limit_is_waited_out(net: Net) -> None:
    net.admin.set_hyperparameter("MaxSpace", 100)
    net.commit("alice", "something else")
    before = net.admin.block()
    published = publish(net)
    assert before + 10 < published.block < before + TEMPO + 3
    assert commits(net) == 3, "one that was there, one refused, one accepted"


def test_a_commitment_whose_answer_is_lost_is_not_made_twice(net: Net) -> None:
    net.admin.set_fault("write", ChainFault.LOSE_ANSWER)
    published = publish(net)
    held = net.chain("alice").commitment(net.hotkey("alice"))
    assert held is not None and held.block == published.block
    assert commits(net) == 1


@pytest.mark.parametrize("fault", [ChainFault.LOSE_ANSWER, None])
def test_a_commitment_that_is_not_final_yet_is_not_made_twice(net: Net, fault: ChainFault | None) -> None:
    if fault is not None:
        net.admin.set_fault("write", fault)
    with LaggingChain(net, "alice", blocks=0) as chain:
        run_miner(configure(net), chain, stepping(net))
    assert commits(net) == 1


@pytest.mark.parametrize("fault", [ChainFault.ERROR, ChainFault.DISCONNECT])
def test_a_lost_commitment_is_repeated_when_it_cannot_land(net: Net, fault: ChainFault) -> None:
    net.admin.set_fault("write", fault)
    before = net.admin.block()
    assert publish(net).block > before + ERA_BLOCKS
    assert commits(net) == 1


def test_a_chain_that_does_not_answer_is_asked_again(net: Net) -> None:
    chain = net.chain("alice")
    chain.block()
    turns = itertools.count()
    sleep = stepping(net)

    def disturbed(seconds: float) -> None:
        if next(turns) == 0:
            net.admin.set_fault("read", ChainFault.DISCONNECT, calls=2)
        sleep(seconds)

    net.admin.set_fault("write", ChainFault.LOSE_ANSWER)
    run_miner(configure(net), chain, disturbed)
    assert commits(net) == 1


def test_a_lasting_refusal_ends_the_miner(net: Net) -> None:
    chain = net.chain("alice")
    sleep = stepping(net)
    net.admin.set_hyperparameter("MaxSpace", 100)
    net.commit("alice", "something else")

    def deregister(seconds: float) -> None:
        if net.uid_or_none("alice") is not None:
            net.admin.deregister(net.hotkey("alice"))
        sleep(seconds)

    with pytest.raises(ConfigError, match="AccountNotAllowedCommit"):
        run_miner(configure(net), chain, deregister)


def test_a_hub_that_returns_other_bytes_gets_no_commitment(net: Net) -> None:
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.WRONG, pattern="GET /datasets/alice/data/resolve/"))
    with pytest.raises(RemoteError):
        publish(net)
    assert head(net) is not None and commits(net) == 0
    set_faults(net.hub.store.root)
    publish(net)
    assert commits(net) == 1


def test_a_file_that_is_gone_when_it_is_read_back_gets_no_commitment(net: Net) -> None:
    pattern = "GET /datasets/alice/data/resolve/"
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=404, pattern=pattern))
    with pytest.raises(RemoteError):
        publish(net)
    assert commits(net) == 0


# What is asked


def test_nothing_is_written_anywhere_without_a_yes(net: Net) -> None:
    shown: list[str] = []

    def decline(what: str) -> bool:
        shown.append(what)
        return False

    assert publish_dataset(configure(net), net.chain("alice"), confirm=decline) is None
    assert head(net) is None and commits(net) == 0
    (what,) = shown
    for part in (
        f"{len(make_content(SMALL))} bytes, rows: {len(SMALL)} count",
        hashlib.sha256(make_content(SMALL)).hexdigest(),
        "alice/data:sample:",
        f"{net.hotkey('alice')}, uid {net.uid('alice')}",
        "on chain now nothing",
    ):
        assert part in what


def test_the_question_says_what_is_on_chain_and_what_replacing_it_costs(net: Net) -> None:
    first = publish(net)
    shown: list[str] = []
    publish_dataset(configure(net, POOL[:30]), net.chain("alice"), confirm=lambda what: bool(shown.append(what)))
    assert f"{first.record}, of block {first.block}; a new commitment replaces it and loses its rank" in shown[0]


def test_a_standing_commitment_is_not_asked_about(net: Net) -> None:
    first = publish(net)
    assert publish_dataset(configure(net), net.chain("alice"), confirm=ask_nothing) == first


def ask_nothing(what: str) -> bool:
    raise AssertionError(f"asked about {what}")


# The command


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("yes", 0), ("n", 1), ("", 1), ("yesterday", 1)])
def test_the_command_asks_on_a_terminal(net: Net, answer: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = os.openpty()
    with os.fdopen(terminal) as stdin, os.fdopen(controller, "wb", buffering=0) as keyboard:
        monkeypatch.setattr("sys.stdin", stdin)
        keyboard.write(f"{answer}\n".encode())
        ended = run(net, more=())
    assert ended.status == status, ended.logs
    assert any("Publish? [y/N]" in line for line in ended.logs)
    assert commits(net) == int(status == 0) and (head(net) is None) is (status == 1)


def test_the_command_does_not_publish_where_nobody_can_be_asked(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        ended = run(net, more=())
    assert ended.status == 3 and "--yes" in ended.logs[-1]
    assert head(net) is None and commits(net) == 0


def test_the_command_prints_the_commitment_and_its_block(net: Net) -> None:
    ended = run(net)
    held = net.chain("alice").commitment(net.hotkey("alice"))
    assert ended.status == 0, ended.logs
    assert held is not None and ended.output == f"{held.text} committed in block {held.block}\n"


def test_the_command_says_which_line_would_be_refused(net: Net) -> None:
    path = write_dataset(net.parts.folder / "foreign", [*POOL[:6], make_line(10**6)])
    ended = run(net, path=path)
    assert ended.status == 6
    assert "not in the evaluation set: line 7" in ended.logs[-1] and ended.output == ""
    forced = run(net, path=path, more=("--force", "--yes"))
    assert forced.status == 0, forced.logs
    assert any("line 7" in line and "WARNING" in line for line in forced.logs)


def test_the_command_without_a_token_says_where_to_put_it(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    ended = run(net)
    assert ended.status == 4
    (line,) = ended.logs
    assert "HF_TOKEN" in line


def test_the_command_refuses_a_token_of_somebody_else(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_local_mallory")
    ended = run(net)
    assert ended.status == 4 and commits(net) == 0
    assert "hf_local_mallory" not in "".join(ended.logs)


def test_the_command_refuses_an_unregistered_hotkey_before_it_uploads(net: Net) -> None:
    make_hotkey(net.parts, "stranger")
    ended = run(net, wallet="stranger")
    assert ended.status == 3
    assert "is not registered on this subnet" in ended.logs[-1]
    assert head(net) is None


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"repo": "no-owner"}, "--hf_repo_id no-owner"),
        ({"repo": f"alice/{'x' * 90}"}, "--hf_repo_id"),
        ({"path": "/nowhere.jsonl"}, "--dataset_path /nowhere.jsonl: cannot be read"),
        ({"wallet": "nobody"}, "--wallet.name"),
        ({"more": ("--netuid", "95", "--yes")}, "--netuid"),
        ({"more": ("--poll_seconds", "0", "--yes")}, "--poll_seconds"),
        ({"more": ("--competition", "/nowhere.yaml", "--yes")}, "/nowhere.yaml"),
    ],
)
def test_the_command_names_the_setting_that_is_wrong(net: Net, changed: dict[str, object], sentence: str) -> None:
    ended = run(net, **changed)  # type: ignore[arg-type]
    assert ended.status == 3, ended.logs
    assert sentence in ended.logs[-1]
    assert head(net) is None and commits(net) == 0


def test_the_command_without_a_hub_says_so(net: Net) -> None:
    net.hub.close()
    ended = run(net)
    assert ended.status == 5
    assert "RemoteError" in ended.logs[-1]
