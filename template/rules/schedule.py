"""Decide what a validator does next, from the state, one view and the time.

A round opens for every aligned block in order, on the subnet's state at that block. Its datasets are downloaded and
checked; then its evaluations are planned and run in other processes. Weights are set once, when the work is done or
when the last `block_threshold` blocks begin. The round closes when its evaluations are done, at its end block or later.
A validator that is new or was away works through the rounds that it missed, and sets no weights in them.
"""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from template.chain_records import ChainView
from template.constants import ERA_BLOCKS
from template.records import ContentKey, Entry, RetryState, Round, RoundEvaluation, SubmissionKey, Verdict, WeightIntent
from template.rules.entries import order_entries
from template.rules.stands import align

# Failures of this machine after which a submission is suspended until its `next_at`.
MAX_HOST_FAILURES = 3

# Failed tries of a download after which a missed round is planned without it.
_AWAITED_FAILURES = 2

# Longest pause between two attempts to set weights, in blocks.
MAX_WEIGHTS_PAUSE_BLOCKS = 16

# Blocks after which an intent that the chain does not show has failed: one more than a signed call stays valid for.
UNKNOWN_OUTCOME_BLOCKS = ERA_BLOCKS + 1

# Part of the subnet's activity cutoff after which the last weights are submitted again. The rest is for retries.
REPEAT_AT = 0.75


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Sizes of rounds in blocks, and the operator's choices.

    start_block: the first round is the first one from here on; 0 for the newest at the first start. season_block:
    evaluations begin here; 0 for the first round.
    """

    blocks_per_epoch: int = 360
    start_block: int = 0
    season_block: int = 0
    block_threshold: int = 50
    miner_duplicate_sample_size: int = 256
    sets_weights: bool = True
    max_rounds: int | None = None


@dataclass(frozen=True, kw_only=True)
class State:
    """Input of `decide`: stored state and this process's running work.

    intents, repeats: the newest round's own weights, and earlier shares submitted again in it. pending_intents: of any
    round, without an outcome. losses: of each dataset, by number of the evaluation. missing_files: checked datasets
    whose file is gone from the disk. last_start_block: of the newest round of this season. older_start_block: of the
    newest round of any other, while this one has none. weights_block: before it no weights are sent, because the chain
    takes a limited number of them.
    """

    hotkey: str
    round: Round | None
    rounds_done: int
    intents: Sequence[WeightIntent] = ()
    repeats: Sequence[WeightIntent] = ()
    pending_intents: Sequence[WeightIntent] = ()
    has_leaderboard: bool = False
    has_last_shares: bool = False
    last_start_block: int | None = None
    older_start_block: int | None = None
    weights_block: int = 0
    datasets: Mapping[SubmissionKey, object] = field(default_factory=dict)
    verdicts: Mapping[SubmissionKey, Verdict] = field(default_factory=dict)
    losses: Mapping[ContentKey, Sequence[float]] = field(default_factory=dict)
    retry_states: Mapping[SubmissionKey, RetryState] = field(default_factory=dict)
    running: frozenset[SubmissionKey] = frozenset()
    idle_workers: int = 1
    downloading: frozenset[SubmissionKey] = frozenset()
    available_slots: int = 1
    missing_files: frozenset[SubmissionKey] = frozenset()

    @property
    def entries(self) -> Mapping[SubmissionKey, Entry]:
        """Entries of the open round by submission; empty between rounds."""
        return self.round.by_key if self.round is not None else {}


@dataclass(frozen=True)
class OpenRound:
    """Open a round on the subnet's state at `start_block`."""

    start_block: int
    end_block: int


@dataclass(frozen=True)
class FetchDatasets:
    keys: tuple[SubmissionKey, ...]


@dataclass(frozen=True)
class PlanRound:
    """Choose the round's evaluations: its downloads are done."""


@dataclass(frozen=True)
class EvaluateDataset:
    """Fine-tune on one checked dataset."""

    evaluation: RoundEvaluation


@dataclass(frozen=True)
class SetWeights:
    """Make the round's leaderboard, and set weights if the policy allows it."""


@dataclass(frozen=True)
class ResubmitWeights:
    """Submit the last shares again, before the chain counts this hotkey as inactive."""


@dataclass(frozen=True)
class ResolveIntent:
    """Record the outcome of a pending intent."""

    intent_id: int
    is_accepted: bool


@dataclass(frozen=True)
class CloseRound:
    is_settled: bool


@dataclass(frozen=True)
class Wait:
    why: str


@dataclass(frozen=True)
class Stop:
    """Stop the validator: all requested rounds are done."""


Action = (
    OpenRound
    | FetchDatasets
    | PlanRound
    | EvaluateDataset
    | SetWeights
    | ResubmitWeights
    | ResolveIntent
    | CloseRound
    | Wait
    | Stop
)


def decide(state: State, view: ChainView, now: float, policy: Policy) -> Action:
    """Return the next action."""
    if (repeat := keep_alive(state, view, policy)) is not None:
        return repeat
    if state.round is None:
        return _open_round(state, view, policy)
    is_over = view.block >= state.round.end_block
    work = _next_work(state, state.round, view, now, policy)
    if state.pending_intents:
        # A second submission would look the same as the pending one.
        if work is not None and not is_over:
            return work
        return Wait(f"the weights decided at block {state.pending_intents[-1].block} may still arrive")
    is_settled = _is_settled(state, view, policy)
    is_closing = view.block >= closing_block(state.round, policy)
    # A round that is over sets no weights of its own any more, unless it was open in time.
    is_late = is_over and (bool(state.intents) or state.round.is_past)
    is_held_back = view.block < state.weights_block
    if not is_settled and not is_late and not is_held_back and (work is None or is_closing):
        return _set_weights(state, state.round, view, policy, work)
    is_last = policy.max_rounds is not None and state.rounds_done + 1 >= policy.max_rounds
    if work is not None:
        return work
    if is_over or is_last:
        return CloseRound(is_settled)
    return Wait(f"round ends at block {state.round.end_block}")


def keep_alive(state: State, view: ChainView, policy: Policy) -> Action | None:
    """Resolve pending weights, or submit the last shares again to stay active.

    Needs no evaluation set, model or round, so it works while this validator cannot evaluate.
    """
    if state.pending_intents:
        return _resolve(state.pending_intents[-1], state, view)
    me = view.by_hotkey.get(state.hotkey)
    if not policy.sets_weights or me is None or not state.has_last_shares or not view.activity_cutoff:
        return None
    if view.block < state.weights_block:
        return None
    due_block = me.last_update_block + int(view.activity_cutoff * REPEAT_AT)
    recent = [intent for intent in state.repeats if intent.block >= due_block]
    if recent:
        due_block = recent[-1].block + min(2 ** len(recent), MAX_WEIGHTS_PAUSE_BLOCKS)
    return ResubmitWeights() if view.block >= max(due_block, me.last_update_block + view.weights_rate_limit) else None


def _open_round(state: State, view: ChainView, policy: Policy) -> Action:
    """Open the next round. Each aligned block has one."""
    if policy.max_rounds is not None and state.rounds_done >= policy.max_rounds:
        return Stop()
    period = policy.blocks_per_epoch
    newest = view.block - view.block % period
    if state.last_start_block is not None:
        start = state.last_start_block - state.last_start_block % period + period
    else:
        start = align(policy.start_block, period) if policy.start_block else newest
        if policy.season_block and state.older_start_block is not None:
            # What was public before the season is recorded up to that round.
            start = max(start, min(align(state.older_start_block + 1, period), align(policy.season_block, period)))
    if start > newest:
        return Wait(f"the next round starts at block {start}")
    return OpenRound(start, start + period)


def plan_queue(
    entries: Mapping[SubmissionKey, Entry],
    verdicts: Container[SubmissionKey],
    datasets: Container[SubmissionKey],
    retry_states: Mapping[SubmissionKey, RetryState],
    now: float,
    policy: Policy,
) -> tuple[SubmissionKey, ...]:
    """Return the downloads of a new round, by commit block."""
    waiting = [
        entry
        for key, entry in entries.items()
        if key not in verdicts and key not in datasets and not _is_suspended(retry_states.get(key), now)
    ]
    failures = {key: retry.remote_failures for key, retry in retry_states.items()}
    return tuple(order_entries(waiting, failures, policy.miner_duplicate_sample_size))


def closing_block(current: Round, policy: Policy) -> int:
    """Return the block from which weights are due, in the round's second half."""
    return current.end_block - min(policy.block_threshold, (current.end_block - current.start_block) // 2)


def _is_suspended(retry: RetryState | None, now: float) -> bool:
    return retry is not None and retry.host_failures >= MAX_HOST_FAILURES and now < retry.next_at


def _next_work(state: State, current: Round, view: ChainView, now: float, policy: Policy) -> Action | None:
    """Return the next download, plan, evaluation or wait; None when work is done."""
    fetch = _fetch(state, current, now)
    if fetch is not None:
        return fetch
    if current.evaluations is None:
        awaited = _awaited(state, current, view, now, policy)
        return Wait(f"{len(state.downloading)} of {len(awaited)} downloads running") if awaited else PlanRound()
    return _next_evaluation(state, current.evaluations, now)


def _awaited(state: State, current: Round, view: ChainView, now: float, policy: Policy) -> list[SubmissionKey]:
    """Return the downloads that the plan of the round waits for.

    A file that did not come at the first try may never come, and repos that hang would hold every evaluation back. So
    the plan waits for first tries, and for later ones that run, in the first half of the time until weights are due. A
    missed round has no such time: it waits for a few tries of each.
    """
    closing = closing_block(current, policy)
    if current.opened_block >= closing:
        most: float = _AWAITED_FAILURES
    elif view.block >= closing:
        return []
    else:
        most = math.inf if view.block < (current.opened_block + closing) // 2 else 0
    return [
        key
        for key in _unread(state, current, now)
        if not (failures := _failures(state, key)) or (failures <= most and key in state.downloading)
    ]


def _failures(state: State, key: SubmissionKey) -> int:
    """Return how often a download has failed since the file was last read."""
    return state.retry_states[key].remote_failures if key in state.retry_states else 0


def _unread(state: State, current: Round, now: float) -> list[SubmissionKey]:
    """Return the round's datasets to download: new or with a deleted file."""
    planned = {evaluation.key for evaluation in _open_evaluations(state, current.evaluations or ())}
    keys = dict.fromkeys([*current.queue, *(key for key in planned if key in state.missing_files)])
    return [
        key
        for key in keys
        if key not in state.verdicts
        and (key not in state.datasets or key in state.missing_files)
        and state.entries[key].rejection is None
        and not _is_suspended(state.retry_states.get(key), now)
    ]


def _fetch(state: State, current: Round, now: float) -> Action | None:
    """Return the next downloads, if a slot is free.

    Datasets with fewer failures come first, so that a repo that hangs delays others once at most.
    """
    retry_states = state.retry_states
    wanted = [
        key
        for key in _unread(state, current, now)
        if key not in state.downloading and (key not in retry_states or retry_states[key].next_at <= now)
    ]
    if not wanted or state.available_slots <= 0:
        return None
    wanted.sort(key=lambda key: _failures(state, key))
    return FetchDatasets(tuple(wanted[: state.available_slots]))


def _open_evaluations(state: State, evaluations: Sequence[RoundEvaluation]) -> list[RoundEvaluation]:
    return [
        evaluation
        for evaluation in evaluations
        if evaluation.key not in state.verdicts and _runs(state, evaluation) < evaluation.number
    ]


def _runs(state: State, evaluation: RoundEvaluation) -> int:
    return len(state.losses.get(evaluation.content, ()))


def evaluations_left(state: State) -> int:
    """Return the number of planned evaluations of the open round that are not done."""
    plan = state.round.evaluations if state.round is not None else None
    return len(_open_evaluations(state, plan or ()))


def _next_evaluation(state: State, evaluations: Sequence[RoundEvaluation], now: float) -> Action | None:
    """Return the next evaluation, a wait for one, or None when all are done.

    An evaluation that cannot run now, because a file or this machine fails, is planned again in a later round.
    """
    retry_states, to_do = state.retry_states, _open_evaluations(state, evaluations)
    ready = [
        evaluation
        for evaluation in to_do
        if evaluation.key not in state.missing_files
        and (evaluation.key not in retry_states or retry_states[evaluation.key].next_at <= now)
    ]
    due = [
        evaluation
        for evaluation in ready
        if evaluation.key not in state.running
        and len(state.losses.get(evaluation.content, ())) + 1 == evaluation.number
    ]
    if due and state.idle_workers > 0:
        return EvaluateDataset(due[0])
    if any(evaluation.key in state.missing_files and not _failures(state, evaluation.key) for evaluation in to_do):
        return Wait("a file is downloaded again")
    if not ready and not state.running:
        return None
    return Wait(f"{len(state.running)} evaluations running, {len(ready)} to do")


def _is_settled(state: State, view: ChainView, policy: Policy) -> bool:
    """Check that the round's weights are on chain, or are not to be set."""
    if not policy.sets_weights:
        # The leaderboard of a round without entries has no rows.
        return state.has_leaderboard or not state.entries
    if any(intent.outcome is not None and intent.outcome.is_accepted for intent in state.intents):
        return True
    # A call that timed out may still land, and its retry is then rejected for coming too soon. Resubmitted shares of
    # an earlier round would look the same on chain.
    return bool(state.intents) and not state.repeats and _has_landed(state.intents[0], state, view)


def _has_landed(intent: WeightIntent, state: State, view: ChainView) -> bool:
    """Check that the chain has weights of this hotkey after `intent`."""
    me = view.by_hotkey.get(state.hotkey)
    return me is not None and me.last_update_block > max(intent.block, me.registration_block)


def _resolve(intent: WeightIntent, state: State, view: ChainView) -> Action | None:
    """Resolve an intent without an outcome; None while it may still land."""
    if _has_landed(intent, state, view):
        return ResolveIntent(intent.id, is_accepted=True)
    if view.block >= intent.block + UNKNOWN_OUTCOME_BLOCKS:
        return ResolveIntent(intent.id, is_accepted=False)
    return None


def _set_weights(state: State, current: Round, view: ChainView, policy: Policy, work: Action | None) -> Action:
    """Set weights, or continue the work while rate limit or backoff last."""
    me = view.by_hotkey.get(state.hotkey)
    allowed_block = 0
    if policy.sets_weights and me is not None and me.last_update_block > 0:
        # Updates after the round's end are another process's. They do not delay the end of this round.
        allowed_block = min(me.last_update_block, current.end_block) + view.weights_rate_limit
    if state.intents:
        pause = min(2 ** len(state.intents), MAX_WEIGHTS_PAUSE_BLOCKS)
        allowed_block = max(allowed_block, state.intents[-1].block + pause)
    if view.block < allowed_block:
        return work if work is not None else Wait(f"weights may be set from block {allowed_block}")
    return SetWeights()
