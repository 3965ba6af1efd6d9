"""Choose the records whose files are looked up in a round."""

from collections.abc import Container, Iterable, Mapping, Sequence

from template.competition import Incentives, Reward
from template.records import ContentKey, Dataset, LedgerLine, Stand, SubmissionKey
from template.rules.ledger import live_records
from template.rules.stands import stands_at

# A record is looked up if its live credit is at least the largest one divided by this.
MAX_CREDIT_RATIO = 1000


def newest_commitments(
    stands: Mapping[str, Sequence[Stand]], datasets: Mapping[SubmissionKey, Dataset], block: int
) -> dict[ContentKey, SubmissionKey]:
    """Return the newest commitment to each dataset that was read, at an aligned block."""
    return {
        ContentKey(hotkey, datasets[stand.key].digest): stand.key
        for hotkey, own in stands.items()
        for stand in sorted(stands_at(own, block), key=lambda stand: stand.first_block)
        if stand.key in datasets
    }


def records_to_look_up(
    block: int,
    ledger: Iterable[LedgerLine],
    registrations: Mapping[str, int],
    incentives: Incentives,
    commitments: Mapping[ContentKey, SubmissionKey],
    absent: Container[SubmissionKey],
) -> list[SubmissionKey]:
    """Return the commitments of the records whose credit matters.

    These are the records with at least a thousandth of the largest credit, and missing ones. Under `winner` a small
    credit can be paid everything.

    Args:
        commitments: See `newest_commitments`.
        absent: Commitments whose file was missing at its last lookup.
    """
    live = {
        ContentKey(line.hotkey, line.digest): credit
        for line, credit in live_records(block, ledger, registrations, incentives)
    }
    least = 0.0 if incentives.reward is Reward.WINNER else max(live.values(), default=0.0) / MAX_CREDIT_RATIO
    keys = [(commitments[content], credit) for content, credit in live.items() if content in commitments]
    return [key for key, credit in keys if credit >= least or key in absent]
