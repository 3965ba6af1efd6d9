"""A round of two and what became of its weights, for the tests of what is shown of a validator."""

from validator_fixtures import SEED
from view_fixtures import make_key

from template.records import WeightOutcome
from template.state import Round, RoundEntry, SubmissionKey

NOW = 1_000_000.0
ALICE, BOB = make_key("alice"), make_key("bob")
TAKEN = WeightOutcome(is_accepted=True, block=150)
REFUSED = WeightOutcome(is_accepted=False, error="SettingWeightsTooFast", message="wait a while")


def entry(key: SubmissionKey, uid: int = 0) -> RoundEntry:
    return RoundEntry(key=key, uid=uid, block=7, rank_block=6, registration_block=5)


def make_round(number: int = 3, *, start: int = 100, end: int = 460) -> Round:
    return Round(
        start_block=start, start_block_hash="0xab", opened_block=start, end_block=end, lucky_num=SEED,
        entries=(entry(ALICE, 1), entry(BOB, 2)), queue=(ALICE, BOB), id=number,
    )  # fmt: skip
