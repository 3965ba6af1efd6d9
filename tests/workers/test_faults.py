"""Workers that misbehave in every way, and their replacement."""

from pathlib import Path

import pytest

from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.records import SubmissionKey
from template.workers.executor import CompletedJob
from template.workers.supervisor import LocalExecutor
from template.workers.timeouts import WorkerTimeouts
from tests.fixtures.logs import log_lines
from tests.fixtures.results import make_result
from tests.fixtures.workers import (
    EAGER,
    KEY,
    OTHER,
    Clock,
    Script,
    children,
    collect,
    is_alive,
    ready,
    scripted,
    until,
)

RESULT = make_result(train_seconds=1.0, eval_seconds=1.0)

# Reaction to the first job -> the error that results.
FAULTS = {
    "print('stray', flush=True); read()": "protocol error: cannot parse",
    "sys.stdout.write('x' * 17 * 2**20); sys.stdout.flush(); read()": "protocol error: cannot parse",
    "load(); read()": "protocol error: unexpected Loaded",
    "sys.exit(0)": "the worker exited with status 0",
    "os.kill(os.getpid(), signal.SIGSEGV)": "the worker was killed by SIGSEGV",
    "os.kill(os.getpid(), signal.SIGKILL)": "by SIGKILL, probably by the kernel because the machine ran out of memory",
    "os.close(1); os._exit(1)": "the worker exited with status 1",
    "fail(HostError('CUDA error: device-side assert')); read()": "CUDA error: device-side",
}


def submit(executor: LocalExecutor, key: SubmissionKey = KEY, lucky_num: int = 7) -> None:
    executor.submit(key, Path("/nowhere"), lucky_num)


def run_job(executor: LocalExecutor, key: SubmissionKey = KEY, lucky_num: int = 7) -> CompletedJob:
    """Wait for a worker, and for its job to complete."""
    ready(executor)
    submit(executor, key, lucky_num)
    return collect(executor)[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_worker_fails_its_job_and_is_replaced(fault: str, tmp_path: Path) -> None:
    body = f"load(); read()\nif start == 1:\n    {fault}\nfail(SubmissionError(Reason.EMPTY, 'empty'))\nread()"
    script = Script(tmp_path, body)
    with scripted(script, "cuda:3") as executor:
        broken = run_job(executor)
        assert (broken.key, broken.result, type(broken.error)) == (KEY, None, HostError)
        assert FAULTS[fault] in str(broken.error) and "cuda:3" in str(broken.error)
        rejected = run_job(executor, OTHER)
        assert isinstance(rejected.error, SubmissionError) and rejected.error.reason == Reason.EMPTY
        assert rejected.key == OTHER and executor.idle_workers() == 1
        assert len({pid for *_, pid in script.starts()}) == 2


def test_result_for_another_seed_is_an_error(tmp_path: Path) -> None:
    with scripted(Script(tmp_path, f"load(); read()\nevaluated({RESULT!r}); read()")) as executor:
        assert isinstance(run_job(executor, lucky_num=2).error, HostError)
        assert executor.tokens_per_s() is None
        expected = make_result(train_seconds=1.0, eval_seconds=1.0, environment={"where": "local cpu"})
        assert run_job(executor, lucky_num=1).result == expected
        assert executor.tokens_per_s() == 2000.0


def test_result_under_a_changed_environment_is_an_error(tmp_path: Path) -> None:
    """Such as fewer cores: the loss is not comparable to others of this model."""
    result = make_result(environment={"threads": "1", "dtype": "float32"})
    body = f"load(threads='2', dtype='float32')\nread()\nevaluated({result!r})\nread()"
    with scripted(Script(tmp_path, body)) as executor:
        completed = run_job(executor, lucky_num=1)
        assert completed.result is None and isinstance(completed.error, HostError)
        assert "threads 1 instead of 2" in str(completed.error)


def test_lone_worker_in_a_changed_environment_is_accepted(tmp_path: Path) -> None:
    """Otherwise nothing would be evaluated after an operator takes a core away."""
    body = "threads = str(3 - start)\nload(f'cpu {threads}', threads=threads)\nif start == 1:\n    sys.exit(1)\nread()"
    with scripted(Script(tmp_path, body)) as executor:
        assert "cpu 2" in ready(executor)
        until(lambda: "cpu 1" in (executor.start() or ""), executor)
        assert executor.idle_workers() == 1


def test_cpu_threads_beside_a_gpu_may_differ(tmp_path: Path) -> None:
    result = make_result(environment={"threads": "1", "capability": "cuda 13.0"})
    body = f"load(threads=str(start), capability='cuda 13.0')\nread()\nevaluated({result!r})\nread()"
    with scripted(Script(tmp_path, body), "cuda:0", "cuda:1") as executor:
        ready(executor, workers=2)
        submit(executor, lucky_num=1)
        assert collect(executor)[0].error is None


@pytest.mark.parametrize(
    ("load", "difference"),
    [
        ("load(torch='2.13', threads=str(start))", "threads 2 instead of 1; "),
        ("load(setup.device)", "model .* cuda:1 float32 instead of .* cuda:0 float32; "),
    ],
)
def test_worker_unlike_the_first_is_a_config_error(tmp_path: Path, load: str, difference: str) -> None:
    with scripted(Script(tmp_path, f"{load}\nread()"), "cuda:0", "cuda:1") as executor:
        with pytest.raises(ConfigError, match=f"^cuda:1 differs from the other workers: {difference}all workers need"):
            until(lambda: executor.start() is not None and executor.idle_workers() == 2, executor)
        assert executor.idle_workers() == 1


@pytest.mark.parametrize(
    ("body", "raised", "message"),
    [
        ("fail(ConfigError('--dtype must be'))", ConfigError, "^--dtype must be"),
        ("fail(SubmissionError(Reason.EMPTY, 'no rows'))", HostError, "^cpu: no rows"),
        ("if start > 1: fail(ConfigError('no device'))\nelse: load(); sys.exit(1)", HostError, "no device"),
        ("load(commit=str(start) * 40)\nif start == 1: sys.exit(1)", HostError, "the same model"),
    ],
    ids=["wrong setting", "error of a dataset", "wrong setting after a load", "another model after a load"],
)
def test_failure_to_load_is_raised(tmp_path: Path, body: str, raised: type[Exception], message: str) -> None:
    with scripted(Script(tmp_path, f"{body}\nread()")) as executor, pytest.raises(raised, match=message):
        until(lambda: executor.start() == "never", executor)


def test_config_error_after_a_result_stops_only_its_worker(tmp_path: Path) -> None:
    """A validator that has evaluated must not end because of a second device."""
    body = f"""
if setup.device == "cuda:1":
    while not (folder / "evaluated").exists():
        time.sleep(0.01)
    fail(ConfigError("--model_path is missing")); read()
load(); read(); evaluated({RESULT!r}); read()"""
    script = Script(tmp_path, body)
    with scripted(script, "cuda:0", "cuda:1") as executor, log_lines() as logged:
        assert run_job(executor, lucky_num=1).result is not None
        (script.folder / "evaluated").touch()
        until(lambda: executor.start() and any("cuda:1: --model_path is" in line for line in logged), executor)
        assert executor.idle_workers() == 1


def test_failed_load_is_raised_once_and_retried_with_backoff(tmp_path: Path) -> None:
    clock = Clock()
    script = Script(tmp_path, "fail(RemoteError('the Hub is down', 70.0))\nread()")
    with scripted(script, timeouts=WorkerTimeouts(restart_first_s=50.0, restart_most_s=150.0), clock=clock) as executor:
        for count, pause_s in enumerate((70.0, 100.0, 150.0, 150.0), start=1):
            with pytest.raises(RemoteError, match="the Hub is down"):
                until(executor.start, executor)
            assert len(script.starts()) == count
            clock.ahead_s += pause_s - 10.0
            assert executor.start() is None and executor.collect() == [] and children(script.path) == []
            clock.ahead_s += 10.0
            assert executor.start() is None and len(children(script.path)) == 1


def test_broken_device_does_not_stop_the_other(tmp_path: Path) -> None:
    script = Script(tmp_path, "if setup.device == 'cuda:0':\n    fail(HostError('broken')); read()\nload(); read()")
    with scripted(script, "cuda:0", "cuda:1", timeouts=WorkerTimeouts(restart_first_s=300.0)) as executor:
        assert ready(executor).endswith("cpu float32")
        assert [device for device, *_ in script.starts()] == ["cuda:0", "cuda:1"]


def test_workers_use_the_commit_of_the_first(tmp_path: Path) -> None:
    script = Script(tmp_path, "load()\nread()")
    with scripted(script, "cpu", "cpu", "cpu") as executor:
        ready(executor, 3)
        assert [revision for _, revision, _ in script.starts()] == ["None", "0" * 40, "0" * 40]


def test_slow_load_times_out(tmp_path: Path) -> None:
    clock = Clock()
    script = Script(tmp_path, "time.sleep(600)")
    with scripted(script, clock=clock) as executor:
        assert executor.start() is None
        until(script.starts)
        clock.ahead_s = 1801.0
        with pytest.raises(HostError, match="not loaded within 1800 s"):
            executor.start()
        assert not is_alive(int(script.starts()[0][2]))


def test_slow_job_times_out_and_the_next_has_twice_the_time(tmp_path: Path) -> None:
    clock = Clock()
    # 50 ms per token, so a million tokens may take 250,000 s.
    first = f"if start == 1:\n    read(); evaluated({make_result(train_seconds=100.0)!r})\n"
    creep = "read()\nfor done in range(10**6):\n    advance(done, 10**6); time.sleep(0.01)"
    no_stall = WorkerTimeouts(restart_first_s=0.0, stall_s=1e9)
    with scripted(Script(tmp_path, f"load()\n{first}{creep}"), clock=clock, timeouts=no_stall) as executor:
        assert run_job(executor, lucky_num=1).error is None
        for limit_s in (250_000.0, 500_000.0):
            ready(executor)
            submit(executor)
            until(lambda: not executor.collect() and executor.running()[0].done, executor)
            clock.ahead_s += limit_s - 1000.0
            done = executor.running()[0].done
            until(lambda done=done: not executor.collect() and executor.running()[0].done > done, executor)  # type: ignore[misc]
            clock.ahead_s += 1001.0
            error = collect(executor)[0].error
            assert isinstance(error, HostError) and f"more than {limit_s:.0f} s" in str(error)


def test_running_shows_stage_progress_and_memory(tmp_path: Path) -> None:
    with scripted(Script(tmp_path, "load(); read(); advance(3, 8); read()"), "cpu") as executor:
        ready(executor)
        assert executor.running() == ()
        submit(executor)
        assert executor.idle_workers() == 0 and executor.running()[0].stage == "load"
        until(lambda: not executor.collect() and executor.running()[0].total, executor)
        running = executor.running()[0]
        assert (running.key, running.device, running.stage) == (KEY, "cpu", "train")
        assert (running.done, running.total, running.memory_bytes) == (3, 8, 5)
        with pytest.raises(RuntimeError, match="no idle worker"):
            submit(executor, OTHER)


def test_worker_log_lines_keep_text_and_known_levels(tmp_path: Path) -> None:
    lines = "Logged(level='INFO', message='loss {x} <red>')", "Logged(level='Level 7', message='odd')"
    script = Script(tmp_path, "load()\n" + "".join(f"send(messages.{line})\n" for line in lines) + "read()")
    with log_lines("DEBUG") as logged, scripted(script, "cuda:1") as executor:
        ready(executor)
        until(lambda: {"INFO [cuda:1] loss {x} <red>\n", "WARNING [cuda:1] odd\n"} <= set(logged))


def test_close_kills_workers_and_starts_no_other(tmp_path: Path) -> None:
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)\nload()\n"
    with scripted(Script(tmp_path, body + "time.sleep(600)"), "cpu", "cpu", timeouts=EAGER) as executor:
        ready(executor, 2)
        submit(executor)
        pids = executor.pids()
        assert all(map(is_alive, pids)) and len(pids) == 2
        for _ in range(2):
            executor.close()
            assert not any(map(is_alive, pids))
        assert (executor.start(), executor.collect(), executor.idle_workers(), executor.running()) == (None, [], 0, ())


def test_process_that_cannot_start_is_a_host_error(tmp_path: Path) -> None:
    script = Script(tmp_path, "")
    script.path.chmod(0o600)
    with scripted(script) as executor, pytest.raises(HostError, match="cannot start a process"):
        ready(executor)


def test_lost_machine_is_a_remote_error(tmp_path: Path) -> None:
    body = "load(); read()\nsend(messages.WorkerExited(why='the node is gone', is_machine_lost=True)); read()"
    with scripted(Script(tmp_path, body), "cpu") as executor:
        error = run_job(executor).error
        assert type(error) is RemoteError and str(error) == "cpu: the node is gone"
        ready(executor)
