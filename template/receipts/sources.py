"""Find round files: in a folder, in a dataset repo of the Hub, or by a validator's hotkey."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from template.chain_records import ChainCommitment
from template.competition import is_repo_id
from template.constants import HOTKEY_PATTERN
from template.errors import ConfigError
from template.receipts.files import MAX_FILE_BYTES, read_header
from template.receipts.receipt import Receipt
from template.receipts.round_file import RoundHeader
from template.receipts.verify import check_signature

PATTERN = "round-*.jsonl"
_FILE = re.compile(r"round-[A-Za-z0-9_.-]+\.jsonl")

FindCommitment = Callable[[str], ChainCommitment | None]
"""Return a hotkey's commitment on chain."""


class RoundSource(NamedTuple):
    """Round files of one source.

    repo: dataset repo of the Hub, None for local files. signer: the hotkey that was named, None without one.
    """

    name: str
    paths: Sequence[Path]
    repo: str | None = None
    signer: str | None = None

    def wrong_signer(self, header: RoundHeader) -> str | None:
        """Return a sentence if another hotkey signed than the one that was named."""
        if self.signer is None or header.signer == self.signer:
            return None
        return f"the header: signed by {header.signer}, and the files of {self.signer} were asked for"


def is_hotkey(source: str) -> bool:
    """Check for the form of a hotkey's address."""
    return re.fullmatch(HOTKEY_PATTERN, source) is not None


def open_source(
    source: str,
    work_dir: Path,
    *,
    token: str | None,
    find_commitment: FindCommitment | None = None,
    pattern: str = PATTERN,
) -> RoundSource:
    """Return the round files of a file, folder, repo or hotkey, and download them.

    Args:
        work_dir: Folder for downloads; files that it has already are not downloaded again.
        find_commitment: None without a chain.
        pattern: Of the files of a repo.

    Raises: ConfigError for a source without round files; RemoteError.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return RoundSource(source, [path])
    if path.is_dir():
        return RoundSource(source, _require(sorted(path.glob(PATTERN)), source))
    signer = source if is_hotkey(source) else None
    repo = source if signer is None else _announced_repo(signer, find_commitment)
    if not is_repo_id(repo):
        raise ConfigError(f"{source}: no such file or folder, and neither a Hub id like owner/name nor a hotkey")
    # At import, the Hub's client reads an environment that entry points set up first.
    from template.hub.repo_files import download_files

    folder = work_dir.expanduser() / "rounds" / repo.replace("/", "--")
    paths = download_files(repo, pattern, folder, max_bytes=MAX_FILE_BYTES, token=token)
    return RoundSource(source, _require(paths, source), repo, signer)


def read_published_receipt(source: str, digest: str, work_dir: Path, *, token: str | None) -> Receipt:
    """Return the receipt of a round file whose digest begins with `digest`.

    source: a file, or owner/name/FILE on the Hub.
    Raises: ConfigError; RemoteError.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        repo, _, name = source.rpartition("/")
        if not is_repo_id(repo) or _FILE.fullmatch(name) is None:
            raise ConfigError(
                f"{source}: no such file, and no round file of the Hub like owner/name/round-96-360.jsonl"
            )
        paths = open_source(repo, work_dir, token=token, pattern=name).paths
        path = paths[0]
    header, lines = read_header(path)
    found = [line for line in lines if hashlib.sha256(line).hexdigest().startswith(digest)]
    if len(found) != 1:
        raise ConfigError(f"--receipt {digest}: {len(found)} of the {header.receipts} receipts of {source} begin so")
    return Receipt.from_json(found[0], source)


def _announced_repo(hotkey: str, find_commitment: FindCommitment | None) -> str:
    if find_commitment is None:
        raise ConfigError(f"{hotkey}: give --netuid and --subtensor.network, to read which repo this hotkey announced")
    commitment = find_commitment(hotkey)
    if commitment is None or commitment.rounds_repo is None:
        raise ConfigError(
            f"{hotkey}: this hotkey has announced no repo of round files on chain; ask its operator for"
            " --publish_rounds, or give the repo or a folder"
        )
    # Any registered hotkey can announce any text.
    if not is_repo_id(commitment.rounds_repo):
        raise ConfigError(f"{hotkey}: it announced {commitment.rounds_repo!r}, which is no Hub id like owner/name")
    return commitment.rounds_repo


def _require(paths: Sequence[Path], source: str) -> Sequence[Path]:
    if not paths:
        raise ConfigError(f"{source}: no round file, {PATTERN}, in this folder or repo")
    return paths


@dataclass(frozen=True)
class SourcedRound:
    """A round file that was read. fault: of the header's signature, None if it is valid or missing.

    receipts: the lines of the receipts, which the header's signature covers.
    """

    header: RoundHeader
    receipts: Sequence[bytes]
    path: Path
    fault: str | None


def read_signed(path: Path, source: RoundSource, verify: Callable[[str, bytes, str], bool]) -> SourcedRound:
    """Read a round file and check the signature of its header. Raises: ConfigError.

    verify: as in `check_signatures`.
    """
    header, receipts = read_header(path)
    fault = source.wrong_signer(header) or check_signature(header, header.signer, verify)
    return SourcedRound(header, receipts, path, fault)
