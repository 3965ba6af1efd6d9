"""Checks after every kill and at the end of a run, without the product's store.

The state file is read from a copy, log included, so that the next process meets exactly what the kill left.
"""

import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from template.errors import ConfigError
from template.receipts.files import read_receipt, read_round
from template.receipts.verify import check_consistency
from tests.campaigns.crash.points import ROUND_BLOCKS
from tests.campaigns.synthetic_subnet import read_weights_calls


@dataclass
class EndState:
    """The end of a run; parts of a round by the block at which it starts."""

    verdicts: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    entries: dict[int, dict[str, tuple[Any, ...]]] = field(default_factory=dict)
    tables: dict[int, dict[str, tuple[Any, ...]]] = field(default_factory=dict)
    weights: dict[int, list[str]] = field(default_factory=dict)
    receipts: set[str] = field(default_factory=set)

    def until(self, block: int) -> "EndState":
        """Return the part that belongs to the rounds which start up to a block."""
        rounds = [start for start in self.entries if start <= block]
        members = {f"{hotkey} {entry[0]}" for start in rounds for hotkey, entry in self.entries[start].items()}
        return EndState(
            verdicts={key: verdict for key, verdict in self.verdicts.items() if key in members},
            entries={start: self.entries[start] for start in rounds},
            tables={start: self.tables[start] for start in rounds},
            weights={start: self.weights[start] for start in rounds},
            receipts={receipt for receipt in self.receipts if " ".join(receipt.split()[:2]) in members},
        )


@contextmanager
def _copied_state(path: Path) -> Iterator[sqlite3.Connection]:
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        for end in ("", "-wal"):
            source = path.with_name(path.name + end)
            if source.exists():
                shutil.copy(source, folder)
        with closing(sqlite3.connect(Path(folder) / path.name)) as db:
            db.row_factory = sqlite3.Row
            yield db


def check_database(path: Path) -> list[str]:
    """Return what SQLite's own checks find in a state file; a missing one passes."""
    if not path.exists():
        return []
    try:
        with _copied_state(path) as db:
            faults = [str(row[0]) for row in db.execute("PRAGMA integrity_check")]
            faults += [f"foreign key of {row[0]}" for row in db.execute("PRAGMA foreign_key_check")]
    except sqlite3.DatabaseError as error:
        faults = [str(error)]
    return [f"state file: {fault}" for fault in faults if fault != "ok"]


def read_state(path: Path) -> EndState:
    """Read a state file that no process has open."""
    state = EndState()
    with _copied_state(path) as db:
        for row in db.execute("SELECT hotkey, entry, reason, loss FROM verdicts"):
            loss = None if row["loss"] is None else float(row["loss"]).hex()
            state.verdicts[f"{row['hotkey']} {row['entry']}"] = (row["reason"], loss)
        for row in db.execute("SELECT hotkey, entry, receipt FROM receipts"):
            result = json.loads(row["receipt"])["result"]
            state.receipts.add(f"{row['hotkey']} {row['entry']} {result['lucky_num']} {float(result['loss']).hex()}")
        for number, start in db.execute("SELECT id, start_block FROM rounds").fetchall():
            for table, part in (("round_members", state.entries), ("standings", state.tables)):
                rows = db.execute(f"SELECT * FROM {table} WHERE round_id = ?", (number,))
                part[start] = {row["hotkey"]: tuple(row)[2:] for row in rows}
            accepted = db.execute(
                "SELECT weights FROM weight_intents WHERE round_id = ? AND json_extract(outcome, '$.is_accepted')",
                (number,),
            )
            state.weights[start] = [row["weights"] for row in accepted]
    return state


def compare(expected: EndState, actual: EndState, *, ignore: Collection[str] = ()) -> list[str]:
    """Return the differences between two end states."""
    differences = [
        f"verdict on {key}: {actual.verdicts.get(key)}, undisturbed {expected.verdicts.get(key)}"
        for key in sorted(expected.verdicts.keys() | actual.verdicts.keys())
        if expected.verdicts.get(key) != actual.verdicts.get(key)
    ]
    differences += [f"receipt: {receipt}" for receipt in sorted(expected.receipts ^ actual.receipts)]
    for name in {"entries", "tables", "weights"}.difference(ignore):
        theirs, ours = getattr(expected, name), getattr(actual, name)
        differences += [
            f"{name} of the round of block {start}: {ours.get(start)}, undisturbed {theirs.get(start)}"
            for start in sorted(theirs.keys() | ours.keys())
            if theirs.get(start) != ours.get(start)
        ]
    return differences


def count_weights(chain_file: Path, hotkey: str) -> tuple[Counter[int], int]:
    """Return accepted weights by their round's start, and all their extrinsics."""
    calls = [call for call in read_weights_calls(chain_file) if call.signer == hotkey]
    accepted = Counter(call.block // ROUND_BLOCKS * ROUND_BLOCKS for call in calls if call.error is None)
    return accepted, len(calls)


def check_weights(chain_file: Path, hotkey: str) -> list[str]:
    """Return the rounds in which the chain took weights more than once."""
    accepted, _ = count_weights(chain_file, hotkey)
    return [
        f"weights set {count} times in the round of block {start}" for start, count in accepted.items() if count > 1
    ]


def check_files(state_dir: Path, *, is_complete: bool = False) -> tuple[list[str], int]:
    """Return files that are not whole, and the number of temporary files.

    Args:
        is_complete: the run is over, so each round's file must agree with itself and its receipts.
    """
    partial: list[str] = []
    temporary = 0
    for path in sorted(file for file in state_dir.rglob("*") if file.is_file()):
        is_published = path.parent.name in ("receipts", "rounds")
        if path.name.startswith((".data.jsonl.", "..source.json.")) or (is_published and path.name.startswith(".")):
            temporary += 1
        elif path.name == ".source.json":
            partial += _check_source(path)
        elif is_published:
            partial += _check_readable(path)
            if is_complete and not partial and path.parent.name == "rounds":
                files = [read_round(other) for other in path.parent.glob("round-*.jsonl")]
                receipts = {receipt.digest: receipt for file in files for receipt in file.receipts}
                partial += [f"{path.name}: {fault}" for fault in check_consistency(read_round(path), receipts)]
    return partial, temporary


def _check_readable(path: Path) -> list[str]:
    try:
        (read_receipt if path.parent.name == "receipts" else read_round)(path)
    except ConfigError as error:
        return [str(error)]
    return []


def _check_source(path: Path) -> list[str]:
    """Compare the record of a dataset's origin with the file beside it."""
    try:
        record = json.loads(path.read_bytes())
        content = (path.parent / "data.jsonl").read_bytes()
    except (OSError, ValueError) as error:
        return [f"{path}: {error}"]
    if (record.get("sha256"), record.get("size")) != (hashlib.sha256(content).hexdigest(), len(content)):
        return [f"{path}: it is of another file than the one beside it"]
    return []


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
