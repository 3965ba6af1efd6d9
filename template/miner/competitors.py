"""The datasets that are committed on the subnet now, read as a validator would read them that starts now.

What a hotkey committed before and has replaced is not on chain any more, so nothing is known of it here. Datasets are
kept, one for each hotkey, so that a second look downloads only what changed.
"""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from loguru import logger

from template import constants
from template.competition import CommitmentRecord, Competition
from template.constants import DEFAULT_DUPLICATE_COUNT
from template.data.eval_set import EvalSetIndex
from template.data.rows import RowKey
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.records import ChainCommitment, ChainView, Entry
from template.rules.duplicates import Candidate, Duplicate, match_duplicates
from template.rules.entries import find_entries, is_within_upload_grace

_DOWNLOADS_AT_ONCE = 4
_TELL_EVERY = 20


@dataclass(frozen=True, kw_only=True)
class Competitor:
    """The present commitment of a registered hotkey, and what is known of its dataset.

    block: what earlier and later are judged by; with is_revealed that of the opening, and it was committed before,
    which only who watched then can tell when. entry: the text committed, None when it is not in the open. refusal: why
    a validator does not count it. doubt: why it is not known what it holds. With neither, row_keys are those of the
    rows that count, and sha256 is its file's.
    """

    hotkey: str
    uid: int
    block: int
    entry: str | None
    is_revealed: bool = False
    rejection: SubmissionError | None = None
    unknown_reason: str | None = None
    sha256: str | None = None
    row_keys: tuple[bytes, ...] = ()

    @property
    def is_read(self) -> bool:
        return self.rejection is None and self.unknown_reason is None


@dataclass(frozen=True)
class SubnetSnapshot:
    """The present commitments of all registered hotkeys at one block, that of the asking hotkey apart."""

    block: int
    others: tuple[Competitor, ...]
    own: Competitor | None


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What a dataset shares with a neighbour's: the number of different rows, and every line where one stands.

    is_earlier: the neighbour's stands before it. is_over_limit: the later of the two is a copy of the other.
    """

    neighbour: Competitor
    shared: int
    lines: tuple[int, ...]
    is_earlier: bool

    @property
    def is_over_limit(self) -> bool:
        return self.shared > DEFAULT_DUPLICATE_COUNT


@dataclass(frozen=True, kw_only=True)
class DatasetComparison:
    """A dataset against all neighbours, as if committed anywhere between the blocks `ranks`.

    row_count: the dataset's different rows. overlaps: those with any row in common, most shared first. copy_of: what it
    copies by all that is known, which is a verdict unless there are doubts. doubts: neighbours of whom too little is
    known to say whether the dataset is a copy; among them the hotkey's own commitment, when its block decides.
    """

    ranks: tuple[int, int]
    row_count: int
    overlaps: tuple[Overlap, ...]
    copy_of: Duplicate | None
    unknowns: tuple[Competitor, ...]


def fetch_competitors(
    view: ChainView, competition: Competition, pool: EvalSetIndex, folder: Path, hotkey: str | None
) -> SubnetSnapshot:
    """The neighbours in `view`, with the datasets of those that enter the competition, kept in `folder`.

    hotkey: whose own commitment is set apart; None for nobody's. A dataset that the Hub does not deliver is a
    neighbour's doubt, one that a validator refuses its refusal.
    Raises: ConfigError when the hotkey is not registered; HostError.
    """
    if hotkey is not None and hotkey not in view.by_hotkey:
        raise ConfigError(f"the hotkey {hotkey} is not registered on netuid {view.netuid}")
    _remove_strangers(folder, view)
    entries = {key.hotkey: entry for key, entry in find_entries(view, {}, competition).items()}
    uids = {neuron.hotkey: neuron.uid for neuron in view.neurons}
    met = [_meet(one, uids[one.hotkey], entries.get(one.hotkey)) for one in view.commitments if one.hotkey in uids]

    def read(one: Competitor) -> Competitor:
        entry = entries.get(one.hotkey)
        if entry is None or entry.record is None:
            return one
        try:
            return _read(one, entry.record, competition, pool, folder)
        except SubmissionError as error:
            if is_within_upload_grace(entry.record, error.reason, reveal_block=entry.reveal_block, block=view.block):
                return replace(one, unknown_reason=f"its file may still come: {error}")
            return replace(one, rejection=error)
        except RemoteError as error:
            return replace(one, unknown_reason=str(error))

    known = _each(met, read)
    return SubnetSnapshot(
        block=view.block,
        others=tuple(one for one in known if one.hotkey != hotkey),
        own=next((one for one in known if one.hotkey == hotkey), None),
    )


def _meet(commitment: ChainCommitment, uid: int, entry: Entry | None) -> Competitor:
    """What the chain alone says of a commitment."""
    neighbour = Competitor(
        hotkey=commitment.hotkey,
        uid=uid,
        block=commitment.block,
        entry=commitment.text,
        is_revealed=commitment.is_revealed,
    )
    if entry is not None:
        return replace(neighbour, block=entry.rank_block, rejection=entry.rejection)
    if commitment.reveal_round is not None:
        return replace(
            neighbour, unknown_reason=f"it is sealed until round {commitment.reveal_round} of the drand beacon"
        )
    why = "the commitment on chain cannot be read: it is not one field of text"
    return replace(neighbour, rejection=SubmissionError(Reason.BAD_COMMITMENT, why))


def _read(
    one: Competitor, record: CommitmentRecord, competition: Competition, pool: EvalSetIndex, folder: Path
) -> Competitor:
    """The neighbour with its dataset. Raises: SubmissionError when a validator would refuse it; RemoteError; HostError.

    Without a token: what only some may read cannot be checked by all.
    """
    # Here, so that `check_dataset --help` does not wait for huggingface_hub.
    from template.hub import datasets

    held = datasets.download_dataset(record.namespace, record.commit, folder / one.hotkey)
    try:
        content = held.path.read_bytes()
    except OSError as error:
        raise HostError(f"{folder / one.hotkey}: cannot be read: {error.strerror or error}") from error
    row_keys = pool.check(content, name=constants.DATA_FILE, max_rows=competition.rows)
    return replace(one, sha256=held.sha256, row_keys=row_keys)


def _each(neighbours: Sequence[Competitor], read: Callable[[Competitor], Competitor]) -> list[Competitor]:
    """`read` of each, a few at a time, in order; the first that raises ends it."""
    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="neighbour") as workers:
        jobs = [workers.submit(read, one) for one in neighbours]
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                job.result()
                if done % _TELL_EVERY == 0 or done == len(jobs):
                    logger.info("read {} of {} commitments and their datasets", done, len(jobs))
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise
        return [job.result() for job in jobs]


def _remove_strangers(folder: Path, view: ChainView) -> None:
    """Frees the disk of datasets whose hotkeys have left the subnet."""
    for held in folder.glob("*"):
        if held.name not in view.by_hotkey:
            shutil.rmtree(held, ignore_errors=True)


def possible_commit_blocks(own: Competitor | None, sha256: str, repo: str | None, now: int) -> tuple[int, int]:
    """The earliest and the latest block by which the file of this digest may be judged; most often the same.

    It is that of the hotkey's present commitment where that holds the file, else `now`, which must be later than all
    that is committed. repo: where the file would be published, None for where it is.
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


def compare_datasets(rows: Sequence[RowKey], subnet: SubnetSnapshot, ranks: tuple[int, int]) -> DatasetComparison:
    """`rows`, those that count, against the others' datasets, as if committed anywhere between the `ranks`.

    Their keys are what they count as: see `template.data.eval_set.EvalSetIndex`.
    """
    neighbours, own = subnet.others, subnet.own
    keys = tuple(row.key for row in rows)
    hotkey, entry = (own.hotkey, own.entry or "") if own else ("", "")
    mine = [Candidate(hotkey=hotkey, commit=entry, block=block, row_keys=keys) for block in ranks]
    theirs = {one.hotkey: _as_candidate(one) for one in neighbours if one.is_read}
    found = [match_duplicates([*theirs.values(), one]).get((hotkey, entry)) for one in mine]
    overlaps = [
        _overlap(rows, one, is_earlier=theirs[one.hotkey].sort_key < mine[-1].sort_key)
        for one in neighbours
        if one.hotkey in theirs
    ]
    copy_of = found[0] or found[-1]
    if copy_of is not None and None not in found:
        # An earlier one of whom nothing is known may make a copy of what seems to be the original.
        unknowns = [one for one in neighbours if _may_be_original(one, copy_of.block)]
    else:
        unknowns = [one for one in neighbours if _may_be_original(one, ranks[-1])]
        late = (one for one in overlaps if one.is_over_limit and not one.is_earlier)
        unknowns += [one.neighbour for one in late if one.neighbour.is_revealed]
        unknowns += [own] if copy_of is not None and own is not None else []
    return DatasetComparison(
        ranks=ranks,
        row_count=len(set(keys)),
        overlaps=tuple(sorted((one for one in overlaps if one.shared), key=lambda one: -one.shared)),
        copy_of=copy_of,
        unknowns=tuple(unknowns),
    )


def _may_be_original(one: Competitor, block: int) -> bool:
    """Whether nothing is known of a dataset that may have been committed by then."""
    return one.unknown_reason is not None and (one.is_revealed or one.block <= block)


def _as_candidate(one: Competitor) -> Candidate:
    return Candidate(hotkey=one.hotkey, commit=one.entry or "", block=one.block, row_keys=one.row_keys)


def _overlap(rows: Sequence[RowKey], neighbour: Competitor, *, is_earlier: bool) -> Overlap:
    held = set(neighbour.row_keys)
    common = [(row.key, row.line) for row in rows if row.key in held]
    return Overlap(
        neighbour=neighbour,
        shared=len({key for key, _ in common}),
        lines=tuple(line for _, line in common),
        is_earlier=is_earlier,
    )
