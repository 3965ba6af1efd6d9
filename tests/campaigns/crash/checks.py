"""Checks after every kill and at the end of a run, without the product's store.

The state file is read from a copy, log included, so that the next process meets exactly what the kill left.
"""

import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from template.errors import ConfigError
from template.receipts.files import read_receipt, read_round
from template.receipts.verify import check_consistency
from tests.campaigns.crash.points import ROUND_BLOCKS
from tests.campaigns.synthetic_subnet import WeightsCall

_UNTIL = "JOIN rounds ON rounds.id = round_id WHERE start_block <= :until"
_MEMBERS = f"SELECT hotkey, entry FROM round_members {_UNTIL}"
# Values by key that must equal an undisturbed run's, of rounds that start up to a block.
_PARTS = {
    "rejection of": f"SELECT hotkey || ' ' || entry, reason FROM verdicts WHERE (hotkey, entry) IN ({_MEMBERS})",
    "evaluation of": "SELECT hotkey || ' ' || digest || ' ' || number, entry, lucky_num, seed_block, loss,"
    " result(receipt, 'lucky_num'), result(receipt, 'loss') FROM evaluations"
    f" WHERE (hotkey, digest, number) IN (SELECT hotkey, digest, number FROM round_evaluations {_UNTIL})",
    "entry in the round of block": "SELECT start_block || ', ' || hotkey, entry, uid, block, rank_block,"
    f" registration_block, turn FROM round_members {_UNTIL}",
    "plan of the round of block": "SELECT start_block || ', ' || position, hotkey, entry, digest, number,"
    f" round_evaluations.lucky_num, seed_block FROM round_evaluations {_UNTIL}",
    "leaderboard of the round of block": "SELECT start_block || ', ' || hotkey, entry, uid, reason, message, digest,"
    f" runs, mean, spread, loss, score, credit, weight FROM standings {_UNTIL}",
    "ledger of the round of block": "SELECT start_block, ledger FROM rounds WHERE start_block <= :until",
    "weights in the round of block": f"SELECT start_block, group_concat(sent) FROM weight_intents {_UNTIL}"
    " AND json_extract(outcome, '$.is_accepted') GROUP BY start_block",
}


@contextmanager
def _copied_state(path: Path) -> Iterator[sqlite3.Connection]:
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        for source in (path, path.with_name(f"{path.name}-wal")):
            if source.exists():
                shutil.copy(source, folder)
        with closing(sqlite3.connect(Path(folder) / path.name)) as db:
            yield db


def check_database(path: Path) -> list[str]:
    """Return the findings of SQLite's own checks; a missing state file passes."""
    if not path.exists():
        return []
    try:
        with _copied_state(path) as db:
            faults = [str(row[0]) for row in db.execute("PRAGMA integrity_check")]
            faults += [f"foreign key of {row[0]}" for row in db.execute("PRAGMA foreign_key_check")]
    except sqlite3.DatabaseError as error:
        faults = [str(error)]
    return [f"state file: {fault}" for fault in faults if fault != "ok"]


def read_state(path: Path, until: int) -> dict[str, list[Any]]:
    """Read a state file that no process has open; losses keep their bits."""
    with _copied_state(path) as db:
        # SQLite's own JSON functions may round the last bit.
        db.create_function("result", 2, lambda receipt, name: json.loads(receipt)["result"][name] if receipt else None)
        return {
            f"{part} {key}": values
            for part, query in _PARTS.items()
            for key, *values in db.execute(query, {"until": until})
        }


def compare(expected: Mapping[str, object], actual: Mapping[str, object], *, ignore: Collection[str] = ()) -> list[str]:
    """Return the differences between two states. ignore: beginnings of keys."""
    return [
        f"{key}: {actual.get(key)}, undisturbed {expected.get(key)}"
        for key in sorted({*expected, *actual})
        if expected.get(key) != actual.get(key) and not key.startswith(tuple(ignore))
    ]


def check_weights(calls: Iterable[WeightsCall]) -> list[str]:
    """Return the rounds in which the chain took weights more than once."""
    accepted = Counter(call.block // ROUND_BLOCKS * ROUND_BLOCKS for call in calls if call.error is None)
    return [f"weights set {n} times in the round of block {start}" for start, n in accepted.items() if n > 1]


def check_files(state_dir: Path, *, is_complete: bool = False) -> tuple[list[str], int]:
    """Return files that are not whole, and the number of temporary files.

    Args:
        is_complete: the run is over, so each round's file must agree with itself and its receipts.
    """
    partial: list[str] = []
    paths = sorted(path for path in state_dir.rglob("*") if path.is_file())
    published = [path for path in paths if path.parent.name in ("receipts", "rounds")]
    temporary = [path for path in paths if path.name.startswith((".data.jsonl.", "..source.json."))]
    temporary += [path for path in published if path.name.startswith(".")]
    for path in paths:
        if path.name == ".source.json":
            partial += _check_source(path)
    rounds = []
    for path in (path for path in published if path not in temporary):
        try:
            if path.parent.name == "receipts":
                read_receipt(path)
            else:
                rounds.append((path, read_round(path)))
        except ConfigError as error:
            partial.append(str(error))
    if is_complete and not partial:
        receipts = {receipt.digest: receipt for _, file in rounds for receipt in file.receipts}
        for path, file in rounds:
            partial += [f"{path.name}: {fault}" for fault in check_consistency(file, receipts)]
    return partial, len(temporary)


def _check_source(path: Path) -> list[str]:
    """Compare the record of a dataset's origin with the file beside it."""
    try:
        record, content = json.loads(path.read_bytes()), path.with_name("data.jsonl").read_bytes()
    except (OSError, ValueError) as error:
        return [f"{path}: {error}"]
    is_same = (record["sha256"], record["size"]) == (hashlib.sha256(content).hexdigest(), len(content))
    return [] if is_same else [f"{path}: it is of another file than the one beside it"]


def check_order(events: Iterable[str]) -> list[str]:
    """Return the files that an undisturbed run renamed before they were synced."""
    synced: set[str] = set()
    faults = []
    for event in events:
        what, _, detail = event.partition(" | ")
        folder, _, name = detail.partition("/")
        if what == "after fsync" and name.startswith("."):
            synced.add(folder)
        elif what == "before replace":
            if folder not in synced:
                faults.append(f"renamed before it was on the disk: {detail}")
            synced.discard(folder)
    return faults
