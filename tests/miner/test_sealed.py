"""Sealed submissions on a local chain and hub; the tests reveal, not the beacon."""

import hashlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from template import constants
from template.chain.client import Chain, round_time
from template.chain_records import ChainCommitment
from template.constants import BLOCK_S
from template.errors import ConfigError, RemoteError
from template.hub import datasets
from template.localnet.chain.ledger import ChainFault
from template.localnet.hub import store as hub_store
from template.miner.draft import PublishResult
from template.miner.sealed import (
    SEAL_LEAD_BLOCKS,
    RevealSchedule,
    after_blocks,
    at_round_start,
    seal_dataset,
)
from tests.fixtures.faulty_hub import FaultKind, HubFault, set_faults
from tests.fixtures.logs import log_lines
from tests.fixtures.miner import (
    Killed,
    KilledChain,
    LaggingChain,
    agree,
    arguments,
    commits,
    configure,
    publish,
    run,
    stepping,
    uploaded,
)
from tests.fixtures.network import MINER, POOL, SMALL, Net, Process, make_content

CONTENT = make_content(SMALL)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
TEXT = f"alice/data:sample:{DIGEST}"


@pytest.fixture
def logs() -> Iterator[list[str]]:
    with log_lines() as lines:
        yield lines


def revealing(net: Net, *, before: Callable[[], object] = lambda: None) -> Callable[[float], None]:
    """Return a sleep that adds a block; its fifth call after the seal reveals."""
    step, left = stepping(net), iter([4, 3, 2, 1, 0])

    def sleep(seconds: float) -> None:
        on_chain = net.chain("alice").commitment(net.hotkey("alice"))
        if on_chain is not None and on_chain.reveal_round is not None and next(left, None) == 0:
            before()
            reveal(net)
        step(seconds)

    return sleep


def reveal(net: Net) -> None:
    net.admin.reveal(net.hotkey("alice"), TEXT)


def seal(
    net: Net,
    lines: list[str] = SMALL,
    *,
    chain: Chain | None = None,
    schedule: RevealSchedule | None = None,
    sleep: object = None,
    clock: Callable[[], float] = time.monotonic,
    **settings: object,
) -> PublishResult:
    published = seal_dataset(
        configure(net, lines, **settings),
        chain or net.chain("alice"),
        schedule=schedule or at_round_start(360),
        confirm=agree,
        sleep=sleep or revealing(net),  # type: ignore[arg-type]
        clock=clock,
    )
    assert published is not None
    return published


def seal_and_die(net: Net, lines: list[str] = SMALL, **settings: object) -> None:
    """Seal, and be killed at the first wait."""
    with pytest.raises(Killed):
        seal(net, lines, sleep=die, **settings)


def die(_: float) -> None:
    raise Killed


def read_commitment(net: Net) -> ChainCommitment:
    on_chain = net.chain("alice").commitment(net.hotkey("alice"))
    assert on_chain is not None
    return on_chain


def seal_and_reveal(net: Net) -> int:
    """Seal, be killed, and reveal; return the block of the commit."""
    seal_and_die(net)
    block = read_commitment(net).block
    reveal(net)
    return block


def assert_completed(net: Net) -> None:
    """Exactly one commitment, and a validator can download its file."""
    assert commits(net) == 1
    downloaded = datasets.download_dataset("alice/data", DIGEST, net.parts.folder / "validator")
    assert downloaded.path.read_bytes() == CONTENT


def test_sealed_dataset_is_public_only_after_the_reveal(net: Net) -> None:
    sealed: list[ChainCommitment] = []

    def look() -> None:
        sealed.append(read_commitment(net))
        assert uploaded(net) is None

    published = seal(net, sleep=revealing(net, before=look))
    assert sealed[0].text is None and sealed[0].reveal_round is not None
    assert (str(published.record), published.block) == (TEXT, sealed[0].block), "it counts from the commit"
    assert read_commitment(net).text == TEXT and read_commitment(net).is_revealed
    assert_completed(net)


def test_reveal_is_due_before_the_next_round(net: Net) -> None:
    advance_to(net, 260)
    view = net.chain("alice").view()
    seal_and_die(net)
    reveal_round = read_commitment(net).reveal_round
    assert reveal_round is not None
    assert 0 <= round_time(reveal_round) - (view.timestamp + (360 - SEAL_LEAD_BLOCKS - view.block) * 12) < 3


def advance_to(net: Net, block: int) -> None:
    net.admin.advance(block - net.admin.block())


def reveal_at(net: Net, block: int) -> None:
    """Seal, be killed, and have the chain reveal it in this block."""
    seal_and_die(net)
    advance_to(net, block - 1)
    reveal(net)
    assert read_commitment(net).block == block


def test_file_is_uploaded_exactly_at_the_round_start(net: Net) -> None:
    reveal_at(net, 345)
    seen: dict[int, str | None] = {}
    step = stepping(net)

    def look(seconds: float) -> None:
        seen[net.admin.block()] = uploaded(net)
        step(seconds)

    seal(net, sleep=look)
    assert net.admin.block() == 360
    assert_completed(net)
    assert seen == dict.fromkeys(range(345, 360)), "neither late nor early"


def test_silent_chain_does_not_delay_the_upload(net: Net, logs: list[str]) -> None:
    reveal_at(net, 345)
    now = 0.0

    def pass_time(_: float) -> None:
        nonlocal now
        now += BLOCK_S
        assert now < 100 * BLOCK_S, "it waits for ever"
        net.admin.set_fault("read", ChainFault.DISCONNECT, calls=1000)

    seal(net, sleep=pass_time, clock=lambda: now)
    assert any("retrying" in line for line in logs)
    assert now == 15 * BLOCK_S and uploaded(net) is not None


@pytest.mark.parametrize("is_after", [False, True], ids=["before the call", "after the call"])
def test_kill_around_the_call_seals_once(net: Net, is_after: bool) -> None:
    with KilledChain(net, is_after=is_after) as chain, pytest.raises(Killed):
        seal(net, chain=chain)
    assert commits(net) == int(is_after)
    with LaggingChain(net, "alice", blocks=0) as chain:
        seal(net, chain=chain)
    assert_completed(net)


@pytest.mark.parametrize("complete", [seal, publish], ids=["with --seal", "without"])
def test_restart_after_the_reveal_uploads(net: Net, complete: Callable[[Net], PublishResult]) -> None:
    block = seal_and_reveal(net)
    done = complete(net)
    assert (str(done.record), done.block) == (TEXT, block)
    assert_completed(net)


@pytest.mark.parametrize("is_after", [False, True], ids=["before the upload", "after the upload"])
def test_kill_around_the_upload_is_completed(net: Net, is_after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = datasets.upload_dataset

    def stop(content: bytes, repo_id: str, *, token: str | None) -> str:
        if is_after:
            upload(content, repo_id, token=token)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(datasets, "upload_dataset", stop)
        seal(net)
    before = uploaded(net)
    assert (before is not None) is is_after
    seal(net)
    assert_completed(net)
    assert before in (None, uploaded(net))


def test_run_after_the_upload_changes_nothing(net: Net) -> None:
    first = seal(net)
    done = uploaded(net)
    assert seal(net) == first
    assert publish(net) == first, "nor does a run without --seal"
    assert uploaded(net) == done and commits(net) == 1


def test_upload_is_retried_during_a_hub_outage(net: Net, logs: list[str]) -> None:
    fault = HubFault(kind=FaultKind.STATUS, status=503, count=3)
    seal(net, sleep=revealing(net, before=lambda: set_faults(net.hub.store.root, fault)))
    assert any("upload failed, retrying" in line for line in logs)
    assert_completed(net)


def test_late_upload_that_fails_ends(net: Net) -> None:
    seal_and_reveal(net)
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=503, pattern="/preupload/"))
    with pytest.raises(RemoteError):
        seal(net, sleep=lambda _: net.admin.advance(100))
    assert net.admin.block() - read_commitment(net).block > constants.SEAL_GRACE_BLOCKS


def test_late_upload_logs_a_warning(net: Net, logs: list[str]) -> None:
    seal_and_reveal(net)
    due = read_commitment(net).block + constants.SEAL_GRACE_BLOCKS
    net.admin.advance(constants.SEAL_GRACE_BLOCKS + 7)
    seal(net)
    assert any(f"by block {due}" in line for line in logs)
    assert any(line.startswith("WARNING uploading 7 blocks too late") for line in logs)
    assert_completed(net)


def test_changed_file_does_not_replace_a_seal(net: Net) -> None:
    seal_and_die(net)
    with pytest.raises(ConfigError, match=f"{TEXT}.*--force") as caught:
        seal(net, POOL[:30])
    assert commits(net) == 1
    copy = Path(str(caught.value).split("--dataset_path ")[1].split(";")[0])
    assert copy.read_bytes() == CONTENT and copy.stat().st_mode & 0o777 == 0o600
    seal(net, dataset_path=copy)
    assert_completed(net)
    assert not copy.exists(), "it is public now"


def test_forced_run_replaces_a_seal(net: Net) -> None:
    seal_and_die(net)
    seal_and_die(net, POOL[:30], is_forced=True)
    assert commits(net) == 2


def test_run_without_seal_does_not_replace_one(net: Net) -> None:
    seal_and_die(net)
    for lines in (SMALL, POOL[:30]):
        with pytest.raises(ConfigError, match="is not revealed yet"):
            publish(net, lines)
    assert commits(net) == 1 and uploaded(net) is None


def test_seal_in_flight_is_not_replaced(net: Net) -> None:
    with KilledChain(net) as chain, pytest.raises(Killed):
        seal(net, chain=chain)
    with pytest.raises(ConfigError, match="may still appear"):
        publish(net)
    net.admin.advance(60)
    publish(net)
    assert commits(net) == 1


def test_seal_missing_in_the_journal_is_not_replaced(net: Net) -> None:
    seal_and_die(net)
    for path in (net.parts.folder / "work").glob("commitment-*.json"):
        path.unlink()
    with pytest.raises(ConfigError, match="is not in the journal"):
        seal(net)
    assert commits(net) == 1


def test_replaced_seal_uploads_nothing(net: Net) -> None:
    seal_and_die(net)
    with pytest.raises(ConfigError, match="another commitment replaced the sealed one"):
        seal(net, sleep=lambda _: net.commit("alice", "something else"))
    assert uploaded(net) is None


def test_private_repo_is_refused_before_the_commit(net: Net) -> None:
    hub_store.upload_files(net.hub.store.root, "alice/data", {"README.md": b"#"}, private=True)
    with pytest.raises(ConfigError, match="--hf_repo_id alice/data must be public"):
        seal(net)
    assert commits(net) == 0


def decline(net: Net, schedule: RevealSchedule) -> str:
    """Decline to seal, and return the description."""
    shown: list[str] = []
    chain = net.chain("alice")
    seal_dataset(configure(net), chain, schedule=schedule, confirm=lambda text: bool(shown.append(text)))
    return shown[0]


def test_sealing_a_public_file_logs_a_warning(net: Net, logs: list[str]) -> None:
    net.upload("alice", SMALL)
    assert "sealing hides nothing" in decline(net, after_blocks(50))
    assert any("WARNING" in line and "hides nothing" in line for line in logs)


def test_confirmation_shows_text_and_reveal_block(net: Net) -> None:
    text = decline(net, RevealSchedule(lambda _: 4711, lambda revealed: revealed + 4))
    assert commits(net) == 0
    assert f"{TEXT} (sealed)" in text and "block 4711" in text
    assert "uploaded at about block 4715" in text


def test_seal_from_before_the_registration_is_repeated(net: Net) -> None:
    seal_and_die(net)
    before = read_commitment(net).block
    net.admin.deregister(net.hotkey("alice"))
    net.admin.register(net.hotkey("alice"))
    assert seal(net).block > before
    assert commits(net) == 2


def test_killed_process_is_continued_to_the_end(net: Net) -> None:
    words = ("--yes", "--seal")
    with Process(MINER, *arguments(net, *words), env=net.environment("alice")) as process:
        process.wait_for("sealed, opens at")
        process.send(signal.SIGKILL)
        process.finish()
    block = read_commitment(net).block
    reveal(net)
    ended = run(net, more=words)
    assert ended.status == 0, ended.logs
    assert ended.output == f"{TEXT} committed in block {block}\n"
    assert_completed(net)
