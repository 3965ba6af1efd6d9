"""One validator of a soak run: the real one, on its own state, which can be ended anywhere and started again."""

import os
import signal
import threading
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import yaml
from loguru import logger

from template.chain.client import Chain
from template.competition import Competition
from template.config import load_training_args
from template.errors import HostError, Reason, RemoteError
from template.localnet.models.tiny import make_tiny_model
from template.localnet.network import TRAINING_ARGS
from template.records import ChainView, EvalConfig, RetryState, SubmissionKey, Verdict
from template.rules.schedule import Policy
from template.store.store import Store
from template.validator.config import LuckyNumFrom, ValidatorConfig
from template.validator.downloads import Downloader
from template.validator.loop import Validator
from template.workers.executor import CompletedJob, Evaluator
from template.workers.supervisor import LocalExecutor
from template.workers.timeouts import WorkerTimeouts
from tests.campaigns.soak.diary import Diary
from tests.campaigns.soak.world import World, validator_key

STATE_FILE = "validator.sqlite3"
BLOCKS_PER_EPOCH = 24
POLICY = Policy(blocks_per_epoch=BLOCKS_PER_EPOCH, block_threshold=8, is_aligned=True)

_DOWNLOADS = 8

# A killed worker is replaced at once: the pauses of a real one would be rounds here.
_TIMEOUTS = WorkerTimeouts(restart_first_s=0.01, restart_most_s=0.1)


def validator_name(at: int) -> str:
    """What the validator number `at` is called, and its folder."""
    return f"validator-{at}"


class WatchedChain(Chain):
    """A connection whose looks at commitments are written down, and what it was told of opened ones."""

    def watch(self, diary: Diary, name: str) -> None:
        self._diary, self._name = diary, name

    def view(self, block: int | None = None) -> ChainView:
        found = super().view(block)
        self._diary.write("viewed", validator=self._name, block=found.block)
        return found

    def commit_blocks_of_revealed(self, reveals: Mapping[str, int]) -> dict[str, int]:
        found = super().commit_blocks_of_revealed(reveals)
        for hotkey, block in reveals.items():
            self._diary.write("opened", validator=self._name, hotkey=hotkey, reveal_block=block)
        return found


class WatchedStore(Store):
    """A state file of which that is written down which is overwritten or forgotten in it."""

    def watch(self, diary: Diary, name: str) -> None:
        self._diary, self._name = diary, name

    def _note(self, event: str, key: SubmissionKey, **facts: object) -> None:
        self._diary.write(event, validator=self._name, hotkey=key.hotkey, text=key.commitment, **facts)

    def record_missing_file(self, key: SubmissionKey, block: int, *, is_found: bool = False) -> None:
        super().record_missing_file(key, block, is_found=is_found)
        if not is_found:
            self._note("missed", key, block=block)

    def record_dataset(
        self, eval_config: EvalConfig, key: SubmissionKey, *, sha256: str, row_keys: Sequence[bytes], now: float
    ) -> None:
        super().record_dataset(eval_config, key, sha256=sha256, row_keys=row_keys, now=now)
        self._note("checked", key)

    def record_verdict(self, eval_config: EvalConfig, key: SubmissionKey, verdict: Verdict, now: float) -> None:
        super().record_verdict(eval_config, key, verdict, now)
        if verdict.reason is not None:
            self._note("refused", key, reason=verdict.reason)

    def record_retry_state(self, eval_config: EvalConfig, key: SubmissionKey, attempt: RetryState) -> None:
        super().record_retry_state(eval_config, key, attempt)
        self._note("put off", key, remote_failures=attempt.remote_failures, host_failures=attempt.host_failures)

    def expire_rejections(
        self, eval_config: EvalConfig, reasons: Sequence[Reason], *, before: float, after: float = float("inf")
    ) -> None:
        held = set(self.verdicts(eval_config))
        super().expire_rejections(eval_config, reasons, before=before, after=after)
        for key in held - self.verdicts(eval_config).keys():
            self._note("refusal taken back", key)

    def prune_results(self, *, keep: Collection[SubmissionKey], datasets_before: float, receipts_before: float) -> None:
        held = self._dataset_keys()
        super().prune_results(keep=keep, datasets_before=datasets_before, receipts_before=receipts_before)
        for key in held - self._dataset_keys():
            self._note("rows forgotten", key)

    def _dataset_keys(self) -> set[SubmissionKey]:
        """Of all contests: a run is one."""
        return {SubmissionKey(*row) for row in self.rows("SELECT hotkey, entry FROM datasets")}


class WatchedStop(threading.Event):
    """A stop that tells whether it was waited for."""

    is_waited_for = False

    def wait(self, timeout: float | None = None) -> bool:
        self.is_waited_for = True
        return super().wait(timeout)


class WatchedExecutor(LocalExecutor):
    """Workers whose ends of jobs are written down, and which tell whether they were waited for."""

    is_waited_for = False

    def wait(self, timeout_s: float) -> None:
        self.is_waited_for = True
        super().wait(timeout_s)

    def watch(self, diary: Diary, name: str) -> None:
        self._diary, self._watcher = diary, name

    def collect(self) -> list[CompletedJob]:
        found = super().collect()
        for one in found:
            loss = None if one.result is None else one.result.loss
            self._diary.write(
                "worked", validator=self._watcher, hotkey=one.key.hotkey, text=one.key.commitment, loss=loss,
                error=None if one.error is None else type(one.error).__name__,
            )  # fmt: skip
        return found


class WatchedFetcher(Downloader):
    """Downloads that tell whether they were waited for."""

    is_waited_for = False

    def wait(self, timeout_s: float) -> None:
        self.is_waited_for = True
        super().wait(timeout_s)


class Post:
    """One validator of the run, which can be ended and started again from what it left in its folder."""

    def __init__(self, world: World, folder: Path, at: int, evaluator: Evaluator) -> None:
        self.name = validator_name(at)
        self.folder = folder / self.name
        self._world = world
        self._key = validator_key(at)
        self._scorer = evaluator
        self.folder.mkdir(parents=True)
        self._open()

    def _open(self) -> None:
        folder = self.folder
        config = ValidatorConfig(
            competition=self._scorer.competition,
            policy=POLICY,
            data_dir=folder / "data",
            eval_data_dir=folder / "eval_data",
            receipt_dir=folder / "receipts",
            round_dir=folder / "rounds",
            lucky_num_from=LuckyNumFrom.CHAIN,
            poll_s=0.0005,
        )
        self.chain: WatchedChain = self._world.connect(self._key, WatchedChain)
        self.chain.watch(self._world.diary, self.name)
        self.store = WatchedStore(folder / STATE_FILE)
        self.store.watch(self._world.diary, self.name)
        self.executor = WatchedExecutor(self._scorer, [None], timeouts=_TIMEOUTS)
        self.executor.watch(self._world.diary, self.name)
        self.fetcher = WatchedFetcher(_DOWNLOADS)
        self.validator = Validator(config, self.chain, self.store, self.executor, self.fetcher, now=self._world.clock)
        self.stop = self.validator.stop = WatchedStop()

    def close(self) -> None:
        self.executor.close()
        self.store.close()
        self.chain.close()

    def restart(self) -> None:
        """Ends everything as a kill would, between two ticks, and starts anew."""
        self._world.diary.write("validator restarted", validator=self.name)
        self.close()
        self._open()

    def tick(self) -> bool:
        """One tick, as `Validator.run` would do it; True when there may be more to do at once."""
        waited_for = (self.stop, self.executor, self.fetcher)
        for one in waited_for:
            one.is_waited_for = False
        try:
            self.validator.tick()
            return not any(one.is_waited_for for one in waited_for)
        except RemoteError as error:
            logger.debug("{}: {}", self.name, error)
        except HostError as error:
            logger.warning("{} ends: {}", self.name, error)
            self.restart()
        except Exception as error:
            told = "".join(traceback.format_exception(error))
            self._world.diary.write("tick failed", validator=self.name, error=told)
        return False

    def kill_worker(self) -> None:
        """Kills the process that scores, once it holds the model: one that never did ends the validator."""
        pids = self.executor.pids()
        if pids and (self.executor.idle_workers() or self.executor.running()):
            is_busy = bool(self.executor.running())
            os.kill(pids[0], signal.SIGKILL)
            self._world.diary.write("worker killed", validator=self.name, is_busy=is_busy)

    @property
    def is_busy(self) -> bool:
        """True while a worker scores or loads, or something is downloaded."""
        return not self.executor.idle_workers() or bool(self.fetcher.in_flight())

    def wait(self, timeout_s: float) -> None:
        """Returns when something of this may have ended, or else after `timeout_s`."""
        if self.fetcher.in_flight():
            self.fetcher.wait(timeout_s)
        else:
            self.executor.wait(timeout_s)


def make_evaluator(folder: Path, competition: Competition, at: int) -> Evaluator:
    """Scores under the tiny model, on the CPU, with the evaluation set of the validator number `at`."""
    model = folder / "model"
    args = folder / "training_args.yaml"
    if not model.exists():
        make_tiny_model(model)
        args.write_text(yaml.safe_dump(dict(TRAINING_ARGS)), encoding="utf-8")
    return Evaluator(
        competition=competition,
        training_args=load_training_args(args),
        eval_data_dir=folder / validator_name(at) / "eval_data",
        model_path=model,
        device="cpu",
    )
