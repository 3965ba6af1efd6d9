"""Every weight submission of a soak run accounted for: what each intent became, and what the chain took of whom."""

import json
import math
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from template.localnet.chain.scale_codec import decode_call
from tests.campaigns.clock import block_at
from tests.campaigns.soak.curve import is_close, shares_of
from tests.campaigns.soak.reference_model import Books

_U16_MAX = 65535
_LAND_WITHIN_BLOCKS = 33


@dataclass(frozen=True)
class Extrinsic:
    """One setting of weights as the chain included it; `error` is why it failed, None when it did not."""

    block: int
    weights: Mapping[int, int]
    error: str | None


def read_extrinsics(folder: Path) -> dict[str, list[Extrinsic]]:
    """Every setting of weights on chain by its signer, in order."""
    found: dict[str, list[Extrinsic]] = defaultdict(list)
    uri = f"{(folder / 'chain.sqlite3').resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as db:
        for block, data, signer, error in db.execute(
            "SELECT block, data, signer, error FROM extrinsics ORDER BY block, position"
        ):
            call = decode_call(data)
            if call.function == "set_mechanism_weights":
                pairs = zip(call.params["dests"], call.params["weights"], strict=True)
                found[signer].append(Extrinsic(block, {uid: weight for uid, weight in pairs if weight}, error))
    return found


def check_weights(books: Books, extrinsics: Sequence[Extrinsic], *, rate_limit: int) -> None:
    """Matches intents with extrinsics, one to one, and checks what was in them."""
    _check_order(books)
    taken = [one for one in extrinsics if one.error is None]
    left = list(taken)
    accepted: Counter[int] = Counter()
    for row in books.state["weight_intents"]:
        weights = {int(uid): share for uid, share in json.loads(row["weights"]).items()}
        expected = _align(books, row)
        if not is_close(weights, expected):
            books.say("intent", row["id"], "weighs", weights, "and should weigh", expected)
        outcome = None if row["outcome"] is None else json.loads(row["outcome"])
        books.counts[f"weights {_fate(row, outcome)}"] += 1
        if outcome is None:
            books.say("intent", row["id"], "of block", row["block"], "has no outcome")
        elif outcome["is_accepted"]:
            accepted[row["round_id"]] += not row["is_repeat"]
            _match(books, row, outcome, weights, left)
        elif (stray := _window(row, left)) is not None:
            books.say("intent", row["id"], "is refused, and the chain took weights at block", stray.block)
    for one in left:
        books.say("the chain took weights at block", one.block, "that no intent was for")
    for number, count in accepted.items():
        if count > 1:
            books.say("round", number, "set weights", count, "times")
    for before, after in pairwise(taken):
        if after.block - before.block < rate_limit:
            books.say("weights at blocks", before.block, "and", after.block, "are too close")
    books.counts["weights on chain"] = len(taken)
    books.counts["weights failed on chain"] = len(extrinsics) - len(taken)


def _fate(row: Mapping[str, Any], outcome: Mapping[str, Any] | None) -> str:
    what = "repeated: " if row["is_repeat"] else ""
    if outcome is None:
        return f"{what}unknown"
    if not outcome["is_accepted"]:
        return f"{what}{outcome['error']}"
    return f"{what}accepted" if outcome["block"] is not None else f"{what}found accepted later"


def _align(books: Books, row: Mapping[str, Any]) -> dict[int, float]:
    """The intent's shares by the uids of its block; who lost its uid since the snapshot leaves its part to the rest."""
    shares, lives = json.loads(row["shares"]), books.history.lives(row["block"])
    births = _births(books, row)
    present = {
        hotkey: share
        for hotkey, share in shares.items()
        if hotkey in lives and births.get(hotkey, lives[hotkey].block) == lives[hotkey].block
    }
    if shares and not present:
        present = {books.history.owner: 1.0}
    return {lives[hotkey].uid: share for hotkey, share in shares_of(present).items()}


def _births(books: Books, row: Mapping[str, Any]) -> dict[str, int]:
    """Since when each hotkey with a share had its uid when it earned it, which may have been in an earlier round."""
    shares, last = json.loads(row["shares"]), books.last_accepted(row)
    has_own = any(one["weight"] > 0 for one in books.state["standings"] if one["round_id"] == row["round_id"])
    if last is not None and (row["is_repeat"] or (not has_own and json.loads(last["shares"]) == shares)):
        return _births(books, last)
    members = [one for one in books.state["round_members"] if one["round_id"] == row["round_id"]]
    return {one["hotkey"]: one["registration_block"] for one in members if one["hotkey"] in shares}


def _check_order(books: Books) -> None:
    """No weights are made while the fate of earlier ones is not known."""
    for before, after in pairwise(books.state["weight_intents"]):
        if (before["finished_at"] or math.inf) >= after["created_at"]:
            books.say("intent", after["id"], "was made while the fate of", before["id"], "was not known")


def _window(row: Mapping[str, Any], left: Sequence[Extrinsic]) -> Extrinsic | None:
    """What the chain took while a call of this intent could land: until its fate was recorded."""
    finished = block_at(row["finished_at"])
    return next((one for one in left if row["block"] < one.block <= finished), None)


def _match(
    books: Books,
    row: Mapping[str, Any],
    outcome: Mapping[str, Any],
    weights: Mapping[int, float],
    left: list[Extrinsic],
) -> None:
    """Takes the intent's extrinsic off the list. One whose answer was lost is the first after the intent."""
    if outcome["block"] is None:
        found = next((one for one in left if row["block"] < one.block <= row["block"] + _LAND_WITHIN_BLOCKS), None)
    else:
        found = next((one for one in left if one.block == outcome["block"]), None)
    if found is None:
        books.say("intent", row["id"], "is accepted, and the chain took nothing")
        return
    left.remove(found)
    largest = max(weights.values(), default=math.nan)
    expected = {uid: share / largest * _U16_MAX for uid, share in weights.items()}
    for uid in expected.keys() | found.weights.keys():
        if abs(expected.get(uid, 0.0) - found.weights.get(uid, 0)) > 1.0:
            books.say("intent", row["id"], "gave uid", uid, found.weights.get(uid), "and should", expected.get(uid))


def compare(one: Books, other: Books, counts: Counter[str]) -> Iterator[str]:
    """Where two validators differ although, in one snapshot with the same ranks, they had judged the same ones."""
    theirs = _comparable_tables(other)
    for start, (known, shares) in _comparable_tables(one).items():
        if start not in theirs or theirs[start][0] != known:
            counts["not comparable"] += 1
            continue
        counts["alike" if theirs[start][1] == shares else "different"] += 1
        if theirs[start][1] != shares:
            yield f"{one.validator} and {other.validator} differ in the round of block {start}"


def _comparable_tables(books: Books) -> dict[int, tuple[object, dict[str, float]]]:
    """(what the table rests on, shares) by the start of each round whose shares are its own."""
    starts = {row["id"]: row["start_block"] for row in books.state["rounds"]}
    rests: dict[int, dict[str, object]] = defaultdict(dict)
    waiting: dict[int, set[str]] = defaultdict(set)
    for row in books.state["round_members"]:
        rests[row["round_id"]][row["hotkey"]] = (row["entry"], row["rank_block"])
    for row in books.state["standings"]:
        # Whether a file is missing depends on when each of them looked for it.
        if row["loss"] is None and row["reason"] in (None, "missing_file", "missing_repo"):
            waiting[row["round_id"]].add(row["hotkey"])
    own = {row["round_id"] for row in books.state["standings"] if row["weight"] > 0}
    shares = {
        row["round_id"]: json.loads(row["shares"]) for row in books.state["weight_intents"] if not row["is_repeat"]
    }
    return {starts[number]: ((rests[number], waiting[number]), shares[number]) for number in own & shares.keys()}
