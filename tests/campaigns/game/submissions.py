"""Simulated datasets, and commitments to them."""

import functools
from dataclasses import dataclass

from template.competition import CommitmentRecord
from template.data.rows import content_digest
from template.records import Dataset, SubmissionKey

ROWS = 20


@dataclass(frozen=True)
class Rows:
    """The rows of a dataset, by number."""

    numbers: tuple[int, ...]

    @functools.cached_property
    def dataset(self) -> Dataset:
        keys = tuple(number.to_bytes(8, "big") for number in self.numbers)
        return Dataset(digest=content_digest(keys), row_keys=keys)

    @property
    def digest(self) -> str:
        return self.dataset.digest


@dataclass
class Commitment:
    """A hotkey's commitment.

    reveal_block: later than commit_block if it is sealed until then.
    """

    key: SubmissionKey
    record: CommitmentRecord
    rows: Rows
    commit_block: int
    reveal_block: int
