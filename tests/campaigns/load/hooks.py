"""Hooks of the load campaign: timed ticks, paced evaluations, shorter waits."""

import atexit
import json
import time
from hashlib import file_digest
from pathlib import Path
from typing import Any

from template import constants
from template.hub import datasets
from template.validator import evaluation, loop
from template.workers import supervisor
from tests.campaigns.fake_executors import FakeExecutor
from tests.campaigns.measure import memory_kib
from tests.campaigns.synthetic_subnet import COMPETITION


def time_ticks() -> dict[str, float]:
    """Return figures of all ticks, without their waits, that stay up to date."""
    figures = {"tick_s": 0.0, "startup_s": 0.0, "ticks": 0, "busy_s": 0.0}
    validator: Any = loop.Validator
    tick, idle, waited_s = validator.tick, validator._idle, 0.0

    def timed_tick(self: loop.Validator) -> Any:
        nonlocal waited_s
        started, waited_s, is_startup = time.monotonic(), 0.0, self.evaluator is None
        try:
            return tick(self)
        finally:
            busy_s = time.monotonic() - started - waited_s
            longest = "startup_s" if is_startup else "tick_s"
            figures[longest] = max(figures[longest], busy_s)
            if not is_startup:
                figures.update(ticks=figures["ticks"] + 1, busy_s=figures["busy_s"] + busy_s)

    def timed_idle(self: loop.Validator) -> None:
        nonlocal waited_s
        started = time.monotonic()
        idle(self)
        waited_s += time.monotonic() - started

    validator.tick, validator._idle = timed_tick, timed_idle
    return figures


def loss_of(path: Path) -> float:
    """Return a loss that depends on the file alone."""
    with path.open("rb") as file:
        return COMPETITION.minb + file_digest(file, "sha256").digest()[0] / 2560


def install(figures_file: str, evaluation_s: float, speed: float) -> None:
    """Prepare a validator's process.

    Args:
        evaluation_s: seconds that an evaluation takes, without processor time.
        speed: waits for the Hub and between retries are divided by this.
    """
    for module, name in (
        (evaluation, "TIMEOUT_FIRST_S"),
        (evaluation, "RETRY_FIRST_S"),
        (evaluation, "RETRY_MOST_S"),
        (constants, "DOWNLOAD_DEADLINE_S"),
        (loop, "DOWNLOAD_POLL_S"),
        (loop, "MAX_BACKOFF_S"),
    ):
        setattr(module, name, getattr(module, name) / speed)
    look: Any = datasets.check_available
    look.__kwdefaults__["deadline_s"] /= speed
    patched: Any = supervisor
    patched.LocalExecutor = lambda *_, **__: FakeExecutor(loss_of, seconds=evaluation_s)
    figures = time_ticks()

    def write() -> None:
        Path(figures_file).write_text(json.dumps({**figures, "peak_kib": memory_kib("VmHWM")}), encoding="utf-8")

    atexit.register(write)
