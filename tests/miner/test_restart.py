"""A miner that is killed or run again commits nothing twice."""

from pathlib import Path

import pytest

from template.errors import ConfigError, HostError
from template.hub import datasets
from template.miner.journal import Journal
from tests.fixtures.miner import (
    ERA_BLOCKS,
    Killed,
    KilledChain,
    LaggingChain,
    commits,
    configure,
    head,
    publish,
    run_miner,
    stepping,
)
from tests.fixtures.network import POOL, Net


@pytest.mark.parametrize("is_after", [False, True], ids=["before the call", "after the call"])
def test_kill_around_the_call_commits_once(net: Net, is_after: bool) -> None:
    with KilledChain(net, is_after=is_after) as chain, pytest.raises(Killed):
        run_miner(configure(net), chain, stepping(net))
    before, uploaded = net.admin.block(), head(net)
    with LaggingChain(net, "alice", blocks=0) as chain:
        published = run_miner(configure(net), chain, stepping(net))
    assert commits(net) == 1 and head(net) == uploaded
    assert (published.block <= before) is is_after
    assert is_after or published.block > before + ERA_BLOCKS, "the first call may land until then"


@pytest.mark.parametrize("step", ["upload_dataset", "download_dataset"])
def test_kill_before_the_intent_starts_over(net: Net, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = getattr(datasets, step)

    def stop(*args: object, **options: object) -> object:
        done = call(*args, **options)
        if args[0] not in (net.competition.repo,):
            raise Killed
        return done

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(datasets, step, stop)
        publish(net)
    uploaded = head(net)
    assert uploaded is not None and commits(net) == 0
    before = net.admin.block()
    assert publish(net).block <= before + 2, "nothing was sent that could be waited for"
    assert commits(net) == 1 and head(net) == uploaded


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
