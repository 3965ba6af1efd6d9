"""The validator: startup, tick, shutdown.

A tick reads one view of the chain, loads the state, decides (`template.schedule`), does one thing and records it, so
that killing the process anywhere loses at most the thing in hand. A signal sets a flag; training looks at it after
every step, a download ends by its deadline.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from loguru import logger

from template import constants, hub, schedule, standing
from template.admission import DuplicateOf
from template.competition import CommitmentRecord, Competition
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.pool import Pool, check_dataset, fetch_eval_set, read_pool
from template.receipt import Receipt, ScoredSubmission
from template.receipt_files import write_receipt
from template.records import ChainView, Progress, TrainResult, WeightOutcome
from template.schedule import Policy, State
from template.standing import Entrant
from template.state import Attempt, Contest, Round, Submission, SubmissionKey, Verdict
from template.store import Store
from template.workers import Scorer

# Seconds before the first retry of a submission that the Hub or the chain withheld; doubled each time, up to the most.
RETRY_FIRST_S = 30.0
RETRY_MOST_S = 1800.0

# Seconds that a submission rests which this machine failed at again and again.
PARKED_S = 6 * 3600.0

# Seconds between two lines about the progress of one score.
TELL_EVERY_S = 20.0

# Seconds after which a repo or file that was not there is looked for again: the miner may have made it public.
MISSING_AGAIN_S = 6 * 3600.0
_MISSING = (Reason.MISSING_REPO, Reason.MISSING_FILE)

_KEY_BYTES = 32
_FOLDER_PREFIX = "miner_"


class ChainSeam(Protocol):
    """What the validator asks of `template.chain.Chain`."""

    netuid: int

    @property
    def hotkey(self) -> str: ...
    def view(self) -> ChainView: ...
    def sign(self, message: bytes) -> str: ...
    def set_weights(self, weights: Mapping[int, float]) -> WeightOutcome: ...


class Stopping(Exception):
    """The operator asked to stop while something was under way; it is abandoned and nothing of it is recorded."""


@dataclass(frozen=True, kw_only=True)
class ValidatorConfig:
    """The operator's choices. poll_s: seconds between looks at the chain when there is nothing to do.

    lucky_num: None draws one per round. is_offline: the chain is read, never written, and the hotkey need not be
    registered.
    """

    competition: Competition
    policy: Policy
    data_dir: Path
    eval_data_dir: Path
    cache_dir: Path | None = None
    receipt_dir: Path | None = None
    is_offline: bool = False
    lucky_num: int | None = None
    poll_s: float = 6.0
    hub_token: str | None = field(default=None, repr=False)


class Validator:
    """One validator on one subnet. `now` is the clock, POSIX seconds; set `stop` to end it after the tick in hand."""

    def __init__(
        self,
        config: ValidatorConfig,
        chain: ChainSeam,
        store: Store,
        scorer: Scorer,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.stop = threading.Event()
        self.rounds_done = 0
        self._chain = chain
        self._store = store
        self._scorer = scorer
        self._now = now
        self._pool: Pool = frozenset()
        self._contest: Contest | None = None
        self._failures = 0
        self._told_at = now()
        # What the store and the last view imply, kept so that an idle tick costs little.
        self._recorded: object = None
        self._datasets: dict[SubmissionKey, tuple[bytes, ...]] = {}
        self._copies: Mapping[SubmissionKey, DuplicateOf] = {}
        self._copies_of: object = None

    def run(self) -> None:
        """Starts up and ticks until stopped or done. Raises: ConfigError, HostError; waits out everything else."""
        self._patiently(self.startup)
        while not self.stop.is_set() and not self._patiently(self.tick):
            pass
        logger.info("validator stops rounds_done={}", self.rounds_done)

    def _patiently(self, step: Callable[[], bool]) -> bool:
        """One step; what it returns, False when it is to be tried again. No failure of a tick ends the process."""
        try:
            is_done = step()
            self._failures = 0
            return is_done
        except Stopping:
            return True
        except (ConfigError, HostError):
            raise
        except RemoteError as error:
            logger.warning("will try again: {}", error)
        except Exception:
            logger.exception("a tick failed; this is a bug, please report it")
        self._failures += 1
        self.stop.wait(min(self.config.poll_s * 2 ** min(self._failures, 10), 300.0))
        return False

    def startup(self) -> bool:
        """Checks all that can be checked before the first tick, and loads the evaluation set and the model.

        Raises: ConfigError when the operator has to act; RemoteError when it may be tried again.
        """
        view = self._chain.view()
        if not self.config.is_offline and self._chain.hotkey not in view.by_hotkey:
            raise ConfigError(
                f"the hotkey {self._chain.hotkey} is not on netuid {view.netuid}: register it, or use --offline"
            )
        config = self.config
        self._pool = read_pool(
            fetch_eval_set(config.competition, config.eval_data_dir, config.cache_dir, config.hub_token)
        )
        model = self._scorer.load()
        training_args = self._scorer.training_args
        self._contest = self._store.open_contest(
            self.config.competition, training_args.hyperparameters.digest, model, self._now()
        )
        self._datasets = self._store.datasets(self._contest, _KEY_BYTES)
        logger.info(
            "validator starts netuid={} block={} competition={} pool_rows={} model={}",
            view.netuid, view.block, self.config.competition.id, len(self._pool), model,
        )  # fmt: skip
        return True

    @property
    def contest(self) -> Contest:
        """The contest that startup opened."""
        if self._contest is None:
            raise RuntimeError("startup has not run")
        return self._contest

    def tick(self) -> bool:
        """One bounded step. Returns True when nothing more is to be done, ever."""
        if self._contest is None and not self.startup():
            return False
        view = self._chain.view()
        self._record_submissions(view)
        state = self._load_state(view)
        action = schedule.decide(state, view, self._now(), self.config.policy)
        logger.debug("block={} action={}", view.block, action)
        return self._perform(action, state, view)

    def _record_submissions(self, view: ChainView) -> None:
        """Records what is committed, unless it is what this process recorded last."""
        births = {neuron.hotkey: neuron.registration_block for neuron in view.neurons}
        seen = standing.current_submissions(view)
        if (seen, births) != self._recorded:
            self._store.see_submissions(seen, births)
            self._recorded = (seen, births)

    def _load_state(self, view: ChainView) -> State:
        store, contest = self._store, self.contest
        seen = store.submissions()
        entrants = standing.find_entrants(view, seen, self.config.competition)
        current = store.open_round(contest)
        if current is None:
            store.forget_refusals(contest, _MISSING, before=self._now() - MISSING_AGAIN_S)
        return State(
            hotkey="" if self.config.is_offline else self._chain.hotkey,
            round=current,
            rounds_done=self.rounds_done,
            entrants=entrants,
            datasets=self._datasets,
            verdicts=store.verdicts(contest),
            copies=self._find_copies(entrants, seen),
            attempts=store.attempts(contest),
            intents=store.intents(current.id) if current else (),
            has_standings=bool(current and store.standings(current.id)),
        )

    def _find_copies(
        self, entrants: Mapping[SubmissionKey, Entrant], seen: Mapping[SubmissionKey, Submission]
    ) -> Mapping[SubmissionKey, DuplicateOf]:
        """The copies, found anew only when something that decides them changed since the last tick."""
        ranks = {key: (one.rank_block, one.registration_block, one.refusal is None) for key, one in entrants.items()}
        decisive = (ranks, seen, len(self._datasets))
        if decisive != self._copies_of:
            self._copies = standing.find_copies(entrants, seen, self._datasets)
            self._copies_of = decisive
        return self._copies

    def _perform(self, action: schedule.Action, state: State, view: ChainView) -> bool:
        match action:
            case schedule.OpenRound(end_block, entries):
                self._open_round(view, end_block, entries)
            case schedule.CheckDataset(key):
                self._attempt(key, state, lambda record: self._check(key, record))
            case schedule.ScoreDataset(key):
                self._attempt(key, state, lambda record: self._score(key, record, state))
            case schedule.SetWeights():
                self._set_weights(state, view)
            case schedule.SettleIntent(intent_id, is_accepted):
                error = None if is_accepted else "Lost"
                self._store.record_outcome(intent_id, WeightOutcome(is_accepted=is_accepted, error=error), self._now())
                logger.info("weights of an unknown fate settled accepted={}", is_accepted)
            case schedule.CloseRound(is_settled):
                self._close_round(state, is_settled)
                self._remove_folders(view)
            case schedule.Wait(why):
                logger.debug("waiting: {}", why)
                self.stop.wait(self.config.poll_s)
            case schedule.Stop():
                return True
        return self.stop.is_set()

    def _open_round(self, view: ChainView, end_block: int, entries: tuple[SubmissionKey, ...]) -> None:
        drawn = int.from_bytes(os.urandom(4), "little")
        opened = self._store.begin_round(
            self.contest,
            Round(
                start_block=view.block,
                start_block_hash=view.block_hash,
                end_block=end_block,
                lucky_num=drawn if self.config.lucky_num is None else self.config.lucky_num,
                entries=entries,
            ),
            self._now(),
        )
        logger.info(
            "round {} opens blocks={}..{} submissions={} lucky_num={}",
            opened.id, opened.start_block, opened.end_block, len(entries), opened.lucky_num,
        )  # fmt: skip

    def _close_round(self, state: State, is_settled: bool) -> None:
        assert state.round is not None
        self._store.close_round(state.round.id, self._now())
        self.rounds_done += 1
        if is_settled:
            logger.info("round {} closes", state.round.id)
        else:
            logger.error("round {} closes without weights on chain", state.round.id)

    def _remove_folders(self, view: ChainView) -> None:
        """Frees the disk of datasets whose hotkeys have left the subnet; the others hold one each."""
        for folder in self.config.data_dir.glob(f"{_FOLDER_PREFIX}*"):
            if folder.name.removeprefix(_FOLDER_PREFIX) not in view.by_hotkey:
                shutil.rmtree(folder, ignore_errors=True)

    def _attempt(self, key: SubmissionKey, state: State, work: Callable[[CommitmentRecord], Verdict | None]) -> None:
        """Does the work on one submission and records whose fault a failure is."""
        before = state.attempts.get(key, Attempt())
        record = CommitmentRecord.parse(key.entry)
        try:
            verdict = work(record)
        except SubmissionError as error:
            logger.info("refused hotkey={} entry={} reason={}: {}", key.hotkey, key.entry, error.reason, error)
            verdict = Verdict(reason=error.reason, message=str(error))
        except RemoteError as error:
            pause = RETRY_FIRST_S * 2.0 ** min(before.remote_failures, 10)
            pause = min(max(pause, error.retry_after_s or 0.0), RETRY_MOST_S)
            logger.warning("pending hotkey={} entry={} retry_in_s={:.0f}: {}", key.hotkey, key.entry, pause, error)
            self._record_failure(key, before, error, remote=1, next_at=self._now() + pause)
            return
        except (Stopping, ConfigError):
            raise
        except Exception as error:
            if isinstance(error, HostError) and key not in self._datasets:
                raise  # a disk or a token that fails while fetching has nothing to do with this submission
            # Ours, whatever it is. Counted, so that one submission that breaks us does not stop all the others.
            is_parked = before.host_failures + 1 >= schedule.MAX_HOST_FAILURES
            self._record_failure(key, before, error, host=1, next_at=self._now() + (PARKED_S if is_parked else 0.0))
            raise
        if verdict is not None:
            self._store.record_verdict(self.contest, key, verdict, self._now())

    def _record_failure(
        self, key: SubmissionKey, before: Attempt, error: Exception, *, next_at: float, remote: int = 0, host: int = 0
    ) -> None:
        failures = (before.remote_failures + remote, before.host_failures + host)
        self._store.record_attempt(self.contest, key, Attempt(*failures, next_at, str(error)))

    def _fetch(self, key: SubmissionKey, record: CommitmentRecord) -> hub.HubFile:
        """The submission's file in its hotkey's folder; from there without network when it was fetched before.

        Without our token, since a dataset that only some may read cannot be checked by all.
        """
        return hub.download_dataset(
            record.namespace,
            record.commit,
            self.config.data_dir / f"{_FOLDER_PREFIX}{key.hotkey}",
        )

    def _check(self, key: SubmissionKey, record: CommitmentRecord) -> None:
        held = self._fetch(key, record)
        max_rows = self.config.competition.rows
        rows = check_dataset(held.path.read_bytes(), self._pool, name=constants.DATA_FILE, max_rows=max_rows)
        row_keys = tuple(row.key for row in rows)
        self._store.record_dataset(self.contest, key, sha256=held.sha256, row_keys=row_keys, now=self._now())
        self._datasets[key] = row_keys
        logger.info("checked hotkey={} entry={} rows={}", key.hotkey, key.entry, len(rows))

    def _score(self, key: SubmissionKey, record: CommitmentRecord, state: State) -> Verdict:
        assert state.round is not None
        held = self._fetch(key, record)
        logger.info("scoring hotkey={} entry={}", key.hotkey, key.entry)
        result = self._scorer.score(held.path.parent, state.round.lucky_num, self._on_progress)
        if result.train_sha256 != held.sha256:
            raise HostError(f"{held.path} changed while it was scored; is another process writing there?")
        receipt = self._make_receipt(key, record, result)
        seconds = result.train_seconds + result.eval_seconds
        logger.info("scored hotkey={} loss={:.6f} seconds={:.1f}", key.hotkey, result.loss, seconds)
        return Verdict(loss=result.loss, seconds=seconds, receipt=receipt.to_json())

    def _on_progress(self, progress: Progress) -> None:
        if self._now() >= self._told_at + TELL_EVERY_S:
            self._told_at = self._now()
            logger.info("{} {:.0%} of {} tokens", progress.stage, progress.done / progress.total, progress.total)
        if self.stop.is_set():
            raise Stopping

    def _make_receipt(self, key: SubmissionKey, record: CommitmentRecord, result: TrainResult) -> Receipt:
        """The receipt, signed where there is a hotkey to sign with, and written beside the others when wanted."""
        receipt = Receipt(
            competition=self.config.competition,
            submission=ScoredSubmission(
                netuid=self._chain.netuid, hotkey=key.hotkey, repo=record.namespace, commit=record.commit
            ),
            result=result,
        )
        if not self.config.is_offline:
            receipt = receipt.signed(self._chain.hotkey, self._chain.sign)
        if self.config.receipt_dir is not None:
            write_receipt(receipt, self.config.receipt_dir)
        return receipt

    def _set_weights(self, state: State, view: ChainView) -> None:
        """Makes the round's table and submits its weights; intent first, outcome after."""
        assert state.round is not None
        lines, weights = standing.make_standings(
            view, self.config.competition, state.entrants, state.verdicts, state.copies
        )
        for line in lines:
            logger.info(
                "standing hotkey={} uid={} reason={} loss={} score={:.6f} weight={:.6f} {}",
                line.key.hotkey, line.uid, line.reason, line.loss, line.score, line.weight, line.message,
            )  # fmt: skip
        if not self.config.policy.sets_weights:
            self._store.record_standings(state.round.id, lines)
            return
        intent_id = self._store.record_intent(
            state.round.id, block=view.block, weights=weights or {}, standings=lines, now=self._now()
        )
        if weights is None:
            message = f"nobody has a score, and the subnet owner {view.owner_hotkey} has no uid to burn to"
            logger.error("no weights set: {}", message)
            outcome = WeightOutcome(is_accepted=False, error="NoOwnerUid", message=message)
        else:
            outcome = self._chain.set_weights(weights)
        self._store.record_outcome(intent_id, outcome, self._now())
        if outcome.is_accepted:
            logger.info("weights set block={} weights={}", outcome.block, weights)
        else:
            logger.warning("weights refused error={}: {}", outcome.error, outcome.message)
