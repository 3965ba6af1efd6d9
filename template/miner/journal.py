"""What a miner remembers of its own commitments, so that one which was killed at any moment makes none twice.

The chain alone cannot tell it: a call may land minutes after its sender died, and of a sealed commitment the chain
shows only ciphertext. So the intent is on disk before the call, and the outcome after it. One file for each chain,
subnet and hotkey, readable by the owner alone, since it spells what a sealed commitment hides.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from template.errors import ConfigError, HostError
from template.files import write_atomic
from template.records import ChainCommitment, PublishOutcome

# Blocks after which a call whose fate is unknown can no longer land: those it stays valid for, and the lag of finality.
IN_FLIGHT_BLOCKS = 40

_MAX_BYTES = 2**16


@dataclass(frozen=True, kw_only=True)
class Intent:
    """One commitment that was about to be made.

    block: the newest block just before the call. reveal_round: what opens it, None for one in the open. is_accepted:
    the chain's answer, None while it is not known. committed_block: where it was included, None when not known.
    """

    text: str
    block: int
    reveal_round: int | None = None
    is_accepted: bool | None = None
    committed_block: int | None = None

    def may_yet_appear(self, block: int, held: ChainCommitment | None) -> bool:
        """True when its call may have been taken, or may yet be, without being seen in `held` at `block`."""
        if self.is_accepted is False or block >= self.block + IN_FLIGHT_BLOCKS:
            return False
        is_seen = self.committed_block is not None and held is not None and held.block >= self.committed_block
        return not is_seen

    def is_sealed_as(self, held: ChainCommitment) -> bool:
        """True when `held` is the ciphertext of this commitment, as far as anybody can tell."""
        return held.reveal_round is not None and held.reveal_round == self.reveal_round and held.block > self.block


class Journal:
    """The last intent of one hotkey, kept in `folder` under `name`; nobody else writes it while this is open.

    Raises: ConfigError when another miner has it open; HostError when the disk refuses or the file is not readable.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.json"
        self._lock_fd: int | None = None
        try:
            with _disk_faults(self.path):
                folder.mkdir(parents=True, exist_ok=True)
                self._lock_fd = _take_lock(self.path.with_suffix(".lock"))
                self.last = _read(self.path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets another miner have it."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def start(self, intent: Intent) -> None:
        """Writes what is about to be done, in place of what was there."""
        self._write(intent)

    def finish(self, outcome: PublishOutcome) -> None:
        """Adds the chain's answer to the intent that was begun last."""
        assert self.last is not None, "an outcome without an intent"
        self._write(dataclasses.replace(self.last, is_accepted=outcome.is_accepted, committed_block=outcome.block))

    def _write(self, intent: Intent) -> None:
        with _disk_faults(self.path):
            write_private(self.path, json.dumps(asdict(intent), indent=2).encode() + b"\n")
        self.last = intent

    def sealed_copy(self, sha256: str) -> Path:
        """Where the file of a sealed commitment is kept until it is published."""
        return self.path.with_name(f"sealed-{sha256}.jsonl")

    def save_dataset(self, content: bytes) -> None:
        """Keeps the file of a commitment about to be sealed: without its very bytes the commitment is worth nothing."""
        path = self.sealed_copy(hashlib.sha256(content).hexdigest())
        with _disk_faults(path):
            write_private(path, content)

    def delete_dataset(self, content: bytes) -> None:
        """Removes what `save_dataset` kept."""
        path = self.sealed_copy(hashlib.sha256(content).hexdigest())
        with _disk_faults(path):
            path.unlink(missing_ok=True)


def write_private(path: Path, content: bytes) -> None:
    """Replaces the file at once and for good, readable by its owner alone. Raises: OSError."""
    write_atomic(path, [content])
    # So that the name outlives a power cut, too.
    folder_fd = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder_fd)
    finally:
        os.close(folder_fd)


def _read(path: Path) -> Intent | None:
    """Raises: HostError for anything but what `_write` wrote, since taking it for nothing could commit twice."""
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(_MAX_BYTES))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _unreadable(path) from error
    if not isinstance(values, dict) or values.keys() != {field.name for field in dataclasses.fields(Intent)}:
        raise _unreadable(path)
    numbers = [
        values["block"],
        *(values[key] for key in ("reveal_round", "committed_block") if values[key] is not None),
    ]
    is_answer = values["is_accepted"] is None or type(values["is_accepted"]) is bool
    if not (isinstance(values["text"], str) and is_answer and all(type(number) is int for number in numbers)):
        raise _unreadable(path)
    return Intent(**values)


def _unreadable(path: Path) -> HostError:
    return HostError(f"{path} is not what this miner wrote; look at what is on chain, then move the file away")


def _take_lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if not isinstance(error, BlockingIOError):
            raise
        raise ConfigError(f"another miner is at work for this hotkey ({path}); wait for it, or stop it") from error
    return fd


@contextlib.contextmanager
def _disk_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(f"cannot keep {path}: {error.strerror or error}") from error
