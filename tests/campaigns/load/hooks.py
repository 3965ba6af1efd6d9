"""Hooks of the load campaign: timed ticks, paced evaluations, shorter waits."""

import atexit
import json
import time
from hashlib import file_digest
from pathlib import Path
from typing import Any

from template import constants
from template.validator import evaluation, loop
from template.workers import supervisor
from tests.campaigns.fake_executors import FakeExecutor
from tests.campaigns.measure import memory_kib
from tests.campaigns.synthetic_subnet import COMPETITION


class TickTimer:
    """Times the ticks of a validator, without its waits."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {"tick_s": 0.0, "tick": "", "startup_s": 0.0, "ticks": 0, "busy_s": 0.0}
        self._action, self._waited_s = "", 0.0

    def install(self) -> None:
        timer, validator = self, loop.Validator
        tick, perform, idle = validator.tick, validator._perform, validator._idle

        def timed_tick(self: loop.Validator) -> bool:
            started, timer._waited_s, is_startup = time.monotonic(), 0.0, self.evaluator is None
            try:
                return tick(self)
            finally:
                timer._note(time.monotonic() - started - timer._waited_s, is_startup=is_startup)

        def named_perform(self: loop.Validator, action: Any, *args: Any) -> bool:
            timer._action = type(action).__name__
            return perform(self, action, *args)

        def timed_idle(self: loop.Validator) -> None:
            started = time.monotonic()
            idle(self)
            timer._waited_s += time.monotonic() - started

        patched: Any = validator
        patched.tick, patched._perform, patched._idle = timed_tick, named_perform, timed_idle

    def _note(self, busy_s: float, *, is_startup: bool) -> None:
        figures = self.figures
        if is_startup:
            figures["startup_s"] = max(figures["startup_s"], busy_s)
            return
        figures["ticks"] += 1
        figures["busy_s"] += busy_s
        if busy_s > figures["tick_s"]:
            figures["tick_s"], figures["tick"] = busy_s, self._action

    def write(self, path: Path) -> None:
        path.write_text(json.dumps({**self.figures, "peak_kib": memory_kib("VmHWM")}), encoding="utf-8")


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
    patched: Any = supervisor
    patched.LocalExecutor = lambda *_, **__: FakeExecutor(loss_of, seconds=evaluation_s)
    timer = TickTimer()
    timer.install()
    atexit.register(timer.write, Path(figures_file))
