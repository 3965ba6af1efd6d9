"""A signal at any moment of a wait ends it."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from neurons.validator import stop_on_signals
from template.stop_request import StopRequest
from tests.fixtures.network import Net
from tests.fixtures.validator import open_bench

_NEVER_S, _WAIT_S = 10.0, 0.01


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Put the handlers back, and end a test that hangs."""

    def fail(*_: object) -> None:
        raise TimeoutError("the handler hangs")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, _NEVER_S)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def terminated_at_line(nth: int) -> Iterator[list[int]]:
    """Send SIGTERM before the nth line that methods named `wait` run; give the lines that ran."""
    lines: list[int] = []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_name == "wait" and event == "line":
            lines.append(frame.f_lineno)
            if len(lines) == nth:
                signal.raise_signal(signal.SIGTERM)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def test_sigterm_at_any_line_of_the_wait_stops_a_validator(net: Net) -> None:
    with open_bench(net) as bench:
        validator = bench.validator
        stop_on_signals(validator)
        for nth in range(1, 100):
            validator.stop = type(validator.stop)()
            with terminated_at_line(nth) as lines:
                is_stopped = validator.stop.wait(_WAIT_S)
            if len(lines) < nth:
                break
            assert is_stopped, lines
        assert nth > 2


def test_wait_without_a_request_ends_after_its_time() -> None:
    request = StopRequest()
    assert not request.wait(_WAIT_S) and not request.is_set()


def test_time_that_is_over_before_the_wait_ends_it() -> None:
    """As on a busy machine, or after a signal."""
    for _ in range(10_000):
        assert not StopRequest().wait(1e-6)


def test_request_from_a_thread_ends_the_wait() -> None:
    request = StopRequest()
    timer = threading.Timer(_WAIT_S, request.set)
    timer.start()
    assert request.wait() and request.is_set()
    timer.join()


def test_request_that_was_made_before_ends_every_wait() -> None:
    request = StopRequest()
    request.set()
    assert request.wait() and request.wait()
