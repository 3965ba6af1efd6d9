"""Logs: one form, one stream, the clients' included, whatever those set up themselves."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (TRACE|DEBUG|INFO|WARNING|ERROR|CRITICAL|Level \d+) +\S.*")

# Client loggers are asked for as the clients do it, before and after the logs are set up.
CLIENTS = """
import logging, sys, warnings
from template.cli import quiet_libraries
from template.tracking import configure_logging
def load():
    import huggingface_hub, bittensor, transformers.utils.logging
quiet_libraries()
if sys.argv[1] == "before": load()
configure_logging(is_debug="debug" in sys.argv, is_trace="trace" in sys.argv)
load()
import huggingface_hub.utils.logging, transformers.utils.logging
assert "torch" not in sys.modules
loggers = [
    logging.getLogger("bittensor.transport"),
    huggingface_hub.utils.logging.get_logger("huggingface_hub.file_download"),
    transformers.utils.logging.get_logger("transformers.modeling_utils"),
    logging.getLogger("httpx2"),
    logging.getLogger("somebody.else"),
]
for logger in loggers:
    for level in ("debug", "info", "warning", "error"):
        getattr(logger, level)("%s says {braces} <red>tags</red> %d%%", level, 1)
"""

OWN = """
import sys
from loguru import logger
from template.tracking import configure_logging
for _ in range(2):
    configure_logging(is_debug="debug" in sys.argv, is_trace="trace" in sys.argv)
for level in ("trace", "debug", "info", "warning", "error"):
    getattr(logger, level)("{} of {}", level, "{braces} <red>tags</red>")
"""


def run(code: str, *arguments: str) -> list[str]:
    """The lines on stderr of a fresh process, which wrote nothing to stdout and ended well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()


def levels(lines: list[str], name: str = "") -> list[str]:
    return [line.split()[2] for line in lines if name in line]


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("none", ["INFO", "WARNING", "ERROR"]),
        ("debug", ["DEBUG", "INFO", "WARNING", "ERROR"]),
        ("trace", ["TRACE", "DEBUG", "INFO", "WARNING", "ERROR"]),
    ],
)
def test_our_own_logs_go_to_stderr_once_from_the_level_that_was_asked_for(flag: str, expected: list[str]) -> None:
    lines = run(OWN, flag)
    assert levels(lines) == expected
    assert all(LINE.fullmatch(line) for line in lines)
    assert all(line.endswith("{braces} <red>tags</red>") for line in lines)


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_clients_logs_are_ours_though_they_set_up_their_own(when: str) -> None:
    lines = run(CLIENTS, when)
    assert all(LINE.fullmatch(line) for line in lines)
    for name in ("bittensor.transport", "huggingface_hub.file_download", "transformers.modeling_utils", "httpx2"):
        assert levels(lines, f" {name}: ") == ["WARNING", "ERROR"]
    assert levels(lines, " somebody.else: ") == ["WARNING", "ERROR"]
    assert all(line.endswith("says {braces} <red>tags</red> 1%") for line in lines)


def test_the_clients_debug_logs_need_trace() -> None:
    name = " huggingface_hub.file_download: "
    assert levels(run(CLIENTS, "after", "debug"), name) == ["WARNING", "ERROR"]
    lines = run(CLIENTS, "after", "trace")
    for client in (name, " bittensor.transport: ", " transformers.modeling_utils: "):
        assert levels(lines, client) == ["DEBUG", "INFO", "WARNING", "ERROR"]


def test_exceptions_odd_levels_and_bad_arguments_are_logged_and_break_nothing() -> None:
    lines = run(
        "import logging\n"
        "from template.tracking import configure_logging\n"
        "configure_logging()\n"
        "logging.getLogger('bittensor').log(35, 'odd')\n"
        "logging.getLogger('bittensor').error('%s and %s', 'one')\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.getLogger('bittensor').exception('failed')\n"
    )
    text = "\n".join(lines)
    assert "bittensor: odd" in lines[0]
    assert "%s and %s" in lines[1]
    assert "bittensor: failed" in lines[2]
    assert "ZeroDivisionError: division by zero" in text
