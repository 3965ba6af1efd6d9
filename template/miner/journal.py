"""The miner's record of its last commitment: a restart must not commit twice.

The chain alone cannot prevent that: a call may land minutes after its sender died, and a sealed commitment shows only
ciphertext. So the intent is on disk before the call and the outcome after it. One file per chain, subnet and hotkey,
private to its owner, since it contains what a sealed commitment hides.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from template.chain_records import ChainCommitment, PublishOutcome
from template.constants import ERA_BLOCKS
from template.errors import ConfigError, HostError
from template.files import write_atomic
from template.serialization import read_record

# Blocks after which an unanswered call that the chain does not show has not landed.
IN_FLIGHT_BLOCKS = ERA_BLOCKS + 1


@dataclass(frozen=True, kw_only=True)
class Intent:
    """One commitment that was about to be sent, and the chain's answer.

    block: at which the era of the call begins. reveal_round: None for a commitment that is not sealed. is_accepted:
    None before the answer. committed_block: where it was included, None if unknown.
    """

    text: str
    block: int
    reveal_round: int | None = None
    is_accepted: bool | None = None
    committed_block: int | None = None

    def may_yet_appear(self, block: int, on_chain: ChainCommitment | None) -> bool:
        """Return whether the call may land, or has, without showing in `on_chain` yet."""
        if self.is_accepted is False or block >= self.block + IN_FLIGHT_BLOCKS:
            return False
        return self.committed_block is None or on_chain is None or on_chain.block < self.committed_block

    def is_sealed_as(self, on_chain: ChainCommitment) -> bool:
        """Return whether `on_chain` is most likely the ciphertext of this commitment."""
        is_same_round = on_chain.reveal_round is not None and on_chain.reveal_round == self.reveal_round
        return is_same_round and on_chain.block > self.block


class Journal:
    """The last intent of one hotkey in folder/name.json, locked while open."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.json"
        # Not a lock that is only a file's existence: two miners would commit twice.
        lock_path = self.path.with_suffix(".lock")
        self._lock = FileLock(lock_path, timeout=0, mode=0o600, thread_local=False, fallback_to_soft=False)
        with _translate_disk_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout as error:
                raise ConfigError(f"another miner runs for this hotkey (lock {lock_path}); wait or stop it") from error
            try:
                self.last = _read(self.path)
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._lock.release()

    def start(self, intent: Intent) -> None:
        """Record a commitment about to be sent, in place of the last one."""
        with _translate_disk_errors(self.path):
            _write_durably(self.path, json.dumps(asdict(intent), indent=2).encode() + b"\n")
        self.last = intent

    def finish(self, outcome: PublishOutcome) -> None:
        """Add the chain's answer to the last intent."""
        assert self.last is not None, "an outcome without an intent"
        self.start(dataclasses.replace(self.last, is_accepted=outcome.is_accepted, committed_block=outcome.block))

    def dataset_copy(self, digest: str) -> Path:
        """Return the path that keeps a committed file until it is published."""
        return self.path.with_name(f"sealed-{digest}.jsonl")

    def save_dataset(self, content: bytes, digest: str) -> None:
        """Keep a copy of a file about to be committed, whose exact bytes are needed later."""
        with _translate_disk_errors(self.dataset_copy(digest)):
            _write_durably(self.dataset_copy(digest), content)

    def delete_dataset(self, digest: str) -> None:
        with _translate_disk_errors(self.dataset_copy(digest)):
            self.dataset_copy(digest).unlink(missing_ok=True)


def _write_durably(path: Path, content: bytes) -> None:
    """Replace a private file so that the new one survives a power failure."""
    write_atomic(path, [content])
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path) -> Intent | None:
    """Raises: HostError for a damaged file, since ignoring it could commit twice."""
    try:
        return read_record(Intent, json.loads(path.read_bytes()), str(path))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, ConfigError) as error:
        raise HostError(
            f"the journal {path} is damaged ({error}); check your commitment on chain, then move this file away"
        ) from error


@contextlib.contextmanager
def _translate_disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(f"cannot read or write {path}: {error.strerror or error}") from error
