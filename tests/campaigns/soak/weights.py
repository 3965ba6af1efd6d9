"""Accounts for every weight submission of a soak run."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

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
        model.counts[f"weights {_describe(row, outcome)}"] += 1
        if outcome is None:
            model.report("intent", row["id"], "of block", row["block"], "has no outcome")
        elif outcome["is_accepted"]:
            accepted[row["round_id"]] += not row["is_repeat"]
            _match(model, row, outcome, weights, unmatched)
        elif (call := _call_in_time(row, unmatched)) is not None:
            model.report("intent", row["id"], "is refused, and the chain took weights at block", call.block)
    for call in unmatched:
        model.report("the chain took weights at block", call.block, "that no intent was for")
    for number, count in accepted.items():
        if count > 1:
            model.report("round", number, "set weights", count, "times")
    for before, after in pairwise(accepted_calls):
        if after.block - before.block < rate_limit:
            model.report("weights at blocks", before.block, "and", after.block, "are too close")
    model.counts["weights on chain"] = len(accepted_calls)
    model.counts["weights failed on chain"] = len(calls) - len(accepted_calls)


def _describe(row: Row, outcome: Mapping[str, Any] | None) -> str:
    prefix = "repeated: " if row["is_repeat"] else ""
    if outcome is None:
        return f"{prefix}unknown"
    if not outcome["is_accepted"]:
        return f"{prefix}{outcome['error']}"
    return f"{prefix}accepted" if outcome["block"] is not None else f"{prefix}found accepted later"


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


def _call_in_time(row: Row, unmatched: Sequence[WeightsCall]) -> WeightsCall | None:
    """Return a call that the chain took before the intent's outcome was recorded."""
    finished = block_at(row["finished_at"])
    return next((call for call in unmatched if row["block"] < call.block <= finished), None)


def _match(
    model: ReferenceModel,
    row: Row,
    outcome: Mapping[str, Any],
    weights: Mapping[int, float],
    unmatched: list[WeightsCall],
) -> None:
    """Take the intent's call off the list."""
    first, last = outcome["block"], outcome["block"]
    if first is None:
        first, last = row["block"] + 1, row["block"] + _MAX_LANDING_BLOCKS
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


def compare(model: ReferenceModel, other: ReferenceModel, counts: Counter[str]) -> Iterator[str]:
    """Yield the rounds in which two validators differ on the same basis."""
    theirs = _comparable_rounds(other)
    for start, (basis, shares) in _comparable_rounds(model).items():
        if start not in theirs or theirs[start][0] != basis:
            counts["not comparable"] += 1
        elif theirs[start][1] == shares:
            counts["alike"] += 1
        else:
            counts["different"] += 1
            yield f"{model.validator} and {other.validator} differ in the round of block {start}"


def _comparable_rounds(model: ReferenceModel) -> dict[int, tuple[object, dict[str, float]]]:
    """Return (basis, shares) by the start of each round whose shares are its own."""
    entries: dict[int, dict[str, object]] = defaultdict(dict)
    pending: dict[int, set[str]] = defaultdict(set)
    for row in model.state["round_members"]:
        entries[row["round_id"]][row["hotkey"]] = (row["entry"], row["rank_block"])
    for row in model.state["standings"]:
        # Whether a file is missing depends on the time of each validator's download.
        if row["loss"] is None and row["reason"] in (None, "missing_file", "missing_repo"):
            pending[row["round_id"]].add(row["hotkey"])
    own = {row["round_id"] for row in model.state["standings"] if row["weight"] > 0}
    intents = [row for row in model.state["weight_intents"] if not row["is_repeat"]]
    shares = {row["round_id"]: json.loads(row["shares"]) for row in intents}
    starts = {row["id"]: row["start_block"] for row in model.state["rounds"]}
    return {starts[number]: ((entries[number], pending[number]), shares[number]) for number in own & shares.keys()}
