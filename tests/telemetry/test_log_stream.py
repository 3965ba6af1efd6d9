"""Logs that nobody reads: the process goes on, and whoever reads again is told what is missing."""

import fcntl
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from template.telemetry.log_stream import LogStream

ROOT = Path(__file__).resolve().parents[2]
F_SETPIPE_SZ = 1031
PIPE_BYTES = 4096

# Logs more than any pipe holds, then says on stdout that it came to its end.
TALKER = """
import sys
from loguru import logger
from template.telemetry.logging import configure_logging
configure_logging()
for at in range(20_000):
    logger.info("line {} {}", at, "x" * 100)
print("done", flush=True)
"""


def open_pipe() -> tuple[int, int]:
    """A pipe that holds one page."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, F_SETPIPE_SZ, PIPE_BYTES)
    return reading, writing


def test_a_process_whose_logs_nobody_reads_comes_to_its_end() -> None:
    reading, writing = open_pipe()
    try:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", TALKER], env=environment, stderr=writing, stdout=subprocess.PIPE, timeout=120
        )
        assert (done.returncode, done.stdout) == (0, b"done\n")
        read = os.read(reading, 2 * PIPE_BYTES).decode()
    finally:
        os.close(reading)
        os.close(writing)
    assert read.splitlines() and all(" INFO " in line and line.endswith("x") for line in read.splitlines())


def test_a_reader_that_is_gone_ends_nothing() -> None:
    reading, writing = open_pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", TALKER], env=environment, stderr=writing, stdout=subprocess.PIPE, timeout=120
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_what_was_lost_is_told_to_whoever_reads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("template.telemetry.log_stream.PATIENCE_S", 0.01)
    reading, writing = open_pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        log = LogStream(stream)
        log.write("x" * (PIPE_BYTES - 1) + "\n")
        log.write("lost\n")
        log.write("y" * 3 * PIPE_BYTES + "\n")
        assert os.read(reading, 2 * PIPE_BYTES) == b"x" * (PIPE_BYTES - 1) + b"\n"
        log.write("read\n")
        assert os.read(reading, 2 * PIPE_BYTES) == b"2 lines of the log were lost: nobody read them\nread\n"
        log.write("z" * 3 * PIPE_BYTES + "\n")
        assert os.read(reading, 2 * PIPE_BYTES) == b"z" * PIPE_BYTES
        log.write("after\n")
        assert os.read(reading, 2 * PIPE_BYTES) == b"\n1 lines of the log were lost: nobody read them\nafter\n"
    os.close(reading)


def test_the_reader_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("template.telemetry.log_stream.PATIENCE_S", 0.2)
    reading, writing = open_pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        log = LogStream(stream)
        log.write("x" * PIPE_BYTES)
        began = time.monotonic()
        for _ in range(1000):
            log.write("lost\n")
        assert 0.2 <= time.monotonic() - began < 100
        os.read(reading, 2 * PIPE_BYTES)
    os.close(reading)


def test_a_stream_of_no_file_is_written_to() -> None:
    stream = io.StringIO()
    log = LogStream(stream)
    log.write("a line ∂\n")
    log.flush()
    assert stream.getvalue() == "a line ∂\n" and not log.isatty()


def test_what_the_terminal_cannot_spell_is_written_all_the_same(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="ascii") as stream:
        LogStream(stream).write("∂\n")
    assert (tmp_path / "log").read_bytes() == b"\\u2202\n"
