"""Download the subnet's committed datasets and compare one's own with them.

A competitor's earlier commitments are not on chain any more, so they are unknown here. Downloads are kept, one per
hotkey.
"""

import functools
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from loguru import logger

from template import constants
from template.chain_records import ChainCommitment, ChainView
from template.competition import CommitmentRecord, Competition, Incentives
from template.data.eval_set import EvalSetIndex
from template.data.rows import RowKey
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.miner.retries import SharedPause
from template.records import ContentKey, Entry, Rank
from template.rules.duplicates import Candidate, Duplicate, match_duplicates, max_shared
from template.rules.entries import find_entries, is_within_upload_grace
from template.rules.stands import align

_DOWNLOADS_AT_ONCE = 4
_LOG_EVERY = 20
_MAX_PAUSES = 3


@dataclass(frozen=True, kw_only=True)
class Competitor:
    """A registered hotkey's present commitment and its dataset.

    block: ranks it; with is_revealed the reveal's, while the commitment is older by an unknown time. entry: the
    commitment's text, None if not readable. rejection: why a validator would not count it. unknown_reason: why its
    rows are unknown. Without either, row_keys has the rows that count and sha256 the file's digest.
    """

    hotkey: str
    uid: int
    block: int
    entry: str | None
    is_revealed: bool = False
    rejection: SubmissionError | None = None
    unknown_reason: str | None = None
    sha256: str | None = None
    digest: str = ""
    row_keys: tuple[bytes, ...] = ()

    @property
    def is_read(self) -> bool:
        """Whether its rows could be read."""
        return self.rejection is None and self.unknown_reason is None

    def may_precede(self, block: int) -> bool:
        """Check whether unknown rows may have been committed by `block`."""
        return self.unknown_reason is not None and (self.is_revealed or self.block <= block)


@dataclass(frozen=True)
class SubnetSnapshot:
    """All registered hotkeys' commitments at one block; `own` is this hotkey's."""

    block: int
    others: tuple[Competitor, ...]
    own: Competitor | None


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Rows shared with a competitor: their number, and their lines in our file.

    is_earlier: the competitor's dataset ranks before ours. limit: rows that the later of the two may share.
    """

    competitor: Competitor
    shared: int
    lines: tuple[int, ...]
    is_earlier: bool
    limit: int

    @property
    def is_over_limit(self) -> bool:
        """Whether the later of the two is a duplicate."""
        return self.shared > self.limit


@dataclass(frozen=True, kw_only=True)
class DatasetComparison:
    """A dataset compared with all others, if committed between the two `ranks`.

    row_count: its different rows. overlaps: most shared rows first. copy_of: the dataset that it duplicates, as
    far as known. unknowns: commitments that could change this; the hotkey's own is one if its block decides.
    """

    ranks: tuple[int, int]
    row_count: int
    overlaps: tuple[Overlap, ...]
    copy_of: Duplicate | None
    unknowns: tuple[Competitor, ...]


def fetch_competitors(
    view: ChainView,
    competition: Competition,
    eval_set: EvalSetIndex,
    folder: Path,
    hotkey: str | None,
    *,
    deadline: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
) -> SubnetSnapshot:
    """Download and check every committed dataset, into a folder per hotkey.

    deadline: by the clock; datasets that are not read by then are unknown.
    """
    if hotkey is not None and hotkey not in view.by_hotkey:
        raise ConfigError(f"the hotkey {hotkey} is not registered on netuid {view.netuid}")
    for path in folder.glob("*"):
        if path.name not in view.by_hotkey:
            shutil.rmtree(path, ignore_errors=True)
    entries = {key.hotkey: entry for key, entry in find_entries(view, competition).items()}

    pause = SharedPause()

    def read(commitment: ChainCommitment) -> Competitor:
        entry = entries.get(commitment.hotkey)
        competitor = _read_commitment(commitment, view.by_hotkey[commitment.hotkey].uid, entry)
        record = entry.record if entry is not None else None
        if entry is None or record is None:
            return competitor
        if clock() > deadline:
            return replace(competitor, unknown_reason="out of time before its file was read")
        try:
            read_once = functools.partial(_read_dataset, competitor, record, competition, eval_set, folder)
            return _read_paused(pause, read_once, seconds_left=lambda: deadline - clock())
        except SubmissionError as error:
            if is_within_upload_grace(record, error.reason, reveal_block=entry.reveal_block, block=view.block):
                return replace(competitor, unknown_reason=f"its file may still be uploaded: {error}")
            return replace(competitor, rejection=error)
        except RemoteError as error:
            return replace(competitor, unknown_reason=str(error))

    # An announcement, of a validator, is no dataset.
    registered = [commitment for commitment in view.commitments if commitment.hotkey in view.by_hotkey]
    commitments = [commitment for commitment in registered if commitment.rounds_repo is None]
    competitors: list[Competitor] = []
    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="competitor") as workers:
        for competitor in workers.map(read, commitments):
            competitors.append(competitor)
            if len(competitors) % _LOG_EVERY == 0 or len(competitors) == len(commitments):
                logger.info("competitors' datasets read={} total={}", len(competitors), len(commitments))
    return SubnetSnapshot(
        block=view.block,
        others=tuple(competitor for competitor in competitors if competitor.hotkey != hotkey),
        own=next((competitor for competitor in competitors if competitor.hotkey == hotkey), None),
    )


def _read_paused(
    pause: SharedPause, read: Callable[[], Competitor], *, seconds_left: Callable[[], float]
) -> Competitor:
    """Read a dataset, again after each pause that the Hub asks for.

    A survey of 256 datasets needs more requests than the Hub allows in five minutes without a token.
    """
    for _ in range(_MAX_PAUSES):
        pause.wait()
        try:
            return read()
        except RemoteError as error:
            if not error.retry_after_s or error.retry_after_s > seconds_left():
                raise
            logger.warning("waiting, as the Hub asks seconds={:.0f}: {}", pause.extend(error), error)
    pause.wait()
    return read()


def _read_commitment(commitment: ChainCommitment, uid: int, entry: Entry | None) -> Competitor:
    """Return a competitor from the chain's data alone, without its dataset."""
    competitor = Competitor(
        hotkey=commitment.hotkey,
        uid=uid,
        block=commitment.block,
        entry=commitment.text,
        is_revealed=commitment.is_revealed,
    )
    if entry is not None:
        return replace(competitor, block=entry.commit_block, rejection=entry.rejection)
    if commitment.reveal_round is not None:
        return replace(competitor, unknown_reason=f"sealed until round {commitment.reveal_round} of the drand beacon")
    error = SubmissionError(Reason.BAD_COMMITMENT, "the commitment on chain is not one field of text")
    return replace(competitor, rejection=error)


def _read_dataset(
    competitor: Competitor, record: CommitmentRecord, competition: Competition, eval_set: EvalSetIndex, folder: Path
) -> Competitor:
    """Download and check its dataset; raise as a validator would."""
    # Here, so that `check_dataset --help` does not wait for huggingface_hub.
    from template.hub import datasets

    # Without a token, as validators download.
    file = datasets.download_dataset(
        record.namespace, record.commit, folder / competitor.hotkey, hotkey=competitor.hotkey
    )
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise HostError(f"cannot read {file.path}: {error.strerror or error}") from error
    dataset = eval_set.check(content, name=constants.DATA_FILE, max_rows=competition.rows)
    return replace(competitor, sha256=file.sha256, digest=dataset.digest, row_keys=dataset.row_keys)


def possible_commit_blocks(own: Competitor | None, sha256: str, repo: str | None, now: int) -> tuple[int, int]:
    """Return the earliest and latest commit block by which a file may rank.

    It ranks by the hotkey's present commitment if that names this file in this repo, else by `now`, after all others.
    """
    if own is None or own.rejection is not None:
        return now, now
    if own.entry is not None and repo is not None and own.entry.split(":", 1)[0] != repo:
        return now, now
    if own.unknown_reason is not None:
        return own.block, now
    if own.sha256 != sha256:
        return now, now
    return 0 if own.is_revealed else own.block, own.block


def first_counted_block(own: Competitor | None, digest: str, block: int, incentives: Incentives) -> int:
    """Return the first aligned block where rows committed after `block` can count.

    digest: of the counted rows. The rows of the hotkey's present dataset count already. Others count `update_blocks`
    after it, or later if it was itself an update. A dataset not yet committed at an aligned block is ignored.
    """
    period = incentives.blocks_per_epoch
    earliest = align(block + 1, period)
    if own is None or own.rejection is not None or align(own.block, period) > block:
        return earliest
    if own.is_read and own.digest == digest:
        return align(own.block, period)
    return max(earliest, align(align(own.block, period) + incentives.update_blocks, period))


def compare_datasets(rows: Sequence[RowKey], subnet: SubnetSnapshot, ranks: tuple[int, int]) -> DatasetComparison:
    """Compare the counted rows with all others, if committed between the `ranks`.

    The keys of `rows` are deduplication keys: see `template.data.eval_set.EvalSetIndex`.
    """
    others, own = subnet.others, subnet.own
    keys = tuple(row.key for row in rows)
    hotkey = own.hotkey if own else ""
    ours = [_candidate(hotkey, "", block, keys) for block in ranks]
    read = [other for other in others if other.is_read]
    theirs = [(other, _candidate(other.hotkey, other.digest, other.block, other.row_keys)) for other in read]
    rivals = [candidate for _, candidate in theirs]
    duplicates = [match_duplicates([*rivals, candidate]).get(ContentKey(hotkey, "")) for candidate in ours]
    overlaps = []
    for other, candidate in theirs:
        their_keys = set(other.row_keys)
        common = [row for row in rows if row.key in their_keys]
        lines, shared = tuple(row.line for row in common), len({row.key for row in common})
        is_earlier = candidate.rank < ours[-1].rank
        limit = max_shared(len(set(keys)) if is_earlier else len(their_keys))
        overlaps.append(Overlap(competitor=other, shared=shared, lines=lines, is_earlier=is_earlier, limit=limit))
    copy_of = duplicates[0] or duplicates[-1]
    if copy_of is not None and None not in duplicates:
        # An unknown dataset that is earlier still may make a duplicate of the seeming original.
        unknowns = [other for other in others if other.may_precede(copy_of.block)]
    else:
        unknowns = [other for other in others if other.may_precede(ranks[-1])]
        late = [overlap.competitor for overlap in overlaps if overlap.is_over_limit and not overlap.is_earlier]
        unknowns += [other for other in late if other.is_revealed]
        unknowns += [own] if copy_of is not None and own is not None else []
    return DatasetComparison(
        ranks=ranks,
        row_count=len(set(keys)),
        overlaps=tuple(
            sorted((overlap for overlap in overlaps if overlap.shared), key=lambda overlap: -overlap.shared)
        ),
        copy_of=copy_of,
        unknowns=tuple(unknowns),
    )


def _candidate(hotkey: str, digest: str, block: int, row_keys: tuple[bytes, ...]) -> Candidate:
    # Rounds follow the blocks, so the commit block orders datasets as their rank does.
    return Candidate(hotkey=hotkey, digest=digest, rank=Rank(block, block, hotkey.encode()), row_keys=row_keys)
