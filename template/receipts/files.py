"""Receipts as files: one JSON file each, named by whose dataset it is about and by the seed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from template.errors import ConfigError, HostError
from template.files import write_atomic
from template.receipts.receipt import Receipt
from template.receipts.round_file import RoundFile, RoundHeader, RoundSummary, digest_lines, make_round_lines

_MAX_BYTES = 1 << 20


def write_receipt(receipt: Receipt, folder: Path) -> Path:
    """Writes the receipt into `folder`, made if missing, and returns the file; an equal name is replaced whole.

    Readable by its owner alone.

    Raises: HostError when the disk refuses.
    """
    result, submission = receipt.result, receipt.submission
    owner = f"{submission.hotkey}-{submission.commit[:12]}" if submission else f"local-{result.train_sha256[:12]}"
    path = folder / f"{owner}-{result.lucky_num}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, [receipt.to_json().encode(), b"\n"])
    except OSError as error:
        raise HostError(f"cannot write the receipt {path}: {error}") from error
    return path


def read_receipt(path: Path) -> Receipt:
    """The receipt in the file at `path`. Raises: ConfigError when it cannot be read or is none."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{path}: more than {_MAX_BYTES} bytes; a receipt is smaller")
    return Receipt.from_json(content, str(path))


# Far above what a subnet of 256 uids leaves: a header takes some 200 KB then, and a receipt 5 KB.
MAX_LINE_BYTES = 8 << 20


MAX_FILE_BYTES = 64 << 20


MAX_RECEIPTS = 4096


def write_round(
    folder: Path, account: RoundSummary, *, signer: str | None, sign: Callable[[bytes], str] | None
) -> Path:
    """Writes the round into `folder`, made if missing, for everybody to read, and returns the file.

    An equal name, of the same round written again, is replaced whole. signer and sign are the validator's hotkey and
    its signature in hex, both None when nobody signs. Raises: HostError when the disk refuses.
    """
    lines = make_round_lines(account, signer=signer, sign=sign)
    who = signer[:8] if signer else "offline"
    path = folder / f"round-{account.netuid}-{account.round.start_block}-{who}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (line.encode() + b"\n" for line in lines), mode=0o644)
    except OSError as error:
        raise HostError(f"cannot write the round {path}: {error}") from error
    return path


def read_round(path: Path) -> RoundFile:
    """The round in the file at `path`, complete and as its header describes it; no signature is looked at.

    Raises: ConfigError naming the file, and the line where it is one that is wrong.
    """
    try:
        with path.open("rb") as stream:
            lines = list(_read_lines(stream, path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not lines:
        raise ConfigError(f"{path}: empty; a round file begins with its header")
    header = RoundHeader.from_json(lines[0], f"{path}: line 1")
    if len(lines) - 1 != header.receipts:
        raise ConfigError(f"{path}: {len(lines) - 1} receipts follow the header, which says {header.receipts}")
    if digest_lines(lines[1:]) != header.receipts_sha256:
        raise ConfigError(f"{path}: the receipts are not those of the header: their sha256 is not receipts_sha256")
    receipts = [Receipt.from_json(line, f"{path}: line {at}") for at, line in enumerate(lines[1:], start=2)]
    return RoundFile(header=header, receipts=tuple(receipts))


def _read_lines(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    """The lines without their line feeds, as many and as long as a round file may have."""
    total = 0
    for at in range(1, MAX_RECEIPTS + 3):
        line = stream.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        total += len(line)
        if at > MAX_RECEIPTS + 1:
            raise ConfigError(f"{path}: more than {MAX_RECEIPTS} receipts; a round has fewer")
        if len(line) > MAX_LINE_BYTES or total > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: line {at}: too long; a line has at most {MAX_LINE_BYTES} bytes, "
                              f"and a file {MAX_FILE_BYTES}")  # fmt: skip
        if not line.endswith(b"\n"):
            raise ConfigError(f"{path}: line {at}: cut off before its end; the file is not complete")
        yield line[:-1]
