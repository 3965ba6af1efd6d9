"""Optional folders: no loss, round or weight waits for them, and no file is lost."""

from pathlib import Path

import pytest

from template.receipts.files import read_receipt, read_round
from template.rules.schedule import Policy
from template.store.store import StatusStore
from tests.fixtures.logs import log_lines
from tests.fixtures.network import SMALL, Net, run_bounded
from tests.fixtures.validator import Bench, open_bench


def block_folder(net: Net, name: str) -> Path:
    """Put a file where a folder of the validator belongs."""
    path = net.parts.folder / "state" / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


def warnings(bench: Bench) -> tuple[str, ...]:
    metrics = bench.store.heartbeat()
    assert metrics is not None
    return metrics.warnings


@pytest.mark.parametrize("name", ["receipts", "rounds"])
def test_round_ends_with_weights_without_its_folder(net: Net, name: str) -> None:
    net.submit("alice", SMALL)
    path = block_folder(net, name)
    with open_bench(net) as bench, log_lines("WARNING") as lines:
        run_bounded(bench.validator)
        assert bench.outcomes() == [True] and bench.scored_hotkeys() == {net.hotkey("alice")}
        (warning,) = warnings(bench)
    flag = f"--{name[:-1]}_dir"
    assert warning == f"{flag} {path} takes no files: File exists; 1 wait in the state"
    assert [line.strip() for line in lines if flag in line] == [
        f"WARNING {flag} {path} takes no files, which wait in the state: File exists"
    ]


def test_receipt_is_written_once_the_folder_is_mended(net: Net) -> None:
    net.submit("alice", SMALL)
    path = block_folder(net, "receipts")
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        (receipt,) = bench.receipts().values()
    path.unlink()
    with open_bench(net) as bench:
        bench.validator.stop.set()
        bench.validator.run()
        assert bench.store.unwritten_names() == []
    (file,) = path.iterdir()
    assert read_receipt(file) == receipt and file.stat().st_mode & 0o777 == 0o600


def test_round_files_are_written_once_the_folder_is_mended(net: Net) -> None:
    net.submit("alice", SMALL)
    path = block_folder(net, "rounds")
    with open_bench(net, policy=Policy(blocks_per_epoch=20, block_threshold=5)) as bench:
        bench.run_rounds(2)
        assert list(map(len, [warnings(bench), bench.store.unwritten_names()])) == [1, 2]
        path.unlink()
        bench.run_rounds(1)
        bench.tick()
        assert warnings(bench) == () and bench.store.unwritten_names() == []
        rounds = [bench.store.rows("SELECT start_block FROM rounds WHERE closed_at IS NOT NULL")]
    blocks = sorted(read_round(file).header.start_block for file in path.iterdir())
    assert blocks == [row["start_block"] for row in rounds[0]] and len(blocks) == 3


def test_files_that_wait_too_long_are_dropped(net: Net) -> None:
    net.submit("alice", SMALL)
    block_folder(net, "receipts")
    with open_bench(net) as bench:
        run_bounded(bench.validator)
    with StatusStore(net.parts.folder / "state" / "validator.sqlite3") as store:
        assert len(store.unwritten_names()) == 1
    with open_bench(net, keep_days=0.0) as bench:
        run_bounded(bench.validator)
        assert bench.store.unwritten_names() == []
