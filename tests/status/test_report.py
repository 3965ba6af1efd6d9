"""The status report: due actions and failures, in lines that fit."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from template.records import RetryState, RunningEvaluation, WeightIntent
from template.rules.schedule import MAX_HOST_FAILURES
from template.status.report import print_status
from template.status.status import Status
from tests.fixtures.status import ALICE, BOB, METRICS, NOW, REFUSED, STATUS, TAKEN, make_intent, make_round
from tests.fixtures.views import make_key


def report(status: Status) -> list[str]:
    console = Console(file=io.StringIO(), width=120, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        print_status(status, console)
    return [line.rstrip() for line in capture.get().splitlines()]


def section(label: str, **changes: Any) -> str:
    """Return the text beside a label, with its lines joined."""
    lines = report(replace(STATUS, **changes))
    first = next(index for index, line in enumerate(lines) if line.startswith(label.ljust(12)))
    last = next(index for index in range(first + 1, len(lines)) if not lines[index].startswith(" " * 12))
    return " ".join(line[12:].strip() for line in lines[first:last])


def test_report_of_a_running_evaluation() -> None:
    running = RunningEvaluation(
        key=ALICE, device="cuda:1", started_at=NOW - 304.0, stage="train", done=45, total=100, memory_bytes=3 << 30
    )
    activity = replace(METRICS, running=(running,))
    expected = {
        "validator": "running, process 4711",
        "model": "org/model@abc cuda, eval config dddddddddddd",
        "activity": "2 evaluations running, 4 s ago",
        "chain": "block 200, read 12 s after it was made",
        "round": "3, blocks 100 to 460, 260 blocks left (about 52 min); "
        "evaluations: 2 of 3 left; datasets to download: 5",
        "evaluating": "alice on cuda:1: train 45% after 5 min, 3.0 GiB of memory",
        "speed": "12,346 tokens/s in the last training",
    }
    assert {label: section(label, activity=activity) for label in expected} == expected


def test_report_without_an_open_round() -> None:
    assert section("round", activity=replace(METRICS, round_id=None)) == "none open"


def test_report_lines_fit_a_terminal() -> None:
    long = f"checking {'o' * 40}/{'n' * 50}:sample:{'0' * 40} of {'5' * 48}"
    attempts = {ALICE: RetryState(1, 0, NOW + 60, "the Hub could not be reached: " + "word " * 100)}
    status = replace(STATUS, activity=replace(METRICS, doing=long), attempts=attempts)
    assert max(map(len, report(status))) <= 120


ACCEPTED, REPEATED = make_intent(1, 149, TAKEN), make_intent(1, 149, TAKEN, is_repeat=True)
REJECTED, UNKNOWN = make_intent(2, 190, REFUSED), make_intent(2, 195, None)
SEALED = make_intent(1, 149, replace(TAKEN, is_revealed_later=True, reveal_round=7_654_321))


@pytest.mark.parametrize(
    ("recent", "is_in_round", "text"),
    [
        ([], False, "none accepted yet"),
        ([ACCEPTED], False, "accepted at block 150 (50 blocks ago): 2 hotkeys due at block 410, in 210 blocks (about"),
        ([ACCEPTED], True, "set for this round, due in the next one"),
        ([ACCEPTED, REJECTED], True, "due since block 190, 10 blocks ago"),
        ([ACCEPTED, REJECTED], True, "last rejected at block 190 (10 blocks ago): SettingWeightsTooFast: wait a while"),
        ([ACCEPTED, UNKNOWN], False, "submitted at block 195 (5 blocks ago), outcome unknown"),
        ([REPEATED], False, "last weights resubmitted"),
        ([SEALED], False, "revealed at drand round 7654321"),
    ],
)
def test_report_of_weights(recent: list[WeightIntent], is_in_round: bool, text: str) -> None:
    accepted = recent[0] if recent else None
    assert text in section("weights", accepted=accepted, recent=recent, newest_intents=recent * is_in_round)


def test_report_of_a_round_with_resubmitted_weights() -> None:
    status = replace(STATUS, current=make_round(), intents=[REPEATED])
    assert report(status)[-1] == "weights: on chain since block 150 (resubmission)"


EARLIER, LATER_REPEAT = make_intent(1, 90, TAKEN), make_intent(4, 180, TAKEN, is_repeat=True)
TRIES = [make_intent(number, 100 + 10 * number, REFUSED) for number in (2, 3)]


@pytest.mark.parametrize(
    ("changes", "block"),
    [
        ({}, None),
        ({"accepted": LATER_REPEAT, "recent": [EARLIER, *TRIES, LATER_REPEAT]}, 120),
        ({"accepted": EARLIER, "recent": [*TRIES, EARLIER]}, 410),
        ({"accepted": EARLIER, "recent": [EARLIER], "newest_intents": [EARLIER]}, None),
        ({"accepted": EARLIER, "recent": [EARLIER], "activity": replace(METRICS, round_id=None)}, 460 + 360),
        # The report is of the round before.
        ({"accepted": EARLIER, "recent": [EARLIER], "newest": make_round(4, start=460, end=820)}, None),
    ],
)
def test_weights_are_due_since_the_first_rejection(changes: dict[str, Any], block: int | None) -> None:
    assert replace(STATUS, **changes).due_block == block


@pytest.mark.parametrize(
    ("burned", "text"),
    [
        (0.0, "accepted at block 150 (50 blocks ago): 2 hotkeys due"),
        (0.25, "2 hotkeys, 25% burned due"),
        (1.0, "all burned, to the subnet owner's uid, because no dataset has a live credit due"),
    ],
)
def test_burned_weights_are_named(burned: float, text: str) -> None:
    changes = {"accepted": ACCEPTED, "activity": replace(METRICS, burned=burned)}
    assert text in section("weights", **changes)
    last = report(replace(STATUS, current=make_round(), intents=[ACCEPTED], **changes))[-1]
    assert last == "weights: on chain since block 150" + (", all burned" if burned == 1.0 else "")


def test_report_begins_with_the_problems() -> None:
    first = report(replace(STATUS, holder=None, activity=replace(METRICS, now=NOW - 4000)))[0]
    assert first.startswith("PROBLEM     no_process: the validator is not running")


def test_folder_that_takes_no_files_is_shown() -> None:
    text = "--receipt_dir /r takes no files: Read-only file system; 3 wait in the state"
    assert section("warning", activity=replace(METRICS, warnings=(text,))) == text


def test_pending_causes_are_counted_and_suspended_entries_named() -> None:
    hub = "the Hub answered HTTP 503 about {}/data"
    carol, dave = make_key("carol"), make_key("dave")
    attempts = {
        ALICE: RetryState(3, 0, NOW + 300, hub.format("alice")),
        BOB: RetryState(1, 0, NOW - 1, hub.format("bob")),
        carol: RetryState(0, MAX_HOST_FAILURES, NOW + 18_000, "cuda:1: out of memory"),
        dave: RetryState(0, MAX_HOST_FAILURES, NOW - 5, "suspended until a moment ago"),
    }
    pending = section("pending", attempts=attempts)
    assert "2 the Hub answered HTTP 503 about REPO; retry in 0 s" in pending
    assert "1 suspended until a moment ago" in pending and "memory" not in pending
    assert section("suspended", attempts=attempts) == "carol carol/data, for 5.0 h: cuda:1: out of memory"
