"""Who may compete: pure rules over commitments and rows. Every refusal is a SubmissionError with its sentence."""

import hashlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from template.competition import CommitmentRecord, Competition
from template.constants import DEFAULT_DUPLICATE_COUNT, SEAL_GRACE_BLOCKS
from template.data.rows import Row, RowKey
from template.errors import Reason, SubmissionError

_LINES_NAMED = 5
_MISSING = (Reason.MISSING_REPO, Reason.MISSING_FILE)


def check_competition(record: CommitmentRecord, competition: Competition) -> None:
    """Raises: SubmissionError (WRONG_COMPETITION) when the record enters another competition."""
    if record.competition_id != competition.id:
        raise SubmissionError(
            Reason.WRONG_COMPETITION,
            f"the commitment is for competition {record.competition_id!r}, and this one is {competition.id!r}",
        )


def check_registration(block: int, registration_block: int) -> None:
    """Raises: SubmissionError (BEFORE_REGISTRATION) when a commitment of `block` is not later than the registration.

    A hotkey that registers again competes anew: what it committed in an earlier life stays on chain and is old.
    """
    if block <= registration_block:
        raise SubmissionError(
            Reason.BEFORE_REGISTRATION,
            f"committed in block {block}, but the hotkey registered in block {registration_block}; commit again",
        )


def may_yet_come(record: CommitmentRecord, reason: Reason, *, commit_block: int, block: int) -> bool:
    """True for a file that is promised by its digest alone and not there, while its time to come is not over.

    commit_block: where the chain shows the commitment, or its opening. block: where its file was looked for.
    """
    return record.is_content_addressed and reason in _MISSING and block <= commit_block + SEAL_GRACE_BLOCKS


def check_membership(rows: Sequence[Row | RowKey], pool_keys: Container[bytes], *, max_rows: int) -> None:
    """Raises: SubmissionError (NOT_IN_POOL) when one of the first `max_rows` rows is not in the evaluation pool.

    pool_keys: the `Row.key` of every pool row.
    """
    counted = rows[:max_rows]
    lines = foreign_lines(counted, pool_keys)
    if not lines:
        return
    named = ", ".join(str(line) for line in lines[:_LINES_NAMED])
    more = ", ..." if len(lines) > _LINES_NAMED else ""
    raise SubmissionError(
        Reason.NOT_IN_POOL,
        f"{len(lines)} of the {len(counted)} rows that count are not in the evaluation pool: line {named}{more}",
    )


def foreign_lines(rows: Iterable[Row | RowKey], pool_keys: Container[bytes]) -> list[int]:
    """The lines of the rows that are not in the evaluation pool."""
    return [row.line for row in rows if row.key not in pool_keys]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A submission that passed every other rule. block: of its commitment; row_keys: of the rows that count."""

    hotkey: str
    commit: str
    block: int
    row_keys: tuple[bytes, ...]

    @property
    def order(self) -> tuple[int, bytes]:
        """Sorts earlier commitments first; within a block, by sha256 over `hotkey:commit`.

        The tie-break favours no hotkey for good: it changes with every commit, and says nothing about who copied.
        """
        return self.block, hashlib.sha256(f"{self.hotkey}:{self.commit}".encode()).digest()


@dataclass(frozen=True, kw_only=True)
class DuplicateOf:
    """The earlier submission that another one copies, and the number of different rows they share."""

    hotkey: str
    commit: str
    block: int
    shared: int

    def to_error(self) -> SubmissionError:
        """The refusal in words."""
        return SubmissionError(
            Reason.DUPLICATE,
            f"shares {self.shared} rows with the earlier submission of {self.hotkey}"
            f" (commit {self.commit}, block {self.block})",
        )


def find_duplicates(
    candidates: Iterable[Candidate], *, max_shared: int = DEFAULT_DUPLICATE_COUNT
) -> dict[tuple[str, str], DuplicateOf]:
    """The duplicates by hotkey and commit, each with the earliest submission it shares over `max_shared` rows with.

    Only a submission that is itself no duplicate makes others duplicates, and never one of its own hotkey. Give it
    the superseded commits of every hotkey too: a dataset is public once it is committed, and without the author's
    first version a copy of that would be the earlier one when the author's next version comes, and would refuse it.
    A row repeated inside one submission counts once; a submission given again, at a later block, changes nothing.

    The result does not depend on the order of `candidates`. Every row is looked up once in an index of the rows
    admitted so far and counted for all who hold it at once, so nothing is compared pair by pair: hundreds of datasets
    that share just too little to be copies cost no more than as many that share nothing.
    """
    admitted: list[Candidate] = []
    # Bit i stands for admitted[i].
    holders: dict[bytes, int] = {}
    own: dict[str, int] = {}
    duplicates: dict[tuple[str, str], DuplicateOf] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.order):
        keys = set(candidate.row_keys)
        held = [holders[key] for key in keys if key in holders]
        copied = _in_more_than(max_shared, held) & ~own.get(candidate.hotkey, 0)
        if copied:
            original = admitted[(copied & -copied).bit_length() - 1]
            duplicates[candidate.hotkey, candidate.commit] = DuplicateOf(
                hotkey=original.hotkey,
                commit=original.commit,
                block=original.block,
                shared=len(keys.intersection(original.row_keys)),
            )
            continue
        bit = 1 << len(admitted)
        for key in keys:
            holders[key] = holders.get(key, 0) | bit
        own[candidate.hotkey] = own.get(candidate.hotkey, 0) | bit
        admitted.append(candidate)
    return duplicates


def _in_more_than(limit: int, masks: Sequence[int]) -> int:
    """The bits that are set in more than `limit` of the masks.

    All bits are counted side by side: plane i holds bit i of every count, and a mask is added to all of them at once.
    """
    if len(masks) <= limit:
        return 0
    planes: list[int] = []
    for mask in masks:
        carry = mask
        for at, plane in enumerate(planes):
            planes[at], carry = plane ^ carry, plane & carry
            if not carry:
                break
        else:
            planes.append(carry)
    more, equal = 0, -1
    for at in reversed(range(max(len(planes), limit.bit_length()))):
        plane = planes[at] if at < len(planes) else 0
        if limit >> at & 1:
            equal &= plane
        else:
            more |= equal & plane
            equal &= ~plane
    return more
