"""From a round's snapshot to weights on chain: intent first, outcome after."""

from collections.abc import Callable, Mapping

from loguru import logger

from template.chain.protocols import ValidatorChain
from template.records import ChainView, EvalConfig, LeaderboardRow, Round, WeightOutcome
from template.rules import leaderboard, schedule
from template.rules.schedule import State
from template.store.store import Store
from template.validator.config import ValidatorConfig

# No weights could be made: not an error, while a validator is new.
NOTHING_SCORED = "NothingScored"


class Scale:
    """Makes the tables and submits the weights of one validator."""

    def __init__(
        self, config: ValidatorConfig, *, chain: ValidatorChain, store: Store, now: Callable[[], float]
    ) -> None:
        self._config = config
        self._chain = chain
        self._store = store
        self._now = now

    def set_weights(self, eval_config: EvalConfig, current: Round, state: State, view: ChainView) -> None:
        """Makes the round's table and, where the policy says so, submits its weights."""
        lines = leaderboard.build_leaderboard(
            self._config.competition, state.entries, state.verdicts, state.duplicates, state.datasets
        )
        for line in lines:
            _tell(line)
        if not self._config.policy.sets_weights:
            self._store.record_leaderboard(current.id, lines)
            return
        last = self._store.last_accepted(eval_config)
        stuck = {key for key, attempt in state.retry_states.items() if schedule.is_stuck(attempt)}
        last_shares = last.shares if last else {}
        shares = leaderboard.choose_weights(lines, last_shares, view.owner_hotkey, stuck=stuck)
        registrations = {entry.key.hotkey: entry.registration_block for entry in current.entries}
        if last is not None and shares is last_shares:
            registrations = dict(last.registrations)
        self._submit(current.id, shares, registrations, view, lines)

    def resubmit_weights(self, round_id: int, view: ChainView) -> None:
        """Submits the last shares that the chain took once more, aligned to who holds the uids now."""
        last = self._store.last_accepted()
        logger.warning("no new weights for long: those of an earlier round are given again")
        if last is not None:
            self._submit(round_id, last.shares, last.registrations, view, None)

    def settle(self, intent_id: int, *, is_accepted: bool) -> None:
        """Records what became of an intent whose outcome was not learnt."""
        error = None if is_accepted else "Lost"
        self._store.record_outcome(intent_id, WeightOutcome(is_accepted=is_accepted, error=error), self._now())
        logger.info("weights of an unknown fate settled accepted={}", is_accepted)

    def _submit(
        self,
        round_id: int,
        shares: Mapping[str, float],
        registrations: Mapping[str, int],
        view: ChainView,
        lines: list[LeaderboardRow] | None,
    ) -> None:
        weights = leaderboard.weights_by_uid(shares, view, registrations)
        intent_id = self._store.record_intent(
            round_id,
            block=view.block,
            weights=weights,
            shares=shares,
            registrations=registrations,
            leaderboard=lines,
            now=self._now(),
        )
        outcome = self._chain.set_weights(weights) if weights else _explain(shares, view)
        self._store.record_outcome(intent_id, outcome, self._now())
        if outcome.is_accepted:
            logger.info("weights set block={} weights={}", outcome.block, weights)
        else:
            logger.warning("weights refused error={}: {}", outcome.error, outcome.message)


def _explain(shares: Mapping[str, float], view: ChainView) -> WeightOutcome:
    """Why there are no weights to submit."""
    if not shares:
        message = "nothing is scored yet and no earlier weights are known"
        return WeightOutcome(is_accepted=False, error=NOTHING_SCORED, message=message)
    message = f"nobody has a score, and the subnet owner {view.owner_hotkey} has no uid to burn to"
    logger.error("no weights set: {}", message)
    return WeightOutcome(is_accepted=False, error="NoOwnerUid", message=message)


def _tell(line: LeaderboardRow) -> None:
    logger.info(
        "standing hotkey={} uid={} reason={} loss={} score={:.6f} weight={:.6f} {}",
        line.key.hotkey, line.uid, line.reason, line.loss, line.score, line.weight, line.message,
    )  # fmt: skip
