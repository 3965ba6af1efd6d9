"""Alerts: posted to a local server, each kind once in six hours."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from template.errors import ConfigError
from template.status import alerts
from template.status.alerts import PAUSE_S, REPEAT_S, Alerter, watch
from template.status.health import HealthLimits, Problem
from template.store.store import Store
from tests.fixtures.http import Answer, serve
from tests.fixtures.logs import log_lines
from tests.fixtures.status import METRICS
from tests.fixtures.workers import until

DISK = Problem(code="disk", text="1.9 GB free", remedy="free space")
PERMIT = Problem(code="no_permit", text="no permit", remedy="add stake")


class Webhook:
    """The posts that a local server got; it answers with `status`."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.status = 204
        self.url = ""

    def answer(self, request: BaseHTTPRequestHandler) -> Answer:
        self.posts.append(json.loads(request.rfile.read(int(request.headers["Content-Length"]))))
        assert request.headers["Content-Type"] == "application/json"
        return self.status, {}, b""


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    hook = Webhook()
    with serve(hook.answer) as address:
        hook.url = f"{address}/api/webhooks/s3cr3t"
        yield hook


def test_post_has_what_discord_and_slack_read(webhook: Webhook, tmp_path: Path) -> None:
    Alerter(webhook.url, tmp_path).report([PERMIT, DISK], 1000.0)
    text = f"validator {tmp_path.name}:\n- {PERMIT}\n- {DISK}"
    assert webhook.posts == [{"content": text, "text": text, "problems": [vars(PERMIT), vars(DISK)]}]


def test_same_problem_is_posted_once_in_six_hours(webhook: Webhook, tmp_path: Path) -> None:
    for now in (0.0, 60.0, PAUSE_S, REPEAT_S - 1, REPEAT_S, REPEAT_S + PAUSE_S):
        # A new process each time, as in a crash loop.
        Alerter(webhook.url, tmp_path).report([DISK], now)
    assert len(webhook.posts) == 2


def test_new_problem_and_the_end_are_posted(webhook: Webhook, tmp_path: Path) -> None:
    alerter = Alerter(webhook.url, tmp_path)
    alerter.report([], 0.0)
    for number, problems in enumerate(([DISK], [DISK, PERMIT], [DISK, PERMIT], [], [])):
        alerter.report(problems, 10_000.0 + 1000.0 * number)
    lines = [post["text"].splitlines()[1:] for post in webhook.posts]
    assert lines == [
        ["- disk: 1.9 GB free. What to do: free space"],
        ["- disk: 1.9 GB free. What to do: free space", "- no_permit: no permit. What to do: add stake"],
        ["all is well again"],
    ]


def test_flapping_problem_is_posted_every_ten_minutes_at_most(webhook: Webhook, tmp_path: Path) -> None:
    for second in range(0, 1200, 60):
        Alerter(webhook.url, tmp_path).report([DISK] if second % 120 else [], float(second))
    assert len(webhook.posts) <= 2


def test_failed_post_is_tried_again_and_names_no_url(webhook: Webhook, tmp_path: Path) -> None:
    webhook.status = 500
    alerter = Alerter(webhook.url, tmp_path)
    with log_lines("WARNING") as lines:
        alerter.report([DISK], 0.0)
        Alerter("http://127.0.0.1:9/s3cr3t", tmp_path).report([DISK], 0.0)
    assert [line.strip() for line in lines] == [
        "WARNING alert not posted: HTTP 500",
        "WARNING alert not posted: URLError",
    ]
    webhook.status = 204
    alerter.report([DISK], 1.0)
    assert len(webhook.posts) == 2 and "s3cr3t" not in "".join(lines)


@pytest.mark.parametrize("url", ["", "host/s3cr3t", "ftp://host/s3cr3t", "https:///s3cr3t"])
def test_invalid_url_is_refused_without_naming_it(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--alert_url must be a url") as error:
        Alerter(url, tmp_path)
    assert "s3cr3t" not in str(error.value)


def test_watch_posts_while_no_tick_ends(webhook: Webhook, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "WATCH_S", 0.01)
    monkeypatch.setattr(alerts, "HealthLimits", lambda: HealthLimits(max_silence_s=-1.0))
    is_over = threading.Event()
    store.record_heartbeat(METRICS, METRICS.now)
    folder = store.path.parent
    thread = threading.Thread(target=watch, args=(Alerter(webhook.url, folder), folder), kwargs={"is_over": is_over})
    thread.start()
    try:
        until(lambda: bool(webhook.posts))
    finally:
        is_over.set()
        thread.join()
    assert "no report from the validator for " in webhook.posts[0]["text"]
