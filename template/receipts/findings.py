"""Findings of an audit, each of a kind with an exit status of its own."""

from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """Exit status of each kind of finding; the first that applies is the audit's."""

    SIGNATURE = 9
    """A signature is missing, invalid or another hotkey's."""
    INCONSISTENT = 7
    """A file is damaged or contradicts itself, or a replayed loss differs."""
    WEIGHTS = 11
    """The weights on chain are not the file's."""
    REPEAT = 12
    """Weights that were submitted again are no earlier ones of this signer."""
    REFUSAL = 13
    """A dataset was refused that passes the check."""
    RECEIPT = 14
    """Losses rest on evaluations or receipts that are in no file here."""
    SEED = 15
    """A seed is of another block or source."""
    ENTRY = 16
    """The entries are not the chain's commitments at start_block."""
    RANK = 17
    """A rank does not follow from the chain."""
    PLAN = 18
    """The evaluations are not those of the plan."""
    MEAN = 19
    """Means, spreads or runs are not those of the evaluations."""
    RULES = 20
    """The rules are not the competition's."""
    COPY = 21
    """A dataset is paid that copies an earlier one."""


class Finding(NamedTuple):
    """One lie or fault, in a sentence."""

    kind: Kind
    text: str


def worst_status(kinds: set[Kind]) -> int:
    """Return the exit status of the first kind that applies, 0 without any."""
    return next((int(kind) for kind in Kind if kind in kinds), 0)
