"""Report a validator's progress and write the signed file of each round."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from loguru import logger

from template.chain_records import ChainView, OwnNeuron, WeightOutcome
from template.errors import ConfigError, RemoteError
from template.receipts.files import round_file
from template.receipts.receipt import Receipt
from template.receipts.round_file import RoundSummary
from template.records import (
    EvaluationResult,
    Metrics,
    Round,
    RoundEvaluation,
    RoundReport,
    RunningEvaluation,
    WeightIntent,
)
from template.rules import schedule
from template.rules.schedule import Action, State
from template.validator.context import Context
from template.validator.evaluation import SubmissionEvaluator
from template.validator.weights import burned_share, find_rejection

# Seconds between two progress reports while nothing changes.
REPORT_EVERY_S = 20.0

# Blocks between two looks at the limits of this validator's weights, about ten minutes.
REJECTION_BLOCKS = 50


class Reporter:
    """Writes progress to state, log and tracker, and publishes rounds."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._reported: object = None
        self._reported_at = float("-inf")
        self._rejection: WeightOutcome | None = None
        self._rejection_block: int | None = None

    def report_progress(self, action: Action, state: State, view: ChainView) -> None:
        """Report the current work if it changed or the last report is old."""
        now, running = self._context.now(), self._context.executor.running()
        doing = _describe(action)
        news = (doing, [evaluation.key for evaluation in running], state.round and state.round.id)
        # After the clock was set back, the last report lies in the future and does not count.
        is_recent = 0.0 <= now - self._reported_at < REPORT_EVERY_S
        if news == self._reported and is_recent:
            return
        if not is_recent:
            for evaluation in running:
                logger.info(
                    "progress stage={} done={:.0%} tokens={} hotkey={} device={}",
                    evaluation.stage, evaluation.done / evaluation.total if evaluation.total else 0.0,
                    evaluation.total, evaluation.key.hotkey, evaluation.device,
                )  # fmt: skip
        self._reported, self._reported_at = news, now
        metrics = self._measure(doing, running, state, view)
        self._context.store.record_heartbeat(metrics, metrics.now)
        self._context.tracker.report_metrics(metrics)

    def _measure(self, doing: str, running: tuple[RunningEvaluation, ...], state: State, view: ChainView) -> Metrics:
        current = state.round
        last = self._context.store.last_accepted()
        return Metrics(
            now=self._context.now(),
            block=view.block,
            block_time=view.timestamp,
            doing=doing,
            round_id=current.id if current else None,
            queue=schedule.evaluations_left(state),
            unscored=sum(
                entry.rejection is None and key not in state.verdicts and key not in state.datasets
                for key, entry in state.entries.items()
            ),
            running=running,
            weights_block=schedule.closing_block(current, self._context.config.policy) if current else None,
            weights_set_block=(last.outcome.block or last.block) if last and last.outcome else None,
            tokens_per_s=self._context.executor.tokens_per_s(),
            warnings=(*self._context.outputs.waiting(), *self._publishing_problems()),
            burned=burned_share(last.weights, view) if last else None,
            neuron=self._find_neuron(view),
        )

    def _publishing_problems(self) -> list[str]:
        problem = self._context.publisher.problem
        return [] if problem is None else [f"--publish_rounds: {problem}"]

    def _find_neuron(self, view: ChainView) -> OwnNeuron | None:
        """Return this validator on the subnet, None if it sets no weights."""
        chain = self._context.chain
        if not self._context.config.policy.sets_weights:
            return None
        if self._rejection_block is None or not 0 <= view.block - self._rejection_block < REJECTION_BLOCKS:
            # A hint for the operator, which no tick may fail for.
            with suppress(RemoteError):
                self._rejection = find_rejection(self._context, view)
                self._rejection_block = view.block
                if self._rejection is not None:
                    logger.error("weights would not count: {}", self._rejection.message)
        own = view.by_hotkey.get(chain.hotkey)
        return OwnNeuron(
            netuid=view.netuid,
            hotkey=chain.hotkey,
            uid=own.uid if own else None,
            last_update_block=own.last_update_block if own else 0,
            activity_cutoff=view.activity_cutoff,
            error=self._rejection.error if self._rejection else None,
            message=self._rejection.message if self._rejection else "",
        )

    def publish_round(self, evaluator: SubmissionEvaluator, current: Round, model: str) -> None:
        """Write the round's file and send it to the tracker. Safe to repeat."""
        path = self.write_round(evaluator, current, model)
        self._context.tracker.report_round(
            RoundReport(
                round=current,
                leaderboard=tuple(self._context.store.leaderboard(current.id)),
                ledger=tuple(self._context.store.ledger(current.id)),
                intents=tuple(self._intents(current)),
                results=self._results(evaluator, current),
                round_file=None if path is None else str(path),
            )
        )

    def write_round(self, evaluator: SubmissionEvaluator, current: Round, model: str) -> Path | None:
        """Write the round's file as of now, and return its path. None without --round_dir."""
        config, chain, store = self._context.config, self._context.chain, self._context.store
        if config.round_dir is None:
            return None
        results = self._results(evaluator, current)
        stands = {own[-1].key: own[-1] for own in store.stands().values()}
        signer, sign = (None, None) if config.is_offline else (chain.hotkey, chain.sign)
        summary = RoundSummary(
            netuid=chain.netuid,
            competition=config.competition,
            incentives=config.incentives,
            hyperparameters_digest=self._context.executor.training_args.hyperparameters.digest,
            model=model,
            round=current,
            missing=[
                entry.key.hotkey
                for entry in current.entries
                if entry.key in stands and stands[entry.key].missing_block == current.start_block
            ],
            standings=store.leaderboard(current.id),
            ledger=store.ledger(current.id),
            intents=self._intents(current),
            results=results,
            receipts=_read_receipts(results, signer),
        )
        file = round_file(summary, signer=signer, sign=sign)
        store.record_output("--round_dir", file, self._context.now())
        refused = self._context.outputs.write()
        self._context.publisher.notice()
        return None if "--round_dir" in refused else config.round_dir / file.name

    def _results(self, evaluator: SubmissionEvaluator, current: Round) -> dict[RoundEvaluation, EvaluationResult]:
        return {
            run: result
            for run in current.evaluations or ()
            if (result := self._context.store.results(evaluator.eval_config, run.content).get(run.number)) is not None
        }

    def _intents(self, current: Round) -> list[WeightIntent]:
        # The file of the round before was written without the weights that followed its end.
        store = self._context.store
        return [*store.intents_since_last_round(current.id), *store.intents(current.id)]


def _describe(action: Action) -> str:
    match action:
        case schedule.Wait(why):
            return why
        case schedule.FetchDatasets(keys):
            return f"downloading {len(keys)} datasets"
        case schedule.PlanRound():
            return "planning the evaluations"
        case schedule.EvaluateDataset(evaluation):
            return f"evaluating {evaluation.key.commitment} of {evaluation.key.hotkey}"
        case schedule.OpenRound(start_block, _):
            return f"opening a round on block {start_block}"
        case schedule.SetWeights():
            return "setting weights"
        case schedule.ResubmitWeights():
            return "resubmitting the last weights"
        case schedule.ResolveIntent():
            return "resolving pending weights"
        case schedule.CloseRound():
            return "closing the round"
    return "stopping"


def _read_receipts(
    results: Mapping[RoundEvaluation, EvaluationResult], signer: str | None
) -> dict[RoundEvaluation, Receipt]:
    """Parse this validator's receipts; skip receipts that this release cannot read."""
    receipts = {}
    for run, result in results.items():
        try:
            receipt = Receipt.from_json(result.receipt, f"the receipt of {run.key.hotkey}")
        except ConfigError as error:
            logger.warning("receipt not published: {}", error)
            continue
        if receipt.signer == signer:
            receipts[run] = receipt
    return receipts
