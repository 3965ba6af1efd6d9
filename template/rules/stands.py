"""Find the dataset of a hotkey that counts, and the block it counts from.

Only the chain's state at aligned blocks counts, the multiples of a round's length: a commitment that stood only between
two of them never existed. A dataset is its counted rows: another commitment to the same rows is the same dataset.
"""

import dataclasses
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from template.records import Dataset, Entry, Stand, SubmissionKey

# Versions of one hotkey's dataset that are remembered: the first that counted, the last that counted, and the last that
# were replaced before they counted.
_FIRST_COUNTED, _LAST_COUNTED, _LAST = 8, 64, 8


@dataclass(frozen=True, kw_only=True)
class Version:
    """A dataset of a hotkey in one registration.

    key: its newest commitment. first_block: of its first stand.
    public_block, public_commit_block: of the first stand of these rows; they decide who copied whom. public_block: not
    before the reveal of a sealed one. rank_block: from which it counts. seed_block: from which its evaluations have
    their seeds. is_counted: False if it was replaced before it counted, or is to count later.
    """

    key: SubmissionKey
    digest: str
    first_block: int
    last_block: int
    commit_block: int
    registration_block: int
    public_block: int
    public_commit_block: int
    rank_block: int
    seed_block: int
    is_counted: bool = True


def align(block: int, period: int) -> int:
    """Return the first multiple of `period` at or after `block`."""
    return -(-block // period) * period


def extend_stands(
    newest: Mapping[str, Stand],
    entries: Iterable[Entry],
    block: int,
    period: int,
    *,
    missing: Container[SubmissionKey] = (),
    datasets: Container[SubmissionKey] = (),
) -> list[Stand]:
    """Return the stand of each accepted entry at an aligned block.

    A stand continues if the same commitment stood at the last aligned block that was read. The stand of a dataset whose
    file is gone ends, and another begins when the file is back.

    Args:
        newest: Newest stand of each hotkey.
        missing: Commitments whose file is missing.
        datasets: Commitments whose file was read once.
    """
    previous_block = max((stand.last_block for stand in newest.values()), default=-1)
    stands = []
    for entry in entries:
        is_missing = entry.key in missing
        if entry.rejection is not None or (is_missing and entry.key in datasets):
            continue
        last = newest.get(entry.key.hotkey)
        if last is not None and not _continues(last, entry, previous_block, period=period, block=block):
            last = None
        # One that was readable before, and did not stand, had lost its file.
        was_lost = entry.reveal_block <= previous_block and entry.key in datasets
        first_block = block if was_lost else align(entry.commit_block, period)
        stands.append(
            Stand(
                key=entry.key,
                first_block=last.first_block if last else first_block,
                last_block=max(block, last.last_block) if last else block,
                commit_block=last.commit_block if last else entry.commit_block,
                reveal_block=last.reveal_block if last else entry.reveal_block,
                registration_block=entry.registration_block,
                missing_block=block if is_missing else last.missing_block if last else 0,
            )
        )
    return stands


def _continues(last: Stand, entry: Entry, previous_block: int, *, period: int, block: int) -> bool:
    is_same = (last.key, last.registration_block) == (entry.key, entry.registration_block)
    # A commitment that was not set again was there in the missed rounds too.
    is_unbroken = last.last_block >= block - period or entry.commit_block <= last.last_block
    return is_same and last.last_block >= previous_block and is_unbroken


def stands_at(stands: Iterable[Stand], block: int) -> list[Stand]:
    """Return the stands as they were at an aligned block.

    A missed round needs them after newer ones are recorded.
    """
    return [
        dataclasses.replace(stand, last_block=block) if stand.last_block > block else stand
        for stand in stands
        if max(stand.first_block, stand.reveal_block) <= block
    ]


def find_versions(
    stands: Sequence[Stand], datasets: Mapping[SubmissionKey, Dataset], *, period: int, update_blocks: int
) -> list[Version]:
    """Return a hotkey's downloaded datasets of its newest registration, by age.

    A dataset that returns after another ranks by its return, and keeps its seeds; a sealed one returns with its reveal.
    The next dataset counts `update_blocks` after the last one that counted. A file that came late counts from the
    aligned block after the round that read it.
    """
    registration_block = max((stand.registration_block for stand in stands), default=0)
    versions: list[Version] = []
    counted: Version | None = None
    for stand in sorted(stands, key=lambda stand: stand.first_block):
        if stand.registration_block != registration_block or stand.key not in datasets:
            continue
        digest = datasets[stand.key].digest
        if versions and _is_continued(versions[-1], stand, digest, period):
            last = versions.pop()
            is_counted = last.rank_block <= stand.last_block
            version = dataclasses.replace(last, key=stand.key, last_block=stand.last_block, is_counted=is_counted)
        else:
            earliest = 0
            if counted is not None and counted.digest != digest:
                earliest = align(counted.rank_block + update_blocks, period)
            same = [other for other in versions if other.digest == digest]
            version = _make_version(stand, digest, same, earliest=earliest, period=period)
        counted = version if version.is_counted else counted
        versions.append(version)
    return _remembered(versions)


def _is_continued(last: Version, stand: Stand, digest: str, period: int) -> bool:
    first_block = max(stand.first_block, align(stand.reveal_block, period))
    return last.digest == digest and first_block - last.last_block <= period and not stand.missing_block


def _make_version(stand: Stand, digest: str, same: Sequence[Version], *, earliest: int, period: int) -> Version:
    """Make the version of a stand. same: earlier versions with the same rows."""
    is_late = stand.missing_block > 0
    revealed = align(stand.reveal_block, period)
    public_block = max(stand.first_block, revealed, stand.missing_block + period if is_late else 0)
    block = max(stand.first_block, stand.missing_block + 2 * period if is_late else 0)
    # Rows that stood before have known seeds, so a seal must not give them an earlier rank than a plain return.
    rank_block = max(block, earliest, revealed if same else 0)
    return Version(
        key=stand.key,
        digest=digest,
        first_block=stand.first_block,
        last_block=stand.last_block,
        commit_block=stand.commit_block,
        registration_block=stand.registration_block,
        # A copier that reads the file in the round in which it came commits later.
        public_block=same[0].public_block if same else public_block,
        public_commit_block=same[0].public_commit_block if same else stand.commit_block,
        rank_block=rank_block,
        # Who knew the seeds before could choose by them, among datasets that never count or that are still sealed.
        seed_block=next((other.seed_block for other in same if other.is_counted), max(rank_block, public_block)),
        is_counted=rank_block <= stand.last_block,
    )


def _remembered(versions: list[Version]) -> list[Version]:
    """Drop the middle of many versions, never the first or the last."""
    if len(versions) <= _LAST:
        return versions
    counted = [version for version in versions if version.is_counted]
    remembered = [*counted[:_FIRST_COUNTED], *counted[-_LAST_COUNTED:], *versions[-_LAST:]]
    # The first stands of the same rows decide the public block and seed block of later ones.
    first = {version.digest: version.first_block for version in reversed(versions)}
    first_counted = {version.digest: version.first_block for version in reversed(counted)}
    blocks = {block for version in remembered for block in (version.first_block, first[version.digest])}
    blocks.update(first_counted[version.digest] for version in remembered if version.digest in first_counted)
    return [version for version in versions if version.first_block in blocks]


def shorten_stands(stands: Sequence[Stand], versions: Iterable[Version]) -> list[Stand]:
    """Return one stand per version, and the newest stand.

    `find_versions` returns the same versions for them.
    """
    by_first_block = {version.first_block: version for version in versions}
    shortened = [
        dataclasses.replace(stand, key=version.key, last_block=version.last_block)
        for stand in stands
        if (version := by_first_block.get(stand.first_block)) is not None
    ]
    newest = stands[-1]
    is_last = bool(shortened) and (shortened[-1].key, shortened[-1].last_block) == (newest.key, newest.last_block)
    return shortened if is_last else [*shortened, newest]
