"""All that can be held against a dataset before it is committed: its file by line, and the datasets of others. Pure.

The rules are the validator's own (`template.data.rows`, `template.rules.duplicates`). A validator stops at the first
fault; here
every fault is told, and what could not be found out is told as that.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from template.constants import DEFAULT_DUPLICATE_COUNT, MAX_TOKENS
from template.data.rows import SUBMISSION_LIMITS, LineFault, Row, RowKey, scan_rows, surely_has_target
from template.errors import Reason, RemoteError, SubmissionError
from template.rules.duplicates import Candidate, DuplicateOf, find_duplicates, foreign_lines


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing for which a validator refuses the file; line None when it is the whole file's."""

    line: int | None
    reason: Reason
    message: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A file against the pool.

    row_count: its lines that are not blank, as far as they are read. counted: the rows that count. faults: by line.
    repeats: (line, line of its first equal) of rows that count. spare_lines: of rows beyond those that count.
    undecided_lines: of rows that may have no answer within the tokens that count, which `undecided_why` kept from
    being found out.
    """

    row_count: int
    counted: tuple[Row, ...]
    faults: tuple[Fault, ...]
    repeats: tuple[tuple[int, int], ...]
    spare_lines: tuple[int, ...]
    undecided_lines: tuple[int, ...]
    undecided_why: str


def inspect_file(
    content: bytes, pool_keys: Container[bytes], *, max_rows: int, has_target: Callable[[Row], bool]
) -> Inspection:
    """Every fault of a miner's file; none exactly when a validator that has it alone would train on it.

    pool_keys: the `Row.key` of every pool row. A line that is no row takes the place of one among the first
    `max_rows`. has_target: see `template.data.rows.encode_row`; asked only about rows so long that it is in doubt,
    and no
    more once it raises RemoteError.
    """
    found = list(scan_rows(content, limits=SUBMISSION_LIMITS))
    counted = tuple(one for one in found[:max_rows] if isinstance(one, Row))
    faults = [
        Fault(line=one.line, reason=one.error.reason, message=str(one.error))
        for one in found
        if isinstance(one, LineFault)
    ]
    foreign = set(foreign_lines(counted, pool_keys))
    faults += [Fault(line=line, reason=Reason.NOT_IN_POOL, message="not in the evaluation pool") for line in foreign]
    in_doubt = [row for row in counted if row.line not in foreign and not surely_has_target(row)]
    asked, why = _ask(in_doubt, has_target)
    no_target = f"expected an answer within {MAX_TOKENS} tokens"
    faults += [
        Fault(line=row.line, reason=Reason.NO_TARGET, message=no_target)
        for row, is_answered in zip(in_doubt, asked, strict=False)
        if not is_answered
    ]
    return Inspection(
        row_count=sum(isinstance(one, Row) or one.line is not None for one in found),
        counted=counted,
        faults=tuple(sorted(faults, key=lambda fault: fault.line or 0)),
        repeats=_find_repeats(counted),
        spare_lines=tuple(one.line for one in found[max_rows:] if isinstance(one, Row)),
        undecided_lines=tuple(row.line for row in in_doubt[len(asked) :]),
        undecided_why=why,
    )


def _ask(rows: Sequence[Row], has_target: Callable[[Row], bool]) -> tuple[list[bool], str]:
    """The answers up to the first that could not be had, and why it could not."""
    answers: list[bool] = []
    try:
        for row in rows:
            answers.append(has_target(row))
    except RemoteError as error:
        return answers, str(error)
    return answers, ""


def _find_repeats(rows: Sequence[Row]) -> tuple[tuple[int, int], ...]:
    first_lines: dict[bytes, int] = {}
    places = [(row.line, first_lines.setdefault(row.key, row.line)) for row in rows]
    return tuple((line, first) for line, first in places if line != first)


@dataclass(frozen=True, kw_only=True)
class Neighbour:
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
    refusal: SubmissionError | None = None
    doubt: str | None = None
    sha256: str | None = None
    row_keys: tuple[bytes, ...] = ()

    @property
    def is_read(self) -> bool:
        return self.refusal is None and self.doubt is None


@dataclass(frozen=True)
class Neighbourhood:
    """The present commitments of all registered hotkeys at one block, that of the asking hotkey apart."""

    block: int
    others: tuple[Neighbour, ...]
    own: Neighbour | None


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What a dataset shares with a neighbour's: the number of different rows, and every line where one stands.

    is_earlier: the neighbour's stands before it. is_over_limit: the later of the two is a copy of the other.
    """

    neighbour: Neighbour
    shared: int
    lines: tuple[int, ...]
    is_earlier: bool

    @property
    def is_over_limit(self) -> bool:
        return self.shared > DEFAULT_DUPLICATE_COUNT


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A dataset against all neighbours, as if committed anywhere between the blocks `ranks`.

    row_count: the dataset's different rows. overlaps: those with any row in common, most shared first. copy_of: what it
    copies by all that is known, which is a verdict unless there are doubts. doubts: neighbours of whom too little is
    known to say whether the dataset is a copy; among them the hotkey's own commitment, when its block decides.
    """

    ranks: tuple[int, int]
    row_count: int
    overlaps: tuple[Overlap, ...]
    copy_of: DuplicateOf | None
    doubts: tuple[Neighbour, ...]


def find_ranks(own: Neighbour | None, sha256: str, repo: str | None, now: int) -> tuple[int, int]:
    """The earliest and the latest block by which the file of this digest may be judged; most often the same.

    It is that of the hotkey's present commitment where that holds the file, else `now`, which must be later than all
    that is committed. repo: where the file would be published, None for where it is.
    """
    if own is None or own.refusal is not None:
        return now, now
    if own.entry is not None and repo is not None and own.entry.split(":", 1)[0] != repo:
        return now, now
    if own.doubt is not None:
        return own.block, now
    if own.sha256 != sha256:
        return now, now
    return 0 if own.is_revealed else own.block, own.block


def compare(rows: Sequence[RowKey], subnet: Neighbourhood, ranks: tuple[int, int]) -> Comparison:
    """`rows`, those that count, against the others' datasets, as if committed anywhere between the `ranks`.

    Their keys are what they count as: see `template.data.eval_set.PoolIndex`.
    """
    neighbours, own = subnet.others, subnet.own
    keys = tuple(row.key for row in rows)
    hotkey, entry = (own.hotkey, own.entry or "") if own else ("", "")
    mine = [Candidate(hotkey=hotkey, commit=entry, block=block, row_keys=keys) for block in ranks]
    theirs = {one.hotkey: _as_candidate(one) for one in neighbours if one.is_read}
    found = [find_duplicates([*theirs.values(), one]).get((hotkey, entry)) for one in mine]
    overlaps = [
        _overlap(rows, one, is_earlier=theirs[one.hotkey].order < mine[-1].order)
        for one in neighbours
        if one.hotkey in theirs
    ]
    copy_of = found[0] or found[-1]
    if copy_of is not None and None not in found:
        # An earlier one of whom nothing is known may make a copy of what seems to be the original.
        doubts = [one for one in neighbours if _may_be_original(one, copy_of.block)]
    else:
        doubts = [one for one in neighbours if _may_be_original(one, ranks[-1])]
        late = (one for one in overlaps if one.is_over_limit and not one.is_earlier)
        doubts += [one.neighbour for one in late if one.neighbour.is_revealed]
        doubts += [own] if copy_of is not None and own is not None else []
    return Comparison(
        ranks=ranks,
        row_count=len(set(keys)),
        overlaps=tuple(sorted((one for one in overlaps if one.shared), key=lambda one: -one.shared)),
        copy_of=copy_of,
        doubts=tuple(doubts),
    )


def _may_be_original(one: Neighbour, block: int) -> bool:
    """Whether nothing is known of a dataset that may have been committed by then."""
    return one.doubt is not None and (one.is_revealed or one.block <= block)


def _as_candidate(one: Neighbour) -> Candidate:
    return Candidate(hotkey=one.hotkey, commit=one.entry or "", block=one.block, row_keys=one.row_keys)


def _overlap(rows: Sequence[RowKey], neighbour: Neighbour, *, is_earlier: bool) -> Overlap:
    held = set(neighbour.row_keys)
    common = [(row.key, row.line) for row in rows if row.key in held]
    return Overlap(
        neighbour=neighbour,
        shared=len({key for key, _ in common}),
        lines=tuple(line for _, line in common),
        is_earlier=is_earlier,
    )
