"""What others get to see of a validator: its activity while it runs, and the signed file of every round."""

from collections.abc import Callable, Mapping

from loguru import logger

from template.chain.protocols import ValidatorChain
from template.errors import ConfigError
from template.receipts.files import write_round
from template.receipts.receipt import Receipt
from template.receipts.round_file import RoundSummary
from template.records import (
    ChainView,
    EvalConfig,
    LeaderboardRow,
    Metrics,
    Round,
    RoundReport,
    RunningEvaluation,
    SubmissionKey,
)
from template.rules import schedule
from template.rules.schedule import Action, State
from template.store.store import Store
from template.telemetry.wandb_tracker import Tracker
from template.validator.config import ValidatorConfig
from template.workers.executor import Executor

# Seconds between two lines about the progress of a score, and between two looks that others get while nothing changes.
TELL_EVERY_S = 20.0


class Reporter:
    """Tells the state file, the log and the watcher what one validator does."""

    def __init__(
        self,
        config: ValidatorConfig,
        *,
        chain: ValidatorChain,
        store: Store,
        executor: Executor,
        tracker: Tracker,
        now: Callable[[], float],
    ) -> None:
        self._config = config
        self._chain = chain
        self._store = store
        self._executor = executor
        self._tracker = tracker
        self._now = now
        self._told_at = float("-inf")
        self._told: object = None
        # Of the receipts in the last table, which most of the next one's are.
        self._digests: dict[tuple[EvalConfig, SubmissionKey], str] = {}

    def tell(self, action: Action, state: State, view: ChainView) -> None:
        """Says what is being done, when that changed or was not said for a while."""
        running = self._executor.running()
        doing = _describe(action, running)
        news = (doing, [one.key for one in running], state.round and state.round.id)
        # A clock that was put back must not keep it silent until it is where it was.
        is_early = 0.0 <= self._now() - self._told_at < TELL_EVERY_S
        if news == self._told and is_early:
            return
        if not is_early:
            for one in running:
                _tell_progress(one)
        self._told, self._told_at = news, self._now()
        metrics = self._measure(doing, running, state, view)
        self._store.record_heartbeat(metrics, self._now())
        self._tracker.report_metrics(metrics)

    def _measure(self, doing: str, running: tuple[RunningEvaluation, ...], state: State, view: ChainView) -> Metrics:
        current = state.round
        open_keys = [key for key in current.queue if key not in state.verdicts] if current else []
        unscored = sum(
            one.rejection is None and key not in state.verdicts and key not in state.duplicates
            for key, one in state.entries.items()
        )
        last = self._store.last_accepted()
        return Metrics(
            now=self._now(),
            block=view.block,
            block_time=view.timestamp,
            doing=doing,
            round_id=current.id if current else None,
            queue=len(open_keys),
            unscored=unscored,
            running=running,
            weights_block=schedule.closing_block(current, self._config.policy) if current else None,
            weights_set_block=(last.outcome.block or last.block) if last and last.outcome else None,
            tokens_per_s=self._executor.tokens_per_s(),
        )

    def publish_round(self, eval_config: EvalConfig, current: Round, model: str) -> None:
        """Writes the round's signed file and sends it to the tracker. Safe to repeat. Raises: HostError."""
        texts = self._store.round_receipts(eval_config, current.id)
        receipts = _read_receipts(texts)
        standings = self._store.leaderboard(current.id)
        intents = self._store.intents(current.id)
        path = None
        if self._config.round_dir is not None:
            account = RoundSummary(
                netuid=self._chain.netuid,
                competition=self._config.competition,
                hyperparameters_digest=self._executor.training_args.hyperparameters.digest,
                model=model,
                lucky_num_from=current.lucky_num_from,
                seed_period=current.seed_period,
                round=current,
                standings=standings,
                intents=intents,
                receipts={key: texts[key] for key in receipts},
                all_receipt_digests=self._digest_receipts(eval_config, standings, receipts),
            )
            is_signed = not self._config.is_offline
            path = write_round(
                self._config.round_dir,
                account,
                signer=self._chain.hotkey if is_signed else None,
                sign=self._chain.sign if is_signed else None,
            )
        results = {key.hotkey: receipt.result for key, receipt in receipts.items()}
        seconds = {hotkey: result.train_seconds + result.eval_seconds for hotkey, result in results.items()}
        report = RoundReport(
            round=current,
            leaderboard=tuple(standings),
            intents=tuple(intents),
            seconds=seconds,
            round_file=None if path is None else str(path),
        )
        self._tracker.report_round(report)

    def _digest_receipts(
        self, eval_config: EvalConfig, standings: list[LeaderboardRow], read: Mapping[SubmissionKey, Receipt]
    ) -> dict[SubmissionKey, str]:
        """Of every loss in the table. read: the receipts that are read already. A receipt never changes."""
        known = {key: digest for (of, key), digest in self._digests.items() if of == eval_config}
        known |= {key: receipt.digest for key, receipt in read.items()}
        scored = [line.key for line in standings if line.loss is not None]
        texts = {key: self._store.receipt(eval_config, key) for key in scored if key not in known}
        known |= {key: receipt.digest for key, receipt in _read_receipts(texts).items()}
        found = {key: known[key] for key in scored if key in known}
        self._digests = {(eval_config, key): digest for key, digest in found.items()}
        return found


def _describe(action: Action, running: tuple[RunningEvaluation, ...]) -> str:
    """The action in words, for people."""
    match action:
        case schedule.Wait(why):
            return why
        case schedule.FetchDatasets(keys):
            return f"fetching {len(keys)} datasets"
        case schedule.EvaluateDataset(key):
            return f"scoring {key.commitment} of {key.hotkey}"
        case schedule.OpenRound(start_block, _):
            return f"opening a round on block {start_block}"
        case schedule.SetWeights():
            return "setting weights"
        case schedule.ResubmitWeights():
            return "setting the weights of an earlier round again"
        case schedule.ResolveIntent():
            return "finding out what became of the last weights"
        case schedule.CloseRound():
            return "closing the round"
    return "stopping"


def _tell_progress(one: RunningEvaluation) -> None:
    done = one.done / one.total if one.total else 0.0
    logger.info("{} {:.0%} of {} tokens hotkey={} device={}", one.stage, done, one.total, one.key.hotkey, one.device)


def _read_receipts(texts: Mapping[SubmissionKey, str | None]) -> dict[SubmissionKey, Receipt]:
    """The receipts that can be read: one that another release wrote is told of and left out."""
    found = {}
    for key, text in texts.items():
        try:
            if text is not None:
                found[key] = Receipt.from_json(text, f"the receipt of {key.hotkey}")
        except ConfigError as error:
            logger.warning("not published: {}", error)
    return found
