"""Make a round's leaderboard and weights from the table of datasets."""

import dataclasses
from collections.abc import Collection, Container, Mapping, Sequence

from template.chain_records import ChainSnapshot
from template.competition import Competition, Incentives
from template.constants import DROPPED_MARK
from template.records import ContentKey, Entry, Leaderboard, LeaderboardRow, SubmissionKey, Verdict
from template.rules.ledger import (
    Content,
    LedgerRow,
    estimate_loss,
    is_credit_paid,
    is_hopeless,
    ledger_lines,
    live_credits,
    live_records,
    make_shares,
    wanted_loss,
)
from template.rules.scoring import score_of, weights_from_scores
from template.rules.table import Table

# Begins the message of a dataset that was replaced too soon; the block follows.
COUNTS_LATER = "counts from block"


def build_leaderboard(
    competition: Competition,
    incentives: Incentives,
    entries: Mapping[SubmissionKey, Entry],
    verdicts: Mapping[SubmissionKey, Verdict],
    table: Table,
    block: int,
    absent: Container[ContentKey] = (),
) -> Leaderboard:
    """Build the leaderboard of a round, with the shares of the weights at `block`.

    absent: datasets whose file is missing for more than a day. Such a record is not paid.
    """
    rows = [_make_row(entry, competition, incentives, verdicts.get(key), table) for key, entry in entries.items()]
    registrations = {key.hotkey: entry.registration_block for key, entry in entries.items()}
    ledger = ledger_lines(table.ledger, absent)
    live = live_credits(block, ledger, registrations, incentives)
    unpaid = [line for line, _ in live_records(block, ledger, registrations, incentives) if line.is_absent]
    rows = [
        _add_credit(row, live.get(row.hotkey, 0.0), [line.digest for line in unpaid if line.hotkey == row.hotkey])
        if is_credit_paid(row.reason, table.readable.get(row.hotkey, -1), block)
        else row
        for row in rows
    ]
    shares = make_shares(rows, ledger, registrations, incentives)
    rows = [dataclasses.replace(row, weight=shares[row.hotkey]) if row.hotkey in shares else row for row in rows]
    return Leaderboard(rows, ledger)


def find_undecided(table: Table, season_block: int, competition: Competition, incentives: Incentives) -> frozenset[str]:
    """Return the hotkeys whose older dataset waits for evaluations in this season.

    A dataset is older if its rank is before the season. season_block: start of the first round of these losses.
    """
    confirmed = {row.content.key for row in table.ledger}
    return frozenset(
        content.key.hotkey
        for content in table.originals
        if content.rank.block < season_block
        and content.key not in confirmed
        and not is_hopeless(content, table.ledger, competition, incentives)
    )


def choose_weights(
    rows: Sequence[LeaderboardRow],
    last_shares: Mapping[str, float],
    owner_hotkey: str,
    *,
    has_ledger: bool,
    undecided: Collection[str] = (),
) -> Mapping[str, float]:
    """Return the share of each hotkey, summing to 1; empty without any shares.

    The last shares are used again until each hotkey in them is evaluated in this season, so that no miner is paid for
    being early in the queue. Then the leaderboard's own weights count. Without any, everything goes to the subnet
    owner, which burns it; but a validator that has evaluated nothing burns nothing.

    Args:
        undecided: Hotkeys whose dataset still waits for evaluations in this season; see `find_undecided`.
    """
    if not last_shares.keys().isdisjoint(undecided):
        return last_shares
    if any(row.weight > 0.0 for row in rows):
        return {row.key.hotkey: row.weight for row in rows if row.weight > 0.0}
    has_work = any(row.reason is None and row.loss is None for row in rows)
    is_unevaluated = has_work and not has_ledger and all(row.loss is None for row in rows)
    if is_unevaluated or (undecided and not has_ledger and last_shares):
        return last_shares
    return {owner_hotkey: 1.0}


def weights_by_uid(
    shares: Mapping[str, float], view: ChainSnapshot, registrations: Mapping[str, int]
) -> dict[int, float]:
    """Return the shares by uid, summing to 1; empty when no uid is left.

    registrations: registration block of each hotkey when it earned its share. A hotkey that registered again since is
    another neuron, and its share goes to the others.
    """
    if not shares:
        return {}
    uids = {
        hotkey: neuron.uid
        for hotkey, neuron in view.by_hotkey.items()
        if registrations.get(hotkey, neuron.registration_block) == neuron.registration_block
    }
    return weights_from_scores(shares, uids, view.owner_uid) or {}


def _make_row(
    entry: Entry, competition: Competition, incentives: Incentives, verdict: Verdict | None, table: Table
) -> LeaderboardRow:
    """Make the entry's row by the first rule that it fails.

    Credit and weight are added later.
    """
    row = LeaderboardRow(
        key=entry.key, uid=entry.uid, reason=None, message="waits for its download", loss=None, score=0.0, weight=0.0
    )
    if entry.rejection is not None:
        return dataclasses.replace(row, reason=entry.rejection.reason, message=str(entry.rejection))
    if verdict is not None:
        return dataclasses.replace(row, reason=verdict.reason, message=verdict.message)
    content = table.present.get(entry.key)
    if content is None:
        if entry.key in table.waiting:
            row = dataclasses.replace(row, message=f"{COUNTS_LATER} {table.waiting[entry.key]}")
        return row
    duplicate = table.duplicates.get(content.key)
    error = None if duplicate is None else duplicate.to_error()
    estimate = estimate_loss(content.losses, incentives.sd) if content.losses else None
    message = "waits for its first evaluation"
    if estimate is not None:
        message = _progress(content, estimate.loss, table.ledger, competition, incentives)
    return LeaderboardRow(
        key=entry.key,
        uid=entry.uid,
        reason=error.reason if error else None,
        message=str(error) if error else message,
        loss=estimate.loss if estimate else None,
        score=score_of(estimate.loss, competition) if estimate and not error else 0.0,
        weight=0.0,
        digest=content.key.digest,
        mean=estimate.mean if estimate else None,
        spread=estimate.spread if estimate else None,
        runs=len(content.losses),
    )


def _add_credit(row: LeaderboardRow, credit: float, unpaid: Sequence[str]) -> LeaderboardRow:
    """Add the live credit. unpaid: digests of records whose file is missing."""
    if not unpaid:
        return dataclasses.replace(row, credit=credit)
    digests = ", ".join(digest[:12] for digest in unpaid)
    text = f"unpaid records (rows {digests}): the file is missing on the Hub for more than a day"
    return dataclasses.replace(row, credit=credit, message=f"{row.message}; {text}" if row.message else text)


def _progress(
    content: Content, loss: float, ledger: Sequence[LedgerRow], competition: Competition, incentives: Incentives
) -> str:
    runs = len(content.losses)
    if runs >= incentives.evaluations:
        return ""
    text = f"{runs} of {incentives.evaluations} evaluations"
    if not is_hopeless(content, ledger, competition, incentives):
        return text
    wanted = wanted_loss(content, ledger, competition, incentives)
    return f"{text}{DROPPED_MARK}more are unlikely to bring its loss {loss:.6f} below {wanted:.6f}, where pay begins"
