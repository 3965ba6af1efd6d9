"""Results on any standard output: closed, full, without a reader, in any encoding."""

import os
import subprocess
import sys

import pytest

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
