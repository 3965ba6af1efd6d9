"""What must hold after every kill, and at the end of a crash run: read from the files and the chain, past the product.

The state file is read from a copy, log included, so that the next process meets exactly what the kill left behind.
"""

import ctypes
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from template.errors import ConfigError
from template.localnet.chain.ledger import Ledger
from template.localnet.chain.scale_codec import decode_call
from template.receipts.files import read_receipt, read_round
from template.receipts.verify import check_consistency

STATE_FILE = "validator.sqlite3"
# From linux/prctl.h.
_PR_SET_CHILD_SUBREAPER = 36
# What a worker whose parent is gone may take to notice it.
_GRACE_S = 10.0


@dataclass
class EndState:
    """What a run came to, by the starting block of each round where it is a round's."""

    verdicts: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    entries: dict[int, dict[str, tuple[Any, ...]]] = field(default_factory=dict)
    tables: dict[int, dict[str, tuple[Any, ...]]] = field(default_factory=dict)
    weights: dict[int, list[str]] = field(default_factory=dict)
    receipts: set[str] = field(default_factory=set)

    def until(self, block: int) -> "EndState":
        """The same after the rounds that started up to a block alone, with the verdicts on who stood in them."""
        rounds = [start for start in self.entries if start <= block]
        stood = {f"{hotkey} {entry[0]}" for start in rounds for hotkey, entry in self.entries[start].items()}
        return EndState(
            verdicts={key: found for key, found in self.verdicts.items() if key in stood},
            entries={start: self.entries[start] for start in rounds},
            tables={start: self.tables[start] for start in rounds},
            weights={start: self.weights[start] for start in rounds},
            receipts={name for name in self.receipts if " ".join(name.split()[:2]) in stood},
        )


@contextmanager
def copied_state(path: Path) -> Iterator[sqlite3.Connection]:
    """A copy of a state file that nobody holds open, with its log as it lies there."""
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        for end in ("", "-wal"):
            source = path.with_name(path.name + end)
            if source.exists():
                shutil.copy(source, folder)
        with closing(sqlite3.connect(Path(folder) / path.name)) as db:
            db.row_factory = sqlite3.Row
            yield db


def check_database(path: Path) -> list[str]:
    """What SQLite finds wrong with a state file; one that is not there, or empty, is as good as none."""
    if not path.exists():
        return []
    try:
        with copied_state(path) as db:
            found = [str(row[0]) for row in db.execute("PRAGMA integrity_check")]
            found += [f"foreign key of {row[0]}" for row in db.execute("PRAGMA foreign_key_check")]
    except sqlite3.DatabaseError as error:
        found = [str(error)]
    return [f"state file: {one}" for one in found if one != "ok"]


def read_state(path: Path) -> EndState:
    """What a state file says."""
    state = EndState()
    with copied_state(path) as db:
        for row in db.execute("SELECT hotkey, entry, reason, loss FROM verdicts"):
            loss = None if row["loss"] is None else float(row["loss"]).hex()
            state.verdicts[f"{row['hotkey']} {row['entry']}"] = (row["reason"], loss)
        for row in db.execute("SELECT hotkey, entry, receipt FROM receipts"):
            result = json.loads(row["receipt"])["result"]
            state.receipts.add(f"{row['hotkey']} {row['entry']} {result['lucky_num']} {float(result['loss']).hex()}")
        starts = {row["id"]: row["start_block"] for row in db.execute("SELECT id, start_block FROM rounds")}
        for number, start in starts.items():
            members = db.execute("SELECT * FROM round_members WHERE round_id = ?", (number,))
            state.entries[start] = {row["hotkey"]: tuple(row)[2:] for row in members}
            lines = db.execute("SELECT * FROM standings WHERE round_id = ?", (number,))
            state.tables[start] = {row["hotkey"]: tuple(row)[2:] for row in lines}
            taken = db.execute(
                "SELECT weights FROM weight_intents WHERE round_id = ? AND json_extract(outcome, '$.is_accepted')",
                (number,),
            )
            state.weights[start] = [row["weights"] for row in taken]
    return state


def compare(expected: EndState, found: EndState, *, but: Collection[str] = ()) -> list[str]:
    """Where two end states differ, in words. but: the fields that may."""
    said = [
        f"verdict on {key}: {found.verdicts.get(key)}, undisturbed {expected.verdicts.get(key)}"
        for key in sorted(expected.verdicts.keys() | found.verdicts.keys())
        if expected.verdicts.get(key) != found.verdicts.get(key)
    ]
    said += [f"receipt: {one}" for one in sorted(expected.receipts ^ found.receipts)]
    for name in {"entries", "tables", "weights"}.difference(but):
        theirs, ours = getattr(expected, name), getattr(found, name)
        said += [
            f"{name} of the round of block {start}: {ours.get(start)}, undisturbed {theirs.get(start)}"
            for start in sorted(theirs.keys() | ours.keys())
            if theirs.get(start) != ours.get(start)
        ]
    return said


def count_weights(chain_file: Path, hotkey: str, round_blocks: int) -> tuple[Counter[int], int]:
    """(weights that the chain took, by the round's start; extrinsics included in all, refused ones too)."""
    taken: Counter[int] = Counter()
    included = 0
    with Ledger(chain_file) as ledger, closing(sqlite3.connect(f"file:{chain_file}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT block, data, error FROM extrinsics WHERE signer = ?", (hotkey,)).fetchall()
        assert ledger.block() >= max([row[0] for row in rows], default=0)
    for block, data, error in rows:
        if decode_call(data).function == "set_mechanism_weights":
            included += 1
            taken[block // round_blocks * round_blocks] += error is None
    return taken, included


def check_weights(chain_file: Path, hotkey: str, round_blocks: int) -> list[str]:
    """Windows in which the chain took weights more than once."""
    taken, _ = count_weights(chain_file, hotkey, round_blocks)
    return [f"weights set {count} times in the round of block {start}" for start, count in taken.items() if count > 1]


def check_files(state_dir: Path, *, is_complete: bool = False) -> tuple[list[str], int]:
    """(files under their final names that are not whole, temporary files that a kill left behind).

    is_complete: the run is over, so that each round's file must agree with itself and its receipts.
    """
    partial: list[str] = []
    temporary = 0
    for path in sorted(one for one in state_dir.rglob("*") if one.is_file()):
        if path.name.startswith((".data.jsonl.", "..source.json.")) or (
            path.parent.name in ("receipts", "rounds") and path.name.startswith(".")
        ):
            temporary += 1
        elif path.name == ".source.json":
            partial += _check_source(path)
        elif path.parent.name == "receipts":
            partial += _check_readable(path, read_receipt)
        elif path.parent.name == "rounds":
            partial += _check_readable(path, read_round)
            if is_complete and not partial:
                file = read_round(path)
                receipts = {one.digest: one for one in file.receipts}
                for other in (read_round(one) for one in path.parent.glob("round-*.jsonl")):
                    receipts.update({one.digest: one for one in other.receipts})
                partial += [f"{path.name}: {one}" for one in check_consistency(file, receipts)]
    return partial, temporary


def _check_readable(path: Path, read: Any) -> list[str]:
    try:
        read(path)
    except ConfigError as error:
        return [str(error)]
    return []


def _check_source(path: Path) -> list[str]:
    """A record of where a dataset came from must be that of the file beside it."""
    try:
        record = json.loads(path.read_bytes())
        content = (path.parent / "data.jsonl").read_bytes()
    except (OSError, ValueError) as error:
        return [f"{path}: {error}"]
    if (record.get("sha256"), record.get("size")) != (hashlib.sha256(content).hexdigest(), len(content)):
        return [f"{path}: it is of another file than the one beside it"]
    return []


def check_order(events: Iterable[str]) -> list[str]:
    """Files that got their final name before they were on the disk, in the order in which an undisturbed run went."""
    synced: set[str] = set()
    found = []
    for event in events:
        what, _, detail = event.partition(" | ")
        folder, _, name = detail.partition("/")
        if what == "after fsync" and name.startswith("."):
            synced.add(folder)
        elif what == "before replace":
            if folder not in synced:
                found.append(f"renamed before it was on the disk: {detail}")
            synced.discard(folder)
    return found


def adopt_orphans() -> None:
    """Has whoever loses its parent become this process's child, so that no orphan is out of sight. Linux only."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def find_orphans(session: int, *, grace_s: float = _GRACE_S) -> list[str]:
    """The processes of a session that are still there, and those that left theirs for this process to inherit.

    Whoever is about to notice that its parent is gone is given `grace_s`.
    """
    until = time.monotonic() + grace_s
    while (found := _living(session)) and time.monotonic() < until:
        time.sleep(0.005)
    return found


def _living(session: int) -> list[str]:
    found, me = [], os.getpid()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, theirs = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        pid = int(stat.parent.name)
        if int(theirs) != session:
            continue
        if state == "Z":
            if int(parent) == me:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            continue
        command = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        found.append(f"process {pid} in state {state}: {command[:120]}")
    return found
