"""Decide which datasets are duplicates of which earlier ones."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from template.constants import MAX_SHARED_PERCENT
from template.errors import Reason, SubmissionError
from template.records import Entry, Submission, SubmissionKey, Verdict

Datasets = Mapping[SubmissionKey, tuple[bytes, ...]]
"""Row keys by submission."""

# Earlier versions of one hotkey's dataset that can make others duplicates: this many of its first, and of its last.
MAX_VERSIONS = 8


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A submission that passed every other rule. block: its rank block."""

    hotkey: str
    commit: str
    block: int
    row_keys: tuple[bytes, ...]

    @property
    def sort_key(self) -> tuple[int, bytes]:
        """Sorts earlier blocks first; within one, by sha256 of `hotkey:commit`.

        The tie-break changes with every commit, so it favours no hotkey in the long run.
        """
        return self.block, hashlib.sha256(f"{self.hotkey}:{self.commit}".encode()).digest()


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """The original of a duplicate, and the number of different rows they share."""

    hotkey: str
    commit: str
    block: int
    shared: int

    def to_error(self) -> SubmissionError:
        return SubmissionError(
            Reason.DUPLICATE,
            f"shares {self.shared} rows with the earlier submission of {self.hotkey}"
            f" (commit {self.commit}, block {self.block})",
        )


def max_shared(row_count: int) -> int:
    """Return how many of its different rows a dataset may share with an earlier one."""
    return row_count * MAX_SHARED_PERCENT // 100


def match_duplicates(candidates: Iterable[Candidate]) -> dict[tuple[str, str], Duplicate]:
    """Find the candidates that share too many of their rows with one original.

    The earliest such original is named. A duplicate makes no other candidate a duplicate, and neither does a dataset
    of the same hotkey. Include superseded commits of each hotkey: a dataset is public once committed, and a duplicate
    of the first version would otherwise be earlier than the author's second version.

    Rows repeated within a candidate count once. The order of `candidates` does not matter. An index by row counts
    shared rows with all originals at once, so the cost does not grow with near misses.
    """
    originals: list[Candidate] = []
    # Bit i stands for originals[i].
    holders: dict[bytes, int] = {}
    own: dict[str, int] = {}
    duplicates: dict[tuple[str, str], Duplicate] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.sort_key):
        keys = set(candidate.row_keys)
        masks = [holders[key] for key in keys if key in holders]
        matches = _in_more_than(max_shared(len(keys)), masks) & ~own.get(candidate.hotkey, 0)
        if matches:
            original = originals[(matches & -matches).bit_length() - 1]
            duplicates[candidate.hotkey, candidate.commit] = Duplicate(
                hotkey=original.hotkey,
                commit=original.commit,
                block=original.block,
                shared=len(keys.intersection(original.row_keys)),
            )
            continue
        bit = 1 << len(originals)
        for key in keys:
            holders[key] = holders.get(key, 0) | bit
        own[candidate.hotkey] = own.get(candidate.hotkey, 0) | bit
        originals.append(candidate)
    return duplicates


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


def find_duplicates(
    entries: Mapping[SubmissionKey, Entry], submissions: Mapping[SubmissionKey, Submission], datasets: Datasets
) -> dict[SubmissionKey, Duplicate]:
    """Find the duplicates among entries and their hotkeys' related earlier versions.

    Without an entry's earlier versions, a duplicate of the first version would reject the second.
    """
    present = [entry for key, entry in entries.items() if entry.rejection is None and key in datasets]
    return _match(present, related_versions(present, submissions, datasets), submissions, datasets)


def find_possible_duplicates(
    entries: Mapping[SubmissionKey, Entry], submissions: Mapping[SubmissionKey, Submission], datasets: Datasets
) -> dict[SubmissionKey, Duplicate]:
    """Find entries that may be duplicates of a dataset not downloaded yet.

    They share too many rows with an earlier version of that dataset. Whether the earlier version counts is known once
    the current one is downloaded.
    """
    accepted = [entry for entry in entries.values() if entry.rejection is None]
    missing = [entry for entry in accepted if entry.key not in datasets]
    versions = related_versions(missing, submissions, datasets)
    if not versions:
        return {}
    duplicates = _match([entry for entry in accepted if entry.key in datasets], versions, submissions, datasets)
    hotkeys = {entry.key.hotkey for entry in missing}
    return {key: original for key, original in duplicates.items() if key in entries and original.hotkey in hotkeys}


def related_versions(
    entries: Iterable[Entry], submissions: Mapping[SubmissionKey, Submission], datasets: Datasets
) -> dict[SubmissionKey, list[SubmissionKey]]:
    """Return each entry's earlier versions that can make others duplicates.

    Only versions since the hotkey's registration count, and of those the ones that share so many rows with the entry's
    dataset that the smaller of the two would be a duplicate: nobody can block others with datasets that are not in the
    competition. While the entry's dataset is not downloaded, all may be related. Of many, the first and the last count.
    """
    current = {entry.key.hotkey: entry for entry in entries}
    versions: dict[SubmissionKey, list[SubmissionKey]] = {}
    for key in sorted(submissions.keys() & datasets.keys(), key=lambda key: (submissions[key].first_block, key)):
        entry = current.get(key.hotkey)
        if entry is not None and key != entry.key and submissions[key].first_block > entry.registration_block:
            versions.setdefault(entry.key, []).append(key)
    for current_key, earlier in versions.items():
        if current_key in datasets:
            rows = set(datasets[current_key])
            earlier = [key for key in earlier if _are_related(rows, set(datasets[key]))]
        versions[current_key] = list(dict.fromkeys(earlier[:MAX_VERSIONS] + earlier[-MAX_VERSIONS:]))
    return versions


def _are_related(rows: Set[bytes], others: Set[bytes]) -> bool:
    return len(rows & others) > max_shared(min(len(rows), len(others)))


def _match(
    entries: Iterable[Entry],
    versions: Mapping[SubmissionKey, Sequence[SubmissionKey]],
    submissions: Mapping[SubmissionKey, Submission],
    datasets: Datasets,
) -> dict[SubmissionKey, Duplicate]:
    """Match entries by their rank and their earlier versions by their first block."""
    blocks = [(key, submissions[key].first_block) for earlier in versions.values() for key in earlier]
    blocks += [(entry.key, entry.rank_block) for entry in entries]
    candidates = [
        Candidate(hotkey=key.hotkey, commit=key.commitment, block=block, row_keys=datasets[key])
        for key, block in blocks
    ]
    return {SubmissionKey(*identity): original for identity, original in match_duplicates(candidates).items()}


def eligible_datasets(
    datasets: Datasets, verdicts: Mapping[SubmissionKey, Verdict]
) -> dict[SubmissionKey, tuple[bytes, ...]]:
    """Return the datasets that were not rejected: they can duplicate or be duplicated."""
    return {key: rows for key, rows in datasets.items() if key not in verdicts or verdicts[key].reason is None}
