"""Build the table of datasets at an aligned block from chain, datasets and losses."""

import hashlib
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace

from template.competition import Competition, Incentives
from template.records import Confirmed, ContentKey, Dataset, Entry, Rank, Stand, SubmissionKey
from template.rules.duplicates import (
    Candidate,
    Duplicate,
    former_versions,
    match_duplicates,
    public_ranks,
    related_versions,
)
from template.rules.ledger import Content, LedgerRow, read_ledger
from template.rules.stands import Version, align, find_versions, stands_at

Losses = Mapping[ContentKey, Sequence[float]]
"""Losses of each dataset, by number of the evaluation."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a table.

    entries: of the round's snapshot. stands: of each hotkey, with the snapshot's. datasets: by commitment.
    rejected: commitments with a final rejection. block_hash: returns the hash of an aligned block up to `block`.
    """

    block: int
    competition: Competition
    incentives: Incentives
    entries: Mapping[SubmissionKey, Entry]
    stands: Mapping[str, Sequence[Stand]]
    datasets: Mapping[SubmissionKey, Dataset]
    losses: Losses
    confirmed: Mapping[ContentKey, Confirmed]
    rejected: Container[SubmissionKey]
    block_hash: Callable[[int], str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The datasets in the competition at one block.

    present: of accepted entries, by commitment; with the rank of the ledger if they are in it. waiting: entries whose
    dataset counts from a later block, and that block. readable: last aligned block at which each hotkey had a dataset.
    duplicates: among all of them, versions and ledger included.
    """

    present: Mapping[SubmissionKey, Content]
    waiting: Mapping[SubmissionKey, int]
    readable: Mapping[str, int]
    duplicates: Mapping[ContentKey, Duplicate]
    ledger: Sequence[LedgerRow]

    @property
    def originals(self) -> list[Content]:
        """The present datasets that are no duplicates."""
        return [content for content in self.present.values() if content.key not in self.duplicates]


def make_table(inputs: Inputs) -> Table:
    """Rank the datasets, find the duplicates and read the ledger."""
    period, update_blocks = inputs.incentives.blocks_per_epoch, inputs.incentives.update_blocks
    accepted = {
        key.hotkey: key
        for key, entry in inputs.entries.items()
        if entry.rejection is None and key not in inputs.rejected
    }
    registrations = {key.hotkey: entry.registration_block for key, entry in inputs.entries.items()}
    present: dict[SubmissionKey, Content] = {}
    waiting: dict[SubmissionKey, int] = {}
    readable: dict[str, int] = {}
    public: list[tuple[bool, Version]] = []
    for hotkey, all_stands in inputs.stands.items():
        stands = stands_at(all_stands, inputs.block)
        usable = {stand.key: inputs.datasets[stand.key] for stand in stands if stand.key in inputs.datasets}
        versions = find_versions(stands, usable, period=period, update_blocks=update_blocks)
        if not versions or registrations.get(hotkey, registration := versions[0].registration_block) != registration:
            continue
        current = accepted.get(hotkey)
        readable[hotkey] = max((v.last_block for v in versions if v.key not in inputs.rejected), default=-1)
        for version in versions:
            if version.key == current and version.last_block >= inputs.block:
                if version.is_counted:
                    present[version.key] = _make_content(version, inputs)
                else:
                    waiting[version.key] = version.rank_block
        refusing = [*related_versions(versions, current, usable), *former_versions(versions, inputs.incentives)]
        blocks = {version.first_block for version in refusing}
        public += [(v.first_block not in blocks, v) for v in versions if v.public_block <= inputs.block]
    duplicates = match_duplicates(_make_candidates(public, inputs).values())
    confirmed = {key: _confirmed_content(key, past, inputs.losses) for key, past in inputs.confirmed.items()}
    in_ledger = {content.key: content for content in [*confirmed.values(), *present.values()]}
    ledger = read_ledger(
        [content for key, content in in_ledger.items() if key not in duplicates], inputs.competition, inputs.incentives
    )
    return Table(present=present, waiting=waiting, readable=readable, duplicates=duplicates, ledger=ledger)


def _make_candidates(versions: Sequence[tuple[bool, Version]], inputs: Inputs) -> dict[ContentKey, Candidate]:
    """Return the datasets that are compared: confirmed ones, and versions.

    A version whose place another dataset took matters only for files that came late and sealed commitments.
    versions: each after whether another dataset took its place.
    """
    period, confirmed = inputs.incentives.blocks_per_epoch, inputs.confirmed
    ranks = {key: past.public or past.rank for key, past in confirmed.items()}
    commits = [(version.public_block, version.public_commit_block) for _, version in versions]
    commits += [(rank.block, rank.commit_block) for rank in ranks.values()]
    has_late = any(block > align(commit, period) for block, commit in commits)
    candidates: dict[ContentKey, Candidate] = {}
    for is_former, version in sorted(versions, key=lambda item: item[0]):
        key = ContentKey(version.key.hotkey, version.digest)
        if key not in candidates and (has_late or not is_former):
            # Each version that is compared for late files alone would cost a request for its block's hash.
            public = _public(version, "" if is_former else inputs.block_hash(version.public_block))
            made = _make_candidate(key, public, inputs.datasets[version.key].row_keys, period)
            candidates[key] = replace(made, is_former=is_former)
    for key, rank in ranks.items():
        if key not in candidates or candidates[key].is_former or rank < candidates[key].rank:
            candidates[key] = _make_candidate(key, rank, confirmed[key].row_keys, period)
    return candidates


def _public(version: Version, block_hash: str) -> Rank:
    key = ContentKey(version.key.hotkey, version.digest)
    return Rank(version.public_block, version.public_commit_block, tie_break(block_hash, key))


def tie_break(block_hash: str, key: ContentKey) -> bytes:
    """Return the hash that orders datasets of one commit block.

    The hash of the aligned block is unpredictable when the commitment is made.
    """
    return hashlib.sha256(f"{block_hash}\n{key.hotkey}\n{key.digest}".encode()).digest()


def _make_content(version: Version, inputs: Inputs) -> Content:
    key = ContentKey(version.key.hotkey, version.digest)
    if key in inputs.confirmed:
        return _confirmed_content(key, inputs.confirmed[key], inputs.losses)
    public = _public(version, inputs.block_hash(version.public_block))
    return Content(
        key=key,
        rank=Rank(version.rank_block, version.commit_block, public.tie_break),
        registration_block=version.registration_block,
        losses=tuple(inputs.losses.get(key, ())),
        public=public,
        seed_block=version.seed_block,
    )


def _confirmed_content(key: ContentKey, past: Confirmed, losses: Losses) -> Content:
    return Content(
        key=key,
        rank=past.rank,
        registration_block=past.registration_block,
        losses=tuple(losses.get(key, ())),
        public=past.public,
    )


def _make_candidate(key: ContentKey, public: Rank, row_keys: tuple[bytes, ...], period: int) -> Candidate:
    rank, promised = public_ranks(public, period)
    return Candidate(hotkey=key.hotkey, digest=key.digest, rank=rank, promised=promised, row_keys=row_keys)
