"""What to do next: a pure decision from the state, one view of the chain and the time.

A round is one validator epoch. It opens on a snapshot of the subnet, with its submissions and seeds fixed; each is
downloaded beside the loop and checked, then those that are no copies are scored, in other processes; weights are set
once when the work is done, or when the last `block_threshold` blocks begin, whatever is being scored then; the round
closes at its end block, or as soon as nothing is left to do when it is the last one wanted.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

from template.records import ChainView, Entry, RetryState, Round, SubmissionKey, Verdict, WeightIntent
from template.rules.duplicates import Duplicate
from template.rules.entries import order_entries

# Tries that end in a fault of this machine before a submission is parked until its `next_at`: it holds nothing up.
MAX_HOST_FAILURES = 3

# Tries that end in a fault of the network before weights no longer wait for a submission; some four hours' worth.
MAX_REMOTE_FAILURES = 12

# Longest pause between two tries to set weights, in blocks.
MAX_WEIGHTS_PAUSE_BLOCKS = 16

# An intent whose outcome is unknown counts as lost when this many blocks later the chain does not show it: one more
# than a signed call stays valid for.
UNKNOWN_OUTCOME_BLOCKS = 33


# A hotkey that set no weights for the subnet's activity cutoff counts as inactive; they are given again when this part
# of it has passed, so that some tries may still fail.
REPEAT_AT = 0.75


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The operator's choices: sizes in submissions per round, lengths in blocks. max_rounds None is for ever.

    is_aligned: rounds start at the multiples of blocks_per_epoch, wherever this validator began, so that all who keep
    to the same length see the same snapshots; needed for seeds from the chain.
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
    """What a tick knows: from the store, but for what this process alone can tell.

    That is `rounds_done`, its closed rounds; `running`, the submissions being scored; `free`, how many more it could
    score at once; `fetching`, those being downloaded, of whichever round; `room`, how many more downloads it could
    begin; `lost`, datasets whose file was gone from the disk when it was to be scored. doubts: what might be a copy
    yet, see `template.rules.duplicates.find_possible_duplicates`. entrants: of the round's
    snapshot, empty between rounds. repeats: intents that gave earlier shares again, of the newest round; unsettled:
    intents of any round without an outcome. last_start_block: of the newest round, open or not; None before the first.
    """

    hotkey: str
    round: Round | None
    rounds_done: int
    datasets: Mapping[SubmissionKey, object]
    verdicts: Mapping[SubmissionKey, Verdict]
    duplicates: Mapping[SubmissionKey, Duplicate]
    retry_states: Mapping[SubmissionKey, RetryState]
    intents: Sequence[WeightIntent]
    has_leaderboard: bool
    running: frozenset[SubmissionKey] = frozenset()
    idle_workers: int = 1
    downloading: frozenset[SubmissionKey] = frozenset()
    available_slots: int = 1
    missing_files: frozenset[SubmissionKey] = frozenset()
    possible_duplicates: Mapping[SubmissionKey, Duplicate] = field(default_factory=dict)
    repeats: Sequence[WeightIntent] = ()
    pending_intents: Sequence[WeightIntent] = ()
    has_last_shares: bool = False
    last_start_block: int | None = None

    @property
    def entries(self) -> Mapping[SubmissionKey, Entry]:
        """Entries of the open round by submission; empty between rounds."""
        return self.round.by_key if self.round is not None else {}


@dataclass(frozen=True)
class OpenRound:
    """Open a round on the snapshot of `start_block`, the view's own or an earlier one, that ends at `end_block`."""

    start_block: int
    end_block: int


@dataclass(frozen=True)
class FetchDatasets:
    """Begin to download these; each is checked when it has come."""

    keys: tuple[SubmissionKey, ...]


@dataclass(frozen=True)
class EvaluateDataset:
    """Train on one dataset that passed its checks."""

    key: SubmissionKey


@dataclass(frozen=True)
class SetWeights:
    """Make the round's table, and set weights where the policy says so."""


@dataclass(frozen=True)
class ResubmitWeights:
    """Give the last shares again: new ones are long in coming, and the chain would count this hotkey as inactive."""


@dataclass(frozen=True)
class ResolveIntent:
    """Record what became of an intent whose outcome was not learnt: the chain shows it, or it is lost."""

    intent_id: int
    is_accepted: bool


@dataclass(frozen=True)
class CloseRound:
    """Nothing more happens in this round; were its weights settled?"""

    is_settled: bool


@dataclass(frozen=True)
class Wait:
    """Nothing can be done now."""

    why: str


@dataclass(frozen=True)
class Stop:
    """All rounds that were wanted are done."""


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
    """The one thing to do next."""
    if (repeat := keep_alive(state, view, policy)) is not None:
        return repeat
    if state.round is None:
        return _open_round(state, view, policy)
    is_over = view.block >= state.round.end_block
    work = _next_work(state, state.round, view, now, policy)
    if state.pending_intents:
        # Settled above where that can be told. Another landing meanwhile could not be told from this one.
        return _or_wait(None if is_over else work, state.pending_intents[-1])
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
    """The last shares given again, when new ones are so late that the chain would soon count this hotkey as inactive.

    Before that, what became of earlier weights is settled. Needs no evaluation set, model or round: whatever keeps this
    validator from scoring, it is done.
    """
    if state.pending_intents:
        return _settle(state.pending_intents[-1], state, view)
    me = view.by_hotkey.get(state.hotkey)
    if not policy.sets_weights or me is None or not state.has_last_shares or not view.activity_cutoff:
        return None
    due_block = me.last_update_block + int(view.activity_cutoff * REPEAT_AT)
    recent = [intent for intent in state.repeats if intent.block >= due_block]
    if recent:
        due_block = recent[-1].block + min(2 ** len(recent), MAX_WEIGHTS_PAUSE_BLOCKS)
    return ResubmitWeights() if view.block >= max(due_block, me.last_update_block + view.weights_rate_limit) else None


def _open_round(state: State, view: ChainView, policy: Policy) -> Action:
    """The next round; one that is aligned is not opened when it is as good as over, nor twice."""
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
    """Blocks until the round's end: the chain's epoch where that is near, so that weights arrive before it does."""
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
    """Whose turn it is in a new round, in order: who is no copy, not parked, and has something left to be found out."""
    waiting = [
        entry
        for key, entry in entries.items()
        if _is_open(key, verdicts, datasets) and key not in duplicates and not _is_suspended(retry_states.get(key), now)
    ]
    failures = {key: attempt.remote_failures for key, attempt in retry_states.items()}
    return tuple(order_entries(waiting, failures, policy.miner_duplicate_sample_size))


def _is_open(key: SubmissionKey, verdicts: Mapping[SubmissionKey, Verdict], datasets: Container[SubmissionKey]) -> bool:
    """True without a verdict, or with a loss whose rows are forgotten: they are read again, or a copy could hide."""
    verdict = verdicts.get(key)
    return verdict is None or (verdict.loss is not None and key not in datasets)


def closing_block(current: Round, policy: Policy) -> int:
    """From here on weights are set, done or not. A short round keeps at least its first half for the work."""
    return current.end_block - min(policy.block_threshold, (current.end_block - current.start_block) // 2)


def is_stuck(attempt: RetryState) -> bool:
    """True for a submission that was tried so often, whoever's fault it is, that weights no longer wait for it."""
    return attempt.host_failures >= MAX_HOST_FAILURES or attempt.remote_failures >= MAX_REMOTE_FAILURES


def _is_suspended(attempt: RetryState | None, now: float) -> bool:
    return attempt is not None and attempt.host_failures >= MAX_HOST_FAILURES and now < attempt.next_at


def _next_work(state: State, current: Round, view: ChainView, now: float, policy: Policy) -> Action | None:
    """Downloads, else a score, else a wait for one of them or a retry, else None when the round's work is done.

    Nobody works for a hotkey that has left, which gets no weight; one that commits anew meanwhile keeps its place in
    the round. Whoever failed less often is downloaded first: a repo that hangs holds up nobody twice.
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
    # Who is in the queue without a seed had a loss before: only its rows are to be read again.
    seeded = (entry.key for entry in current.entries if entry.lucky_num is not None)
    scored = sum(key in state.verdicts and state.verdicts[key].loss is not None for key in seeded)
    has_room = scored + len(state.running) < policy.miner_sample_size
    scorable = [key for key in open_keys if has_room and key in state.datasets and key not in state.duplicates]
    is_original = _surely_original(unchecked, state)
    due = [key for key in scorable if key in ready and key not in unread and is_original(key)]
    if due and state.idle_workers > 0:
        return EvaluateDataset(due[0])
    if state.running or due or unread or unchecked:
        doing = f"{len(state.running)} scores under way, {len(due)} waiting for a worker"
        return Wait(f"{doing}, {len(state.downloading)} downloads under way" if state.downloading else doing)
    later = [key for key in open_keys if key not in ready and (key not in state.datasets or key in scorable)]
    return Wait(f"{len(later)} submissions are to be tried again") if later else None


def _surely_original(unchecked: Sequence[SubmissionKey], state: State) -> Callable[[SubmissionKey], bool]:
    """Says of a dataset whether none that is not checked yet could turn out to be what it copies.

    That is who committed it no later, or has an earlier version of theirs that it shares too many rows with, which
    counts once the present one is known.
    Nobody is waited for twice: what the Hub withheld once may take for ever, and a copy is found out then as well.
    """
    awaited = [key for key in unchecked if key not in state.retry_states or not state.retry_states[key].remote_failures]
    if not awaited:
        return lambda key: True
    hotkeys = {one.hotkey for one in awaited}
    earliest = min(state.entries[one].rank_block for one in awaited)

    def is_original(key: SubmissionKey) -> bool:
        is_doubted = key in state.possible_duplicates and state.possible_duplicates[key].hotkey in hotkeys
        return state.entries[key].rank_block < earliest and not is_doubted

    return is_original


def _is_settled(state: State, view: ChainView, policy: Policy) -> bool:
    """True once nothing more is to be done about this round's weights."""
    if not policy.sets_weights:
        # A table of nobody has no lines to be found by.
        return state.has_leaderboard or not state.entries
    if any(intent.outcome is not None and intent.outcome.is_accepted for intent in state.intents):
        return True
    # A call may land after it was given up, and a second try is then refused for coming too soon. An earlier round's
    # shares, given again meanwhile, are not what landed.
    return bool(state.intents) and not state.repeats and _has_landed(state.intents[0], state, view)


def _has_landed(intent: WeightIntent, state: State, view: ChainView) -> bool:
    """True when the chain took weights of this hotkey after `intent`; a new registration counts as an update there."""
    me = view.by_hotkey.get(state.hotkey)
    return me is not None and me.last_update_block > max(intent.block, me.registration_block)


def _settle(intent: WeightIntent, state: State, view: ChainView) -> Action | None:
    """What became of an intent without an outcome: the process died, or the chain did not answer, after its recording.

    None while it may still land: work goes on until the chain shows it or no longer can, and only weights are not set
    again meanwhile.
    """
    if _has_landed(intent, state, view):
        return ResolveIntent(intent.id, is_accepted=True)
    if view.block >= intent.block + UNKNOWN_OUTCOME_BLOCKS:
        return ResolveIntent(intent.id, is_accepted=False)
    return None


def _or_wait(work: Action | None, intent: WeightIntent) -> Action:
    return work if work is not None else Wait(f"the weights decided at block {intent.block} may still arrive")


def _set_weights(state: State, current: Round, view: ChainView, policy: Policy, work: Action | None) -> Action:
    """Weights now, unless the chain's rate limit or the patience after a refusal says later; work goes on meanwhile."""
    me = view.by_hotkey.get(state.hotkey)
    allowed_block = 0
    if policy.sets_weights and me is not None and me.last_update_block > 0:
        # Updates after the round's end are another process's and are not waited for: the chain may refuse, and it ends.
        allowed_block = min(me.last_update_block, current.end_block) + view.weights_rate_limit
    if state.intents:
        pause = min(2 ** len(state.intents), MAX_WEIGHTS_PAUSE_BLOCKS)
        allowed_block = max(allowed_block, state.intents[-1].block + pause)
    if view.block < allowed_block:
        return work if work is not None else Wait(f"weights may be set from block {allowed_block}")
    return SetWeights()
