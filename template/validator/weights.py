"""Set weights on chain: record the intent, call, record the outcome."""

from collections.abc import Mapping

from loguru import logger

from template.chain_records import ChainView, WeightOutcome
from template.records import Leaderboard, Round
from template.rules.leaderboard import build_leaderboard, choose_weights, find_undecided, weights_by_uid
from template.rules.table import Table
from template.validator.availability import missing_verdicts
from template.validator.context import Context
from template.validator.evaluation import SubmissionEvaluator
from template.validator.rounds import update_table

# Error of a round without weights to set: normal while a validator is new.
NOTHING_SCORED = "NothingScored"


def make_leaderboard(context: Context, evaluator: SubmissionEvaluator, current: Round, table: Table) -> Leaderboard:
    """Build and log the round's leaderboard."""
    config = context.config
    verdicts = {**context.store.verdicts(evaluator.eval_config), **missing_verdicts(context, current)}
    leaderboard = build_leaderboard(
        config.competition, config.incentives, current.by_key, verdicts, table, current.start_block
    )
    for row in leaderboard.rows:
        logger.info(
            "leaderboard hotkey={} uid={} reason={} loss={} runs={} credit={:.6f} weight={:.6f} {}",
            row.key.hotkey, row.uid, row.reason, row.loss, row.runs, row.credit, row.weight, row.message,
        )  # fmt: skip
    return leaderboard


def set_weights(context: Context, evaluator: SubmissionEvaluator, current: Round, view: ChainView) -> None:
    """Record the round's leaderboard and, if the policy allows it, submit its weights."""
    config, store = context.config, context.store
    table = update_table(context, evaluator, current)
    leaderboard = make_leaderboard(context, evaluator, current, table)
    if not config.policy.sets_weights:
        store.record_leaderboard(current.id, leaderboard)
        return
    last = store.last_accepted()
    last_shares = last.shares if last else {}
    season_block = store.first_start_block(evaluator.eval_config)
    shares = choose_weights(
        leaderboard.rows,
        last_shares,
        view.owner_hotkey,
        has_ledger=bool(evaluator.confirmed),
        undecided=find_undecided(table, season_block, config.competition, config.incentives),
    )
    registrations: Mapping[str, int] = {entry.key.hotkey: entry.registration_block for entry in current.entries}
    if last is not None and shares is last_shares:
        registrations = last.registrations
    _submit(context, current.id, shares, registrations, view, leaderboard)


def resubmit_weights(context: Context, round_id: int, view: ChainView) -> None:
    """Submit the last accepted shares again, for the current uids."""
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
    leaderboard: Leaderboard | None,
) -> None:
    weights = weights_by_uid(shares, view, registrations)
    prepared = context.chain.prepare_weights(weights) if weights else None
    intent_id = context.store.record_intent(
        round_id,
        block=view.block,
        weights=weights,
        shares=shares,
        registrations=registrations,
        sent=prepared.sent if prepared else {},
        leaderboard=leaderboard,
        now=context.now(),
    )
    outcome = context.chain.set_weights(prepared) if prepared else _missing_weights(shares, view)
    context.store.record_outcome(intent_id, outcome, context.now())
    if outcome.is_accepted:
        logger.info("weights set block={} weights={}", outcome.block, dict(prepared.sent) if prepared else {})
    elif prepared is not None and prepared.rejection is not None:
        logger.error("no weights sent error={}: {}", outcome.error, outcome.message)
    else:
        logger.warning("weights rejected error={}: {}", outcome.error, outcome.message)


def _missing_weights(shares: Mapping[str, float], view: ChainView) -> WeightOutcome:
    if not shares:
        message = "no evaluation has finished and there are no earlier weights"
        return WeightOutcome(is_accepted=False, error=NOTHING_SCORED, message=message)
    message = f"no hotkey with a score has a uid, nor does the subnet owner {view.owner_hotkey}"
    logger.error("no weights set: {}", message)
    return WeightOutcome(is_accepted=False, error="NoOwnerUid", message=message)
