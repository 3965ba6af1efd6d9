"""Post problems to a webhook: Discord, Slack, or anything that takes JSON."""

import http.client
import json
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from loguru import logger

from template.errors import ConfigError, SubnetError
from template.files import write_atomic
from template.status.health import HealthLimits, Problem, find_problems
from template.status.status import read_status

# Time until the same problems are posted again, and shortest time between two posts.
REPEAT_S = 6 * 3600.0
PAUSE_S = 600.0
# Time between two looks of the validator at itself.
WATCH_S = 60.0
_TIMEOUT_S = 10.0
# Discord takes 2,000 characters.
_MAX_CHARS = 1900
_STAMPS = "alerts.json"


class Alerter:
    """Posts the problems of one validator, each kind at most every six hours.

    What was posted is recorded in the --state_dir, so that restarts post nothing twice. Raises: ConfigError, without
    the url, which is a secret.
    """

    def __init__(self, url: str, state_dir: Path) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ConfigError("--alert_url must be a url like https://discord.com/api/webhooks/...")
        self._url = url
        self._name = state_dir.name
        self._path = state_dir / _STAMPS

    def report(self, problems: Sequence[Problem], now: float) -> None:
        """Post the problems if one is new or old enough, or that there are none any more."""
        posted_at, sent = self._read()
        if 0.0 <= now - posted_at < PAUSE_S:
            return
        is_due = any(not 0.0 <= now - sent.get(problem.code, float("-inf")) < REPEAT_S for problem in problems)
        if not is_due and (problems or not sent):
            return
        lines = [f"- {problem}" for problem in problems] or ["all is well again"]
        if self._post("\n".join([f"validator {self._name}:", *lines])[:_MAX_CHARS], problems):
            content = {"posted_at": now, "sent": {problem.code: now for problem in problems}}
            try:
                write_atomic(self._path, [json.dumps(content).encode()])
            except OSError as error:
                logger.warning("{}: {}; alerts may come twice", self._path, error.strerror or error)

    def _read(self) -> tuple[float, dict[str, float]]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            return float(content["posted_at"]), dict(content["sent"])
        except (OSError, ValueError, LookupError, TypeError):
            return float("-inf"), {}

    def _post(self, text: str, problems: Sequence[Problem]) -> bool:
        # Discord reads `content`, Slack and Mattermost read `text`.
        body = {"content": text, "text": text, "problems": [vars(problem) for problem in problems]}
        headers = {"Content-Type": "application/json", "User-Agent": "dataset-subnet"}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
                return True
        except (OSError, ValueError, http.client.HTTPException) as error:
            # The text of an error may hold the url.
            status = getattr(error, "code", None)
            logger.warning("alert not posted: {}", f"HTTP {status}" if status else type(error).__name__)
            return False


def watch(alerter: Alerter, state_dir: Path, *, is_over: threading.Event) -> None:
    """Look at the validator's own state every minute, also while a tick hangs."""
    started_at, limits = time.time(), HealthLimits()
    while not is_over.wait(WATCH_S):
        try:
            status, now = read_status(state_dir, time.time(), measures_disk=False), time.time()
            # What the process of before reported does not count.
            if status.activity is not None and (
                status.activity.now >= started_at or now - started_at > limits.max_silence_s
            ):
                alerter.report(find_problems(status, limits), now)
        except SubnetError as error:
            logger.warning("no look at the validator's health: {}", error)


@contextmanager
def watching(alerter: Alerter | None, state_dir: Path) -> Iterator[None]:
    """Post the validator's problems during the block."""
    is_over = threading.Event()
    if alerter is not None:
        # A daemon: a post that hangs does not hold up the end.
        threading.Thread(target=watch, args=(alerter, state_dir), kwargs={"is_over": is_over}, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
