"""Who may compete: pure rules over commitments and rows. Every refusal is a SubmissionError with its sentence."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from template.constants import DEFAULT_DUPLICATE_COUNT
from template.errors import Reason, SubmissionError
from template.records import Entry, Submission, SubmissionKey, Verdict

# Earlier versions of one hotkey's dataset that are held against copies of them.
MAX_VERSIONS = 8


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
class Duplicate:
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


def match_duplicates(
    candidates: Iterable[Candidate], *, max_shared: int = DEFAULT_DUPLICATE_COUNT
) -> dict[tuple[str, str], Duplicate]:
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
    duplicates: dict[tuple[str, str], Duplicate] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.order):
        keys = set(candidate.row_keys)
        held = [holders[key] for key in keys if key in holders]
        copied = _in_more_than(max_shared, held) & ~own.get(candidate.hotkey, 0)
        if copied:
            original = admitted[(copied & -copied).bit_length() - 1]
            duplicates[candidate.hotkey, candidate.commit] = Duplicate(
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


def find_duplicates(
    entries: Mapping[SubmissionKey, Entry],
    seen: Mapping[SubmissionKey, Submission],
    datasets: Mapping[SubmissionKey, tuple[bytes, ...]],
) -> dict[SubmissionKey, Duplicate]:
    """The copies among the entrants' datasets and the versions they grew from.

    An entrant's own earlier versions stand beside it, or a copy of the first would refuse the second. Only those that
    the rule itself would call copies of the present one do, and only the earliest few: nobody can hold the pool with
    datasets that are not in the competition. What a hotkey committed before its registration stands for nothing.
    """
    current = {key.hotkey: key for key, entry in entries.items() if entry.rejection is None and key in datasets}
    candidates = [_as_candidate(key, entries[key].rank_block, datasets[key]) for key in current.values()]
    for hotkey, versions in _earlier_versions(current, entries, seen, datasets).items():
        rows = set(datasets[current[hotkey]])
        related = [key for key in versions if len(rows.intersection(datasets[key])) > DEFAULT_DUPLICATE_COUNT]
        candidates += [_as_candidate(key, seen[key].first_block, datasets[key]) for key in related[:MAX_VERSIONS]]
    return {SubmissionKey(*identity): copy for identity, copy in match_duplicates(candidates).items()}


def find_possible_duplicates(
    entries: Mapping[SubmissionKey, Entry],
    seen: Mapping[SubmissionKey, Submission],
    datasets: Mapping[SubmissionKey, tuple[bytes, ...]],
) -> dict[SubmissionKey, Duplicate]:
    """What might be a copy once the present rows of an entrant are known of which only earlier versions are.

    They would count then, if they are related to it. Whose rows have nothing to do with them is in no doubt, however
    many commit anew all the time.
    """
    unread = {key.hotkey: key for key, entry in entries.items() if entry.rejection is None and key not in datasets}
    versions = _earlier_versions(unread, entries, seen, datasets).values()
    if not versions:
        return {}
    some = {key for one in versions for key in (*one[:MAX_VERSIONS], *one[-MAX_VERSIONS:])}
    candidates = [_as_candidate(key, seen[key].first_block, datasets[key]) for key in some]
    present = [key for key, entry in entries.items() if entry.rejection is None and key in datasets]
    candidates += [_as_candidate(key, entries[key].rank_block, datasets[key]) for key in present]
    found = {SubmissionKey(*identity): copy for identity, copy in match_duplicates(candidates).items()}
    return {key: copy for key, copy in found.items() if key in entries and copy.hotkey in unread}


def _earlier_versions(
    current: Mapping[str, SubmissionKey],
    entries: Mapping[SubmissionKey, Entry],
    seen: Mapping[SubmissionKey, Submission],
    datasets: Mapping[SubmissionKey, tuple[bytes, ...]],
) -> dict[str, list[SubmissionKey]]:
    """What each hotkey with a present dataset committed before it in its present life, earliest first."""
    versions: dict[str, list[SubmissionKey]] = {}
    for key in sorted(seen.keys() & datasets.keys(), key=lambda key: (seen[key].first_block, key)):
        now = current.get(key.hotkey)
        if now is not None and key != now and seen[key].first_block > entries[now].registration_block:
            versions.setdefault(key.hotkey, []).append(key)
    return versions


def _as_candidate(key: SubmissionKey, block: int, row_keys: tuple[bytes, ...]) -> Candidate:
    return Candidate(hotkey=key.hotkey, commit=key.commitment, block=block, row_keys=row_keys)


def eligible_datasets(
    datasets: Mapping[SubmissionKey, tuple[bytes, ...]], verdicts: Mapping[SubmissionKey, Verdict]
) -> dict[SubmissionKey, tuple[bytes, ...]]:
    """Those that can be originals or copies: what was refused after its check is neither."""
    return {key: rows for key, rows in datasets.items() if key not in verdicts or verdicts[key].reason is None}
