"""Write and read receipts (one JSON file each) and round files."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from template.errors import ConfigError
from template.files import OutputFile
from template.receipts.receipt import Receipt
from template.receipts.round_file import RoundFile, RoundHeader, RoundSummary, digest_lines, make_round_lines

MAX_RECEIPT_BYTES = 1 << 20
# Far above what a subnet of 256 uids needs: 200 KB for a header, 5 KB for a receipt.
MAX_LINE_BYTES = 8 << 20
MAX_FILE_BYTES = 64 << 20
MAX_RECEIPTS = 4096


def receipt_file(receipt: Receipt) -> OutputFile:
    """Return a file named by dataset and seed, for the owner only."""
    result, submission = receipt.result, receipt.submission
    owner = f"{submission.hotkey}-{submission.commit[:12]}" if submission else f"local-{result.train_sha256[:12]}"
    content = receipt.to_json().encode() + b"\n"
    return OutputFile(name=f"{owner}-{result.lucky_num}.json", content=content, mode=0o600)


def write_receipt(receipt: Receipt, folder: Path) -> Path:
    """Write the file of a receipt. Raises: HostError."""
    return receipt_file(receipt).write(folder)


def round_file(account: RoundSummary, *, signer: str | None, sign: Callable[[bytes], str] | None) -> OutputFile:
    """Return a file named by the round and the season, for everybody to read.

    signer and sign are the validator's hotkey and its signature in hex, both None for an unsigned file.
    """
    lines = make_round_lines(account, signer=signer, sign=sign)
    season = hashlib.sha256("\n".join(account.season).encode()).hexdigest()[:6]
    owner = signer[:8] if signer else "offline"
    name = f"round-{account.netuid}-{account.round.start_block}-{owner}-{season}.jsonl"
    return OutputFile(name=name, content=b"".join(line.encode() + b"\n" for line in lines), mode=0o644)


def read_receipt(path: Path) -> Receipt:
    """Read a receipt. Raises: ConfigError when it is unreadable or malformed."""
    return Receipt.from_json(_read(path, MAX_RECEIPT_BYTES), str(path))


def read_round(path: Path) -> RoundFile:
    """Read a complete round file; check no signatures. Raises: ConfigError."""
    header, lines = read_header(path)
    receipts = [Receipt.from_json(line, f"{path}: line {number}") for number, line in enumerate(lines, start=2)]
    return RoundFile(header=header, receipts=tuple(receipts))


def read_header(path: Path) -> tuple[RoundHeader, Sequence[bytes]]:
    """Read the header of a complete round file, and the lines of the receipts, which its signature covers.

    Raises: ConfigError.
    """
    content = _read(path, MAX_FILE_BYTES)
    if content.count(b"\n") > MAX_RECEIPTS + 1:
        raise ConfigError(f"{path}: more than {MAX_RECEIPTS} receipts; a round has fewer")
    *lines, rest = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_LINE_BYTES:
            raise ConfigError(f"{path}: line {number}: more than {MAX_LINE_BYTES} bytes")
    if rest or not lines:
        raise ConfigError(
            f"{path}: line {len(lines) + 1}: incomplete; a round file has a header and ends in a line feed"
        )
    header = RoundHeader.from_json(lines[0], f"{path}: line 1")
    if len(lines) - 1 != header.receipts:
        raise ConfigError(f"{path}: {len(lines) - 1} receipts after the header, which lists {header.receipts}")
    if digest_lines(lines[1:]) != header.receipts_sha256:
        raise ConfigError(f"{path}: the sha256 of the receipts is not receipts_sha256 in the header")
    return header, lines[1:]


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > limit:
        raise ConfigError(f"{path}: more than {limit} bytes; the file is too large")
    return content
