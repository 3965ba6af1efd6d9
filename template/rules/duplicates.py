"""Decide which datasets are duplicates of which earlier ones."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from template.competition import Incentives
from template.constants import MAX_SHARED_PERCENT
from template.errors import Reason, SubmissionError
from template.records import ContentKey, Dataset, Rank, SubmissionKey
from template.rules.evaluations import seed_block
from template.rules.stands import Version, align

# Earlier versions of one hotkey's dataset that can make others duplicates: this many of its first, and of its last.
MAX_VERSIONS = 8


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A dataset that passed every other rule.

    rank: from the block at which its rows were first public. promised: from the commitment, if that was sealed or its
    file came later, else None. is_former: another dataset took its place, and it makes no later one a duplicate.
    """

    hotkey: str
    digest: str
    rank: Rank
    row_keys: tuple[bytes, ...]
    promised: Rank | None = None
    is_former: bool = False


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """The original of a duplicate.

    block: first with its rows. shared: number of distinct rows in both.
    """

    hotkey: str
    digest: str
    block: int
    shared: int

    def to_error(self) -> SubmissionError:
        return SubmissionError(
            Reason.DUPLICATE,
            f"shares {self.shared} rows with the earlier dataset of {self.hotkey}"
            f" (rows {self.digest[:12]}, block {self.block})",
        )


def max_shared(row_count: int) -> int:
    """Return the number of distinct rows that a dataset may share with an earlier one."""
    return row_count * MAX_SHARED_PERCENT // 100


def public_ranks(public: Rank, period: int) -> tuple[Rank, Rank | None]:
    """Return the rank of a dataset's rows, and that of the commitment if it was sealed or its file came late.

    Among datasets of one aligned block, such a dataset is the last: it may have been shown because of another.
    public: block from which the rows were public, and commit block.
    """
    promised = public._replace(block=align(public.commit_block, period))
    if promised.block >= public.block:
        return public, None
    return public._replace(commit_block=public.block), promised


def match_duplicates(candidates: Iterable[Candidate]) -> dict[ContentKey, Duplicate]:
    """Find the candidates that share too many of their rows with one original.

    Of several originals, the earliest is returned. A duplicate makes no other candidate a duplicate, and neither does a
    dataset of the same hotkey. Include earlier versions of each hotkey's dataset: it is public once committed, and a
    duplicate of the first version would otherwise be earlier than the author's second version.

    A sealed dataset, and one whose file came late, is compared twice. Rows that no candidate had before its commitment
    are its own from there on: only its author can have known them. The others count from the reveal or arrival, so
    nobody can collect public rows in secret, and show them when another has published the same ones.

    Rows repeated within a candidate count once. The order of `candidates` does not matter. An index by row counts
    shared rows with all originals at once, so the cost does not grow with near misses.
    """
    originals: list[Candidate] = []
    # Bit i marks originals[i].
    holders: dict[bytes, int] = {}
    own: dict[str, int] = {}
    known: set[bytes] = set()
    promised: dict[ContentKey, set[bytes]] = {}
    promise_bits: dict[ContentKey, int] = {}
    ended = 0
    duplicates: dict[ContentKey, Duplicate] = {}
    for candidate, is_promise in _by_rank(candidates):
        key, keys = ContentKey(candidate.hotkey, candidate.digest), set(candidate.row_keys)
        compared = keys - promised.get(key, set())
        masks = [holders[row] for row in compared if row in holders]
        matches = _in_more_than(max_shared(len(keys)), masks) & ~own.get(candidate.hotkey, 0) & ~ended
        if matches and is_promise:
            continue
        if is_promise:
            keys = promised[key] = keys - known
        known |= keys
        if candidate.is_former and not is_promise:
            ended |= promise_bits.get(key, 0)
            continue
        if matches:
            original = originals[(matches & -matches).bit_length() - 1]
            duplicates[key] = Duplicate(
                hotkey=original.hotkey,
                digest=original.digest,
                block=original.rank.block,
                shared=len(keys.intersection(original.row_keys)),
            )
            continue
        bit = 1 << len(originals)
        for row in keys:
            holders[row] = holders.get(row, 0) | bit
        own[candidate.hotkey] = own.get(candidate.hotkey, 0) | bit
        if is_promise:
            promise_bits[key] = bit
        originals.append(candidate)
    return duplicates


def _by_rank(candidates: Iterable[Candidate]) -> list[tuple[Candidate, bool]]:
    """Return the candidates by rank, and the commitment of each late or sealed one, which is marked."""
    ranked: list[tuple[Candidate, bool]] = []
    for candidate in candidates:
        ranked.append((candidate, False))
        if candidate.promised is not None:
            ranked.append((replace(candidate, rank=candidate.promised), True))
    return sorted(ranked, key=lambda item: item[0].rank)


def _in_more_than(limit: int, masks: Sequence[int]) -> int:
    """Return the bits that are set in more than `limit` of the masks.

    All bits are counted side by side: plane i holds bit i of every count, and a mask is added to all of them at once.
    """
    if len(masks) <= limit:
        return 0
    planes: list[int] = []
    for mask in masks:
        carry = mask
        for index, plane in enumerate(planes):
            planes[index], carry = plane ^ carry, plane & carry
            if not carry:
                break
        else:
            planes.append(carry)
    more, equal = 0, -1
    for index in reversed(range(max(len(planes), limit.bit_length()))):
        plane = planes[index] if index < len(planes) else 0
        if limit >> index & 1:
            equal &= plane
        else:
            more |= equal & plane
            equal &= ~plane
    return more


def related_versions(
    versions: Sequence[Version], current: SubmissionKey | None, datasets: Mapping[SubmissionKey, Dataset]
) -> list[Version]:
    """Return the versions of a dataset that can make others duplicates.

    These are the current version and those that share so many rows with it that the smaller would be a duplicate: a
    miner cannot block others with datasets that are not in the competition. Until the current version is downloaded,
    the newest one takes its place. Of many versions, the first and the last are returned.
    """
    if not versions:
        return []
    newest = next((version for version in reversed(versions) if version.key == current), versions[-1])
    rows = set(datasets[newest.key].row_keys)
    related = [
        version for version in versions if version is newest or _are_related(rows, set(datasets[version.key].row_keys))
    ]
    return list(dict.fromkeys(related[:MAX_VERSIONS] + related[-MAX_VERSIONS:]))


def former_versions(versions: Iterable[Version], incentives: Incentives) -> list[Version]:
    """Return the versions that were committed long enough in an earlier season to be records of it.

    The ledger that protected them against copies ended with that season.
    """
    season_block = align(incentives.season_block, incentives.blocks_per_epoch)
    least = seed_block(0, incentives.evaluations, incentives.blocks_per_epoch)
    return [
        version
        for version in versions
        if version.is_counted
        and min(version.last_block, season_block) - max(version.rank_block, version.seed_block) >= least
    ]


def _are_related(rows: Set[bytes], others: Set[bytes]) -> bool:
    return len(rows & others) > max_shared(min(len(rows), len(others)))
