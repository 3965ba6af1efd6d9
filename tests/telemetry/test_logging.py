"""Logging of whole processes: format, levels, secrets, files, hung readers."""

import fcntl
import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path

import pytest

from template.telemetry.logging import NonBlockingStream

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (TRACE|DEBUG|INFO|WARNING|ERROR|CRITICAL|Level \d+) +\S.*")

# Requests the client loggers as the clients do: one is imported before logging is configured, the others after.
CLIENTS = """
import logging, sys
from template.telemetry.logging import configure_logging, quiet_libraries
quiet_libraries()
import huggingface_hub.utils.logging
configure_logging(is_debug=True)
import bittensor, transformers.utils.logging
assert "torch" not in sys.modules
loggers = [
    logging.getLogger("bittensor.transport"),
    huggingface_hub.utils.logging.get_logger("huggingface_hub.file_download"),
    transformers.utils.logging.get_logger("transformers.modeling_utils"),
    logging.getLogger("httpx2"),
    logging.getLogger("somebody.else"),
]
for is_trace in (False, True):
    configure_logging(is_trace=is_trace)
    for logger in loggers:
        for level in ("debug", "info", "warning", "error"):
            getattr(logger, level)("%s says {braces} <red>tags</red> %d%%", level, 1)
"""

# Logs with every setting in turn.
OWN = """
from loguru import logger
from template.telemetry.logging import configure_logging
for flags in ({}, {"is_debug": True}, {"is_trace": True}):
    configure_logging(**flags)
    for level in ("trace", "debug", "info", "warning", "error"):
        getattr(logger, level)("{} of {}", level, "{braces} <red>tags</red>")
"""


def run(code: str, *arguments: object, env: Mapping[str, str] = ENVIRONMENT, status: int = 0) -> list[str]:
    """Return the stderr lines of a fresh process, whose stdout must be empty."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    return done.stderr.splitlines()


def levels(lines: list[str], name: str = "") -> list[str]:
    return [line.split()[2] for line in lines if name in line]


def test_own_logs_reach_stderr_once_from_the_chosen_level() -> None:
    lines, most = run(OWN), ["TRACE", "DEBUG", "INFO", "WARNING", "ERROR"]
    assert levels(lines) == most[2:] + most[1:] + most
    assert all(LINE.fullmatch(line) for line in lines)
    assert all(line.endswith("{braces} <red>tags</red>") for line in lines)


@pytest.mark.parametrize(("no_color", "is_coloured"), [("", True), ("1", False)])
def test_no_color_is_honoured_on_a_terminal(no_color: str, is_coloured: bool) -> None:
    code = "from loguru import logger; from template.telemetry.logging import configure_logging;"
    code += "configure_logging(); logger.warning('hello')"
    reader, terminal = pty.openpty()
    try:
        environment = {**ENVIRONMENT, "TERM": "xterm", "NO_COLOR": no_color}
        subprocess.run([sys.executable, "-c", code], env=environment, stderr=terminal, check=True, timeout=120)
        shown = os.read(reader, 10_000)
    finally:
        os.close(reader)
        os.close(terminal)
    assert b"hello" in shown and (b"\x1b[" in shown) is is_coloured


def test_client_logs_use_our_format_and_level() -> None:
    lines = run(CLIENTS)
    for name in ("bittensor.transport", "huggingface_hub.file_download", "transformers.modeling_utils", "httpx2"):
        of_client = [line for line in lines if f" {name}: " in line]
        assert levels(of_client) == ["WARNING", "ERROR", "DEBUG", "INFO", "WARNING", "ERROR"]
        assert all(LINE.fullmatch(line) and line.endswith("says {braces} <red>tags</red> 1%") for line in of_client)
    assert levels(lines, " somebody.else: ") == ["WARNING", "ERROR"] * 2


def test_client_log_with_odd_level_or_arguments_is_logged() -> None:
    odd, misfit, failed, *trace = run(
        "import logging\nfrom template.telemetry.logging import configure_logging\nconfigure_logging()\n"
        "client = logging.getLogger('bittensor')\nclient.log(35, 'odd')\nclient.error('%s and %s', 'one')\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    client.exception('failed')\n"
    )
    assert "bittensor: odd" in odd and "%s and %s" in misfit and "bittensor: failed" in failed
    assert trace[-1] == "  ZeroDivisionError: division by zero"


HUB_TOKEN = "hf_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3f"
MNEMONIC = "legal winner thank year wave sausage worth useful legal winner thank yellow"

# An entry point that logs secrets.
SECRETS = f"""
import argparse, logging, os, sys
from loguru import logger
from template import cli
def run(args):
    logger.info("one line")
    logger.warning("password {{}} and token {HUB_TOKEN}", os.environ["BT_WALLET_PASSWORD"])
    logging.getLogger("bittensor.transport").error("mnemonic %s", "{MNEMONIC}")
    try:
        raise OSError("refused: " + os.environ["WANDB_API_KEY"])
    except OSError:
        logger.exception("failed")
    logger.debug("not asked for")
    return 0
parser = cli.make_parser("test", None)
cli.add_logging_arguments(parser)
sys.exit(cli.run_main(parser, sys.argv[1:], run))
"""
KEYS = {"BT_WALLET_PASSWORD": "correct horse", "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567"}


def read_json_lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def secret_logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Stderr and log file of the entry point, the second time with debug logs."""
    file = tmp_path_factory.mktemp("secrets") / "logs" / "neuron.jsonl"
    flags = ["--logging.file", file, "--logging.debug"]
    lines = run(SECRETS, *flags[:2], env=ENVIRONMENT | KEYS) + run(SECRETS, *flags, env=ENVIRONMENT | KEYS)
    return "\n".join(lines), file


def test_logs_redact_secrets_in_messages_and_tracebacks(secret_logs: tuple[str, Path]) -> None:
    for text in (secret_logs[0], secret_logs[1].read_text(encoding="utf-8")):
        assert "password [redacted] and token [redacted]" in text
        assert "OSError: refused: [redacted]" in text
        for secret in (HUB_TOKEN, *KEYS.values(), "winner", "yellow"):
            assert secret not in text


def test_log_file_holds_one_json_object_per_line(secret_logs: tuple[str, Path]) -> None:
    lines = read_json_lines(secret_logs[1])
    assert [line["level"] for line in lines] == ["INFO", "WARNING", "ERROR", "ERROR"] * 2 + ["DEBUG"]
    assert [line["module"] for line in lines[:4]] == ["__main__", "__main__", "bittensor.transport", "__main__"]
    assert lines[0]["message"] == "one line"
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["time"]) for line in lines)
    assert [set(line) - {"time", "level", "message", "module"} for line in lines[:4]] == [set()] * 3 + [{"exception"}]
    assert lines[3]["exception"].startswith("Traceback (most recent call last):")
    assert secret_logs[1].stat().st_mode & 0o777 == 0o600


def test_log_file_full_is_rotated_and_the_oldest_deleted(tmp_path: Path) -> None:
    run(
        "import sys\nfrom pathlib import Path\nfrom loguru import logger\n"
        "from template.telemetry import logging\n"
        "logging.FILE_BYTES, logging.KEPT_FILES = 1000, 3\n"
        "logging.configure_logging(file=Path(sys.argv[1]))\n"
        "for number in range(100): logger.info('line {}', number)\n",
        tmp_path / "log",
    )
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["log", "log.1", "log.2"]
    assert all(file.stat().st_size <= 1000 and file.stat().st_mode & 0o777 == 0o600 for file in files)
    messages = [line["message"] for file in reversed(files) for line in read_json_lines(file)]
    assert messages == [f"line {number}" for number in range(100 - len(messages), 100)]


def test_log_file_disk_full_warns_once() -> None:
    lines = run(
        "from pathlib import Path\n"
        "from loguru import logger\n"
        "from template.telemetry.logging import configure_logging\n"
        "configure_logging(file=Path('/dev/full'), secrets=['s3cr3t'])\n"
        "for _ in range(50): logger.info('a s3cr3t ' + 'x' * 1000)\n"
    )
    assert all(LINE.fullmatch(line) for line in lines)
    assert levels(lines, "/dev/full misses lines: [Errno 28]") == ["WARNING"]
    assert levels(lines, "a [redacted] x") == ["INFO"] * 50


@pytest.mark.parametrize(
    "change", ["path.rename(path.with_name('old'))", "path.unlink()", "path.parent.rename('moved')"]
)
def test_log_file_moved_or_deleted_is_opened_again(change: str, tmp_path: Path) -> None:
    path = tmp_path / "logs" / "log"
    code = (
        f"import os, sys; os.chdir({str(tmp_path)!r}); from pathlib import Path; from loguru import logger\n"
        "from template.telemetry.logging import configure_logging\n"
        "path = Path(sys.argv[1]); configure_logging(file=path)\n"
        f"logger.info('first'); {change}; logger.info('second'); logger.info('third')\n"
    )
    assert levels(run(code, path)) == ["INFO"] * 3
    assert [line["message"] for line in read_json_lines(path)] == ["second", "third"]
    old = [file for file in (tmp_path / "logs" / "old", tmp_path / "moved" / "log") if file.exists()]
    assert [line["message"] for file in old for line in read_json_lines(file)] == (["first"] if old else [])


def test_log_file_that_cannot_be_opened_costs_its_lines(tmp_path: Path) -> None:
    """And it has the later lines once it can be opened."""
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "below"
    code = (
        "import sys; from pathlib import Path; from loguru import logger\n"
        "from template.telemetry.logging import configure_logging\n"
        "path = Path(sys.argv[1]); configure_logging(file=path)\n"
        "logger.info('first'); path.parent.unlink(); logger.info('second')\n"
    )
    lines = run(code, path)
    (warning,) = [line for line in lines if "WARNING" in line]
    assert f"{path} misses lines: [Errno" in warning
    assert levels(lines, "first") == levels(lines, "second") == ["INFO"]
    assert [json.loads(line)["message"] for line in path.read_text().splitlines()] == ["second"]


# Foreign text in a message of ours, of a client, and in an exception.
FOREIGN_TEXT = r"""
import logging
from loguru import logger
from template.telemetry.logging import configure_logging
configure_logging()
text = "a\n2026-01-01 00:00:00 INFO    forged\r\x1b[2J\x1b]0;title\x07 \u202egnp.exe \u2028 \ud800 \x00 \x9b31m \u00e9"
logger.warning("will try again: {}", text)
logging.getLogger("bittensor").error("%s", text)
try:
    raise ValueError(text)
except ValueError:
    logger.exception("failed {}", text)
"""


def test_log_of_foreign_text_is_escaped_and_stays_one_line() -> None:
    lines = run(FOREIGN_TEXT)
    assert all(line.isprintable() for line in lines)
    spelt = r"a\n2026-01-01 00:00:00 INFO    forged\r\x1b[2J\x1b]0;title\x07 \u202egnp.exe \u2028 \ud800 \x00 \x9b31m é"
    assert [line.endswith(spelt) for line in lines[:3]] == [True] * 3
    assert all(LINE.fullmatch(line) for line in lines[:3])
    assert all(line.startswith("  ") for line in lines[3:])
    assert lines[3] == "  Traceback (most recent call last):"
    assert lines[-2] == "  ValueError: a"
    assert lines[-1].startswith(r"  2026-01-01 00:00:00 INFO    forged\r\x1b[2J")


# Logs more than any pipe holds.
CHATTY = """
from loguru import logger
from template.telemetry import logging
logging.STDERR_TIMEOUT_S = 0.5
logging.configure_logging()
for index in range(2000):
    logger.info("line {} {}", index, "x" * 100)
print("done", flush=True)
"""
PIPE_BYTES = 4096
F_SETPIPE_SZ = 1031


@pytest.fixture
def pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """A pipe of one page: the ends to read from and to write to."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, PIPE_BYTES)
    with FileIO(reader) as reading, FileIO(writer, "w") as writing:
        yield reading, writing


@pytest.mark.parametrize("is_open", [True, False], ids=["reader hangs", "reader gone"])
def test_logs_nobody_reads_do_not_stop_the_process(pipe: tuple[FileIO, FileIO], is_open: bool) -> None:
    if not is_open:
        pipe[0].close()
    command = [sys.executable, "-c", CHATTY]
    done = subprocess.run(command, env=ENVIRONMENT, stderr=pipe[1], stdout=subprocess.PIPE, timeout=120)
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_non_blocking_stream_reports_dropped_lines(
    pipe: tuple[FileIO, FileIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("template.telemetry.logging.STDERR_TIMEOUT_S", 0.01)
    with os.fdopen(os.dup(pipe[1].fileno()), "w", encoding="utf-8") as file:
        stream = NonBlockingStream(file)
        stream.write("z" * 3 * PIPE_BYTES + "\n")
        stream.write("dropped\n")
        assert pipe[0].read(2 * PIPE_BYTES) == b"z" * PIPE_BYTES
        stream.write("next\n")
    assert pipe[0].read(2 * PIPE_BYTES) == b"\n2 log lines dropped: stderr was not read\nnext\n"


def test_non_blocking_stream_without_descriptor_writes() -> None:
    file = io.StringIO()
    NonBlockingStream(file).write("a line ∂\n")
    assert file.getvalue() == "a line ∂\n"


def test_non_blocking_stream_escapes_unencodable_text(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="ascii") as file:
        NonBlockingStream(file).write("∂\n")
    assert (tmp_path / "log").read_bytes() == b"\\u2202\n"
