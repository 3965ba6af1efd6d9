"""Decide what a validator does next, from the state, one view and the time.

A round is one validator epoch. It opens on a snapshot of the subnet, which fixes its entries and seeds. Datasets are
downloaded and checked, and those that are no duplicates are evaluated in other processes. Weights are set once, when
the work is done or when the last `block_threshold` blocks begin. The round closes at its end block; the last wanted
round closes as soon as nothing is left to do.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

from template.records import ChainView, Entry, RetryState, Round, SubmissionKey, Verdict, WeightIntent
from template.rules.duplicates import Duplicate
from template.rules.entries import order_entries

# Failures of this machine after which a submission is suspended until its `next_at`.
MAX_HOST_FAILURES = 3

# Failures of the network after which weights no longer wait for a submission: some four hours of retries.
MAX_REMOTE_FAILURES = 12

# Longest pause between two attempts to set weights, in blocks.
MAX_WEIGHTS_PAUSE_BLOCKS = 16

# Blocks after which an intent that the chain does not show has failed: one more than a signed call stays valid for.
UNKNOWN_OUTCOME_BLOCKS = 33

# Part of the subnet's activity cutoff after which the last weights are submitted again. The rest is for retries.
REPEAT_AT = 0.75


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The operator's choices: sizes in submissions per round, lengths in blocks.

    is_aligned: rounds start at multiples of blocks_per_epoch, so that all validators with the same length take the
    same snapshots. Seeds from the chain need it.
    """

    blocks_per_epoch: int = 360
    block_threshold: int = 50
    miner_sample_size: int = 10
    miner_duplicate_sample_size: int = 50
    sets_weights: bool = True
    max_rounds: int | None = None
    is_aligned: bool = False


@dataclass(frozen=True, kw_only=True)
class State:
    """Input of `decide`: stored state and this process's running work.

    possible_duplicates: see `template.rules.duplicates.find_possible_duplicates`. intents, repeats: the newest round's
    own weights, and earlier shares submitted again in it. pending_intents: of any round, without an outcome.
    missing_files: checked datasets whose file is gone from the disk. last_start_block: of the newest round.
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
    datasets: Mapping[SubmissionKey, object] = field(default_factory=dict)
    verdicts: Mapping[SubmissionKey, Verdict] = field(default_factory=dict)
    duplicates: Mapping[SubmissionKey, Duplicate] = field(default_factory=dict)
    possible_duplicates: Mapping[SubmissionKey, Duplicate] = field(default_factory=dict)
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
    """Open a round on the snapshot of `start_block`, which may be past."""

    start_block: int
    end_block: int


@dataclass(frozen=True)
class FetchDatasets:
    keys: tuple[SubmissionKey, ...]


@dataclass(frozen=True)
class EvaluateDataset:
    """Fine-tune on one checked dataset."""

    key: SubmissionKey


@dataclass(frozen=True)
class SetWeights:
    """Make the round's leaderboard, and set weights if the policy says so."""


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
    """End: all wanted rounds are done."""


Action = (
    OpenRound
    | FetchDatasets
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
        # A second submission could not be told apart from the pending one.
        if work is not None and not is_over:
            return work
        return Wait(f"the weights decided at block {state.pending_intents[-1].block} may still arrive")
    is_settled = _is_settled(state, view, policy)
    if is_over and (is_settled or state.intents):
        return CloseRound(is_settled)
    is_closing = view.block >= closing_block(state.round, policy)
    if not is_settled and (work is None or is_closing):
        return _set_weights(state, state.round, view, policy, work)
    is_last = policy.max_rounds is not None and state.rounds_done + 1 >= policy.max_rounds
    if is_over or (is_last and work is None):
        return CloseRound(is_settled)
    if work is not None:
        return work
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
    due_block = me.last_update_block + int(view.activity_cutoff * REPEAT_AT)
    recent = [intent for intent in state.repeats if intent.block >= due_block]
    if recent:
        due_block = recent[-1].block + min(2 ** len(recent), MAX_WEIGHTS_PAUSE_BLOCKS)
    return ResubmitWeights() if view.block >= max(due_block, me.last_update_block + view.weights_rate_limit) else None


def _open_round(state: State, view: ChainView, policy: Policy) -> Action:
    """Open the next round. An aligned one opens once, and not near its end."""
    if policy.max_rounds is not None and state.rounds_done >= policy.max_rounds:
        return Stop()
    if not policy.is_aligned:
        return OpenRound(view.block, view.block + _round_length(view, policy))
    start = view.block - view.block % policy.blocks_per_epoch
    end = start + policy.blocks_per_epoch
    is_done = state.last_start_block is not None and state.last_start_block >= start
    if is_done or view.block >= end - min(policy.block_threshold, policy.blocks_per_epoch // 2):
        return Wait(f"the next round starts at block {end}")
    return OpenRound(start, end)


def _round_length(view: ChainView, policy: Policy) -> int:
    """Return the blocks until the round's end, before the next epoch."""
    until_epoch = view.blocks_until_epoch
    if until_epoch <= policy.block_threshold:
        until_epoch += view.tempo
    return max(1, min(policy.blocks_per_epoch, until_epoch))


def plan_queue(
    entries: Mapping[SubmissionKey, Entry],
    verdicts: Mapping[SubmissionKey, Verdict],
    duplicates: Mapping[SubmissionKey, Duplicate],
    datasets: Container[SubmissionKey],
    retry_states: Mapping[SubmissionKey, RetryState],
    now: float,
    policy: Policy,
) -> tuple[SubmissionKey, ...]:
    """Return the queue of a new round: entries with work left, by rank."""
    waiting = [
        entry
        for key, entry in entries.items()
        if _is_open(key, verdicts, datasets) and key not in duplicates and not _is_suspended(retry_states.get(key), now)
    ]
    failures = {key: retry.remote_failures for key, retry in retry_states.items()}
    return tuple(order_entries(waiting, failures, policy.miner_duplicate_sample_size))


def _is_open(key: SubmissionKey, verdicts: Mapping[SubmissionKey, Verdict], datasets: Container[SubmissionKey]) -> bool:
    """True without a verdict, or with a loss whose rows were pruned."""
    # Without its rows, an original could not make others duplicates.
    verdict = verdicts.get(key)
    return verdict is None or (verdict.loss is not None and key not in datasets)


def closing_block(current: Round, policy: Policy) -> int:
    """Return the block from which weights are due, in the round's second half."""
    return current.end_block - min(policy.block_threshold, (current.end_block - current.start_block) // 2)


def is_stuck(retry: RetryState) -> bool:
    """True after so many failures that weights no longer wait for the submission."""
    return retry.host_failures >= MAX_HOST_FAILURES or retry.remote_failures >= MAX_REMOTE_FAILURES


def _is_suspended(retry: RetryState | None, now: float) -> bool:
    return retry is not None and retry.host_failures >= MAX_HOST_FAILURES and now < retry.next_at


def _next_work(state: State, current: Round, view: ChainView, now: float, policy: Policy) -> Action | None:
    """Return the next download, evaluation or wait; None when work is done.

    Entries of hotkeys that left get no weight, so they are skipped. Downloads with fewer failures come first, so that
    a repo that hangs delays others once at most.
    """
    present = view.by_hotkey
    retry_states = state.retry_states
    open_keys = [
        key
        for key in current.queue
        if key.hotkey in present
        and _is_open(key, state.verdicts, state.datasets)
        and key not in state.running
        and state.entries[key].rejection is None
        and not _is_suspended(retry_states.get(key), now)
    ]
    ready = {key for key in open_keys if key not in retry_states or retry_states[key].next_at <= now}
    unread = {key for key in ready if key not in state.datasets or key in state.missing_files}
    wanted = [key for key in open_keys if key in unread and key not in state.downloading]
    if wanted and state.available_slots > 0:
        wanted.sort(key=lambda key: retry_states[key].remote_failures if key in retry_states else 0)
        return FetchDatasets(tuple(wanted[: state.available_slots]))
    unchecked = [key for key in open_keys if key not in state.datasets and (key in ready or key in state.downloading)]
    # Queued entries without a seed have a loss already: only their rows are read again.
    seeded = (entry.key for entry in current.entries if entry.lucky_num is not None)
    evaluated = sum(key in state.verdicts and state.verdicts[key].loss is not None for key in seeded)
    has_room = evaluated + len(state.running) < policy.miner_sample_size
    eligible = [key for key in open_keys if has_room and key in state.datasets and key not in state.duplicates]
    is_original = _surely_original(unchecked, state)
    due = [key for key in eligible if key in ready and key not in unread and is_original(key)]
    if due and state.idle_workers > 0:
        return EvaluateDataset(due[0])
    if state.running or due or unread or unchecked:
        doing = f"{len(state.running)} evaluations running, {len(due)} waiting for a worker"
        return Wait(f"{doing}, {len(state.downloading)} downloads running" if state.downloading else doing)
    later = [key for key in open_keys if key not in ready and (key not in state.datasets or key in eligible)]
    return Wait(f"{len(later)} submissions waiting for a retry") if later else None


def _surely_original(unchecked: Sequence[SubmissionKey], state: State) -> Callable[[SubmissionKey], bool]:
    """Return a test that no unchecked entry can be the original of a dataset.

    An unchecked entry can be the original if its rank is not later, or if an earlier version of it shares too many rows
    with the dataset. An entry is awaited until its first failed download: after that its file may never come.
    """
    awaited = [key for key in unchecked if key not in state.retry_states or not state.retry_states[key].remote_failures]
    if not awaited:
        return lambda key: True
    hotkeys = {key.hotkey for key in awaited}
    earliest = min(state.entries[key].rank_block for key in awaited)

    def is_original(key: SubmissionKey) -> bool:
        is_uncertain = key in state.possible_duplicates and state.possible_duplicates[key].hotkey in hotkeys
        return state.entries[key].rank_block < earliest and not is_uncertain

    return is_original


def _is_settled(state: State, view: ChainView, policy: Policy) -> bool:
    """True once the round's weights are on chain, or are not to be set."""
    if not policy.sets_weights:
        # The leaderboard of a round without entries has no rows.
        return state.has_leaderboard or not state.entries
    if any(intent.outcome is not None and intent.outcome.is_accepted for intent in state.intents):
        return True
    # A call that timed out may still land, and its retry is then rejected for coming too soon. Resubmitted shares of
    # an earlier round would look the same on chain.
    return bool(state.intents) and not state.repeats and _has_landed(state.intents[0], state, view)


def _has_landed(intent: WeightIntent, state: State, view: ChainView) -> bool:
    """True when the chain has weights of this hotkey after `intent`."""
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
