"""Weights while a new season evaluates everyone again."""

import dataclasses
from collections.abc import Mapping

import pytest

from template.receipts.findings import Kind
from template.receipts.round_file import RoundHeader, make_round_lines
from tests.fixtures.rounds import ACCOUNT, PERIOD, SIGNER, find_lies, hash_of, sign

LINES = make_round_lines(ACCOUNT, signer=SIGNER, sign=sign)
FIRST = RoundHeader.from_json(LINES[0], "the first season")
RECEIPTS = {receipt.digest: receipt for receipt in ACCOUNT.receipts.values()}
LAST_SHARES = dict(FIRST.weights[0].shares)
PAID = FIRST.table[0].hotkey


def next_season(shares: Mapping[str, float], *, paid: Mapping[str, float] | None = None) -> RoundHeader:
    """Make the next round under another model, before any evaluation."""
    start = FIRST.start_block + PERIOD
    blank = {"runs": 0, "mean": None, "spread": None, "loss": None, "score": 0.0, "credit": 0.0}
    return dataclasses.replace(
        FIRST,
        model="another/model@1",
        start_block=start,
        start_block_hash=hash_of(start),
        opened_block=start + 1,
        end_block=start + PERIOD,
        evaluations=(),
        ledger=(),
        table=tuple(
            dataclasses.replace(line, **blank, weight=(paid or {}).get(line.hotkey, 0.0))  # type: ignore[arg-type]
            for line in FIRST.table
        ),
        weights=(dataclasses.replace(FIRST.weights[0], block=start + 2, shares=dict(shares)),),
    )


def kinds(second: RoundHeader) -> set[Kind]:
    """Return the kinds of findings that the second season adds."""
    alone = find_lies(FIRST, receipts=RECEIPTS)
    return {finding.kind for finding in find_lies(FIRST, second, receipts=RECEIPTS)[len(alone) :]}


def test_last_shares_in_a_new_season_are_no_fault() -> None:
    assert kinds(next_season(LAST_SHARES)) == set()


def test_last_shares_in_place_of_a_new_seasons_are_no_fault() -> None:
    assert kinds(next_season(LAST_SHARES, paid={PAID: 1.0})) == set()


@pytest.mark.parametrize("shares", [{PAID: 0.5, SIGNER: 0.5}, dict.fromkeys(LAST_SHARES, 1 / len(LAST_SHARES))])
def test_other_shares_in_a_new_season_are_found(shares: Mapping[str, float]) -> None:
    assert kinds(next_season(shares)) == {Kind.REPEAT}


def test_shares_that_are_not_the_tables_are_found() -> None:
    """The shares of the table count, as no dataset waits for an evaluation."""
    line = dataclasses.replace(FIRST.weights[0], shares={PAID: 1.0})
    findings = find_lies(dataclasses.replace(FIRST, weights=(line,)), receipts=RECEIPTS)
    assert (Kind.INCONSISTENT, "weights of block 38: the shares are not those of the table") in findings
