"""Make a round's leaderboard and weights from its entries and their evaluations.

A verdict on a dataset is final. Whether it counts now is derived each time, because it depends on the chain: which
commitment of a hotkey is current, when the hotkey registered, who committed first.
"""

import dataclasses
from collections.abc import Container, Mapping, Sequence

from template.competition import Competition
from template.records import ChainView, Entry, LeaderboardRow, SubmissionKey, Verdict
from template.rules.duplicates import Duplicate
from template.rules.scoring import score_of, shares_from_scores, weights_from_scores


def build_leaderboard(
    competition: Competition,
    entries: Mapping[SubmissionKey, Entry],
    verdicts: Mapping[SubmissionKey, Verdict],
    duplicates: Mapping[SubmissionKey, Duplicate],
    datasets: Container[SubmissionKey],
) -> list[LeaderboardRow]:
    """Return one row per entry; its weight is its part of all scores.

    A loss counts only while the dataset's rows are in `datasets`: otherwise it could be a duplicate's.
    """
    rows = []
    for key, entry in entries.items():
        verdict = verdicts.get(key)
        if verdict is not None and verdict.loss is not None and key not in datasets:
            verdict = None
        rows.append(_make_row(entry, competition, verdict, duplicates.get(key)))
    shares = shares_from_scores({row.key.hotkey: row.score for row in rows})
    return [dataclasses.replace(row, weight=shares.get(row.key.hotkey, 0.0)) for row in rows]


def choose_weights(
    rows: Sequence[LeaderboardRow],
    last_shares: Mapping[str, float],
    owner_hotkey: str,
    *,
    stuck: Container[SubmissionKey] = (),
) -> Mapping[str, float]:
    """Return the share of each hotkey, summing to 1; empty without any shares.

    The leaderboard's own weights come first. While no entry has a score and some still wait, the last shares are used
    again. Once all entries have a verdict and none a score, everything goes to the subnet owner, which burns it.
    stuck: entries that are no longer waited for, as long as another entry has a loss: a validator that cannot evaluate
    anything burns nothing.
    """
    if any(row.weight > 0.0 for row in rows):
        return {row.key.hotkey: row.weight for row in rows if row.weight > 0.0}
    waiting = [row.key for row in rows if row.reason is None and row.loss is None]
    has_loss = any(row.loss is not None for row in rows)
    if any(not has_loss or key not in stuck for key in waiting):
        return last_shares
    return {owner_hotkey: 1.0}


def weights_by_uid(shares: Mapping[str, float], view: ChainView, registrations: Mapping[str, int]) -> dict[int, float]:
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
    entry: Entry, competition: Competition, verdict: Verdict | None, duplicate: Duplicate | None
) -> LeaderboardRow:
    """Return the entry's row without its weight. Only the first failed rule counts."""
    loss = verdict.loss if verdict else None
    reason, message, score = None, "waits for its turn", 0.0
    if entry.rejection is not None:
        reason, message, loss = entry.rejection.reason, str(entry.rejection), None
    elif duplicate is not None:
        error = duplicate.to_error()
        reason, message = error.reason, str(error)
    elif verdict is not None and verdict.reason is not None:
        reason, message = verdict.reason, verdict.message
    elif loss is not None:
        message, score = "", score_of(loss, competition)
    return LeaderboardRow(
        key=entry.key, uid=entry.uid, reason=reason, message=message, loss=loss, score=score, weight=0.0
    )
