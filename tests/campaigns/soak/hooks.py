"""Hooks of the soak run: a block clock, an event log, and ticks in lockstep.

The event log gets what a state file does not keep. In lockstep with the campaign, the validator obeys each line on
stdin and prints a line when it is idle.
"""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from template.chain.client import Chain
from template.records import SubmissionKey, Verdict
from template.stop_request import StopRequest
from template.store.store import Store
from template.validator.downloads import Downloader
from template.validator.loop import Validator
from template.workers.supervisor import LocalExecutor, WorkerPool
from template.workers.timeouts import WorkerTimeouts
from tests.campaigns.clock import BlockClock
from tests.campaigns.process_under_test import set_default
from tests.campaigns.soak.event_log import EventLog


class Lockstep:
    """Ticks for "tick COUNT", until it waits; "wait SECONDS" waits for work."""

    def __init__(self) -> None:
        self._ticks_left, self._is_idle = 0, False
        self._executor: Any = None
        self._downloader: Any = None

    def install(self) -> None:
        lockstep = self
        set_default(WorkerPool, "timeouts", WorkerTimeouts(restart_first_s=0.01, restart_most_s=0.1))
        wrap_after(LocalExecutor, "__init__", lambda executor, *_, **__: setattr(self, "_executor", executor))
        wrap_after(Downloader, "__init__", lambda downloader, *_, **__: setattr(self, "_downloader", downloader))
        self._wait_for_executor, self._wait_for_downloads = LocalExecutor.wait, Downloader.wait
        patched: Any = (LocalExecutor, Downloader)
        for owner in patched:
            owner.wait = lambda *_: self._note_idle()
        tick = Validator.tick

        def lockstep_tick(self: Validator) -> bool:
            if not isinstance(self.stop, _LockstepStop):
                self.stop = _LockstepStop(lockstep._note_idle)
            return lockstep._await_turn(self) and tick(self)

        Validator.tick = lockstep_tick  # type: ignore[method-assign]

    def _note_idle(self) -> None:
        self._is_idle = True

    def _await_turn(self, validator: Validator) -> bool:
        while not self._ticks_left or self._is_idle:
            executor, is_downloading = self._executor, bool(self._downloader.in_flight())
            is_loaded = bool(executor.idle_workers() or executor.running())
            status = {"is_busy": not executor.idle_workers() or is_downloading, "is_loaded": is_loaded}
            print(json.dumps(status), flush=True)
            words = sys.stdin.readline().split()
            if not words:
                validator.stop.set()
                return False
            if words[0] == "tick":
                self._ticks_left, self._is_idle = int(words[1]), False
            elif is_downloading:
                self._wait_for_downloads(self._downloader, float(words[1]))
            else:
                self._wait_for_executor(executor, float(words[1]))
        self._ticks_left -= 1
        return True


class _LockstepStop(StopRequest):
    """A request to stop whose wait returns at once and is noted."""

    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__()
        self._note = note

    def wait(self, timeout: float | None = None) -> bool:
        self._note()
        return self.is_set()


def wrap_after(owner: type, name: str, note: Callable[..., object]) -> None:
    """Have each call of a method followed by `note`."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **options: Any) -> Any:
        result = method(self, *args, **options)
        note(self, result, *args, **options)
        return result

    setattr(owner, name, wrapped)


def wrap_removal(name: str, table: str, note: Callable[[SubmissionKey], object]) -> None:
    """Call `note` for each key that a call of the store's method removes from a table."""
    method = getattr(Store, name)

    def read(store: Store) -> set[SubmissionKey]:
        return {SubmissionKey(*row) for row in store.rows(f"SELECT hotkey, entry FROM {table}")}

    @functools.wraps(method)
    def wrapped(self: Store, *args: Any, **options: Any) -> Any:
        before = read(self)
        result = method(self, *args, **options)
        for key in before - read(self):
            note(key)
        return result

    setattr(Store, name, wrapped)


def install(log_file: str, chain_file: str, validator: str) -> None:
    """Prepare the process of the validator of this name."""
    clock = BlockClock(Path(chain_file))
    log = EventLog(Path(log_file), clock)
    set_default(Validator, "now", clock)
    Lockstep().install()

    def note(event: str, key: SubmissionKey | None = None, **facts: object) -> None:
        names = {} if key is None else {"hotkey": key.hotkey, "text": key.commitment}
        log.write(event, validator=validator, **names, **facts)

    def note_located(_: Chain, blocks: dict[str, int], reveals: dict[str, int]) -> None:
        for hotkey, block in reveals.items():
            note("located", hotkey=hotkey, reveal_block=block)

    def note_evaluated(_: LocalExecutor, jobs: list[Any]) -> None:
        for job in jobs:
            error = None if job.error is None else type(job.error).__name__
            note("evaluated", job.key, loss=job.result.loss if job.result else None, error=error)

    def note_rejected(_: Store, __: None, config: object, key: SubmissionKey, verdict: Verdict, now: float) -> None:
        note("rejected", key, reason=verdict.reason)

    wrap_after(Chain, "commit_blocks_of_revealed", note_located)
    wrap_after(Store, "record_missing_file", lambda _, __, key, block: note("missed", key, block=block))
    wrap_after(Store, "record_dataset", lambda _, __, competition, key, **___: note("checked", key))
    wrap_after(Store, "record_rejection", note_rejected)
    wrap_after(Store, "record_plan", lambda _, __, planned: note("planned", round=planned.id))
    wrap_after(Store, "record_leaderboard", lambda _, __, round_id, ___: note("tabled", round=round_id))
    wrap_after(Store, "record_confirmed", lambda *_: note("confirmed"))
    wrap_removal("expire_rejections", "verdicts", functools.partial(note, "rejection expired"))
    wrap_removal("prune_results", "contents", functools.partial(note, "rows pruned"))
    wrap_after(LocalExecutor, "collect", note_evaluated)
