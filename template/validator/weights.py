"""Set weights on chain: record the intent, call, record the outcome."""

from collections import Counter
from collections.abc import Mapping, Sequence

from loguru import logger

from template.chain_records import ChainView, WeightOutcome
from template.errors import NotSubmittedError
from template.records import Leaderboard, LeaderboardRow, Round
from template.rules.leaderboard import build_leaderboard, choose_weights, find_undecided, weights_by_uid
from template.rules.table import Table
from template.terminal import describe_verdict
from template.validator.availability import absent_datasets, missing_verdicts
from template.validator.context import Context
from template.validator.evaluation import SubmissionEvaluator
from template.validator.rounds import read_table, season_block, update_table

_LOGGED_ROWS = 20
_COLUMNS = ("hotkey", "uid", "verdict", "runs", "loss", "credit", "weight")
_COLOURS = {"record": "green", "waiting": "yellow", "in_progress": "yellow"}

# Error of a round without weights to set: normal while a validator is new.
NOTHING_SCORED = "NothingScored"


def make_leaderboard(context: Context, evaluator: SubmissionEvaluator, current: Round, table: Table) -> Leaderboard:
    """Build and log the round's leaderboard."""
    config = context.config
    verdicts = {**context.store.verdicts(evaluator.eval_config), **missing_verdicts(context, current)}
    leaderboard = build_leaderboard(
        config.competition, config.incentives, current.by_key, verdicts, table, current.start_block,
        absent_datasets(context, evaluator, current),
    )  # fmt: skip
    if not context.store.has_leaderboard(current.id):
        # Otherwise its weights are tried again.
        log_leaderboard(current, leaderboard)
    return leaderboard


def log_leaderboard(current: Round, leaderboard: Leaderboard) -> None:
    """Log the round as a table: its best rows, and a number for each kind of the others."""
    verdicts = Counter(describe_verdict(row, leaderboard.ledger) for row in leaderboard.rows)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()) or "no entries"
    logger.info(
        "leaderboard of round {}, blocks {} to {}: {}", current.id, current.start_block, current.end_block, counts
    )
    best = sorted(leaderboard.rows, key=lambda row: (-row.weight, row.loss is None, row.loss or 0.0, row.uid))
    shown = [row for row in best if row.reason is None][:_LOGGED_ROWS]
    # Colours on a terminal only; loguru reads them in the format, and not in what is filled in.
    log = logger.opt(colors=True)
    if shown:
        log.info("<bold>  {:<48} {:>4} {:<12} {:>4} {:>9} {:>7} {:>7}</bold>", *_COLUMNS)
    for row in shown:
        loss, verdict = "-" if row.loss is None else f"{row.loss:.6f}", describe_verdict(row, leaderboard.ledger)
        colour = _COLOURS.get(verdict, "normal")
        log.info(
            f"  {{:<48}} {{:>4}} <{colour}>{{:<12}}</{colour}> {{:>4}} {{:>9}} {{:>7.4f}} {{:>7.4f}}",
            row.hotkey, row.uid, verdict, row.runs, loss, row.credit, row.weight,
        )  # fmt: skip
    if more := len(leaderboard.rows) - len(shown):
        logger.info("  and {} more, with their reasons: scripts/status.py --all", more)
    for row in leaderboard.rows:
        logger.debug(
            "entry hotkey={} uid={} reason={} loss={} {}", row.hotkey, row.uid, row.reason, row.loss, row.message
        )


def set_weights(context: Context, evaluator: SubmissionEvaluator, current: Round, view: ChainView) -> None:
    """Record the round's leaderboard and, if the policy allows it, submit its weights."""
    config, store = context.config, context.store
    table = update_table(context, evaluator, current)
    leaderboard = make_leaderboard(context, evaluator, current, table)
    if not config.policy.sets_weights:
        store.record_leaderboard(current.id, leaderboard)
        return
    shares, registrations = _choose_shares(context, evaluator, current, table, leaderboard.rows, view)
    _submit(context, current.id, shares, registrations, view, leaderboard)


def _choose_shares(
    context: Context,
    evaluator: SubmissionEvaluator,
    current: Round,
    table: Table,
    rows: Sequence[LeaderboardRow],
    view: ChainView,
) -> tuple[Mapping[str, float], Mapping[str, int]]:
    """Return the shares of a round's weights, and the registration block of each hotkey."""
    config, last = context.config, context.store.last_accepted()
    last_shares = last.shares if last else {}
    shares = choose_weights(
        rows,
        last_shares,
        view.owner_hotkey,
        has_ledger=bool(evaluator.confirmed),
        undecided=find_undecided(table, season_block(context, evaluator), config.competition, config.incentives),
    )
    if last is not None and shares is last_shares:
        return shares, last.registrations
    return shares, {entry.key.hotkey: entry.registration_block for entry in current.entries}


def resubmit_weights(context: Context, evaluator: SubmissionEvaluator | None, view: ChainView) -> None:
    """Submit earlier shares to stay active, for the current uids.

    These are the shares of the newest round if it is later than the last accepted ones: a validator that works through
    missed rounds sets no weights in them. Otherwise, and before the model is loaded, the last accepted ones.
    """
    store, last = context.store, context.store.last_accepted()
    round_id = store.last_round_id()
    if last is None or round_id is None:
        return
    shares, registrations = last.shares, last.registrations
    newest = None if evaluator is None else store.last_decided_round(evaluator.eval_config)
    if evaluator is not None and newest is not None and newest.start_block > last.start_block:
        table, rows = read_table(context, evaluator, newest), store.leaderboard(newest.id)
        shares, registrations = _choose_shares(context, evaluator, newest, table, rows, view)
    logger.warning("submitting the shares of an earlier round to stay active round={}", round_id)
    _submit(context, round_id, shares, registrations, view, None)


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
    is_sent = prepared is not None and prepared.rejection is None
    intent_id = context.store.record_intent(
        round_id,
        # While its outcome is unknown, this block tells until when the call may land.
        block=prepared.block if prepared is not None and is_sent else view.block,
        weights=weights,
        shares=shares,
        registrations=registrations,
        sent=prepared.sent if prepared else {},
        leaderboard=leaderboard,
        now=context.now(),
    )
    try:
        outcome = context.chain.set_weights(prepared) if prepared else _missing_weights(shares, view)
    except NotSubmittedError as error:
        # Known to have failed, so that the next attempt need not wait until the call cannot land any more.
        outcome = WeightOutcome(is_accepted=False, error="NotSubmitted", message=str(error))
        context.store.record_outcome(intent_id, outcome, context.now())
        raise
    context.store.record_outcome(intent_id, outcome, context.now())
    if outcome.is_accepted:
        sent, burned = dict(prepared.sent) if prepared else {}, burned_share(weights, view)
        logger.info("weights set block={} weights={} burned={:.0%}", outcome.block, sent, burned)
    elif prepared is not None and prepared.rejection is not None:
        logger.error("no weights sent error={}: {}", outcome.error, outcome.message)
    else:
        logger.warning("weights rejected error={}: {}", outcome.error, outcome.message)


def burned_share(weights: Mapping[int, float], view: ChainView) -> float:
    """Return the share of weights by uid that the subnet owner's uid gets: the chain burns it."""
    return weights.get(view.owner_uid, 0.0) / sum(weights.values()) if weights and view.owner_uid is not None else 0.0


def find_rejection(context: Context, view: ChainView) -> WeightOutcome | None:
    """Return why the chain would not count weights of this hotkey now. Raises: RemoteError."""
    # Equal weights for all: neither weights for itself alone nor a share above a limit.
    weights = {neuron.uid: 1.0 for neuron in view.neurons}
    return context.chain.prepare_weights(weights).rejection if weights else None


def _missing_weights(shares: Mapping[str, float], view: ChainView) -> WeightOutcome:
    if not shares:
        message = "no evaluation has finished and there are no earlier weights"
        return WeightOutcome(is_accepted=False, error=NOTHING_SCORED, message=message)
    message = f"no hotkey with a score has a uid, nor does the subnet owner {view.owner_hotkey}"
    logger.error("no weights set: {}", message)
    return WeightOutcome(is_accepted=False, error="NoOwnerUid", message=message)
