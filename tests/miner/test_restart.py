"""A miner that is killed or run again commits nothing twice."""

from pathlib import Path

import pytest

from template.constants import ERA_BLOCKS
from template.errors import ConfigError, HostError
from template.hub import datasets
from template.miner.journal import Journal
from template.miner.publish import publish_dataset
from tests.fixtures.miner import (
    Killed,
    KilledChain,
    LaggingChain,
    commits,
    configure,
    publish,
    run_miner,
    stepping,
)
from tests.fixtures.network import POOL, SMALL, Net, make_content


@pytest.mark.parametrize("is_after", [False, True], ids=["before the call", "after the call"])
def test_kill_around_the_call_commits_once(net: Net, is_after: bool) -> None:
    with KilledChain(net, is_after=is_after) as chain, pytest.raises(Killed):
        run_miner(configure(net), chain, stepping(net))
    before = net.admin.block()
    with LaggingChain(net, "alice", blocks=0) as chain:
        published = run_miner(configure(net), chain, stepping(net))
    assert commits(net) == 1
    assert_public(net)
    assert (published.block <= before) is is_after
    assert is_after or published.block > before + ERA_BLOCKS, "the first call may land until then"


def assert_public(net: Net) -> None:
    """Check that validators find the file of the commitment on chain."""
    on_chain = net.chain("alice").commitment(net.hotkey("alice"))
    assert on_chain is not None and on_chain.text is not None
    commit, folder = on_chain.text.rpartition(":")[2], net.parts.folder / "validator"
    assert datasets.download_dataset("alice/data", commit, folder, hotkey=on_chain.hotkey).size


def kill_at(net: Net, step: str, monkeypatch: pytest.MonkeyPatch, *, is_after: bool = True) -> None:
    """Publish, and be killed by a call of the Hub about alice's repo."""
    call = getattr(datasets, step)

    def stop(*args: object, **options: object) -> object:
        done = call(*args, **options) if is_after else None
        if commits(net):
            raise Killed
        return done or call(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(datasets, step, stop)
        publish(net)
    assert commits(net) == 1


@pytest.mark.parametrize("step", ["upload_dataset", "download_dataset"])
@pytest.mark.parametrize("is_after", [False, True], ids=["before the call", "after the call"])
def test_kill_after_the_commitment_uploads_the_file(
    net: Net, step: str, is_after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(net, step, monkeypatch, is_after=is_after)
    before = net.admin.block()
    assert publish(net).block <= before, "the rank of the first commitment"
    assert commits(net) == 1
    assert_public(net)
    assert not list((net.parts.folder / "work").glob("*.jsonl")), "the copy is not needed any more"


def test_changed_file_after_a_kill_names_the_copy(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_at(net, "upload_dataset", monkeypatch, is_after=False)
    shown: list[str] = []
    chain = net.chain("alice")
    assert publish_dataset(configure(net, POOL[:30]), chain, confirm=lambda text: bool(shown.append(text))) is None
    copy = Path(shown[0].split("a copy is ")[1].splitlines()[0])
    assert copy.read_bytes() == make_content(SMALL) and copy.stat().st_mode & 0o777 == 0o600
    publish(net, dataset_path=copy)
    assert commits(net) == 1
    assert_public(net)


def test_call_in_flight_delays_a_changed_file(net: Net) -> None:
    with KilledChain(net) as chain, pytest.raises(Killed):
        run_miner(configure(net), chain, stepping(net))
    before = net.admin.block()
    assert publish(net, POOL[:30]).block > before + ERA_BLOCKS


def journal_of(net: Net) -> Path:
    (path,) = (net.parts.folder / "work").glob("commitment-*.json")
    return path


def test_second_miner_of_a_hotkey_is_refused(net: Net) -> None:
    publish(net)
    path = journal_of(net)
    with Journal(path.parent, path.stem), pytest.raises(ConfigError, match="another miner runs"):
        publish(net, POOL[:30])
    assert commits(net) == 1
    publish(net, POOL[:30])
    assert commits(net) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"text": 1}', "\udcff"])
def test_damaged_journal_is_a_host_error(net: Net, content: str) -> None:
    publish(net)
    journal_of(net).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(HostError, match="check your commitment on chain"):
        publish(net, POOL[:30])
    assert commits(net) == 1
