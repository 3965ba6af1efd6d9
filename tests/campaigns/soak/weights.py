"""Accounts for every weight submission of a soak run."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from tests.campaigns.clock import block_at
from tests.campaigns.soak.curve import is_close, shares_of
from tests.campaigns.soak.reference_model import ReferenceModel, Row, group_by_round
from tests.campaigns.synthetic_subnet import WeightsCall

_U16_MAX = 65535
_MAX_LANDING_BLOCKS = 33


def check_weights(model: ReferenceModel, calls: Sequence[WeightsCall], *, rate_limit: int) -> None:
    """Match intents with calls, one to one, and check their weights."""
    _check_order(model)
    accepted_calls = [call for call in calls if call.error is None]
    unmatched = list(accepted_calls)
    accepted: Counter[int] = Counter()
    for row in model.state["weight_intents"]:
        weights = {int(uid): share for uid, share in json.loads(row["weights"]).items()}
        expected = _expected_weights(model, row)
        if not is_close(weights, expected):
            model.report("intent", row["id"], "weighs", weights, "and should weigh", expected)
        outcome = None if row["outcome"] is None else json.loads(row["outcome"])
        if outcome is None:
            model.report("intent", row["id"], "of block", row["block"], "has no outcome")
            continue
        model.counts[f"weights {'accepted' if outcome['is_accepted'] else outcome['error']}"] += 1
        if outcome["is_accepted"]:
            accepted[row["round_id"]] += not row["is_repeat"]
            _match(model, row, outcome["block"], weights, unmatched)
        elif any(row["block"] < call.block <= block_at(row["finished_at"]) for call in unmatched):
            model.report("intent", row["id"], "is refused, and the chain took weights")
    for call in unmatched:
        model.report("the chain took weights at block", call.block, "that no intent was for")
    for number in [number for number, count in accepted.items() if count > 1]:
        model.report("round", number, "set weights more than once")
    for before, after in pairwise(accepted_calls):
        if after.block - before.block < rate_limit:
            model.report("weights at blocks", before.block, "and", after.block, "are too close")
    model.counts["weights on chain"] = len(accepted_calls)
    model.counts["weights failed on chain"] = len(calls) - len(accepted_calls)


def _expected_weights(model: ReferenceModel, row: Row) -> dict[int, float]:
    """Return the intent's shares by the uids of its block."""
    shares, present = json.loads(row["shares"]), model.history.registrations(row["block"])
    earned = _registrations_when_earned(model, row)
    left = {
        hotkey: share
        for hotkey, share in shares.items()
        if hotkey in present and earned.get(hotkey, present[hotkey].block) == present[hotkey].block
    }
    if shares and not left:
        left = {model.history.owner: 1.0}
    return {present[hotkey].uid: share for hotkey, share in shares_of(left).items()}


def _registrations_when_earned(model: ReferenceModel, row: Row) -> dict[str, int]:
    """Return each share's registration block in the round that earned it."""
    shares, last = json.loads(row["shares"]), model.last_accepted(row)
    standings = group_by_round(model.state["standings"])[row["round_id"]]
    has_own = any(line["weight"] > 0 for line in standings)
    if last is not None and (row["is_repeat"] or (not has_own and json.loads(last["shares"]) == shares)):
        return _registrations_when_earned(model, last)
    members = group_by_round(model.state["round_members"])[row["round_id"]]
    return {member["hotkey"]: member["registration_block"] for member in members if member["hotkey"] in shares}


def _check_order(model: ReferenceModel) -> None:
    """Check that no weights were made while the outcome of earlier ones was unknown."""
    for before, after in pairwise(model.state["weight_intents"]):
        if (before["finished_at"] or math.inf) >= after["created_at"]:
            model.report("intent", after["id"], "was made while the outcome of", before["id"], "was unknown")


def _match(
    model: ReferenceModel, row: Row, block: int | None, weights: Mapping[int, float], unmatched: list[WeightsCall]
) -> None:
    """Take the intent's call off the list; without a block it was found later."""
    first, last = (row["block"] + 1, row["block"] + _MAX_LANDING_BLOCKS) if block is None else (block, block)
    call = next((call for call in unmatched if first <= call.block <= last), None)
    if call is None:
        model.report("intent", row["id"], "is accepted, and the chain took nothing")
        return
    unmatched.remove(call)
    largest = max(weights.values(), default=math.nan)
    expected = {uid: share / largest * _U16_MAX for uid, share in weights.items()}
    for uid in expected.keys() | call.weights.keys():
        if abs(expected.get(uid, 0.0) - call.weights.get(uid, 0)) > 1.0:
            model.report("intent", row["id"], "gave uid", uid, call.weights.get(uid), "and should", expected.get(uid))
