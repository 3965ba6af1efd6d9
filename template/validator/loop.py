"""Run the validator: startup, ticks, shutdown.

A tick reads one view of the chain, collects finished evaluations and downloads, loads the state, decides
(`template.rules.schedule`), does one thing and records it, so that a kill at any point loses at most that one thing.
Evaluations run in other processes and downloads in threads, so that no tick waits for them and weights are set on time.
"""

import dataclasses
import time
from collections.abc import Callable
from contextlib import closing

from loguru import logger

from template import __version__
from template.chain.protocols import ValidatorChain
from template.chain_records import ChainView
from template.data.eval_set import EvalSetIndex, read_eval_set_index
from template.errors import ConfigError, HostError, RemoteError, SubnetGoneError
from template.hub.datasets import fetch_eval_set
from template.records import EvalConfig, Round
from template.rules import schedule
from template.rules.entries import MISSING, missing_commit_blocks
from template.rules.schedule import Action, State
from template.stop_request import StopRequest
from template.store.store import Store
from template.telemetry.wandb_tracker import NullTracker, Tracker
from template.validator.availability import FileWatch
from template.validator.bootstrap import RoundHistory
from template.validator.chain_view import ViewReader
from template.validator.cleanup import clean_up, oldest_remembered_block, remove_replaced_files
from template.validator.commit_slots import CommitSlots
from template.validator.config import LuckyNumFrom, ValidatorConfig
from template.validator.context import Context
from template.validator.downloads import Downloader
from template.validator.evaluation import SubmissionEvaluator
from template.validator.inputs import changed_inputs, check_device_unchanged, is_on_cpu
from template.validator.outputs import Outputs
from template.validator.publishing import RoundPublisher
from template.validator.reporting import Reporter
from template.validator.rounds import adopt_results, open_round, plan_round, update_table
from template.validator.snapshots import CommitBlockIndex, SnapshotReader
from template.validator.weights import (
    NOTHING_SCORED,
    make_leaderboard,
    resolve_intent,
    resubmit_weights,
    set_weights,
)
from template.workers.executor import Executor

# Time after which a missing repo or file is downloaded again: in each round of 72 minutes, also where a verdict took
# half of one, so that validators agree in which round a late file came.
MISSING_RETRY_S = 1800.0

# Longest backoff after failed ticks: three retries in every weights window.
MAX_BACKOFF_S = 300.0

# Longest wait of an idle tick while downloads are running.
DOWNLOAD_POLL_S = 0.5

# Time between two checks for a new release. A check waits for running evaluations.
UPDATE_EVERY_S = 3600.0


class Validator:
    """One validator on one subnet. Set `stop` to end it after the current tick.

    evaluator: None until a worker has loaded the model. is_updated: True when it ended because of a new release.
    """

    def __init__(
        self,
        config: ValidatorConfig,
        chain: ValidatorChain,
        store: Store,
        executor: Executor,
        downloader: Downloader,
        *,
        tracker: Tracker | None = None,
        update: Callable[[], bool] | None = None,
        history: RoundHistory | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Build a validator; nothing starts before `run` or `tick`.

        update: installs a new release and returns whether it did; called between rounds without evaluations. history:
        of --bootstrap_rounds.
        """
        self.config = config
        self.stop = StopRequest()
        self.rounds_done = 0
        self.is_updated = False
        self.evaluator: SubmissionEvaluator | None = None
        self._context = Context(
            config=config, chain=chain, store=store, executor=executor, downloader=downloader,
            tracker=tracker or NullTracker(), outputs=Outputs(config, store, now), now=now,
            history=history or RoundHistory(), publisher=RoundPublisher(config, chain),
        )  # fmt: skip
        self._chain = chain
        self._store = store
        self._executor = executor
        self._downloader = downloader
        self._now = now
        self._update = update
        self._update_at = float("-inf")
        self._views = ViewReader(self._context)
        self._commit_slots = CommitSlots(self._context)
        self._commit_blocks = CommitBlockIndex(self._context)
        self._files = FileWatch(self._context)
        self._snapshots = SnapshotReader(self._context, self._commit_blocks)
        self._reporter = Reporter(self._context)
        self._eval_set: EvalSetIndex | None = None
        self._model: str | None = None
        self._failures = 0
        self._view: ChainView | None = None

    def run(self) -> None:
        """Tick until stopped or done. Raises: ConfigError, HostError, SubnetGoneError."""
        self._context.outputs.check()
        with self._store.recorded_run(__version__, self._now) as run_id, closing(self._executor):
            while not self.stop.is_set() and not self._run_with_retry(self.tick, run_id):
                pass
            if not self.stop.is_set():
                self._context.publisher.finish(self._view, self._now())
        logger.info("validator stops rounds_done={}", self.rounds_done)

    def _run_with_retry(self, step: Callable[[], bool], run_id: int) -> bool:
        """Return the result of `step`, or False after a failure and its backoff."""
        asked_s = 0.0
        try:
            is_done = step()
            self._failures = 0
            return is_done
        except (ConfigError, HostError, SubnetGoneError):
            raise
        except RemoteError as error:
            logger.warning("tick failed, will retry: {}", error)
            asked_s = error.retry_after_s or 0.0
            self._store.record_run_error(run_id, error, self._now())
        except Exception as error:
            logger.exception("a tick failed; this is a bug, please report it")
            self._store.record_run_error(run_id, error, self._now())
        self._failures += 1
        self.stop.wait(min(max(self.config.poll_s * 2 ** min(self._failures, 10), asked_s), MAX_BACKOFF_S))
        return False

    @property
    def eval_config(self) -> EvalConfig:
        """The config whose losses count, after a worker has loaded the model."""
        if self.evaluator is None:
            raise RuntimeError("no worker has loaded the model yet")
        return self.evaluator.eval_config

    def tick(self) -> bool:
        """Do one bounded step. Return True when all work is done."""
        view = self._view = self._views.read()
        self._commit_blocks.update(view)
        state = self._load_state(view)
        action = self._decide(state, view)
        logger.debug("block={} action={}", view.block, action)
        try:
            return self._perform(action, state, view)
        finally:
            self._context.publisher.update(view, self._now())
            self._reporter.report_progress(action, state, view)

    def _decide(self, state: State, view: ChainView) -> Action:
        """Return the next action; before the model is loaded, only to stay active."""
        if self.evaluator is None:
            if (repeat := schedule.keep_alive(state, view, self.config.policy)) is not None:
                return repeat
            return schedule.Wait("ready to evaluate" if self._prepare(view) else "a worker loads the model")
        return schedule.decide(state, view, self._now(), self.config.policy)

    def _prepare(self, view: ChainView) -> bool:
        """Get the evaluation set and start the workers; True when both are ready."""
        config = self.config
        if self._eval_set is None:
            self._eval_set = read_eval_set_index(
                fetch_eval_set(config.competition, config.eval_data_dir, config.cache_dir, config.hub_token)
            )
        model = self._executor.start()
        if model is None:
            return False
        self._open_eval_config(model, self._eval_set)
        if is_on_cpu(model) and not config.is_device_chosen:
            logger.warning(
                "evaluations run on the CPU, because no GPU was found, and take hours each with the subnet's own model;"
                " check the GPU with nvidia-smi, or choose --device cpu"
            )
        logger.info(
            "validator starts netuid={} block={} competition={} eval_rows={} near_duplicate_rows={} model={}",
            view.netuid, view.block, config.competition.id, len(self._eval_set), self._eval_set.near_duplicate_count,
            model,
        )  # fmt: skip
        return True

    def _open_eval_config(self, model: str, eval_set: EvalSetIndex) -> None:
        digest = self._executor.training_args.hyperparameters.digest
        check_device_unchanged(self._context, model)
        # Losses are compared only under the same source and period of seeds.
        source, period = self.config.seed_source, self.config.incentives.blocks_per_epoch
        name = f"{model} seeds {source}" + (f" every {period} blocks" if source is LuckyNumFrom.CHAIN else "")
        if changes := changed_inputs(self._context, name, digest):
            logger.warning("every dataset is evaluated again: {}", "; ".join(changes))
        eval_config = self._store.get_or_create_config(self.config.competition, digest, name, self._now())
        self._store.abandon_rounds(eval_config)
        self._model = model
        self.evaluator = SubmissionEvaluator(self._context, eval_config, eval_set)

    def _load_state(self, view: ChainView) -> State:
        """Record finished work and return the input of the decision."""
        store = self._store
        if self.evaluator is not None:
            self._poll_workers(self.evaluator)
        evaluator = self.evaluator
        current = store.open_round(evaluator.eval_config) if evaluator else None
        if evaluator is not None:
            evaluator.collect_downloads(current)
            self._files.update(evaluator, current)
        round_id = current.id if current else store.last_round_id()
        intents = store.intents(round_id) if round_id is not None else []
        state = State(
            hotkey="" if self.config.is_offline else self._chain.hotkey,
            round=current,
            rounds_done=self.rounds_done,
            intents=[intent for intent in intents if not intent.is_repeat],
            repeats=[intent for intent in intents if intent.is_repeat],
            pending_intents=store.pending_intents(),
            has_last_shares=store.last_accepted() is not None,
            weights_block=self._commit_slots.next_block(view) if self.config.policy.sets_weights else 0,
        )
        if evaluator is None:
            return state
        if current is None:
            now = self._now()
            store.expire_rejections(
                evaluator.eval_config, MISSING, before=now - MISSING_RETRY_S, after=now + MISSING_RETRY_S
            )
        verdicts = store.verdicts(evaluator.eval_config)
        last_start_block = store.last_start_block(evaluator.eval_config)
        return dataclasses.replace(
            state,
            has_leaderboard=current is not None and store.has_leaderboard(current.id),
            last_start_block=last_start_block,
            older_start_block=store.last_start_block() if last_start_block is None else None,
            datasets=evaluator.datasets,
            verdicts=verdicts,
            losses=evaluator.losses,
            retry_states=evaluator.retry_states(),
            running=frozenset(evaluation.key for evaluation in self._executor.running()),
            idle_workers=self._executor.idle_workers(),
            downloading=frozenset(self._downloader.in_flight()),
            available_slots=evaluator.available_slots(),
            missing_files=frozenset(evaluator.missing_files),
        )

    def _poll_workers(self, evaluator: SubmissionEvaluator) -> None:
        evaluator.collect_results()
        try:
            model = self._executor.start()
        except (RemoteError, HostError) as error:
            logger.error("no worker: {}", error)
            return
        if model is not None and model != self._model and self._eval_set is not None:
            self._open_eval_config(model, self._eval_set)

    def _perform(self, action: Action, state: State, view: ChainView) -> bool:
        """Do the action; True when all work is done."""
        current, evaluator = state.round, self.evaluator
        match action:
            case schedule.OpenRound(start_block, end_block):
                return self._open_round(view, start_block, end_block) or self.stop.is_set()
            case schedule.FetchDatasets(keys):
                assert current is not None and evaluator is not None
                for key in keys:
                    evaluator.start_download(current.by_key[key], view.block, state.retry_states.get(key))
            case schedule.PlanRound():
                assert current is not None and evaluator is not None
                planned = plan_round(self._context, evaluator, current)
                if planned.is_past:
                    adopt_results(self._context, evaluator, planned, self._model or "")
            case schedule.EvaluateDataset(evaluation):
                assert current is not None and evaluator is not None
                evaluator.start_evaluation(current.by_key[evaluation.key], evaluation)
            case schedule.SetWeights():
                assert current is not None and evaluator is not None
                set_weights(self._context, evaluator, current, view)
                # Now, because a restart with other losses never returns to this round.
                self._reporter.write_round(evaluator, current, self._model or "")
            case schedule.ResubmitWeights():
                resubmit_weights(self._context, evaluator, view)
            case schedule.ResolveIntent(intent_id, is_accepted):
                resolve_intent(self._context, intent_id, is_accepted=is_accepted)
            case schedule.CloseRound(is_settled):
                assert current is not None and evaluator is not None
                self._close_round(evaluator, current, state, is_settled=is_settled)
            case schedule.Wait(why):
                logger.debug("waiting: {}", why)
                self._idle()
            case schedule.Stop():
                return True
        return self.stop.is_set()

    def _idle(self) -> None:
        if self._downloader.in_flight():
            # Not longer, because this does not wake up for workers and signals.
            self._downloader.wait(min(self.config.poll_s, DOWNLOAD_POLL_S))
        elif self.evaluator is None or self._executor.running() or not self._executor.idle_workers():
            self._executor.wait(self.config.poll_s)
        else:
            self.stop.wait(self.config.poll_s)

    def _open_round(self, view: ChainView, start_block: int, end_block: int) -> bool:
        """Open a round, or install a new release; True when one was installed."""
        # Checked once an hour, also after the clock was set back.
        if self._update is not None and not 0.0 < self._update_at - self._now() <= UPDATE_EVERY_S:
            if self._executor.running():
                self._idle()
                return False
            self._update_at = self._now() + UPDATE_EVERY_S
            self.is_updated = self._update()
            if self.is_updated:
                return True
        assert self.evaluator is not None
        # Also at the view's own block: a snapshot is compared with other reads.
        snapshot = self._snapshots.read(view, start_block)
        self._commit_blocks.update(snapshot, view.block)
        if missing_commit_blocks(snapshot, self._commit_blocks.blocks):
            raise RemoteError("no round can open: commit block unknown for some revealed commitments")
        end_block = snapshot.block + end_block - start_block
        self._context.outputs.check()
        opened = open_round(
            self._context, self.evaluator, self._commit_blocks.blocks, snapshot,
            opened_block=view.block, end_block=end_block,
        )  # fmt: skip
        remove_replaced_files(self._context, self.evaluator, opened)
        return False

    def _close_round(self, evaluator: SubmissionEvaluator, current: Round, state: State, *, is_settled: bool) -> None:
        self._finish_round(evaluator, current, self._model or "")
        self.rounds_done += 1
        errors = [intent.outcome.error for intent in state.intents if intent.outcome]
        if is_settled or current.is_past:
            logger.info("round {} closes", current.id)
        elif not errors and state.weights_block >= current.end_block:
            logger.info(
                "round {} closes without weights: the next ones are sent from block {} on, because the chain"
                " takes ten in an epoch",
                current.id,
                state.weights_block,
            )
        elif errors and errors[-1] == NOTHING_SCORED:
            logger.warning("round {} closes without weights: no evaluation has finished yet", current.id)
        else:
            logger.error("round {} closes without weights on chain: {}", current.id, errors[-1:])
        clean_up(self._context, evaluator, current)
        self._commit_blocks.prune(before_block=oldest_remembered_block(current))

    def _finish_round(self, evaluator: SubmissionEvaluator, current: Round, model: str) -> None:
        """Publish and close, so that a crash in between repeats it."""
        # Evaluations that were done after the weights can confirm a dataset that is replaced in the next round.
        table = update_table(self._context, evaluator, current)
        if not self._store.has_leaderboard(current.id):
            leaderboard = make_leaderboard(self._context, evaluator, current, table)
            self._store.record_leaderboard(current.id, leaderboard)
            self._context.history.log_differences(current.start_block, leaderboard)
        self._reporter.publish_round(evaluator, current, model)
        self._store.close_round(current.id, self._now())
