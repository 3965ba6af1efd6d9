"""Find round files: in a folder, in a dataset repo of the Hub, or by a validator's hotkey."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from template.chain_records import ChainCommitment
from template.competition import is_repo_id
from template.errors import ConfigError
from template.receipts.files import MAX_FILE_BYTES, read_round
from template.receipts.round_file import RoundFile, RoundHeader
from template.receipts.verify import check_signatures

PATTERN = "round-*.jsonl"
_HOTKEY = re.compile("[1-9A-HJ-NP-Za-km-z]{46,49}")

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
    return _HOTKEY.fullmatch(source) is not None


def open_source(
    source: str, work_dir: Path, *, token: str | None, find_commitment: FindCommitment | None = None
) -> RoundSource:
    """Return the round files of a file, folder, repo or hotkey, and download them.

    Args:
        work_dir: Folder for downloads; files that it has already are not downloaded again.
        find_commitment: None without a chain.

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
    paths = download_files(repo, PATTERN, folder, max_bytes=MAX_FILE_BYTES, token=token)
    return RoundSource(source, _require(paths, source), repo, signer)


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
    """A round file that was read. fault: of its signatures, None if all are valid or it has none."""

    file: RoundFile
    path: Path
    repo: str | None
    fault: str | None

    @property
    def header(self) -> RoundHeader:
        return self.file.header


def read_sources(
    sources: Sequence[RoundSource], verify: Callable[[str, bytes, str], bool]
) -> tuple[list[SourcedRound], list[str]]:
    """Read every round once, oldest first; return a sentence for each file that cannot be read.

    Of a round that was done again later, the first version counts: it has the weights.
    verify: as in `check_signatures`.
    """
    rounds: dict[tuple[object, ...], SourcedRound] = {}
    faults = []
    for source in sources:
        for path in source.paths:
            try:
                file = read_round(path)
            except ConfigError as error:
                faults.append(str(error))
                continue
            header = file.header
            fault, receipt_faults = check_signatures(file, verify)
            lines = [f"line {index + 2}: {text}" for index, text in receipt_faults.items()]
            fault = fault or source.wrong_signer(header) or next(iter(lines), None)
            key = (header.netuid, header.signer, header.start_block)
            known = rounds.get(key)
            if known is None or header.opened_block < known.header.opened_block:
                rounds[key] = SourcedRound(file, path, source.repo, fault)
    order = sorted(rounds.values(), key=lambda item: (item.header.start_block, item.header.signer or ""))
    return order, faults
