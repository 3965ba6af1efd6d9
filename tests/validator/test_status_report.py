"""What follows from what is seen of a validator, and how it is told: what is due, what fails, in lines that fit."""

import dataclasses

import pytest

from template.records import Metrics, RetryState, RunningEvaluation, WeightIntent, WeightOutcome
from template.rules.schedule import MAX_HOST_FAILURES
from template.validator.status import Status, health_problem
from template.validator.status_report import describe
from tests.fixtures.network import ROOT
from tests.fixtures.status import ALICE, BOB, NOW, REFUSED, TAKEN, make_round
from tests.fixtures.views import make_key

SCRIPT = ROOT / "scripts" / "status.py"


def make_gauges(block: int = 200, **changes: object) -> Metrics:
    values: dict[str, object] = {
        "now": NOW - 4.0, "block": block, "block_time": NOW - 16.0, "doing": "2 scores under way", "round_id": 3,
        "queue": 2, "unscored": 5, "weights_block": 410, "tokens_per_s": 12_345.6,
    }  # fmt: skip
    return Metrics(**{**values, **changes})  # type: ignore[arg-type]


def make_intent(number: int, block: int, outcome: WeightOutcome | None, *, is_repeat: bool = False) -> WeightIntent:
    return WeightIntent(
        id=number, block=block, weights={0: 0.5, 7: 0.5}, shares={"a": 0.5, "b": 0.5}, created_at=1.0,
        outcome=outcome, finished_at=2.0, is_repeat=is_repeat,
    )  # fmt: skip


def make_status(**changes: object) -> Status:
    values: dict[str, object] = {
        "now": NOW, "state_dir": "/state", "holder": 4711, "activity": make_gauges(), "model": "org/model@abc cuda",
        "contest_digest": "d" * 64, "newest": make_round(), "newest_intents": [], "current": None, "standings": [],
        "intents": [], "recent": [], "accepted": None, "attempts": {}, "disk": (), "free_bytes": 5_000_000_000,
    }  # fmt: skip
    return Status(**{**values, **changes})  # type: ignore[arg-type]


def told(status: Status, name: str) -> str:
    """What stands beside a name, its lines joined."""
    lines = describe(status).splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith(name.ljust(12)))
    more = [line for line in lines[at + 1 :]]
    until = next((n for n, line in enumerate(more) if not line.startswith(" " * 12)), len(more))
    return " ".join(line[12:].strip() for line in [lines[at], *more[:until]])


def test_the_header_says_what_where_and_for_how_long() -> None:
    running = RunningEvaluation(
        key=ALICE, device="cuda:1", started_at=NOW - 304.0, stage="train", done=45, total=100, memory_bytes=3 << 30
    )
    seen = make_status(activity=make_gauges(running=(running,)))
    assert told(seen, "validator") == "runs, process 4711"
    assert told(seen, "model") == "org/model@abc cuda, contest dddddddddddd"
    assert told(seen, "doing") == "2 scores under way; said 4 s ago"
    assert told(seen, "chain") == "block 200, 12 s old when it was read"
    assert told(seen, "round") == (
        "3, blocks 100 to 460, 260 blocks left (about 52 min); 2 of 2 in the queue without a verdict, 5 in all"
    )
    assert told(seen, "scores") == "alice on cuda:1: train 45% after 5 min, 3.0 GiB of its memory"
    assert told(seen, "speed") == "12,346 tokens/s in training, the last score"
    assert told(make_status(activity=make_gauges(round_id=None)), "round") == "none is open"


def test_every_line_fits_a_terminal() -> None:
    long = f"checking {'o' * 40}/{'n' * 50}:sample:{'0' * 40} of {'5' * 48}"
    attempts = {ALICE: RetryState(1, 0, NOW + 60, "the Hub could not be reached: " + "word " * 100)}
    seen = make_status(activity=make_gauges(doing=long), attempts=attempts)
    assert max(map(len, describe(seen).splitlines())) <= 120


def test_weights_are_told_with_what_is_due_and_what_was_refused() -> None:
    accepted, refused = make_intent(1, 149, TAKEN), make_intent(2, 190, REFUSED)
    seen = make_status(accepted=accepted, recent=[accepted])
    assert told(seen, "weights") == (
        "taken at block 150 (50 blocks ago): to 2 hotkeys"
        " next due at block 410, in 210 blocks (about 42 min), or when the work is done"
    )
    done = make_status(accepted=accepted, recent=[accepted], newest_intents=[accepted])
    assert "set for this round; next due in the next one" in told(done, "weights")
    late = make_status(accepted=accepted, recent=[accepted, refused], newest_intents=[refused])
    assert "due since block 190, 10 blocks ago" in told(late, "weights")
    assert "last refusal at block 190 (10 blocks ago): SettingWeightsTooFast: wait a while" in told(late, "weights")
    unknown = make_status(accepted=accepted, recent=[accepted, make_intent(2, 195, None)])
    assert "submitted at block 195 (5 blocks ago), outcome not known yet" in told(unknown, "weights")
    assert "the chain took none yet" in told(make_status(), "weights")


def test_weights_given_again_and_those_revealed_later_are_named_so() -> None:
    repeat = make_intent(1, 149, TAKEN, is_repeat=True)
    assert "an earlier round's, given again" in told(make_status(accepted=repeat, recent=[repeat]), "weights")
    outcome = dataclasses.replace(TAKEN, is_revealed_later=True, reveal_round=7_654_321)
    hidden = make_intent(1, 149, outcome)
    assert "revealed at drand round 7654321" in told(make_status(accepted=hidden, recent=[hidden]), "weights")
    table = describe(make_status(current=make_round(), intents=[repeat]))
    assert table.splitlines()[-1] == "weights: on chain since block 150 (an earlier round's, given again)"


def test_what_the_chain_refused_is_due_since_the_first_try() -> None:
    taken, again = make_intent(1, 90, TAKEN), make_intent(4, 180, TAKEN, is_repeat=True)
    tries = [make_intent(number, 100 + 10 * number, REFUSED) for number in (2, 3)]
    assert make_status(accepted=again, recent=[taken, *tries, again]).due_block == 120
    assert make_status(accepted=taken, recent=[*tries, taken]).due_block == 410
    assert make_status(accepted=taken, recent=[taken], newest_intents=[taken]).due_block is None
    idle = make_gauges(round_id=None, weights_block=None)
    assert make_status(accepted=taken, recent=[taken], activity=idle).due_block == 460 + 360
    between = make_status(accepted=taken, recent=[taken], newest=make_round(4, start=460, end=820))
    assert between.due_block is None, "what was said of the round before says nothing of this one"
    assert make_status().due_block is None, "one that never set any may not be meant to"


@pytest.mark.parametrize(
    ("changes", "trouble"),
    [
        ({}, None),
        ({"activity": None}, "the validator has not said what it is doing"),
        ({"activity": make_gauges(now=NOW - 1801)}, "no word from the validator for 30 min; process 4711 holds"),
        ({"activity": make_gauges(now=NOW - 7300), "holder": None}, "for 2.0 h; no process holds the state"),
        ({"activity": make_gauges(block=510)}, None),
        ({"activity": make_gauges(block=511)}, "weights are overdue by 101 blocks; the last were refused at block 90"),
    ],
)
def test_silence_and_late_weights_are_trouble(changes: dict[str, object], trouble: str | None) -> None:
    recent = [make_intent(1, 90, REFUSED), make_intent(2, 95, TAKEN)]
    seen = make_status(**{"accepted": recent[1], "recent": recent, **changes})
    found = health_problem(seen, max_age_s=1800, max_overdue_blocks=100)
    assert (found is None) if trouble is None else (trouble in (found or ""))


def test_pending_causes_are_counted_and_parked_submissions_named() -> None:
    hub = "the Hub answered HTTP 503 about {}/data"
    carol, dave = make_key("carol"), make_key("dave")
    attempts = {
        ALICE: RetryState(3, 0, NOW + 300, hub.format("alice")),
        BOB: RetryState(1, 0, NOW - 1, hub.format("bob")),
        carol: RetryState(0, MAX_HOST_FAILURES, NOW + 18_000, "cuda:1: out of memory"),
        dave: RetryState(0, MAX_HOST_FAILURES, NOW - 5, "its time has passed"),
    }
    seen = make_status(attempts=attempts)
    pending = told(seen, "pending")
    assert "2 the Hub answered HTTP 503 about REPO; to be tried again now" in pending
    assert "1 its time has passed" in pending and "memory" not in pending
    assert told(seen, "parked") == "carol carol/data, for 5.0 h more: cuda:1: out of memory"
