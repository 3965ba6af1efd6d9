"""Evaluations in real worker processes: equal bits, and no worker left behind.

Workers take seconds to start, so the tests share them; a test that loses one leaves its replacement to the next.
"""

import dataclasses
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from template.errors import HostError
from template.records import SubmissionKey, TrainResult
from template.workers import messages
from template.workers.executor import CompletedJob, Evaluator
from template.workers.supervisor import LocalExecutor
from tests.fixtures.network import ROOT
from tests.fixtures.training import Bench, make_args, make_rows, write_rows
from tests.fixtures.workers import (
    EAGER,
    KEY,
    OTHER,
    SEED,
    Clock,
    children,
    collect,
    is_alive,
    ready,
    start_long,
    timeless,
    until,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def long_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that trains long enough to be interrupted."""
    return write_rows(tmp_path_factory.mktemp("long"), make_rows(80, seed=3))


def worker_pids() -> list[int]:
    return children("template.workers.worker")


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def shared(evaluator: Evaluator, clock: Clock) -> Iterator[LocalExecutor]:
    """Two workers on one device."""
    executor = LocalExecutor(evaluator, ["cpu", "cpu"], timeouts=EAGER, clock=clock)
    try:
        yield executor
    finally:
        pids = worker_pids()
        executor.close()
        assert pids and not any(map(is_alive, pids))


@pytest.fixture
def pair(shared: LocalExecutor) -> LocalExecutor:
    """The two workers, idle, even if an earlier test lost one."""
    ready(shared, 2)
    return shared


def test_result_of_a_worker_has_the_bits_of_this_process(
    pair: LocalExecutor, evaluator: Evaluator, bench: Bench, expected: TrainResult
) -> None:
    pair.submit(KEY, bench.data_dir, SEED)
    pair.submit(OTHER, bench.data_dir, SEED + 1)
    assert pair.idle_workers() == 0 and len(pair.running()) == 2
    results = {job.key: job.result for job in collect(pair, 2)}
    assert timeless(results[KEY]) == timeless(expected)
    assert results[KEY] is not None and results[KEY].environment["where"] == "local cpu"
    assert timeless(results[OTHER]) == timeless(evaluator.evaluate(bench.data_dir, SEED + 1)) != timeless(expected)
    assert (pair.tokens_per_s() or 0) > 0
    assert pair.start() == evaluator.load_model()


def test_worker_reports_progress_and_ignores_signals(pair: LocalExecutor, long_dir: Path) -> None:
    start_long(pair, {KEY: long_dir})
    for pid in worker_pids():
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    running = pair.running()[0]
    assert running.stage == "train" and 0 < running.done < running.total
    assert running.memory_bytes is not None and running.memory_bytes > 50 * 2**20
    result = collect(pair)[0].result
    assert result is not None and running.total == 2 * result.train_tokens


def collect_failure(executor: LocalExecutor) -> tuple[SubmissionKey, str]:
    """Wait for a job that fails by its worker; return its key and error."""
    job = collect(executor)[0]
    assert job == CompletedJob(key=job.key, result=None, error=job.error)
    assert type(job.error) is HostError
    return job.key, str(job.error)


def test_killed_or_hung_worker_is_replaced_with_equal_bits(
    pair: LocalExecutor, long_dir: Path, bench: Bench, expected: TrainResult, clock: Clock
) -> None:
    killed, hung = worker_pids()
    start_long(pair, {KEY: long_dir, OTHER: long_dir})
    os.kill(hung, signal.SIGSTOP)
    os.kill(killed, signal.SIGKILL)
    first, error = collect_failure(pair)
    assert error.startswith("cpu: the worker was killed by SIGKILL, probably")
    clock.ahead_s += 901.0
    second, error = collect_failure(pair)
    assert error.startswith("cpu: timed out: no progress for 9")
    assert {first, second} == {KEY, OTHER}
    assert not is_alive(killed) and not is_alive(hung)
    ready(pair, 2)
    assert len({killed, hung, *worker_pids()}) == 4
    pair.submit(KEY, bench.data_dir, SEED)
    pair.submit(OTHER, bench.data_dir, SEED)
    assert [timeless(job.result) for job in collect(pair, 2)] == [timeless(expected)] * 2


_PARENT = """
import sys, time
from template.workers import messages
from template.records import SubmissionKey
from template.workers.supervisor import LocalExecutor

executor = LocalExecutor(messages.decode_command(sys.stdin.buffer.readline()).evaluator, ["cpu"])
while executor.start() is None:
    executor.wait(1.0)
executor.submit(SubmissionKey("a", "b"), sys.argv[1], 7)
while not executor.running()[0].done:
    assert not executor.collect()
    time.sleep(0.02)
print(*executor.pids(), flush=True)
sys.stdin.buffer.read()
executor._slots[0].worker._commands.close()
time.sleep(600)
"""


@pytest.mark.parametrize("end", ["parent is killed while the worker is stopped", "parent closes its stdin"])
def test_worker_ends_with_its_parent_during_training(evaluator: Evaluator, long_dir: Path, end: str) -> None:
    command = [sys.executable, "-c", _PARENT, str(long_dir)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        # Far longer than the test waits.
        long = dataclasses.replace(evaluator, training_args=make_args(num_train_epochs=1000))
        parent.stdin.write(messages.encode(messages.Setup(evaluator=long, log_level="INFO")))
        parent.stdin.flush()
        worker = int(parent.stdout.readline())
        try:
            assert is_alive(worker)
            if end == "parent closes its stdin":
                parent.stdin.close()
                until(lambda: not is_alive(worker))
                assert parent.poll() is None
            else:
                os.kill(worker, signal.SIGSTOP)
                parent.kill()
                until(lambda: not is_alive(worker))
        finally:
            parent.kill()
            if is_alive(worker):
                os.kill(worker, signal.SIGKILL)


def test_worker_out_of_memory_gives_no_result(evaluator: Evaluator, long_dir: Path) -> None:
    others = worker_pids()
    with closing(LocalExecutor(evaluator, ["cpu"], timeouts=EAGER)) as executor:
        ready(executor)
        (pid,) = set(worker_pids()).difference(others)
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (size, size))
        executor.submit(KEY, long_dir, SEED)
        key, error = collect_failure(executor)
        assert key == KEY and error.startswith("cpu: ")
