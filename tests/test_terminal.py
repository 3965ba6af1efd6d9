"""Results on any standard output: closed, full, without a reader, in any encoding."""

import os
import subprocess
import sys

import pytest

from template.terminal import Countdown
from tests.fixtures.logs import log_lines
from tests.fixtures.network import ROOT

PRINT = """
import sys
from template import cli
from template.terminal import print_result
parser = cli.make_parser("command", "A command.")
cli.add_logging_arguments(parser)
text = "loss 2.5 \\u6570\\u636e \\udcff\\nsecond line" + " x" * 100_000
sys.exit(cli.run_main(parser, sys.argv[1:], lambda args: print_result(text) or 0))
"""


def run(shell: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command as "$@" in a line of the shell."""
    command = ["bash", "-c", f"set -o pipefail; {shell}", "bash", sys.executable, "-c", PRINT, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, env={**os.environ, **environment})


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii", "cp437"])
def test_result_is_printed_in_any_encoding(encoding: str) -> None:
    done = run('"$@"', PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    text = "数据" if encoding == "utf-8" else "\\u6570\\u636e"
    assert done.stdout.decode(encoding).startswith(f"loss 2.5 {text} \\udcff\nsecond line x")


@pytest.mark.parametrize("shell", ['"$@" | true', '"$@" >&-', '"$@" >/dev/full'])
def test_result_that_stdout_does_not_take_is_logged(shell: str) -> None:
    done = run(shell)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    logged = done.stderr.decode().splitlines()
    assert "standard output cannot be written: " in logged[0]
    assert "INFO    loss 2.5 " in logged[1] and "INFO    second line x" in logged[2]


@pytest.mark.parametrize("shell", ['"$@" --help | true', '"$@" --help >&-', '"$@" --help >/dev/full'])
def test_help_without_a_reader_ends_without_an_error(shell: str) -> None:
    done = run(shell)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        # The first one also loads the model: its time counts only while there is no other.
        ([0, 100, 200, 280], ["1 of 10, about 15 min", "2 of 10, about 13 min", "3 of 10, about 10 min"]),
        ([0, 4000], ["1 of 10, about 10.0 h"]),
    ],
)
def test_countdown_tells_what_is_left(times: list[float], expected: list[str]) -> None:
    with log_lines() as logs:
        countdown = Countdown("evaluated", 10, iter(times).__next__)
        for _ in times[1:]:
            countdown.advance()
    assert logs == [f"INFO evaluated: {text} left\n" for text in expected]


def test_countdown_is_silent_at_the_end() -> None:
    with log_lines() as logs:
        Countdown("evaluated", 1).advance()
    assert logs == []
