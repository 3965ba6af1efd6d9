"""The local chain's file: blocks by the clock, and a past that never changes."""

import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from template.errors import ConfigError
from template.localnet.chain.ledger import Ledger, UnknownBlockError
from tests.fixtures.chain import NETUID, ManualClock, make_local_chain


def test_block_hashes_differ_by_block_and_by_chain(tmp_path: Path) -> None:
    local = make_local_chain(tmp_path)
    local.advance(3)
    other_file = tmp_path / "a" / "other.db"
    with (
        local,
        Ledger(local.path) as ours,
        Ledger.create_file(other_file, netuid=NETUID, block_time_s=0.0) as other,
    ):
        head = ours.block()
        hashes = {ours.hash_of(number) for number in range(head + 1)}
        assert len(hashes) == head + 1 and other.hash_of(0) not in hashes
        assert [ours.number_of(ours.hash_of(number)) for number in range(head + 1)] == list(range(head + 1))
        forged = ours.hash_of(1)[:-8] + ours.hash_of(2)[-8:]
        for unknown in (other.hash_of(0), forged, "0x12", "", ours.hash_of(1)[:-1]):
            with pytest.raises(UnknownBlockError):
                ours.number_of(unknown)
        ours.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def ledger(tmp_path: Path, clock: ManualClock) -> Iterator[Ledger]:
    with Ledger.create_file(tmp_path / "chain.db", netuid=NETUID, block_time_s=12.0, now=clock) as created:
        yield created


@pytest.fixture
def stepped(tmp_path: Path) -> Iterator[Ledger]:
    """A chain without a clock."""
    with Ledger.create_file(tmp_path / "chain.db", netuid=NETUID, block_time_s=0.0) as created:
        yield created


def test_blocks_come_by_the_clock_and_never_go_back(clock: ManualClock, ledger: Ledger) -> None:
    heads = []
    for now in (1000, 1011.9, 1012, 1030, 1020, 900, 1036):
        clock.now = now
        heads.append(ledger.block())
    assert heads == [0, 0, 1, 2, 2, 2, 3]
    assert ledger.timestamp(2) == 1024


def test_pace_changes_without_a_jump(clock: ManualClock, ledger: Ledger) -> None:
    clock.now = 1030
    assert ledger.block() == 2
    ledger.set_block_time(0.5)
    assert ledger.block() == 3
    clock.now = 1032
    assert ledger.block() == 7
    assert (ledger.timestamp(2), ledger.timestamp(3), ledger.timestamp(7)) == (1024, 1030, 1032)
    ledger.set_block_time(0)
    clock.now = 2000
    assert ledger.block() == 8 and ledger.advance(2) == 10
    assert ledger.timestamp(10) == 2000
    ledger.set_block_time(12)
    clock.now = 2024
    assert ledger.block() == 13
    with pytest.raises(ValueError, match="by the clock"):
        ledger.advance(1)


def test_write_is_in_the_next_block_and_not_before(clock: ManualClock, ledger: Ledger) -> None:
    with ledger.write() as state:
        state.put("Item", "key", 1)
        assert state.block == 1
    assert ledger.at().get("Item", "key") is None
    clock.now += 12
    assert ledger.at().get("Item", "key") == 1
    assert ledger.at(0).get("Item", "key") is None


def test_reader_waits_for_a_write_that_its_block_may_hold(clock: ManualClock, ledger: Ledger) -> None:
    seen: list[Any] = []

    def read() -> None:
        with Ledger(ledger.path, now=clock) as other:
            seen.append(other.at(1).get("Item", "key"))

    reader = threading.Thread(target=read)
    with ledger.write() as state:
        clock.now += 12
        reader.start()
        reader.join(0.3)
        assert reader.is_alive() and not seen
        state.put("Item", "key", "late")
    reader.join(10)
    assert seen == ["late"]


def test_write_after_the_clock_went_back_leaves_the_past_alone(clock: ManualClock, ledger: Ledger) -> None:
    clock.now = 1100
    head = ledger.block()
    clock.now = 1000
    with ledger.write() as state:
        assert state.block == head + 1
    assert ledger.block() == head


def test_entries_are_the_newest_values_of_their_block(stepped: Ledger) -> None:
    for key, value in (("b", 1), ("a", 2), ("b", 3), ("a", None), ("c", 4)):
        with stepped.write() as state:
            state.put("Item", key, value)
            state.put("Items", key, "another map's")
    entries = [stepped.at(block).entries("Item") for block in range(6)]
    assert entries[:3] == [[], [("b", 1)], [("a", 2), ("b", 1)]]
    assert entries[3:] == [[("a", 2), ("b", 3)], [("b", 3)], [("b", 3), ("c", 4)]]
    assert stepped.at().entries("Ite") == []


def test_failed_write_leaves_no_trace(stepped: Ledger) -> None:
    with pytest.raises(KeyError), stepped.write() as state:
        state.put("Item", "key", 1)
        raise KeyError
    assert stepped.block() == 0 and stepped.at().entries("Item") == []


def test_reorganisation_takes_back_blocks_with_their_writes(tmp_path: Path) -> None:
    with make_local_chain(tmp_path) as local, Ledger(local.path) as ledger:
        local.set_finality_lag(3)
        local.advance(5)
        head, final = ledger.block(), ledger.finalized()
        assert final == head - 3
        with ledger.write() as state:
            state.put("Item", "key", 1)
        hashes = [ledger.hash_of(number) for number in range(head + 2)]
        with pytest.raises(ValueError, match="3 blocks can be taken back, not 4"):
            local.reorganise(4)
        assert local.reorganise(2) == head - 1
        assert ledger.at().get("Item", "key") is None and ledger.finalized() == head - 2
        local.advance(2)
        again = [ledger.hash_of(number) for number in range(head + 2)]
        assert again[:head] == hashes[:head] and not set(again[head:]) & set(hashes[head:])
        with pytest.raises(UnknownBlockError):
            ledger.number_of(hashes[head])
        assert ledger.number_of(again[head]) == head
        times = [ledger.timestamp(number) for number in range(head + 2)]
        assert times == sorted(times)


def test_final_blocks_stay_final(tmp_path: Path) -> None:
    with make_local_chain(tmp_path) as local, Ledger(local.path) as ledger:
        local.advance(5)
        final = ledger.finalized()
        assert final == ledger.block()
        local.set_finality_lag(100)
        assert ledger.finalized() == final
        with pytest.raises(ValueError, match="0 blocks can be taken back"):
            local.reorganise(1)
        local.advance(3)
        local.reorganise(3)
        assert ledger.finalized() == final == ledger.block()
        local.set_finality_lag(0)
        local.set_block_time(12)
        with pytest.raises(ValueError, match="by the clock"):
            local.reorganise(1)


def test_hashes_do_not_depend_on_the_calls(tmp_path: Path) -> None:
    with make_local_chain(tmp_path) as local:
        local.advance(3)
        head, copy = local.block(), tmp_path / "copy.db"
        with closing(sqlite3.connect(local.path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        with local.write() as state:
            state.record_extrinsic(b"call", "signer", None)
        with Ledger(copy) as other:
            other.advance(1)
            assert other.hash_of(head + 1) == local.hash_of(head + 1)


def test_file_that_is_no_local_chain_is_refused_and_kept(tmp_path: Path) -> None:
    other, foreign = tmp_path / "other.db", tmp_path / "foreign.db"
    other.write_bytes(b"not a chain, " * 100)
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE chain (genesis TEXT, netuid INTEGER)")
    before = foreign.read_bytes()
    for path in (tmp_path, tmp_path / "missing.db", other, foreign):
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            Ledger(path)
    assert foreign.read_bytes() == before
    assert not (tmp_path / "missing.db").exists()
