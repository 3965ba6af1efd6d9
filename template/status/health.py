"""Find what keeps a validator from serving, with what the operator has to do."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from template.constants import MAX_HEAD_AGE_S
from template.errors import SubnetGoneError
from template.files import pid_namespace
from template.records import Metrics
from template.status.status import Status
from template.store.runs import Run
from template.terminal import escape, format_duration

# Failed starts in a row that are a crash loop.
_MAX_RESTARTS = 3
# A run that fails later than this after its start is no part of a crash loop.
_STABLE_S = 1800.0
# Longest time without a report of a validator in another container, whose process is not visible from here.
_UNSEEN_S = 300.0
# Part of the chain's activity cutoff after which new weights are late. The validator sends old ones again at 75%.
_CUTOFF_PART = 0.9
# Outcomes of a validator that cannot have weights yet.
_HARMLESS = ("NothingScored", "SettingWeightsTooFast", "Lost")

# What to type, by the chain's error names.
REMEDIES = {
    "NotEnoughStakeToSetWeights": "btcli stake add --netuid {netuid} --hotkey {hotkey} --amount-tao AMOUNT",
    "NeuronNoValidatorPermit": "btcli stake add --netuid {netuid} --hotkey {hotkey} --amount-tao AMOUNT",
    "IncorrectWeightVersionKey": "install the newest release (docs/operator.md, Update)",
    "HotKeyNotRegisteredInSubNet": "btcli subnets register --netuid {netuid}",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A cause in one line. code: stable name of its kind. remedy: what to type or do."""

    code: str
    text: str
    remedy: str

    def __str__(self) -> str:
        return escape(f"{self.code}: {self.text}. What to do: {self.remedy}")


@dataclass(frozen=True, kw_only=True)
class HealthLimits:
    """How late a healthy validator may be, and how full its disk."""

    max_silence_s: float = 1800.0
    max_overdue_blocks: int = 360
    max_block_age_s: float = MAX_HEAD_AGE_S
    min_free_bytes: int = 2 * 10**9


def find_problems(status: Status, limits: HealthLimits) -> list[Problem]:
    """Return everything that needs the operator, the most urgent first."""
    process = [*_process_problems(status, limits)]
    return [
        *process,
        *_chain_problems(status, limits),
        *_weights_problems(status, limits),
        *_host_problems(status, limits),
    ]


def failed_starts(status: Status) -> Sequence[Run]:
    """Return the starts in a row that failed soon, newest first; none once one has worked."""
    runs = status.runs
    if status.holder is not None and runs:
        if status.now - runs[0].started_at >= _STABLE_S:
            return []
        runs = runs[1:]
    ends = [run.ended_at for run in runs]
    newer = [status.now, *(run.started_at for run in runs)]
    pairs = zip(runs, (end or start for end, start in zip(ends, newer, strict=False)), strict=True)
    return [
        run
        for run, _ in takewhile(lambda pair: pair[0].status != 0 and pair[1] - pair[0].started_at < _STABLE_S, pairs)
    ]


def _process_problems(status: Status, limits: HealthLimits) -> Iterator[Problem]:
    activity, last = status.activity, status.runs[0] if status.runs else None
    failed = failed_starts(status)
    if len(failed) >= _MAX_RESTARTS:
        cause = next((run.error for run in failed if run.error), "killed")
        yield Problem(
            code="restarts",
            text=f"{len(failed)} starts in a row failed, the last with: {cause}",
            remedy="correct the cause, then start the validator",
        )
    age_s = None if activity is None else status.now - activity.now
    is_visible = last is not None and last.namespace == pid_namespace()
    if last is not None and last.status == SubnetGoneError.exit_code:
        yield Problem(
            code="subnet_gone",
            text=f"the validator has stopped for good: {last.error}",
            remedy="turn off its supervisor; for another subnet start a validator with another --state_dir",
        )
        return
    if status.holder is None and (is_visible or age_s is None or age_s > _UNSEEN_S):
        yield Problem(code="no_process", text=f"the validator is not running{_how_it_ended(status)}", remedy="start it")
        return
    if age_s is None:
        error = f"; its last error: {last.error}" if last is not None and last.error else ""
        yield Problem(
            code="no_report", text=f"no report from the validator yet{error}", remedy="wait, then read its log"
        )
        return
    # What the process of before reported does not count.
    age_s = min(age_s, status.now - last.started_at) if last is not None and last.ended_at is None else age_s
    if age_s > limits.max_silence_s:
        error = f"; its last error: {last.error}" if last is not None and last.error else ""
        yield Problem(
            code="silent",
            text=f"no report from the validator for {format_duration(age_s)}, though it is running{error}",
            remedy="read its log, then restart it",
        )


def _how_it_ended(status: Status) -> str:
    last = status.runs[0] if status.runs else None
    if last is None:
        return ""
    if last.ended_at is None:
        return ", and was killed"
    age = format_duration(status.now - last.ended_at)
    return f": stopped {age} ago" if last.status == 0 else f": ended {age} ago with status {last.status}, {last.error}"


def _chain_problems(status: Status, limits: HealthLimits) -> Iterator[Problem]:
    activity = status.activity
    if activity is None:
        return
    behind_s = activity.now - activity.block_time
    if behind_s > limits.max_block_age_s:
        yield Problem(
            code="node_behind",
            text=f"the node is {format_duration(behind_s)} behind: its newest block is {activity.block}",
            remedy="use another --subtensor.network, or check this machine's clock",
        )
    neuron = activity.neuron
    if neuron is None:
        return
    if neuron.uid is None:
        error, message = (
            "HotKeyNotRegisteredInSubNet",
            f"the hotkey {neuron.hotkey} has no uid on netuid {neuron.netuid}",
        )
    elif neuron.error is not None:
        error, message = neuron.error, f"weights do not count, {neuron.error}: {neuron.message}"
    else:
        return
    remedy = REMEDIES.get(error, "see docs/operator.md").format(netuid=neuron.netuid, hotkey=neuron.hotkey)
    if remedy.startswith("btcli"):
        # Not recorded here, and btcli's default is the main network.
        remedy += " --network NETWORK"
    yield Problem(code=_CODES.get(error, "rejected"), text=message, remedy=remedy)


_CODES = {
    "HotKeyNotRegisteredInSubNet": "hotkey_gone",
    "NeuronNoValidatorPermit": "no_permit",
    "NotEnoughStakeToSetWeights": "no_stake",
    "IncorrectWeightVersionKey": "old_version",
}


def _weights_problems(status: Status, limits: HealthLimits) -> Iterator[Problem]:
    activity = status.activity
    if activity is None or activity.neuron is None:
        return
    refused = _refused_rounds(status)
    if len(refused) >= 2:
        yield Problem(
            code="weights_refused",
            text=f"the chain refused the weights of {len(refused)} rounds in a row, the last with {refused[-1]}",
            remedy="read the log for each refusal",
        )
    overdue = _overdue_blocks(status, activity)
    if overdue > limits.max_overdue_blocks:
        last = f", the last with {refused[-1]}" if refused else ""
        yield Problem(
            code="weights_overdue", text=f"weights are overdue by {overdue} blocks{last}", remedy="read the log"
        )
    neuron = activity.neuron
    silent_blocks = activity.block - neuron.last_update_block
    if neuron.uid is not None and neuron.activity_cutoff and silent_blocks > _CUTOFF_PART * neuron.activity_cutoff:
        yield Problem(
            code="near_cutoff",
            text=f"the chain has had no weights for {silent_blocks} blocks, and counts the validator as inactive after"
            f" {neuron.activity_cutoff}",
            remedy="read the log for what keeps weights back",
        )


def _overdue_blocks(status: Status, activity: Metrics) -> int:
    return 0 if status.due_block is None else activity.block - status.due_block


def _refused_rounds(status: Status) -> list[str]:
    """Return the refusals since the last accepted weights, the last of each round."""
    refusals: dict[int, str] = {}
    for intent in status.recent:
        if intent.outcome is None or intent.outcome.error in _HARMLESS:
            continue
        if intent.outcome.is_accepted:
            refusals = {}
        else:
            refusals[intent.start_block] = f"{intent.outcome.error}: {intent.outcome.message}"
    return list(refusals.values())


def _host_problems(status: Status, limits: HealthLimits) -> Iterator[Problem]:
    suspended = status.suspended
    if suspended:
        error = next(iter(suspended.values())).last_error
        count = "1 dataset is" if len(suspended) == 1 else f"{len(suspended)} datasets are"
        wait_s = min(attempt.next_at for attempt in suspended.values()) - status.now
        yield Problem(
            code="suspended",
            text=f"{count} suspended after repeated failures of this machine: {error}",
            remedy=f"correct the cause; they are tried again in {format_duration(wait_s)}",
        )
    if status.free_bytes < limits.min_free_bytes:
        yield Problem(
            code="disk",
            text=f"{status.free_bytes / 1e9:.1f} GB free at {status.state_dir}",
            remedy="free space, for example old revisions in cache/ (docs/operator.md, STATE_DIR)",
        )
