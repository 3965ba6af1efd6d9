"""Health: every kind of fault is found, with its cause and remedy in one line."""

from dataclasses import replace
from typing import Any

import pytest

from template.chain_records import WeightOutcome
from template.files import pid_namespace
from template.records import Metrics, RetryState
from template.rules.schedule import MAX_HOST_FAILURES
from template.status.health import HealthLimits, failed_starts, find_problems
from template.store.runs import Run
from tests.fixtures.status import ALICE, METRICS, NOW, REFUSED, STATUS, TAKEN, make_intent

NEURON = METRICS.neuron
assert NEURON is not None
SILENT = replace(METRICS, now=NOW - 1801)


def make_run(number: int, start: float, end: float | None = None, status: int | None = None, error: str = "") -> Run:
    return Run(
        id=number, started_at=NOW + start, namespace=pid_namespace(), version="0.4.0", error=error, error_at=None,
        ended_at=None if end is None else NOW + end, status=status,
    )  # fmt: skip


def neuron(**changes: Any) -> Metrics:
    """Change what the chain knows of this validator."""
    assert NEURON is not None
    return replace(METRICS, neuron=replace(NEURON, **changes))


UP = make_run(9, -9000)
FAILED = [make_run(number, -100.0 * number, -100.0 * number + 5, 4, "no disk") for number in (3, 4, 5)]
KILLED = [make_run(number, -100.0 * number) for number in (3, 4, 5)]
REFUSALS = [replace(make_intent(number, 90 + number, REFUSED), start_block=number) for number in (1, 2)]
POOR = WeightOutcome(
    is_accepted=False, error="NotEnoughStakeToSetWeights", message="weights need 1000: add stake to it"
)
POOR_ROUNDS = [replace(intent, outcome=POOR) for intent in REFUSALS]
PARKED = {ALICE: RetryState(0, MAX_HOST_FAILURES, NOW + 7200, "cuda:1: out of memory")}

CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "no process": (
        {"holder": None, "runs": [make_run(1, -9000, -60, 4, "no disk")]},
        "no_process", "the validator is not running: ended 60 s ago with status 4, no disk | start it",
    ),
    "stopped": (
        {"holder": None, "runs": [make_run(1, -9000, -300, 0)]},
        "no_process", "the validator is not running: stopped 5 min ago | start it",
    ),
    "killed": ({"holder": None, "runs": [UP]}, "no_process", "the validator is not running, and was killed | start it"),
    "another container, gone": (
        {"holder": None, "runs": [replace(UP, namespace="pid:[1]")], "activity": replace(METRICS, now=NOW - 301)},
        "no_process", "the validator is not running, and was killed | start it",
    ),
    "crash loop": (
        {"runs": [make_run(9, -20), *FAILED]}, "restarts",
        "3 starts in a row failed, the last with: no disk | correct the cause, then start the validator",
    ),
    "killed again and again": (
        {"runs": [make_run(9, -20), *KILLED]}, "restarts",
        "3 starts in a row failed, the last with: killed | correct the cause, then start the validator",
    ),
    "no report": (
        {"activity": None}, "no_report", "no report from the validator yet | wait, then read its log"
    ),
    "silent": (
        {"activity": SILENT, "runs": [replace(UP, error="could not read the subnet")]}, "silent",
        "no report from the validator for 30 min, though it is running; its last error: could not read"
        " the subnet | read its log, then restart it",
    ),
    "node behind": (
        {"activity": replace(METRICS, block_time=METRICS.now - 90 * 86400)}, "node_behind",
        "the node is 90.0 days behind: its newest block is 200 | use another --subtensor.network, or check this"
        " machine's clock",
    ),
    "hotkey gone": (
        {"activity": neuron(uid=None)}, "hotkey_gone",
        "the hotkey 5Own has no uid on netuid 96 | btcli subnets register --netuid 96 --network NETWORK",
    ),
    "no permit": (
        {"activity": neuron(error="NeuronNoValidatorPermit", message="this hotkey has no permit")}, "no_permit",
        "weights do not count, NeuronNoValidatorPermit: this hotkey has no permit | btcli stake add --netuid"
        " 96 --hotkey 5Own --amount-tao AMOUNT --network NETWORK",
    ),
    "no stake": (
        {"activity": neuron(error="NotEnoughStakeToSetWeights", message="a stake weight of 0.000")}, "no_stake",
        "weights do not count, NotEnoughStakeToSetWeights: a stake weight of 0.000 | btcli stake add --netuid 96"
        " --hotkey 5Own --amount-tao AMOUNT --network NETWORK",
    ),
    "old version": (
        {"activity": neuron(error="IncorrectWeightVersionKey", message="requires 9")}, "old_version",
        "weights do not count, IncorrectWeightVersionKey: requires 9 | install the newest release (docs/operator.md,"
        " Update)",
    ),
    "refused in each round": (
        {"recent": POOR_ROUNDS, "max_overdue_blocks": 10_000}, "weights_refused",
        "the chain refused the weights of 2 rounds in a row, the last with NotEnoughStakeToSetWeights: weights need"
        " 1000: add stake to it | read the log for each refusal",
    ),
    "overdue": (
        {"accepted": REFUSALS[0], "recent": REFUSALS[:1], "activity": replace(METRICS, block=452)}, "weights_overdue",
        "weights are overdue by 361 blocks | read the log",
    ),
    "near the cutoff": (
        {"activity": replace(neuron(last_update_block=100), block=4601)}, "near_cutoff",
        "the chain has had no weights for 4501 blocks, and counts the validator as inactive after 5000 | read the log"
        " for what keeps weights back",
    ),
    "parked": (
        {"attempts": PARKED}, "suspended",
        "1 dataset is suspended after repeated failures of this machine: cuda:1: out of memory | correct the cause;"
        " they are tried again in 2.0 h",
    ),
    "disk": (
        {"free_bytes": 1_900_000_000}, "disk",
        "1.9 GB free at /state | free space, for example old revisions in cache/ (docs/operator.md, STATE_DIR)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_fault_is_found_with_its_remedy(case: str) -> None:
    changes, code, line = CASES[case]
    limits = HealthLimits(max_overdue_blocks=changes.pop("max_overdue_blocks", 360))
    (problem,) = find_problems(replace(STATUS, **{"runs": [UP], **changes}), limits)
    assert (problem.code, str(problem)) == (code, f"{code}: {line.replace(' | ', '. What to do: ')}")


HEALTHY: dict[str, dict[str, Any]] = {
    "running": {},
    "in another container": {"holder": None, "runs": [replace(UP, namespace="pid:[1]")]},
    "restarted a moment ago": {"activity": SILENT, "runs": [make_run(9, -20), make_run(8, -9000, -30, 0)]},
    "one failed start": {"runs": [make_run(9, -20), *FAILED[:2]]},
    "failures before it worked": {"runs": [make_run(9, -1801), *FAILED]},
    "a late failure": {"runs": [make_run(9, -20), *FAILED[:2], make_run(2, -90_000, -80_000, 4)]},
    "refused once": {"recent": [*REFUSALS[:1], make_intent(3, 95, TAKEN)]},
    "refused, then accepted": {"recent": [*POOR_ROUNDS, make_intent(3, 95, TAKEN)]},
    "new": {"recent": [replace(intent, outcome=replace(POOR, error="NothingScored")) for intent in POOR_ROUNDS]},
    "sets no weights": {"activity": replace(METRICS, neuron=None, block=9000), "recent": POOR_ROUNDS},
    "registered on a subnet without a cutoff": {"activity": replace(neuron(activity_cutoff=0), block=9000)},
}


@pytest.mark.parametrize("case", HEALTHY)
def test_healthy_validator_has_no_problem(case: str) -> None:
    assert find_problems(replace(STATUS, **{"runs": [UP], **HEALTHY[case]}), HealthLimits()) == []


def test_all_problems_are_found_at_once() -> None:
    activity = replace(neuron(uid=None), block_time=NOW - 90_000)
    status = replace(STATUS, holder=None, runs=FAILED, activity=activity, attempts=PARKED, free_bytes=0)
    codes = [problem.code for problem in find_problems(status, HealthLimits())]
    assert codes == ["restarts", "no_process", "node_behind", "hotkey_gone", "suspended", "disk"]
    assert failed_starts(status) == FAILED


def test_strangers_text_in_a_problem_is_escaped() -> None:
    parked = {ALICE: replace(PARKED[ALICE], last_error="\x1b[2Jall is well\n")}
    (problem,) = find_problems(replace(STATUS, runs=[UP], attempts=parked), HealthLimits())
    assert "\\x1b[2Jall is well\\n" in str(problem) and str(problem).isprintable()
