"""Set weights on chain: record the intent, call, record the outcome."""

from collections.abc import Mapping, Sequence

from loguru import logger

from template.records import ChainView, EvalConfig, LeaderboardRow, Round, WeightOutcome
from template.rules import schedule
from template.rules.leaderboard import build_leaderboard, choose_weights, weights_by_uid
from template.rules.schedule import State
from template.validator.context import Context

# Error of a round without weights to set: normal while a validator is new.
NOTHING_SCORED = "NothingScored"


def set_weights(context: Context, eval_config: EvalConfig, current: Round, state: State, view: ChainView) -> None:
    """Record the round's leaderboard and, if the policy says so, submit its weights."""
    config, store = context.config, context.store
    rows = build_leaderboard(config.competition, state.entries, state.verdicts, state.duplicates, state.datasets)
    for row in rows:
        logger.info(
            "leaderboard hotkey={} uid={} reason={} loss={} score={:.6f} weight={:.6f} {}",
            row.key.hotkey, row.uid, row.reason, row.loss, row.score, row.weight, row.message,
        )  # fmt: skip
    if not config.policy.sets_weights:
        store.record_leaderboard(current.id, rows)
        return
    last = store.last_accepted(eval_config)
    stuck = {key for key, retry in state.retry_states.items() if schedule.is_stuck(retry)}
    last_shares = last.shares if last else {}
    shares = choose_weights(rows, last_shares, view.owner_hotkey, stuck=stuck)
    registrations: Mapping[str, int] = {entry.key.hotkey: entry.registration_block for entry in current.entries}
    if last is not None and shares is last_shares:
        registrations = last.registrations
    _submit(context, current.id, shares, registrations, view, rows)


def resubmit_weights(context: Context, round_id: int, view: ChainView) -> None:
    """Submit the last shares that the chain accepted again, for the uids of now."""
    last = context.store.last_accepted()
    logger.warning("resubmitting last weights to stay active round={}", round_id)
    if last is not None:
        _submit(context, round_id, last.shares, last.registrations, view, None)


def resolve_intent(context: Context, intent_id: int, *, is_accepted: bool) -> None:
    """Record the outcome of a pending intent."""
    outcome = WeightOutcome(is_accepted=is_accepted, error=None if is_accepted else "Lost")
    context.store.record_outcome(intent_id, outcome, context.now())
    logger.info("resolved pending weights accepted={}", is_accepted)


def _submit(
    context: Context,
    round_id: int,
    shares: Mapping[str, float],
    registrations: Mapping[str, int],
    view: ChainView,
    leaderboard: Sequence[LeaderboardRow] | None,
) -> None:
    weights = weights_by_uid(shares, view, registrations)
    intent_id = context.store.record_intent(
        round_id,
        block=view.block,
        weights=weights,
        shares=shares,
        registrations=registrations,
        leaderboard=leaderboard,
        now=context.now(),
    )
    outcome = context.chain.set_weights(weights) if weights else _missing_weights(shares, view)
    context.store.record_outcome(intent_id, outcome, context.now())
    if outcome.is_accepted:
        logger.info("weights set block={} weights={}", outcome.block, weights)
    else:
        logger.warning("weights rejected error={}: {}", outcome.error, outcome.message)


def _missing_weights(shares: Mapping[str, float], view: ChainView) -> WeightOutcome:
    if not shares:
        message = "no evaluation has finished and there are no earlier weights"
        return WeightOutcome(is_accepted=False, error=NOTHING_SCORED, message=message)
    message = f"no hotkey with a score has a uid, nor does the subnet owner {view.owner_hotkey}"
    logger.error("no weights set: {}", message)
    return WeightOutcome(is_accepted=False, error="NoOwnerUid", message=message)
