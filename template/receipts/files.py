"""Receipts as files: one JSON file each, named by whose dataset it is about and by the seed."""

from pathlib import Path

from template.errors import ConfigError, HostError
from template.files import write_whole
from template.receipts.receipt import Receipt

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
        write_whole(path, [receipt.to_json().encode(), b"\n"])
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
