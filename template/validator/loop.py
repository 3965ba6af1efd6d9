"""The validator: startup, tick, shutdown.

A tick reads one view of the chain, collects what workers and downloads finished, loads the state, decides
(`template.rules.schedule`), does one thing and records it, so that killing the process anywhere loses at most the
thing in
hand. Scores run in other processes and datasets are downloaded by threads: no tick waits for one, and weights are set
while they go on. A signal sets a flag that is looked at after every tick.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from loguru import logger

from template.chain.protocols import ValidatorChain
from template.data.eval_set import EvalSetIndex, read_eval_set_index
from template.errors import ConfigError, HostError, RemoteError
from template.hub.datasets import fetch_eval_set
from template.records import ChainView, Entry, EvalConfig, Round, Submission, SubmissionKey
from template.rules import duplicates, schedule
from template.rules.duplicates import Duplicate
from template.rules.entries import CommitBlocks, current_submissions, missing_commit_blocks, prune_commit_blocks
from template.rules.schedule import Action, State
from template.store.store import Store
from template.telemetry.wandb_tracker import NullTracker, Tracker
from template.validator.cleanup import Housekeeper, oldest_remembered_block
from template.validator.config import ValidatorConfig
from template.validator.downloads import Downloader
from template.validator.evaluation import MISSING, SubmissionEvaluator
from template.validator.reporting import Reporter
from template.validator.rounds import RoundOpener
from template.validator.weights import NOTHING_SCORED, Scale
from template.workers.executor import Executor

# Seconds after which a repo or file that was not there is looked for again: the miner may have made it public.
MISSING_AGAIN_S = 6 * 3600.0

# Seconds that a tick rests at most after failures in a row: three chances in every weights window.
MAX_REST_S = 300.0

# Blocks after which a commitment that was sealed counts from its opening, when no node tells where it was made.
OPENING_PATIENCE_BLOCKS = 50

# Seconds that a tick rests at most while downloads are under way.
GLANCE_S = 0.5

# Seconds between two looks for a newer release, for which the scores under way are waited for.
UPDATE_EVERY_S = 3600.0


class Validator:
    """One validator on one subnet. `now` is the clock, POSIX seconds; set `stop` to end it after the tick in hand.

    update: installs a newer release when there is one, and says whether it did; called between rounds, with no score
    under way; None when releases are not followed. is_updated: True when the validator ended because of one.
    """

    def __init__(
        self,
        config: ValidatorConfig,
        chain: ValidatorChain,
        store: Store,
        executor: Executor,
        fetcher: Downloader,
        *,
        tracker: Tracker | None = None,
        update: Callable[[], bool] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.stop = threading.Event()
        self.rounds_done = 0
        self.is_updated = False
        self._chain = chain
        self._store = store
        self._executor = executor
        self._fetcher = fetcher
        self._update = update
        self._update_at = float("-inf")
        self._now = now
        self._opener = RoundOpener(config, chain=chain, store=store, now=now)
        self._scale = Scale(config, chain=chain, store=store, now=now)
        self._reporter = Reporter(
            config, chain=chain, store=store, executor=executor, tracker=tracker or NullTracker(), now=now
        )
        self._housekeeper = Housekeeper(config, store, now)
        self._is_admitted = False
        self._pool: EvalSetIndex | None = None
        self._model: str | None = None
        self.evaluator: SubmissionEvaluator | None = None
        self._failures = 0
        # What the store and the last view imply, kept so that an idle tick costs little.
        self._recorded: object = None
        self._seen: Mapping[SubmissionKey, Submission] = {}
        self._openings: CommitBlocks = store.commit_blocks()
        self._copies: Mapping[SubmissionKey, Duplicate] = {}
        self._doubts: Mapping[SubmissionKey, Duplicate] = {}
        self._copies_of: object = None

    def run(self) -> None:
        """Ticks until stopped or done. Raises: ConfigError, HostError; waits out everything else."""
        try:
            while not self.stop.is_set() and not self._patiently(self.tick):
                pass
        finally:
            self._executor.close()
        logger.info("validator stops rounds_done={}", self.rounds_done)

    def _patiently(self, step: Callable[[], bool]) -> bool:
        """One step; what it returns, False when it is to be tried again. No failure of a tick ends the process."""
        try:
            is_done = step()
            self._failures = 0
            return is_done
        except (ConfigError, HostError):
            raise
        except RemoteError as error:
            logger.warning("will try again: {}", error)
        except Exception:
            logger.exception("a tick failed; this is a bug, please report it")
        self._failures += 1
        self.stop.wait(min(self.config.poll_s * 2 ** min(self._failures, 10), MAX_REST_S))
        return False

    @property
    def eval_config(self) -> EvalConfig:
        """The contest that scores count in, known once a worker holds the model."""
        if self.evaluator is None:
            raise RuntimeError("no worker holds the model yet")
        return self.evaluator.eval_config

    def tick(self) -> bool:
        """One bounded step. Returns True when nothing more is to be done, ever."""
        view = self._read_view()
        self._admit(view)
        self._record_submissions(view)
        state = self._load_state(view)
        action = self._decide(state, view)
        logger.debug("block={} action={}", view.block, action)
        try:
            return self._perform(action, state, view)
        finally:
            self._reporter.tell(action, state, view)

    def _read_view(self) -> ChainView:
        try:
            return self._chain.view()
        except ConfigError as error:
            if not self._is_admitted:
                raise
            # The settings were right before, so it is the node that is not.
            raise RemoteError(f"the chain's answer makes no sense: {error}") from error

    def _admit(self, view: ChainView) -> None:
        """Raises: ConfigError when, at the start, the hotkey to set weights has no uid or the state is foreign."""
        if not self._is_admitted:
            self._opener.check_chain(view)
        if not (self._is_admitted or self.config.is_offline or self._chain.hotkey in view.by_hotkey):
            raise ConfigError(
                f"the hotkey {self._chain.hotkey} is not on netuid {view.netuid}: register it, or use --offline"
            )
        self._is_admitted = True

    def _decide(self, state: State, view: ChainView) -> Action:
        """What to do next. Until a worker holds the model there is one thing only that the chain must not wait for."""
        if self.evaluator is None:
            if (repeat := schedule.keep_alive(state, view, self.config.policy)) is not None:
                return repeat
            return schedule.Wait("ready to score" if self._prepare(view) else "a worker loads the model")
        return schedule.decide(state, view, self._now(), self.config.policy)

    def _prepare(self, view: ChainView) -> bool:
        """A step towards scoring; True when everything is there.

        Raises: ConfigError when the operator has to act; RemoteError; HostError when no worker can be had.
        """
        config = self.config
        if self._pool is None:
            self._pool = read_eval_set_index(
                fetch_eval_set(config.competition, config.eval_data_dir, config.cache_dir, config.hub_token)
            )
        model = self._executor.start()
        if model is None:
            return False
        self._open_eval_config(model, self._pool)
        logger.info(
            "validator starts netuid={} block={} competition={} eval_rows={} near_duplicate_rows={} model={}",
            view.netuid, view.block, config.competition.id, len(self._pool), self._pool.near_duplicate_count, model,
        )  # fmt: skip
        return True

    def _open_eval_config(self, model: str, pool: EvalSetIndex) -> None:
        digest = self._executor.training_args.hyperparameters.digest
        period = self.config.seed_period
        self._refuse_lost_gpu(model)
        # Losses under seeds from the chain are compared with none under other seeds, nor of another period.
        name = model if period is None else f"{model} seeds from every {period} blocks"
        eval_config = self._store.get_or_create_config(self.config.competition, digest, name, self._now())
        self._model = model
        self.evaluator = SubmissionEvaluator(
            self.config, eval_config, pool,
            chain=self._chain, store=self._store, executor=self._executor, fetcher=self._fetcher, now=self._now,
        )  # fmt: skip
        self._copies_of = None
        self._seen = self._read_seen(self._seen)

    def _refuse_lost_gpu(self, model: str) -> None:
        """Raises: HostError when scores ran on a GPU before, none is found now, and nobody asked for another device."""
        before = self._store.last_model()
        is_lost = before is not None and _device_of(before) == "cuda" and _device_of(model) != "cuda"
        if is_lost and not self.config.is_device_chosen:
            raise HostError("scores ran on a GPU before, and none is found; --device cpu goes on without one")

    def _record_submissions(self, view: ChainView) -> None:
        """Records what is committed, unless it is what this process recorded last."""
        births = {neuron.hotkey: neuron.registration_block for neuron in view.neurons}
        unknown = missing_commit_blocks(view, self._openings)
        if unknown:
            self._openings = {**self._openings, **self._find_commit_blocks(unknown, view)}
        if (view.commitments, births, self._openings) == self._recorded:
            return
        now = current_submissions(view, self._openings)
        self._store.record_submissions(now, births)
        self._seen = self._read_seen(submission.key for submission in now)
        self._recorded = (view.commitments, births, self._openings)

    def _read_seen(self, keys: Iterable[SubmissionKey]) -> Mapping[SubmissionKey, Submission]:
        """What was recorded of these submissions and of the datasets that are known: of all that anything rests on."""
        return self._store.submissions({*keys, *(self.evaluator.datasets if self.evaluator else ())})

    def _find_commit_blocks(self, unknown: Mapping[str, int], view: ChainView) -> dict[tuple[str, int], int]:
        """Where these commitments were made, by hotkey and the block at which the chain opened them.

        The chain's state of the block before tells it, to everybody alike. Where no node has that state any more, they
        count from their opening, until this process ends; while it may yet be had, they are left out.
        """
        try:
            found = self._chain.commit_blocks_of_revealed(unknown)
        except RemoteError as error:
            logger.warning("where {} opened commitments were made is not known: {}", len(unknown), error)
            late = view.block - OPENING_PATIENCE_BLOCKS
            return {(hotkey, block): block for hotkey, block in unknown.items() if block < late}
        commit_blocks = {(hotkey, block): found.get(hotkey, block) for hotkey, block in unknown.items()}
        self._store.record_commit_blocks(commit_blocks)
        return commit_blocks

    def _load_state(self, view: ChainView) -> State:
        """Everything the decision rests on; results of the workers are recorded first, so that they count in it."""
        store, judge = self._store, self.evaluator
        if judge is not None:
            self._tend_workers(judge)
        current = store.open_round(judge.eval_config) if judge else None
        if judge is not None:
            judge.collect_downloads(current)
        round_id = current.id if current else store.last_round_id()
        intents = store.intents(round_id) if round_id is not None else []
        entries = current.by_key if current else {}
        if judge is not None and current is None:
            now = self._now()
            store.expire_rejections(
                judge.eval_config, MISSING, before=now - MISSING_AGAIN_S, after=now + MISSING_AGAIN_S
            )
        return State(
            hotkey="" if self.config.is_offline else self._chain.hotkey,
            round=current,
            rounds_done=self.rounds_done,
            datasets=judge.datasets if judge else {},
            verdicts=store.verdicts(judge.eval_config) if judge else {},
            duplicates=self._find_duplicates(judge, entries) if judge else {},
            possible_duplicates=self._doubts,
            retry_states=judge.retry_states() if judge else {},
            intents=[intent for intent in intents if not intent.is_repeat],
            repeats=[intent for intent in intents if intent.is_repeat],
            pending_intents=store.pending_intents(),
            has_leaderboard=current is not None and store.has_leaderboard(current.id),
            has_last_shares=store.last_accepted() is not None,
            last_start_block=store.last_start_block(judge.eval_config) if judge else None,
            running=frozenset(one.key for one in self._executor.running()),
            idle_workers=self._executor.idle_workers(),
            downloading=self._fetcher.in_flight(),
            available_slots=judge.available_slots() if judge else 0,
            missing_files=frozenset(judge.missing_files) if judge else frozenset(),
        )

    def _tend_workers(self, judge: SubmissionEvaluator) -> None:
        """Records what is finished and has lost workers replaced. A worker that cannot be had is no end of the loop."""
        judge.collect_results()
        try:
            model = self._executor.start()
        except (RemoteError, HostError) as error:
            logger.error("no worker: {}", error)
            return
        if model is not None and model != self._model and self._pool is not None:
            logger.warning("the model is another now, so all is scored anew: {}", model)
            self._open_eval_config(model, self._pool)

    def _find_duplicates(
        self, judge: SubmissionEvaluator, entries: Mapping[SubmissionKey, Entry]
    ) -> Mapping[SubmissionKey, Duplicate]:
        """The copies, found anew only when something that decides them changed since the last tick: a loss does not."""
        known = duplicates.eligible_datasets(judge.datasets, self._store.verdicts(judge.eval_config))
        blocks = {key: self._seen[key].first_block if key in self._seen else None for key in known}
        decisive = (judge.eval_config, entries, blocks)
        if decisive != self._copies_of:
            self._copies = duplicates.find_duplicates(entries, self._seen, known)
            self._doubts = duplicates.find_possible_duplicates(entries, self._seen, known)
            self._copies_of = decisive
        return self._copies

    def _perform(self, action: Action, state: State, view: ChainView) -> bool:
        """Does the one thing; True when nothing more is to be done."""
        current = state.round
        match action:
            case schedule.OpenRound(start_block, end_block):
                return self._open_round(view, start_block, end_block) or self.stop.is_set()
            case schedule.FetchDatasets(keys):
                assert self.evaluator is not None
                for key in keys:
                    self.evaluator.start_download(key, view.block, state.retry_states.get(key))
            case schedule.EvaluateDataset(key):
                assert current is not None and self.evaluator is not None
                entry = current.by_key[key]
                assert entry.lucky_num is not None, "whoever is in the queue has a seed"
                self.evaluator.start_evaluation(key, entry.lucky_num)
            case schedule.SetWeights():
                assert current is not None
                self._scale.set_weights(self.eval_config, current, state, view)
            case schedule.ResubmitWeights():
                self._scale.resubmit_weights(self._store.last_round_id() or 0, view)
            case schedule.ResolveIntent(intent_id, is_accepted):
                self._scale.settle(intent_id, is_accepted=is_accepted)
            case schedule.CloseRound(is_settled):
                assert current is not None and self.evaluator is not None
                self._close_round(self.evaluator, current, state, is_settled=is_settled)
            case schedule.Wait(why):
                logger.debug("waiting: {}", why)
                self._idle()
            case schedule.Stop():
                return True
        return self.stop.is_set()

    def _idle(self) -> None:
        """Rests until there is something to collect, or the time of another look at the chain has come."""
        if self._fetcher.in_flight():
            # Workers and signals are looked at in between.
            self._fetcher.wait(min(self.config.poll_s, GLANCE_S))
        elif self.evaluator is None or self._executor.running() or not self._executor.idle_workers():
            self._executor.wait(self.config.poll_s)
        else:
            self.stop.wait(self.config.poll_s)

    def _open_round(self, view: ChainView, start_block: int, end_block: int) -> bool:
        """Fixes the round's snapshot, queue and seeds; True when a new release was installed instead."""
        # Whatever the clock does, it is looked for within an hour.
        if self._update is not None and not 0.0 < self._update_at - self._now() <= UPDATE_EVERY_S:
            if self._executor.running():
                self._idle()
                return False
            self._update_at = self._now() + UPDATE_EVERY_S
            self.is_updated = self._update()
            if self.is_updated:
                return True
        assert self.evaluator is not None
        snapshot = view if start_block == view.block else self._chain.view(start_block)
        self._record_submissions(snapshot)
        if missing_commit_blocks(snapshot, self._openings):
            raise RemoteError("no round can open: it is not known where some opened commitments were made")
        # With the ranks that were lost since by files that were not there.
        self._seen = self._read_seen(self._seen)
        running = frozenset(one.key for one in self._executor.running())
        self._opener.open(
            self.evaluator, snapshot, running, self._seen, self._openings, opened_block=view.block, end_block=end_block
        )
        return False

    def _close_round(self, judge: SubmissionEvaluator, current: Round, state: State, *, is_settled: bool) -> None:
        """Publishes the round, closes it and tidies up; in this order, so that a crash in between repeats it."""
        self._reporter.publish_round(judge.eval_config, current, self._model or "")
        self._store.close_round(current.id, self._now())
        self.rounds_done += 1
        errors = [intent.outcome.error for intent in state.intents if intent.outcome]
        if is_settled:
            logger.info("round {} closes", current.id)
        elif errors and errors[-1] == NOTHING_SCORED:
            logger.warning("round {} closes without weights: nothing is scored yet", current.id)
        else:
            logger.error("round {} closes without weights on chain: {}", current.id, errors[-1:])
        self._housekeeper.tidy(judge, current, self._seen)
        self._openings = prune_commit_blocks(self._openings, before_block=oldest_remembered_block(current))


def _device_of(model: str) -> str:
    """The kind of device in a model's name, see `template.workers.executor.Evaluator.load_model`."""
    return model.split(" ")[1] if " " in model else ""
