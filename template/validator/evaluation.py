"""Finding the verdict on each submission: fetched by threads, checked here, scored in the executor's workers.

Whose fault a failure is decides what becomes of it: the miner's is a verdict, the network's is tried again, this
machine's is tried again twice and then parked for the operator to see. Nothing else ever becomes a verdict.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from loguru import logger

from template import constants
from template.chain.protocols import ValidatorChain
from template.competition import CommitmentRecord
from template.data.eval_set import EvalSetIndex
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.hub import datasets
from template.receipts.files import write_receipt
from template.receipts.receipt import EvaluatedSubmission, Receipt
from template.records import Entry, EvalConfig, RetryState, Round, SubmissionKey, TrainResult, Verdict
from template.rules import schedule
from template.rules.entries import is_within_upload_grace
from template.store.store import Store
from template.validator.config import ValidatorConfig
from template.validator.downloads import Downloader, DownloadResult
from template.workers.executor import CompletedJob, Executor

# Seconds before the first retry of a submission that the Hub or the chain withheld; doubled each time, up to the most.
RETRY_FIRST_S = 30.0
RETRY_MOST_S = 1800.0

# Seconds that a first download may take; doubled with each failure, up to `constants.DOWNLOAD_DEADLINE_S`. What hangs
# is out of the others' way soon, and what is slow has all its time in the end.
PATIENCE_FIRST_S = 30.0

# Longest pause of all downloads that the Hub can ask for: it counts requests in windows of five minutes.
PAUSE_MOST_S = 300.0

# Seconds that a submission rests which this machine failed at again and again.
PARKED_S = 6 * 3600.0

# Not there for everyone to read, which the miner may yet mend.
MISSING = (Reason.MISSING_REPO, Reason.MISSING_FILE)

_KEY_BYTES = 32


class SubmissionEvaluator:
    """The verdicts of one contest. `datasets`: the row keys of every dataset that passed its checks.

    missing_files: those among them whose file was not on the disk any more when it was to be scored.
    """

    def __init__(
        self,
        config: ValidatorConfig,
        eval_config: EvalConfig,
        pool: EvalSetIndex,
        *,
        chain: ValidatorChain,
        store: Store,
        executor: Executor,
        fetcher: Downloader,
        now: Callable[[], float],
    ) -> None:
        self.eval_config = eval_config
        self.datasets = store.datasets(eval_config, _KEY_BYTES, pool.dedup_keys)
        self._config = config
        self._pool = pool
        self._chain = chain
        self._store = store
        self._executor = executor
        self._fetcher = fetcher
        self._now = now
        self.missing_files: set[SubmissionKey] = set()
        self._paused_until = float("-inf")
        # sha256 of the file that each running score was given.
        self._given: dict[SubmissionKey, str] = {}

    def available_slots(self) -> int:
        """How many more downloads may begin now: none while the Hub asked for a pause."""
        # No pause is longer: what seems to be was begun under a clock that was ahead.
        is_paused = 0.0 < self._paused_until - self._now() <= PAUSE_MOST_S
        return 0 if is_paused else self._fetcher.available_slots()

    def retry_states(self) -> dict[SubmissionKey, RetryState]:
        """Failed tries of submissions that have no verdict yet.

        One that is put off for longer than any ever is was put off while the clock was ahead, and is due now.
        """
        now = self._now()
        return {
            key: dataclasses.replace(one, next_at=now) if one.next_at - now > _longest_rest_s(one) else one
            for key, one in self._store.retry_states(self.eval_config).items()
        }

    def start_download(self, key: SubmissionKey, block: int, attempt: RetryState | None) -> None:
        """Begins the download of one dataset. block: the newest one. attempt: earlier tries. Raises: HostError."""
        failures = attempt.remote_failures if attempt else 0
        patience_s = min(PATIENCE_FIRST_S * 2.0 ** min(failures, 10), constants.DOWNLOAD_DEADLINE_S)
        self._fetcher.start(key, self.folder(key), block, patience_s)

    def collect_downloads(self, current: Round | None) -> None:
        """Checks what was downloaded since the last call, for the round that is open.

        What no open round waits for is dropped: a file stays where it is, and whoever's turn comes is looked for again.
        Raises: ConfigError, HostError.
        """
        ended = self._fetcher.collect()
        if not ended:
            return
        for one in ended:
            if isinstance(one.error, RemoteError):
                self._pause(one.error)
        queue = frozenset(current.queue) if current else frozenset()
        entries = {entry.key: entry for entry in current.entries} if current else {}
        attempts, verdicts = self._store.retry_states(self.eval_config), self._store.verdicts(self.eval_config)
        for one in ended:
            verdict = verdicts.get(one.key)
            is_refused = verdict is not None and verdict.reason is not None
            is_unread = one.key not in self.datasets or one.key in self.missing_files
            if one.key in queue and is_unread and not is_refused:
                attempt = attempts.get(one.key, RetryState())
                self._check(entries[one.key], one, attempt, is_judged=verdict is not None)

    def _pause(self, error: RemoteError) -> None:
        """A wait that the Hub asks for is one for all: it counts requests by who makes them."""
        pause_s = min(error.retry_after_s or 0.0, PAUSE_MOST_S)
        is_ahead = self._paused_until - self._now() > PAUSE_MOST_S
        self._paused_until = max(float("-inf") if is_ahead else self._paused_until, self._now() + pause_s)

    def _check(self, entry: Entry, fetched: DownloadResult, attempt: RetryState, *, is_judged: bool) -> None:
        """Takes in the end of a download. is_judged: it has a loss already and only its rows are to be known again."""
        key = entry.key
        try:
            held = fetched.result()
            max_rows = self._config.competition.rows
            row_keys = self._pool.check(held.path.read_bytes(), name=constants.DATA_FILE, max_rows=max_rows)
        except SubmissionError as error:
            self._reject(entry, fetched.block, attempt, error, is_judged=is_judged)
        except RemoteError as error:
            self._postpone(key, attempt, error)
        except (ConfigError, HostError):
            raise  # a disk or a token that fails while fetching has nothing to do with this submission
        except OSError as error:
            raise HostError(f"a dataset cannot be read: {error}") from error
        except Exception as error:
            self._blame_host(key, attempt, error)
            raise
        else:
            if key not in self.datasets:
                self._admit(entry, held, row_keys)
            self.missing_files.discard(key)

    def _reject(
        self, entry: Entry, block: int, attempt: RetryState, error: SubmissionError, *, is_judged: bool
    ) -> None:
        """What the miner is to blame for, unless it may yet be mended. block: the newest when it was asked for."""
        key = entry.key
        record = CommitmentRecord.parse(key.commitment)
        may_come = not is_judged and is_within_upload_grace(
            record, error.reason, reveal_block=entry.reveal_block, block=block
        )
        if error.reason in MISSING and not may_come:
            self._store.record_missing_file(key, block)
        if is_judged or may_come:
            self._postpone(key, attempt, RemoteError(str(error)))
        else:
            self._refuse(key, error)

    def _admit(self, entry: Entry, held: datasets.HubFile, row_keys: tuple[bytes, ...]) -> None:
        key = entry.key
        # One that was not there before keeps the rank that it has in this round, the last.
        self._store.record_missing_file(key, entry.rank_block - 1, is_found=True)
        self._store.record_dataset(self.eval_config, key, sha256=held.sha256, row_keys=row_keys, now=self._now())
        self.datasets[key] = row_keys
        logger.info("checked hotkey={} entry={} rows={}", key.hotkey, key.commitment, len(row_keys))

    def start_evaluation(self, key: SubmissionKey, lucky_num: int) -> None:
        """Submit one dataset to a worker, or add it to `missing_files` when its file is gone from the disk."""
        record = CommitmentRecord.parse(key.commitment)
        held = datasets.find_dataset(record.namespace, record.commit, self.folder(key))
        if held is None:
            self.missing_files.add(key)
            return
        logger.info("scoring hotkey={} entry={} lucky_num={}", key.hotkey, key.commitment, lucky_num)
        self._given[key] = held.sha256
        self._executor.submit(key, held.path.parent, lucky_num)

    def in_flight(self) -> frozenset[SubmissionKey]:
        """Whose files are in use: what a worker was given and has not answered for, and what is being downloaded."""
        return self._fetcher.in_flight().union(self._given)

    def collect_results(self) -> None:
        """Records what the workers have finished. Raises: ConfigError when they cannot score anything as things are."""
        finished = self._executor.collect()
        attempts = self._store.retry_states(self.eval_config) if finished else {}
        for one in finished:
            self._record(one, attempts.get(one.key, RetryState()))

    def _record(self, finished: CompletedJob, attempt: RetryState) -> None:
        key, error, result = finished.key, finished.error, finished.result
        given = self._given.pop(key, None)
        if result is not None and given != result.train_sha256:
            error = HostError(f"{constants.DATA_FILE} changed while it was scored; is another process writing there?")
        if isinstance(error, ConfigError):
            raise error
        if isinstance(error, SubmissionError):
            self._refuse(key, error)
        elif isinstance(error, RemoteError):
            self._postpone(key, attempt, error)
        elif error is not None:
            self._blame_host(key, attempt, error)
        elif result is not None:
            self._accept(key, result)

    def _accept(self, key: SubmissionKey, result: TrainResult) -> None:
        receipt = self._make_receipt(key, result)
        seconds = result.train_seconds + result.eval_seconds
        verdict = Verdict(loss=result.loss, seconds=seconds, receipt=receipt.to_json())
        self._store.record_verdict(self.eval_config, key, verdict, self._now())
        logger.info("scored hotkey={} loss={:.6f} seconds={:.1f}", key.hotkey, result.loss, seconds)
        self._remove(key)

    def _refuse(self, key: SubmissionKey, error: SubmissionError) -> None:
        logger.info("refused hotkey={} entry={} reason={}: {}", key.hotkey, key.commitment, error.reason, error)
        verdict = Verdict(reason=error.reason, message=str(error))
        self._store.record_verdict(self.eval_config, key, verdict, self._now())
        self._remove(key)

    def _postpone(self, key: SubmissionKey, before: RetryState, error: RemoteError) -> None:
        """Not known yet: tried again later, for as long as it takes."""
        pause = RETRY_FIRST_S * 2.0 ** min(before.remote_failures, 10)
        pause = min(max(pause, error.retry_after_s or 0.0), RETRY_MOST_S)
        logger.warning("pending hotkey={} entry={} retry_in_s={:.0f}: {}", key.hotkey, key.commitment, pause, error)
        after = RetryState(before.remote_failures + 1, before.host_failures, self._now() + pause, str(error))
        self._store.record_retry_state(self.eval_config, key, after)

    def _blame_host(self, key: SubmissionKey, before: RetryState, error: Exception) -> None:
        """Ours, whatever it is. Counted, so that one submission that breaks us does not stop all the others."""
        failures = before.host_failures + 1
        is_parked = failures >= schedule.MAX_HOST_FAILURES
        after = RetryState(before.remote_failures, failures, self._now() + (PARKED_S if is_parked else 0.0), str(error))
        self._store.record_retry_state(self.eval_config, key, after)
        what = f"parked for {PARKED_S / 3600:g} h" if is_parked else "to be tried again"
        logger.error("this machine failed hotkey={} entry={} failures={}, {}: {}", *key, failures, what, error)

    def folder(self, key: SubmissionKey) -> Path:
        """Where the submission's file is kept until there is a verdict: a folder of its own, never a uid's."""
        record = CommitmentRecord.parse(key.commitment)
        return self._config.data_dir / key.hotkey / f"{record.namespace.replace('/', '--')}-{record.commit}"

    def _remove(self, key: SubmissionKey) -> None:
        """Frees the disk of a file that is judged: what is still needed of it is in the state."""
        shutil.rmtree(self.folder(key), ignore_errors=True)

    def _make_receipt(self, key: SubmissionKey, result: TrainResult) -> Receipt:
        """The receipt, signed where there is a hotkey to sign with, and written beside the others when wanted."""
        record = CommitmentRecord.parse(key.commitment)
        receipt = Receipt(
            competition=self._config.competition,
            submission=EvaluatedSubmission(
                netuid=self._chain.netuid, hotkey=key.hotkey, repo=record.namespace, commit=record.commit
            ),
            result=result,
        )
        if not self._config.is_offline:
            receipt = receipt.signed(self._chain.hotkey, self._chain.sign)
        if self._config.receipt_dir is not None:
            write_receipt(receipt, self._config.receipt_dir)
        return receipt


def _longest_rest_s(attempt: RetryState) -> float:
    """Seconds after its last failure at which a submission is due at the latest."""
    # And a moment, since the sum of a time and a rest is rounded.
    return 1.0 + (PARKED_S if attempt.host_failures >= schedule.MAX_HOST_FAILURES else RETRY_MOST_S)
