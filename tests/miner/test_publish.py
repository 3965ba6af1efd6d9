"""The miner on a local chain and hub."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from template.chain_records import ChainCommitment
from template.competition import bind_digest
from template.constants import ERA_BLOCKS, MAX_SUBMISSION_BYTES, SEAL_GRACE_BLOCKS
from template.data.rows import Row
from template.errors import ConfigError, Reason, RemoteError, SubmissionError
from template.hub import datasets
from template.localnet.chain.ledger import ChainFault
from template.localnet.hub.answers import Answer, Rule, read_answers, set_answers
from template.localnet.hub.store import HubStore
from template.localnet.network import make_hotkey
from template.miner.publish import publish_dataset
from template.miner.sealed import MARGIN_BLOCKS
from tests.fixtures.faulty_hub import FaultKind, HubFault, set_faults
from tests.fixtures.miner import (
    LaggingChain,
    commits,
    configure,
    head,
    publish,
    run,
    run_miner,
    stepping,
    uploaded,
)
from tests.fixtures.network import POOL, SMALL, Net, make_content, make_line, use_hub, write_dataset


def decline(net: Net, lines: list[str] = SMALL) -> str:
    """Decline to publish, and return the text to be confirmed."""
    shown: list[str] = []
    chain = net.chain("alice")
    assert publish_dataset(configure(net, lines), chain, confirm=lambda text: bool(shown.append(text))) is None
    return shown[0]


def test_published_file_is_on_chain_and_on_the_hub(net: Net) -> None:
    published = publish(net)
    on_chain = net.chain("alice").commitment(net.hotkey("alice"))
    assert on_chain is not None
    assert (on_chain.text, on_chain.block) == (text_of(net, SMALL), published.block)
    assert str(published.record) == on_chain.text
    store = HubStore(net.hub.store.root)
    files = store.commit_at(store.repo("datasets", "alice/data"), "main").files
    assert store.blob_path(files["data.jsonl"]).read_bytes() == make_content(SMALL)


def text_of(net: Net, lines: list[str], name: str = "alice") -> str:
    """Return the commitment of `name` to a file in alice's repo."""
    sha256 = hashlib.sha256(make_content(lines)).hexdigest()
    return f"alice/data:sample:{bind_digest(sha256, net.hotkey(name))}"


def test_file_is_uploaded_after_its_commitment_is_final(net: Net) -> None:
    seen: list[str | None] = []

    class Watched(LaggingChain):
        def commitment(self, hotkey: str) -> ChainCommitment | None:
            seen.append(uploaded(net))
            return super().commitment(hotkey)

    with Watched(net, "alice", blocks=0) as chain:
        published = run_miner(configure(net), chain, stepping(net))
    assert not any(seen) and uploaded(net)
    assert net.admin.block() >= published.block + 3


def test_copied_commitment_does_not_name_the_file(net: Net) -> None:
    published, folder = publish(net), net.parts.folder / "validator"
    repo, _, commit = str(published.record).split(":")
    assert datasets.download_dataset(repo, commit, folder / "a", hotkey=net.hotkey("alice")).size
    with pytest.raises(SubmissionError) as caught:
        datasets.download_dataset(repo, commit, folder / "b", hotkey=net.hotkey("validator"))
    assert caught.value.reason is Reason.MISSING_FILE


def test_commitment_to_a_hub_commit_of_the_file_is_kept(net: Net) -> None:
    key = net.submit("alice", SMALL)
    assert str(publish(net).record) == key.commitment
    assert commits(net) == 1


def test_private_repo_is_refused_before_the_commitment(net: Net) -> None:
    net.upload("alice", ["# mine"], file="README.md", private=True)
    with pytest.raises(ConfigError, match="--hf_repo_id alice/data must be public"):
        publish(net)
    assert commits(net) == 0


@pytest.mark.parametrize("is_sealed", [False, True], ids=["open", "sealed"])
def test_gated_repo_is_refused_before_the_commitment(net: Net, is_sealed: bool) -> None:
    net.upload("alice", ["# mine"], file="README.md")
    set_answers(net.hub.store.root, Rule(answer=Answer.GATED, repo="alice/data"))
    ended = run(net, more=("--yes", "--seal") if is_sealed else ("--yes",))
    assert ended.status == 3 and "gated" in ended.logs[-1], ended.logs
    assert commits(net) == 0


@pytest.mark.parametrize("is_sealed", [False, True], ids=["open", "sealed"])
def test_read_token_is_refused_before_the_commitment(
    net: Net, monkeypatch: pytest.MonkeyPatch, is_sealed: bool
) -> None:
    net.upload("alice", ["# mine"], file="README.md")
    monkeypatch.setenv("HF_TOKEN", "hf_read_alice")
    ended = run(net, more=("--yes", "--seal") if is_sealed else ("--yes",))
    assert ended.status == 4 and "does not let this token write" in ended.logs[-1], ended.logs
    assert commits(net) == 0


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda net: net.admin.advance(5),
        lambda net: net.upload("alice", ["# mine"], file="README.md"),
        lambda net: net.upload("alice", POOL[:30]),
    ],
    ids=["blocks pass", "another file in the repo", "another dataset on main"],
)
def test_current_commitment_is_left_without_confirmation(net: Net, meanwhile: Callable[[Net], object]) -> None:
    first = publish(net)
    meanwhile(net)
    before = uploaded(net)
    assert before
    assert publish_dataset(configure(net), net.chain("alice"), confirm=pytest.fail) == first
    assert head(net) == before and commits(net) == 1


def test_changed_file_is_committed_again(net: Net) -> None:
    first = publish(net)
    second = publish(net, POOL[:30])
    assert second.record.commit != first.record.commit and second.block > first.block
    assert commits(net) == 2


def test_new_registration_needs_a_new_commitment(net: Net) -> None:
    first = publish(net)
    net.admin.deregister(net.hotkey("alice"))
    net.admin.register(net.hotkey("alice"))
    second = publish(net)
    assert second.record == first.record and second.block > first.block
    assert commits(net) == 2


@pytest.mark.parametrize(
    ("lines", "reason", "where"),
    [
        ([*POOL[:2], make_line(10**6), *POOL[3:5]], Reason.NOT_IN_POOL, "line 3"),
        ([*POOL[:4], '{"conversations": 5}'], Reason.MALFORMED, "line 5"),
        ([], Reason.EMPTY, "at least one row"),
        (["x" * MAX_SUBMISSION_BYTES], Reason.TOO_LARGE, str(MAX_SUBMISSION_BYTES)),
    ],
)
def test_rejected_dataset_is_not_uploaded(net: Net, lines: list[str], reason: Reason, where: str) -> None:
    with pytest.raises(SubmissionError, match=where) as caught:
        publish(net, lines)
    assert caught.value.reason is reason
    assert head(net) is None and commits(net) == 0


def test_long_row_without_target_is_rejected(tmp_path: Path) -> None:
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


def test_used_up_commit_limit_is_waited_for(net: Net) -> None:
    net.admin.set_hyperparameter("MaxSpace", 100)
    net.commit("alice", "something else")
    before = net.admin.block()
    published = publish(net)
    assert before + 10 < published.block < before + 30 + 3
    assert commits(net) == 3, "one that was there, one refused, one accepted"


@pytest.mark.parametrize("fault", [ChainFault.LOSE_ANSWER, None])
def test_commitment_not_yet_final_is_not_repeated(net: Net, fault: ChainFault | None) -> None:
    if fault is not None:
        net.admin.set_fault("write", fault)
    with LaggingChain(net, "alice", blocks=0) as chain:
        run_miner(configure(net), chain, stepping(net))
    assert commits(net) == 1


@pytest.mark.parametrize("fault", [ChainFault.ERROR, ChainFault.DISCONNECT])
def test_lost_commitment_is_repeated_when_it_cannot_land(net: Net, fault: ChainFault) -> None:
    net.admin.set_fault("write", fault)
    before = net.admin.block()
    assert publish(net).block > before + ERA_BLOCKS
    assert commits(net) == 1


def test_unanswered_chain_request_is_retried(net: Net) -> None:
    chain, sleep = net.chain("alice"), stepping(net)
    chain.block()
    faults = iter([2])

    def disturbed(seconds: float) -> None:
        net.admin.set_fault("read", ChainFault.DISCONNECT, calls=next(faults, 0))
        sleep(seconds)

    net.admin.set_fault("write", ChainFault.LOSE_ANSWER)
    run_miner(configure(net), chain, disturbed)
    assert commits(net) == 1


def test_permanent_rejection_is_a_config_error(net: Net) -> None:
    chain = net.chain("alice")
    sleep = stepping(net)
    net.admin.set_hyperparameter("MaxSpace", 100)
    net.commit("alice", "something else")

    def deregister(seconds: float) -> None:
        if net.hotkey("alice") in net.chain("alice").view().by_hotkey:
            net.admin.deregister(net.hotkey("alice"))
        sleep(seconds)

    with pytest.raises(ConfigError, match="AccountNotAllowedCommit"):
        run_miner(configure(net), chain, deregister)


def test_upload_is_retried_until_it_reads_back(net: Net) -> None:
    set_faults(
        net.hub.store.root, HubFault(kind=FaultKind.WRONG, pattern="GET /api/resolve-cache/datasets/alice/data/")
    )
    with pytest.raises(RemoteError):
        run_miner(configure(net), net.chain("alice"), lambda _: net.admin.advance(100))
    assert net.admin.block() > SEAL_GRACE_BLOCKS, "validators reject the file by then"
    set_faults(net.hub.store.root)
    publish(net)
    assert commits(net) == 1 and uploaded(net)


@pytest.mark.parametrize(("asked_s", "waited_s"), [(40.0, 40.0), (86_400.0, 300.0)])
def test_upload_waits_as_long_as_the_hub_asks(net: Net, asked_s: float, waited_s: float) -> None:
    set_answers(net.hub.store.root, Rule(answer=Answer.QUOTA, pattern="/preupload/main", count=1, seconds=asked_s))
    waits: list[float] = []
    advance = stepping(net)

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        advance(seconds)

    run_miner(configure(net), net.chain("alice"), sleep)
    assert uploaded(net) and max(waits) == waited_s


@pytest.mark.parametrize(
    "answer",
    [Answer.COMMIT_QUOTA, Answer.GIT_QUEUE, Answer.UNAVAILABLE, Answer.QUOTA_HTML, Answer.COMMIT_LOST],
)
def test_upload_is_repeated_after_a_busy_answer(net: Net, answer: Answer) -> None:
    set_answers(net.hub.store.root, Rule(answer=answer, pattern="/commit/main", count=2))
    publish(net)
    assert uploaded(net) and commits(net) == 1
    assert len(read_answers(net.hub.store.root)) == int(answer is Answer.COMMIT_LOST), "one was enough, as it landed"


@pytest.mark.parametrize(
    ("rule", "status"),
    [
        (Rule(answer=Answer.CREATE_BUSY), 5),
        (Rule(answer=Answer.DISABLED, repo="alice/data"), 4),
        (Rule(answer=Answer.TOKEN_REFUSED), 4),
        (Rule(answer=Answer.COMMIT_QUOTA), 5),
    ],
    ids=["busy", "disabled", "token", "commits"],
)
def test_refused_trial_ends_before_the_commitment(net: Net, rule: Rule, status: int) -> None:
    set_answers(net.hub.store.root, rule)
    ended = run(net)
    assert (ended.status, commits(net)) == (status, 0), ended.logs


def test_declined_confirmation_writes_nothing(net: Net) -> None:
    what = decline(net)
    assert head(net) is None and commits(net) == 0
    for part in (
        f"{len(make_content(SMALL))} bytes, rows: {len(SMALL)} count",
        hashlib.sha256(make_content(SMALL)).hexdigest(),
        text_of(net, SMALL),
        f"validators reject the file {SEAL_GRACE_BLOCKS} blocks after the commitment",
        f"{net.hotkey('alice')}, uid {net.uid('alice')}",
        "on chain now nothing",
    ):
        assert part in what


def test_confirmation_shows_the_commitment_it_replaces(net: Net) -> None:
    first = publish(net)
    expected = f"{first.record}, of block {first.block}; a new commitment replaces it and loses its rank"
    assert expected in decline(net, POOL[:30])


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("yes", 0), ("n", 1), ("", 1), ("yesterday", 1)])
def test_command_confirms_on_a_terminal(net: Net, answer: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = os.openpty()
    with os.fdopen(terminal) as stdin, os.fdopen(controller, "wb", buffering=0) as keyboard:
        monkeypatch.setattr("sys.stdin", stdin)
        keyboard.write(f"{answer}\n".encode())
        ended = run(net, more=())
    assert ended.status == status, ended.logs
    assert any("Publish? [y/N]" in line for line in ended.logs)
    assert commits(net) == int(status == 0) and (head(net) is None) is (status == 1)


def test_command_without_terminal_needs_yes(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        ended = run(net, more=())
    assert ended.status == 3 and "--yes" in ended.logs[-1]
    assert head(net) is None and commits(net) == 0


def test_command_names_the_rejected_line(net: Net) -> None:
    path = write_dataset(net.parts.folder / "foreign", [*POOL[:6], make_line(6).replace("say 6", "Say 6")])
    ended = run(net, path=path)
    assert ended.status == 6
    assert "not in the evaluation set: line 7; line 7 looks like line 7 of the evaluation set" in ended.logs[-1]
    assert ended.output == ""
    forced = run(net, path=path, more=("--force", "--yes"))
    assert forced.status == 0, forced.logs
    assert any("line 7" in line and "WARNING" in line for line in forced.logs)


@pytest.mark.parametrize(("token", "named"), [(None, "HF_TOKEN"), ("hf_local_mallory", "alice/data")])
def test_command_without_its_users_token_fails(
    net: Net, token: str | None, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    ended = run(net)
    assert ended.status == 4 and commits(net) == 0
    assert named in ended.logs[-1] and "hf_local_mallory" not in "".join(ended.logs)


def test_command_with_unregistered_hotkey_uploads_nothing(net: Net) -> None:
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
        *(
            ({"more": ("--yes", "--seal", "--reveal_blocks", str(blocks))}, "--reveal_blocks")
            for blocks in (0, MARGIN_BLOCKS - 1, 9999999)
        ),
        ({"more": ("--yes", "--reveal_blocks", "50")}, "--seal"),
        ({"more": ("--yes", "--seal", "--blocks_per_epoch", "0")}, "--blocks_per_epoch"),
    ],
)
def test_command_names_the_wrong_setting(net: Net, changed: dict[str, object], sentence: str) -> None:
    ended = run(net, **changed)  # type: ignore[arg-type]
    assert ended.status == 3, ended.logs
    assert sentence in ended.logs[-1]
    assert head(net) is None and commits(net) == 0
