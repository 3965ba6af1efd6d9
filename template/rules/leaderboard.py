"""Who stands where: from one view of the chain and what is known of each submission to a table with weights. Pure.

Facts about a dataset are found once and kept (`Verdict`); whether it counts now depends on the chain as well and is
derived anew each time: which commitment of a hotkey is current, when the hotkey registered, who committed first.
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
    copies: Mapping[SubmissionKey, Duplicate],
    datasets: Container[SubmissionKey],
) -> list[LeaderboardRow]:
    """One line per entrant, with the share that its score is of all scores as its weight.

    datasets: those whose rows are known. A loss alone counts for nothing: nobody could tell whether it is a copy's.
    """
    # Of the few that stand here, not of all that there ever were.
    held = {key: verdicts[key] for key in entries if key in verdicts}
    known = {key: verdict for key, verdict in held.items() if verdict.loss is None or key in datasets}
    lines = [_judge(entry, competition, known, copies) for entry in entries.values()]
    shares = shares_from_scores({line.key.hotkey: line.score for line in lines})
    return [dataclasses.replace(line, weight=shares.get(line.key.hotkey, 0.0)) for line in lines]


def choose_weights(
    lines: Sequence[LeaderboardRow],
    last_shares: Mapping[str, float],
    owner_hotkey: str,
    *,
    stuck: Container[SubmissionKey] = (),
) -> Mapping[str, float]:
    """What each hotkey gets, summing to 1; empty when nothing can be said yet.

    The table's own weights where there are any. While some still wait for their turn, a table in which nobody has a
    score says nothing: then the shares that were given last are given again. When all were judged and nobody has a
    score, all goes to the subnet owner, which burns it. stuck: those that are waited for no longer, provided that some
    other has a loss; a machine that can score none burns nothing.
    """
    if any(line.weight > 0.0 for line in lines):
        return {line.key.hotkey: line.weight for line in lines if line.weight > 0.0}
    waiting = [line.key for line in lines if line.reason is None and line.loss is None]
    can_score = any(line.loss is not None for line in lines)
    if any(not can_score or key not in stuck for key in waiting):
        return last_shares
    return {owner_hotkey: 1.0}


def weights_by_uid(shares: Mapping[str, float], view: ChainView, registrations: Mapping[str, int]) -> dict[int, float]:
    """The shares by uid as of `view`, summing to 1; empty when none of the hotkeys and no owner is left to burn to.

    registrations: the block at which a hotkey had its uid when it earned its share; one that lost it and came back is
    another neuron, and what it left behind goes to the others.
    """
    if not shares:
        return {}
    uids = {
        hotkey: neuron.uid
        for hotkey, neuron in view.by_hotkey.items()
        if registrations.get(hotkey, neuron.registration_block) == neuron.registration_block
    }
    return weights_from_scores(shares, uids, view.owner_uid) or {}


def _judge(
    entry: Entry,
    competition: Competition,
    verdicts: Mapping[SubmissionKey, Verdict],
    copies: Mapping[SubmissionKey, Duplicate],
) -> LeaderboardRow:
    """The entrant's line without its weight."""
    verdict = verdicts.get(entry.key)
    loss = verdict.loss if verdict else None
    reason, message, score = None, "waits for its turn", 0.0
    if entry.rejection is not None:
        reason, message, loss = entry.rejection.reason, str(entry.rejection), None
    elif entry.key in copies:
        error = copies[entry.key].to_error()
        reason, message = error.reason, str(error)
    elif verdict is not None and verdict.reason is not None:
        reason, message = verdict.reason, verdict.message
    elif loss is not None:
        message = ""
        score = score_of(loss, competition)
    return LeaderboardRow(
        key=entry.key, uid=entry.uid, reason=reason, message=message, loss=loss, score=score, weight=0.0
    )
