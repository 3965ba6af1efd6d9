"""Download, check and evaluate submissions.

The cause of a failure decides the response. A fault of the miner is a verdict. A fault of the network is retried. A
fault of this machine is retried twice; then the submission is suspended, and the operator sees it in `status`.
"""

import dataclasses
import shutil
from pathlib import Path

from loguru import logger

from template import constants
from template.data.eval_set import EvalSetIndex
from template.errors import ConfigError, HostError, RemoteError, SubmissionError
from template.files import OutputFile
from template.hub import datasets
from template.hub.storage import HubFile
from template.receipts.files import receipt_file
from template.receipts.receipt import EvaluatedSubmission, Receipt
from template.records import (
    Dataset,
    Entry,
    EvalConfig,
    EvaluationResult,
    RetryState,
    Round,
    RoundEvaluation,
    SubmissionKey,
    TrainResult,
    Verdict,
)
from template.rules import schedule
from template.rules.entries import MISSING, is_within_upload_grace
from template.validator.context import Context
from template.validator.downloads import DownloadResult, dataset_folder
from template.workers.executor import CompletedJob

# Backoff after a fault of the network, doubled with each failure in a row.
RETRY_FIRST_S = 30.0
RETRY_MOST_S = 1800.0

# Timeout of a first download, doubled with each failure up to `constants.DOWNLOAD_DEADLINE_S`: a download that hangs
# frees its slot soon, and a slow one gets its full time in the end.
TIMEOUT_FIRST_S = 30.0

# Longest pause of all downloads that the Hub can ask for: it counts requests in windows of five minutes.
PAUSE_MOST_S = 300.0

# Time for which a submission is suspended after repeated faults of this machine.
SUSPENDED_S = 6 * 3600.0

_KEY_BYTES = 32


@dataclasses.dataclass(frozen=True)
class _Running:
    """An evaluation that a worker runs.

    sha256: of the file that was submitted to the worker.
    """

    entry: Entry
    evaluation: RoundEvaluation
    folder: Path
    sha256: str


class SubmissionEvaluator:
    """Downloads, checks and evaluates the submissions of one evaluation config.

    datasets: every checked dataset of the competition. losses: of each dataset, by number. confirmed: datasets in the
    ledger. missing_files: datasets whose file was gone when its evaluation was due. block_hashes: of the blocks
    read so far.
    """

    def __init__(self, context: Context, eval_config: EvalConfig, eval_set: EvalSetIndex) -> None:
        self.eval_config = eval_config
        self.datasets = context.store.datasets(context.config.competition, _KEY_BYTES, eval_set.dedup_keys)
        self.losses = context.store.losses(eval_config)
        self.confirmed = context.store.confirmed(eval_config, _KEY_BYTES)
        self.missing_files: set[SubmissionKey] = set()
        self.block_hashes = context.store.block_hashes()
        self._context = context
        self._config = context.config
        self._store = context.store
        self._downloader = context.downloader
        self._now = context.now
        self._eval_set = eval_set
        self._paused_until = float("-inf")
        self._running: dict[SubmissionKey, _Running] = {}

    def available_slots(self) -> int:
        """Return how many downloads can start now: 0 during a pause by the Hub."""
        # A longer pause was set by a clock that ran ahead.
        is_paused = 0.0 < self._paused_until - self._now() <= PAUSE_MOST_S
        return 0 if is_paused else self._downloader.available_slots()

    def retry_states(self) -> dict[SubmissionKey, RetryState]:
        """Return the failures of submissions without a verdict.

        A retry later than any backoff was set by a clock that ran ahead, and is due now.
        """
        now = self._now()
        return {
            key: dataclasses.replace(retry, next_at=now) if retry.next_at - now > _longest_backoff_s(retry) else retry
            for key, retry in self._store.retry_states(self.eval_config).items()
        }

    def folders_in_use(self) -> set[Path]:
        """Return the folders of running evaluations and downloads."""
        return {*self._downloader.in_flight().values(), *(running.folder for running in self._running.values())}

    def start_download(self, entry: Entry, block: int, retry: RetryState | None) -> None:
        """Start to download an entry's dataset. Raises: HostError."""
        failures = retry.remote_failures if retry else 0
        timeout_s = min(TIMEOUT_FIRST_S * 2.0 ** min(failures, 10), constants.DOWNLOAD_DEADLINE_S)
        self._downloader.start(entry, self._folder(entry), block, timeout_s)

    def collect_downloads(self, current: Round | None) -> None:
        """Check the datasets downloaded since the last call.

        Results that the open round does not wait for are dropped. Their files stay on disk for a later round.
        """
        results = self._downloader.collect()
        if not results:
            return
        for result in results:
            if isinstance(result.error, RemoteError):
                self.pause_downloads(result.error)
        queue = frozenset(current.queue) if current else frozenset()
        retry_states, verdicts = self._store.retry_states(self.eval_config), self._store.verdicts(self.eval_config)
        for result in results:
            key = result.key
            is_wanted = key in self.missing_files or (key in queue and key not in self.datasets)
            if current is not None and key in current.by_key and is_wanted and key not in verdicts:
                self._check(current, current.by_key[key], result, retry_states.get(key, RetryState()))

    def pause_downloads(self, error: RemoteError) -> None:
        """Pause all downloads and lookups if the Hub asks for it.

        The Hub limits requests by client.
        """
        pause_s = min(error.retry_after_s or 0.0, PAUSE_MOST_S)
        is_ahead = self._paused_until - self._now() > PAUSE_MOST_S
        self._paused_until = max(float("-inf") if is_ahead else self._paused_until, self._now() + pause_s)

    def _check(self, current: Round, entry: Entry, download: DownloadResult, retry: RetryState) -> None:
        """Record the end of a download."""
        key = entry.key
        try:
            file = download.result()
            max_rows = self._config.competition.rows
            dataset = self._eval_set.check(file.path.read_bytes(), name=constants.DATA_FILE, max_rows=max_rows)
        except SubmissionError as error:
            self._reject_download(current, entry, download.block, retry, error)
        except RemoteError as error:
            self._schedule_retry(key, retry, error)
        except (ConfigError, HostError):
            raise  # A full disk or a bad token would fail every download.
        except OSError as error:
            raise HostError(f"cannot read the dataset of {key.hotkey}: {error}") from error
        except Exception as error:
            self._record_host_failure(key, retry, error)
            raise
        else:
            if key not in self.datasets:
                self._accept_dataset(entry, file, dataset)
            self.missing_files.discard(key)

    def _reject_download(
        self, current: Round, entry: Entry, block: int, retry: RetryState, error: SubmissionError
    ) -> None:
        """Reject a dataset, or retry while its file may come.

        A miner can still upload it or make it public.
        """
        may_come = entry.key in self.datasets or is_within_upload_grace(
            entry.accepted_record, error.reason, reveal_block=entry.reveal_block, block=block
        )
        if error.reason in MISSING and may_come:
            self._schedule_retry(entry.key, retry, RemoteError(str(error)))
            return
        if error.reason in MISSING:
            self._store.record_missing_file(entry.key, current.start_block)
        self._reject(entry, error)

    def _accept_dataset(self, entry: Entry, file: HubFile, dataset: Dataset) -> None:
        key = entry.key
        self._store.record_dataset(self._config.competition, key, sha256=file.sha256, dataset=dataset, now=self._now())
        self.datasets[key] = dataset
        logger.debug("checked hotkey={} commitment={} rows={}", *key, len(dataset.row_keys))

    def start_evaluation(self, entry: Entry, evaluation: RoundEvaluation) -> None:
        """Submit a dataset to a worker, or schedule another download if its file is gone."""
        record, folder = entry.accepted_record, self._folder(entry)
        file = datasets.find_dataset(record.namespace, record.commit, folder)
        if file is None:
            self.missing_files.add(entry.key)
            return
        logger.info(
            "evaluating hotkey={} commitment={} number={} lucky_num={}",
            *entry.key, evaluation.number, evaluation.lucky_num,
        )  # fmt: skip
        self._running[entry.key] = _Running(entry, evaluation, folder, file.sha256)
        self._context.executor.submit(entry.key, file.path.parent, evaluation.lucky_num)

    def collect_results(self) -> None:
        """Record finished evaluations. Raises: ConfigError when none can succeed."""
        jobs = self._context.executor.collect()
        retry_states = self._store.retry_states(self.eval_config) if jobs else {}
        for job in jobs:
            self._record(job, retry_states.get(job.key, RetryState()))

    def _record(self, job: CompletedJob, retry: RetryState) -> None:
        error, result = job.error, job.result
        running = self._running.pop(job.key, None)
        if isinstance(error, ConfigError):
            raise error
        if running is None:
            return  # It was started under another config, whose losses do not count here.
        if result is not None and running.sha256 != result.train_sha256:
            error = HostError(f"{constants.DATA_FILE} changed during its evaluation; does another process write there?")
        if isinstance(error, SubmissionError):
            self._reject(running.entry, error)
        elif isinstance(error, RemoteError):
            self._schedule_retry(job.key, retry, error)
        elif error is not None:
            self._record_host_failure(job.key, retry, error)
        elif result is not None:
            self._accept(running.entry, running.evaluation, result)

    def _accept(self, entry: Entry, evaluation: RoundEvaluation, result: TrainResult) -> None:
        receipt = self._make_receipt(entry, result)
        recorded = EvaluationResult(
            loss=result.loss,
            seconds=result.train_seconds + result.eval_seconds,
            receipt=receipt.to_json(),
            receipt_digest=receipt.digest,
        )
        self.record(evaluation, recorded, receipt_file(receipt) if self._config.receipt_dir else None)
        self._context.outputs.write()
        logger.info(
            "evaluated hotkey={} number={} loss={:.6f} seconds={:.1f}",
            entry.key.hotkey, evaluation.number, result.loss, recorded.seconds,
        )  # fmt: skip

    def record(
        self, evaluation: RoundEvaluation, result: EvaluationResult, receipt_file: OutputFile | None = None
    ) -> None:
        """Record the loss of an evaluation: the next of its dataset."""
        self._store.record_evaluation(self.eval_config, evaluation, result, self._now(), receipt_file=receipt_file)
        self.losses.setdefault(evaluation.content, []).append(result.loss)

    def _reject(self, entry: Entry, error: SubmissionError) -> None:
        logger.debug("rejected hotkey={} commitment={} reason={}: {}", *entry.key, error.reason, error)
        verdict = Verdict(reason=error.reason, message=str(error))
        self._store.record_rejection(self.eval_config, entry.key, verdict, self._now())
        shutil.rmtree(self._folder(entry), ignore_errors=True)

    def _schedule_retry(self, key: SubmissionKey, before: RetryState, error: RemoteError) -> None:
        backoff_s = RETRY_FIRST_S * 2.0 ** min(before.remote_failures, 10)
        backoff_s = min(max(backoff_s, error.retry_after_s or 0.0), RETRY_MOST_S)
        logger.warning("retry scheduled hotkey={} commitment={} in_s={:.0f}: {}", *key, backoff_s, error)
        after = RetryState(before.remote_failures + 1, before.host_failures, self._now() + backoff_s, str(error))
        self._store.record_retry_state(self.eval_config, key, after)

    def _record_host_failure(self, key: SubmissionKey, before: RetryState, error: Exception) -> None:
        failures = before.host_failures + 1
        suspended_s = SUSPENDED_S if failures >= schedule.MAX_HOST_FAILURES else 0.0
        after = RetryState(before.remote_failures, failures, self._now() + suspended_s, str(error))
        self._store.record_retry_state(self.eval_config, key, after)
        logger.error(
            "host failure hotkey={} commitment={} failures={} suspended_s={:.0f}: {}",
            *key, failures, suspended_s, error,
        )  # fmt: skip

    def _folder(self, entry: Entry) -> Path:
        return dataset_folder(self._config.data_dir, entry.key)

    def _make_receipt(self, entry: Entry, result: TrainResult) -> Receipt:
        record, chain = entry.accepted_record, self._context.chain
        receipt = Receipt(
            competition=self._config.competition,
            submission=EvaluatedSubmission(
                netuid=chain.netuid, hotkey=entry.key.hotkey, repo=record.namespace, commit=record.commit
            ),
            result=result,
        )
        if not self._config.is_offline:
            receipt = receipt.signed(chain.hotkey, chain.sign)
        return receipt


def _longest_backoff_s(retry: RetryState) -> float:
    # Plus a moment, because the sum of a time and a backoff is rounded.
    return 1.0 + (SUSPENDED_S if retry.host_failures >= schedule.MAX_HOST_FAILURES else RETRY_MOST_S)
