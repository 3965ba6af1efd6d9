"""Which dataset of a hotkey counts, and since when.

Only the chain's state at aligned blocks counts, the multiples of a round's length: a commitment that stood only between
two of them never existed. A dataset is its counted rows: another commitment to the same rows is the same dataset.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from template.records import Dataset, Entry, Stand, SubmissionKey


@dataclass(frozen=True, kw_only=True)
class Version:
    """A dataset of a hotkey in one registration. key: its newest commitment. first_block: of its first stand.

    rank_block: from which it counts. is_counted: False if it was replaced before it counted, or is to count later.
    """

    key: SubmissionKey
    digest: str
    first_block: int
    rank_block: int
    last_block: int
    commit_block: int
    registration_block: int
    is_counted: bool = True


def align(block: int, period: int) -> int:
    """Return the first multiple of `period` at or after `block`."""
    return -(-block // period) * period


def extend_stands(newest: Mapping[str, Stand], entries: Iterable[Entry], block: int, period: int) -> list[Stand]:
    """Return the stand of each entry at an aligned block, given the newest stand of each hotkey.

    A stand goes on if the commitment is the same and stood one period before, or was not set again since it was last
    seen.
    """
    stands = []
    for entry in entries:
        last = newest.get(entry.key.hotkey)
        if last is not None and _goes_on(last, entry, block - period):
            stands.append(dataclasses.replace(last, last_block=max(block, last.last_block)))
            continue
        stand = Stand(
            key=entry.key,
            first_block=align(entry.commit_block, period),
            last_block=block,
            commit_block=entry.commit_block,
            registration_block=entry.registration_block,
        )
        stands.append(stand)
    return stands


def _goes_on(last: Stand, entry: Entry, previous_block: int) -> bool:
    is_same = (last.key, last.registration_block) == (entry.key, entry.registration_block)
    return is_same and (last.last_block >= previous_block or entry.commit_block <= last.last_block)


def find_versions(
    stands: Iterable[Stand], datasets: Mapping[SubmissionKey, Dataset], *, period: int, update_blocks: int
) -> list[Version]:
    """Return one hotkey's downloaded datasets, oldest first.

    One that returns after another ranks by its return. The next dataset counts `update_blocks` after the last one that
    counted.
    """
    versions: list[Version] = []
    counted: Version | None = None
    for stand in sorted(stands, key=lambda stand: stand.first_block):
        if stand.key not in datasets:
            continue
        version = _next_version(versions, stand, datasets[stand.key].digest, period)
        is_update = counted is not None and counted.digest != version.digest
        if counted is not None and is_update and counted.registration_block == version.registration_block:
            earliest = align(counted.rank_block + update_blocks, period)
            version = dataclasses.replace(version, rank_block=max(version.rank_block, earliest))
        version = dataclasses.replace(version, is_counted=version.rank_block <= version.last_block)
        counted = version if version.is_counted else counted
        versions.append(version)
    return versions


def _next_version(versions: list[Version], stand: Stand, digest: str, period: int) -> Version:
    """Return the stand's version; removes the last one from `versions` if it goes on."""
    last = versions[-1] if versions else None
    if (
        last is not None
        and (last.digest, last.registration_block) == (digest, stand.registration_block)
        and stand.first_block - last.last_block <= period
        and not stand.missing_block
    ):
        return dataclasses.replace(versions.pop(), key=stand.key, last_block=stand.last_block)
    return Version(
        key=stand.key,
        digest=digest,
        first_block=stand.first_block,
        rank_block=max(stand.first_block, align(stand.missing_block + 1, period) if stand.missing_block else 0),
        last_block=stand.last_block,
        commit_block=stand.commit_block,
        registration_block=stand.registration_block,
    )


def shorten_stands(stands: Sequence[Stand], versions: Iterable[Version]) -> list[Stand]:
    """Return one stand for each version that counted, and the newest stand. They give the same versions again."""
    counted = {version.first_block: version for version in versions if version.is_counted}
    shortened = [
        dataclasses.replace(stand, key=version.key, last_block=version.last_block)
        for stand in stands
        if (version := counted.get(stand.first_block)) is not None
    ]
    newest = stands[-1]
    is_last = bool(shortened) and (shortened[-1].key, shortened[-1].last_block) == (newest.key, newest.last_block)
    return shortened if is_last else [*shortened, newest]
