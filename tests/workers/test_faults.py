"""Workers that break in every way: their job ends as this machine's fault, and another worker takes their place."""

import dataclasses
from pathlib import Path

import pytest

from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.workers.supervisor import LocalExecutor
from template.workers.timeouts import WorkerTimeouts
from tests.fixtures.workers import (
    EAGER,
    KEY,
    OTHER,
    Clock,
    Script,
    children,
    collect,
    is_alive,
    log_lines,
    ready,
    scripted,
    until,
)
from tests.workers.test_timeouts import make_result

# Nothing counts as a stall.
SLOW = WorkerTimeouts(restart_first_s=0.0, stall_s=1e9)

# What a worker does with its first job -> what is said of it.
FAULTS = {
    "print('stray', flush=True); hear()": "what it wrote is no record",
    "sys.stdout.write('x' * 17 * 2**20); sys.stdout.flush(); hear()": "what it wrote is no record",
    "tell(setup); hear()": "what it wrote is no record",
    "load(); hear()": "the worker said Loaded when it could not",
    "sys.exit(3)": "the worker ended with status 3",
    "sys.exit(0)": "the worker ended with status 0",
    "os.kill(os.getpid(), signal.SIGSEGV)": "the worker was killed by SIGSEGV",
    "os.kill(os.getpid(), signal.SIGKILL)": "by SIGKILL, probably by the kernel because the machine ran out of memory",
    "os.close(1); os._exit(1)": "the worker ended with status 1",
    "tell(messages.Failed.of(HostError('CUDA error: device-side assert'))); hear()": "CUDA error: device-side",
    "tell(messages.Failed.of(KeyError('a bug'))); hear()": "KeyError: 'a bug'",
}


def submit(executor: LocalExecutor, key: object = KEY) -> None:
    executor.submit(key, Path("/nowhere"), 7)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_worker_that_breaks_costs_its_job_alone(fault: str, tmp_path: Path) -> None:
    refuse = "tell(messages.Failed.of(SubmissionError(Reason.EMPTY, 'none')))"
    script = Script(tmp_path, f"load(); hear()\nif nth == 1:\n    {fault}\n{refuse}\nhear()")
    with scripted(script, "cuda:3") as executor:
        ready(executor)
        submit(executor)
        broken = collect(executor)[0]
        assert broken.key == KEY and broken.result is None
        assert type(broken.error) is HostError
        assert FAULTS[fault] in str(broken.error) and "cuda:3" in str(broken.error)
        ready(executor)
        submit(executor, OTHER)
        refused = collect(executor)[0]
        assert isinstance(refused.error, SubmissionError) and refused.error.reason == Reason.EMPTY
        assert refused.key == OTHER
        assert executor.idle_workers() == 1
        assert len({pid for *_, pid in script.starts()}) == 2


def test_a_score_for_another_seed_is_no_score(tmp_path: Path) -> None:
    result = repr(make_result(1.0, 1.0))
    body = (
        f"from template.records import TrainResult\nload(); hear()\ntell(messages.Evaluated(result={result})); hear()"
    )
    with scripted(Script(tmp_path, body)) as executor:
        ready(executor)
        executor.submit(KEY, Path("/nowhere"), 2)
        assert isinstance(collect(executor)[0].error, HostError)
        assert executor.tokens_per_s() is None
        ready(executor)
        executor.submit(KEY, Path("/nowhere"), 1)
        located = dataclasses.replace(make_result(1.0, 1.0), environment={"where": "local cpu"})
        assert collect(executor)[0].result == located
        assert executor.tokens_per_s() == 2000.0


def test_a_score_made_under_other_settings_than_the_worker_loaded_under_is_no_score(tmp_path: Path) -> None:
    """An operator or a container takes cores away: the receipt would tell, and yet the losses would be compared."""
    result = dataclasses.replace(make_result(1.0, 1.0), environment={"threads": "1", "dtype": "float32"})
    body = f"""from template.records import TrainResult
threads = "2" if nth == 1 else "1"
name = setup.training_args.model_id + "@" + "0" * 40 + " cpu float32"
tell(messages.Loaded(model=name, device="cpu", environment={{"threads": threads, "dtype": "float32"}}))
hear()
tell(messages.Evaluated(result={result!r}))
hear()"""
    with scripted(Script(tmp_path, body)) as executor:
        ready(executor)
        executor.submit(KEY, Path("/nowhere"), 1)
        finished = collect(executor)[0]
        assert finished.result is None and isinstance(finished.error, HostError)
        assert "another threads: 1" in str(finished.error)


def test_a_machine_that_stays_another_is_taken_as_it_is_once_no_worker_of_before_is_left(tmp_path: Path) -> None:
    """Else an operator who takes a core away for good would have no scores any more, until somebody looks."""
    body = """
threads = "2" if nth == 1 else "1"
name = setup.training_args.model_id + "@" + "0" * 40 + f" cpu float32 on {threads}"
tell(messages.Loaded(model=name, device="cpu", environment={"threads": threads}))
if nth == 1:
    sys.exit(1)
hear()"""
    with scripted(Script(tmp_path, body)) as executor:
        assert ready(executor).endswith("on 2")
        until(lambda: (executor.start() or "").endswith("on 1"), executor)
        assert executor.idle_workers() == 1


def test_another_model_is_never_taken_for_the_same_machine(tmp_path: Path) -> None:
    body = """
name = setup.training_args.model_id + "@" + str(nth) * 40 + " cpu float32"
tell(messages.Loaded(model=name, device="cpu", environment={}))
if nth == 1:
    sys.exit(1)
hear()"""
    with scripted(Script(tmp_path, body)) as executor:
        ready(executor)
        with pytest.raises(HostError, match="a model that stays the same"):
            until(lambda: executor.start() is None and False, executor)


def test_the_cores_beside_a_gpu_move_no_number(tmp_path: Path) -> None:
    result = dataclasses.replace(make_result(1.0, 1.0), environment={"threads": "1", "capability": "cuda 13.0"})
    body = f"""from template.records import TrainResult
name = setup.training_args.model_id + "@" + "0" * 40 + " cuda bfloat16"
tell(messages.Loaded(model=name, device="cuda:0", environment={{"threads": str(nth), "capability": "cuda 13.0"}}))
hear()
tell(messages.Evaluated(result={result!r}))
hear()"""
    with scripted(Script(tmp_path, body), "cuda:0", "cuda:1") as executor:
        ready(executor, workers=2)
        executor.submit(KEY, Path("/nowhere"), 1)
        assert collect(executor)[0].error is None


def test_a_worker_that_dies_idle_is_replaced_without_a_word_about_any_job(tmp_path: Path) -> None:
    script = Script(tmp_path, "load()\nif nth == 1:\n    time.sleep(0.1); sys.exit(1)\nhear()")
    with scripted(script) as executor:
        executor.start()
        until(lambda: not executor.collect() and len(script.starts()) == 2, executor)
        ready(executor)
        assert executor.collect() == []


def test_a_setting_that_is_wrong_is_raised_at_once(tmp_path: Path) -> None:
    script = Script(tmp_path, "tell(messages.Failed.of(ConfigError('--dtype must be')))\nhear()")
    with scripted(script) as executor, pytest.raises(ConfigError, match="--dtype must be"):
        ready(executor)


def test_no_miner_is_at_fault_while_there_is_no_job(tmp_path: Path) -> None:
    script = Script(tmp_path, "tell(messages.Failed.of(SubmissionError(Reason.EMPTY, 'none')))\nhear()")
    with scripted(script) as executor, pytest.raises(HostError, match="cpu: none"):
        ready(executor)


def test_settings_that_were_right_before_are_not_blamed(tmp_path: Path) -> None:
    fail = "tell(messages.Failed.of(ConfigError('--device cuda:0: this machine has 0 CUDA devices')))"
    script = Script(tmp_path, f"if nth > 1:\n    {fail}; hear()\nload(); sys.exit(1)")
    with scripted(script) as executor, pytest.raises(HostError, match="has 0 CUDA devices"):
        until(lambda: executor.start() is None and len(script.starts()) > 2, executor)


def test_a_failed_load_is_raised_once_and_tried_again_with_growing_patience(tmp_path: Path) -> None:
    clock = Clock()
    script = Script(tmp_path, "tell(messages.Failed.of(RemoteError('the Hub is down', 70.0)))\nhear()")
    with scripted(script, timeouts=WorkerTimeouts(restart_first_s=50.0, restart_most_s=600.0), clock=clock) as executor:
        for count, rest_s in enumerate((70.0, 100.0, 200.0, 400.0, 600.0, 600.0), start=1):
            with pytest.raises(RemoteError, match="the Hub is down"):
                until(executor.start, executor)
            assert len(script.starts()) == count
            clock.ahead_s += rest_s - 10.0
            assert executor.start() is None and executor.collect() == []
            assert children(script.path) == []
            clock.ahead_s += 10.0
            assert executor.start() is None
            assert len(children(script.path)) == 1


def test_one_broken_device_does_not_stop_the_other(tmp_path: Path) -> None:
    script = Script(
        tmp_path,
        "if setup.device == 'cuda:0':\n    tell(messages.Failed.of(HostError('no context'))); hear()\nload(); hear()",
    )
    timeouts = WorkerTimeouts(restart_first_s=300.0)
    with scripted(script, "cuda:0", "cuda:1", timeouts=timeouts) as executor:
        assert ready(executor).endswith("cpu float32")
        assert [device for device, *_ in script.starts()] == ["cuda:0", "cuda:1"]
        assert executor.idle_workers() == 1


def test_that_no_device_works_is_raised(tmp_path: Path) -> None:
    script = Script(tmp_path, "tell(messages.Failed.of(HostError('no context of ' + setup.device)))\nhear()")
    timeouts = WorkerTimeouts(restart_first_s=300.0)
    with (
        scripted(script, "cuda:0", "cuda:1", timeouts=timeouts) as executor,
        pytest.raises(HostError, match="cuda:0: no context of cuda:0"),
    ):
        ready(executor)
    assert len(script.starts()) == 2


def test_all_workers_compute_under_the_commit_that_the_first_one_found(tmp_path: Path) -> None:
    script = Script(tmp_path, "load()\nhear()")
    with scripted(script, "cpu", "cpu", "cpu") as executor:
        ready(executor, 3)
        assert [revision for _, revision, _ in script.starts()] == ["None", "0" * 40, "0" * 40]


def test_devices_of_different_kinds_are_refused(tmp_path: Path) -> None:
    script = Script(tmp_path, "load(setup.device)\nhear()")
    with (
        scripted(script, "cpu", "cuda:0") as executor,
        pytest.raises(ConfigError, match=r"cuda:0 computes under .* devices of one kind"),
    ):
        ready(executor, 2)


def test_a_worker_that_cannot_load_in_time_is_given_up(tmp_path: Path) -> None:
    clock = Clock()
    script = Script(tmp_path, "time.sleep(600)")
    with scripted(script, clock=clock) as executor:
        assert executor.start() is None
        until(script.starts)
        clock.ahead_s = 1801.0
        with pytest.raises(HostError, match="not loaded within 1800 s"):
            executor.start()
        assert not is_alive(int(script.starts()[0][2]))


def test_a_score_that_creeps_on_ends_by_the_pace_of_known_scores_and_the_next_has_twice_the_time(
    tmp_path: Path,
) -> None:
    clock = Clock()
    script = Script(tmp_path, "load()\nhear()\nfor done in range(10**6):\n    advance(done, 10**6); time.sleep(0.01)")
    # 50 ms a token, so that a million of them may take 250,000 s.
    with scripted(script, past_results=[make_result(100.0, 5.0)], clock=clock, timeouts=SLOW) as executor:
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


def test_what_is_under_way_is_told(tmp_path: Path) -> None:
    with scripted(Script(tmp_path, "load(); hear(); advance(3, 8); hear()"), "cpu") as executor:
        ready(executor)
        assert executor.running() == ()
        submit(executor)
        assert executor.idle_workers() == 0
        assert executor.running()[0].stage == "load"
        until(lambda: not executor.collect() and executor.running()[0].total, executor)
        running = executor.running()[0]
        assert (running.key, running.device, running.stage) == (KEY, "cpu", "train")
        assert (running.done, running.total, running.memory_bytes) == (3, 8, 5)
        with pytest.raises(RuntimeError, match="no worker is free"):
            submit(executor, OTHER)


def test_a_workers_log_lines_are_this_process_own_whatever_their_level(tmp_path: Path) -> None:
    lines = (
        "messages.Logged(level='INFO', message='scored {x} <red>')",
        "messages.Logged(level='Level 7', message='odd')",
    )
    script = Script(tmp_path, "load()\n" + "".join(f"tell({line})\n" for line in lines) + "hear()")
    with log_lines() as logged, scripted(script, "cuda:1") as executor:
        ready(executor)
        until(lambda: len([line for line in logged if line.startswith(("INFO [", "WARNING ["))]) == 2)
    assert "INFO [cuda:1] scored {x} <red>\n" in logged
    assert "WARNING [cuda:1] odd\n" in logged


def test_close_ends_a_worker_that_minds_nothing_and_starts_no_other(tmp_path: Path) -> None:
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)\nload()\n"
    script = Script(tmp_path, body + "time.sleep(600)")
    with scripted(script, "cpu", "cpu", timeouts=EAGER) as executor:
        ready(executor, 2)
        submit(executor)
        pids = [int(pid) for *_, pid in script.starts()]
        assert all(map(is_alive, pids)) and len(pids) == 2
        executor.close()
        assert not any(map(is_alive, pids))
        executor.close()
        assert executor.start() is None and executor.collect() == []
        assert executor.idle_workers() == 0 and executor.running() == ()
        assert children(script.path) == []


def test_a_machine_that_can_start_no_process_is_told(tmp_path: Path) -> None:
    script = Script(tmp_path, "")
    script.path.chmod(0o600)
    with scripted(script) as executor, pytest.raises(HostError, match="no process can be started"):
        ready(executor)


def test_no_devices_are_refused(tmp_path: Path) -> None:
    evaluator = Script(tmp_path, "")
    with scripted(evaluator) as executor, pytest.raises(ConfigError, match="at least one device"):
        LocalExecutor(executor._evaluator, [])


def test_a_worker_with_other_libraries_or_threads_is_refused(tmp_path: Path) -> None:
    body = """
model = f"{setup.training_args.model_id}@{'0' * 40} cpu float32"
tell(messages.Loaded(model=model, device=setup.device, environment={"torch": "2.13", "threads": str(nth)}))
hear()
"""
    with scripted(Script(tmp_path, body), "cuda:0", "cuda:1") as executor:
        with pytest.raises(ConfigError, match=r"^cuda:1 computes under threads 2, but the others under 1: "):
            until(lambda: executor.start() is not None and executor.idle_workers() == 2, executor)
        assert executor.idle_workers() == 1


def test_once_a_score_was_had_a_worker_with_wrong_settings_is_this_machines_fault(tmp_path: Path) -> None:
    result = repr(make_result(1.0, 1.0))
    body = f"""from template.records import TrainResult
if setup.device == "cuda:1":
    while not (folder / "scored").exists():
        time.sleep(0.01)
    tell(messages.Failed(kind="ConfigError", message="--model_path is not there"))
    hear()
load(); hear()
tell(messages.Evaluated(result={result}))
hear()
"""
    script = Script(tmp_path, body)
    with scripted(script, "cuda:0", "cuda:1") as executor, log_lines() as logged:
        ready(executor)
        executor.submit(KEY, Path("/nowhere"), 1)
        assert collect(executor)[0].result is not None
        (script.folder / "scored").touch()
        until(lambda: executor.start() and [line for line in logged if "cuda:1: --model_path is not" in line], executor)
        assert executor.idle_workers() == 1


def test_a_machine_that_goes_away_is_no_fault_of_what_it_was_doing(tmp_path: Path) -> None:
    body = "load(); hear()\ntell(messages.WorkerExited(why='the node is gone', is_machine_lost=True)); hear()"
    with scripted(Script(tmp_path, body), "cpu") as executor:
        ready(executor)
        submit(executor)
        lost = collect(executor)[0].error
        assert type(lost) is RemoteError and str(lost) == "cpu: the node is gone"
        ready(executor)
