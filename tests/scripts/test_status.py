"""The status script: correct while the validator runs, safe for a terminal."""

import dataclasses
import gzip
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import status
from template.competition import Competition
from template.errors import ConfigError, HostError, Reason
from template.files import lock_holder_pid
from template.records import EvalConfig, Leaderboard, LeaderboardRow, RetryState
from template.rules.schedule import MAX_HOST_FAILURES, Policy
from template.status.status import count_bytes, measure_disk, read_status
from template.stop_request import StopRequest
from template.store.store import Store
from tests.fixtures.network import LARGE, ROOT, SMALL, Ended, Net, SteppingChain, call_main, make_copy
from tests.fixtures.status import ALICE, BOB, METRICS, NOW, entry, make_round
from tests.fixtures.validator import Bench, open_bench
from tests.fixtures.views import make_key
from tests.fixtures.workers import until

SCRIPT = [sys.executable, ROOT / "scripts" / "status.py", "--state_dir"]
NUMBERS = ("runs", "mean", "spread", "loss", "score", "credit", "weight")
V0_3 = ROOT / "tests" / "fixtures" / "v0_3"


def show(folder: Net | Path, *words: object) -> Ended:
    """Run the script on a state folder, or on the network's one."""
    state = folder.parts.folder / "state" if isinstance(folder, Net) else folder
    return call_main(status.main, "--state_dir", state, *words)


def report_now(bench: Bench) -> None:
    """Date the last report by the machine's clock, which the script uses."""
    metrics = bench.store.heartbeat()
    assert metrics is not None
    bench.store.record_heartbeat(dataclasses.replace(metrics, now=time.time()), time.time())


def test_status_of_a_running_validator_does_not_disturb_it(net: Net) -> None:
    net.submit("alice", LARGE)
    key = net.submit("bob", make_copy())
    with open_bench(net) as bench:
        bench.executor.hold = True
        bench.tick_until(lambda: bool(bench.executor.running()))
        bench.validator.tick()
        report_now(bench)
        content, shown = json.loads(show(net, "--json").output), show(net)
        assert show(net, "--check").status == 0
        bench.executor.hold = False
        bench.validator.run()
        bench.validator.stop = StopRequest()
        lines = bench.lines()
    assert content["alive"]["process"] == os.getpid()
    assert [run["key"]["hotkey"] for run in content["activity"]["running"]] == [net.hotkey("alice")]
    assert content["round"] is None and content["standings"] == []
    assert f"running, process {os.getpid()}" in shown.output
    assert "round 1 has no leaderboard yet, 2 entries" in shown.output
    assert f"{net.hotkey('alice')} on fake:0: load" in shown.output
    assert lines[key.hotkey].reason is Reason.DUPLICATE, "the round was finished all the same"


def test_status_after_the_end_shows_the_leaderboard(net: Net) -> None:
    net.submit("alice", LARGE)
    net.submit("bob", make_copy())
    with open_bench(net) as bench:
        bench.validator.run()
        row = bench.store.leaderboard(1)[0]
    output = show(net).output
    assert "validator   not running" in output
    assert "1 duplicate in round 1" in output
    table = output[output.index("\nround 1, blocks ") + 1 :].splitlines()
    assert table[2].split() == ["hotkey", "uid", "dataset", "verdict", *NUMBERS]
    short = f"{row.key.hotkey[:6]}..{row.key.hotkey[-4:]}"
    loss = f"{row.loss:.6f}"
    numbers = ["1", loss, "-", loss, f"{row.score:.4f}", f"{row.credit:.4f}", "1.0000"]
    assert table[4].split() == [short, "2", "alice/data", "record", *numbers]
    assert table[-2] == f"ledger: 1 confirmed datasets, 1 records; the best loss is {loss}, of {short}"
    assert table[-1].startswith("weights: on chain since block ")


def test_json_has_estimate_credit_and_ledger(net: Net) -> None:
    net.submit("alice", LARGE)
    with open_bench(net) as bench:
        bench.validator.run()
        (row,), (line,) = bench.store.leaderboard(1), bench.store.ledger(1)
    content = json.loads(show(net, "--json").output)
    (shown,), (ledger,) = content["standings"], content["ledger"]
    assert shown["key"]["hotkey"] == net.hotkey("alice")
    assert {name: shown[name] for name in NUMBERS} == {name: getattr(row, name) for name in NUMBERS}
    assert ledger == dataclasses.asdict(line) and line.credit > 0.0


@pytest.mark.parametrize("name", ["state.db", "state_open.db.gz"])
def test_migrated_state_of_0_3_shows_what_0_3_showed(tmp_path: Path, name: str) -> None:
    content = (V0_3 / name).read_bytes()
    (tmp_path / "validator.sqlite3").write_bytes(gzip.decompress(content) if name.endswith(".gz") else content)
    refused = show(tmp_path, "--json")
    assert refused.status == 3 and "start the validator once to migrate it" in refused.logs[-1]
    Store(tmp_path / "validator.sqlite3").close()
    shown = json.loads(show(tmp_path, "--json").output)
    case = "status open" if "open" in name else "status state"
    past = json.loads((V0_3 / "expected.json").read_text())["cli"][case]["json"]
    for key in ("model", "contest", "failures"):
        assert shown[key] == past[key], key
    assert shown["activity"].items() >= past["activity"].items()
    for name, field in (("standings", "loss"), ("intents", "weights"), ("intents", "shares")):
        assert [row[field] for row in shown[name]] == [row[field] for row in past[name]]


def test_finding_the_lock_holder_takes_no_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A validator that starts at that moment would be refused its state."""
    assert lock_holder_pid(path) is None
    imports = "import pathlib, sys, time; from template.store.store import Store"
    command = [sys.executable, "-c", f"{imports}; store = Store(pathlib.Path(sys.argv[1])); time.sleep(600)", path]
    with subprocess.Popen(command, cwd=ROOT) as holder:
        until(lambda: holder.poll() is not None or lock_holder_pid(path) is not None)
        assert lock_holder_pid(path) == holder.pid
        holder.kill()
    assert lock_holder_pid(path) is None, "a killed holder"
    monkeypatch.setattr("fcntl.flock", None)
    monkeypatch.setattr("fcntl.lockf", None)
    assert lock_holder_pid(path) is None


def test_folder_without_a_state_is_refused(tmp_path: Path) -> None:
    for words in ([], ["--json"], ["--check"], ["--watch", "1"]):
        ended = show(tmp_path, *words)
        assert (ended.status, ended.output) == (ConfigError.exit_code, "")
    assert list(tmp_path.iterdir()) == []


def test_status_of_a_new_state_has_no_report_and_no_round(path: Path, store: Store) -> None:
    output = show(path.parent).output
    assert "no report yet" in output and "no round yet" in output
    check = show(path.parent, "--check")
    assert (check.status, check.output) == (
        1,
        "no_report: no report from the validator yet. What to do: wait, then read its log\n",
    )


def test_check_fails_when_the_chain_keeps_rejecting_weights(net: Net) -> None:
    net.submit("alice", SMALL)
    # A miner's wallet: without a validator permit the chain rejects its weights in every round.
    with open_bench(net, chain=SteppingChain(net, "alice", blocks=20), policy=Policy(max_rounds=3)) as bench:
        bench.tick_until(lambda: bench.validator.rounds_done > 0)
        report_now(bench)
        ended = show(net, "--check", "--max_overdue_blocks", 50)
        silent = show(net, "--check", "--max_silence_minutes", 0)
    assert ended.status == silent.status == 1
    permit, overdue = ended.output.splitlines()
    assert permit.startswith(
        "no_stake: weights do not count, NotEnoughStakeToSetWeights: this hotkey has a stake weight of 0.000"
    )
    assert permit.endswith(
        f". What to do: btcli stake add --netuid 96 --hotkey {net.hotkey('alice')} --amount-tao AMOUNT"
        " --network NETWORK"
    )
    assert (
        overdue.startswith("weights_overdue: weights are overdue by ")
        and "the last with NotEnoughStakeToSetWeights" in overdue
    )
    assert silent.output.startswith("silent: no report from the validator for ")


def test_check_finds_a_hotkey_that_left(net: Net) -> None:
    net.submit("alice", SMALL)
    with open_bench(net) as bench:

        def own_uid() -> int | None:
            metrics = bench.store.heartbeat()
            return metrics.neuron.uid if metrics and metrics.neuron else None

        bench.tick_until(own_uid)
        net.admin.deregister(net.hotkey("validator"))
        bench.tick_until(lambda: own_uid() is None)
        report_now(bench)
        ended = show(net, "--check")
    (line,) = [line for line in ended.output.splitlines() if "uid" in line]
    assert line.startswith(
        f"hotkey_gone: the hotkey {net.hotkey('validator')} has no uid on netuid 96. What to do: btcli "
    )
    assert ended.status == 1


def test_check_of_a_killed_validator_fails_at_once(path: Path, store: Store) -> None:
    """Its last report is a moment old, as a health check sees it."""
    store.record_heartbeat(dataclasses.replace(METRICS, now=time.time(), block_time=time.time()), time.time())
    store.close()
    code = "import pathlib, sys, time; from template.store.store import Store; store = Store(pathlib.Path(sys.argv[1]))"
    code += "\nwith store.recorded_run('1', time.time): print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.read(1)
        assert show(path.parent, "--check").output == "all is well\n"
        process.kill()
    ended = show(path.parent, "--check")
    assert (ended.status, ended.output) == (
        1,
        "no_process: the validator is not running, and was killed. What to do: start it\n",
    )


def test_check_of_a_stopped_validator_says_how_it_ended(net: Net) -> None:
    with open_bench(net) as bench:
        bench.validator.stop.set()
        bench.validator.run()
    assert "the validator is not running: stopped " in show(net, "--check").output
    with open_bench(net) as bench, pytest.raises(HostError):
        bench.executor.load_errors = [HostError("no GPU")]
        bench.validator.run()
    assert "with status 4, " in show(net, "--check").output and "status 4, no GPU" in show(net, "--check").output


def test_only_retries_of_entries_are_shown(path: Path, store: Store, eval_config: EvalConfig) -> None:
    store.begin_round(eval_config, dataclasses.replace(make_round(), entries=(entry(ALICE),), queue=(ALICE,)), now=1.0)
    for key in (ALICE, BOB):
        store.record_retry_state(eval_config, key, RetryState(1, 0, 5.0, "the Hub did not answer in 60 s"))
    assert set(read_status(path.parent, NOW).attempts) == {ALICE}


def test_eval_config_shown_is_the_newest_rounds(path: Path, store: Store, eval_config: EvalConfig) -> None:
    other = store.get_or_create_config(Competition.from_defaults(), "h" * 64, "org/model@def", now=2.0)
    assert read_status(path.parent, NOW).model == "org/model@def", "before the first round, the newest"
    store.begin_round(eval_config, make_round(), now=3.0)
    store.record_retry_state(eval_config, ALICE, RetryState(1, 0, 5.0, "ours"))
    store.record_retry_state(other, BOB, RetryState(1, 0, 5.0, "of the other"))
    shown = read_status(path.parent, NOW)
    assert (shown.model, set(shown.attempts)) == ("org/model@abc", {ALICE})


def test_strangers_text_is_escaped(net: Net) -> None:
    net.commit("alice", "\x1b[2J\x1b[31m\u202eall is well:x\x07")
    net.submit("bob", SMALL)
    with open_bench(net) as bench:
        bench.validator.run()
        attempt = RetryState(0, MAX_HOST_FAILURES, time.time() + 9_000, "\x1b]0;owned\x07\nsuspended   none")
        (bob,) = [key for key in bench.datasets() if key.hotkey == net.hotkey("bob")]
        bench.store.record_retry_state(bench.eval_config, bob, attempt)
    ended = show(net, "--all")
    assert "\\x1b[2J\\x1b[31m" in ended.output and "\\x1b]0;owned\\x07\\nsuspended" in ended.output
    assert [line for line in ended.output.splitlines() if not line.isprintable()] == []
    assert sum(line.startswith("suspended") for line in ended.output.splitlines()) == 1
    raw = show(net, "--json").output
    assert raw.strip().isprintable() and raw.isascii()


@pytest.mark.slow
def test_long_text_is_printed_whole_in_any_encoding(path: Path, store: Store, eval_config: EvalConfig) -> None:
    cause = "https://hub.example/" + "x" * 180 + "/the-end"
    store.begin_round(eval_config, make_round(entry(ALICE)), NOW)
    store.record_retry_state(eval_config, ALICE, RetryState(1, 0, time.time() + 600, cause))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*SCRIPT, path.parent], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "/the-end" in "".join(done.stdout.split())


@pytest.mark.slow
def test_status_with_a_closed_stdout_succeeds(path: Path, store: Store) -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *SCRIPT, path.parent]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_leaderboard_is_cut_at_20_rows_without_all(path: Path, store: Store, eval_config: EvalConfig) -> None:
    opened = store.begin_round(eval_config, make_round(), now=1.0)
    rejected = {"reason": Reason.EMPTY, "loss": None, "score": 0.0, "weight": 0.0}
    rows = [
        LeaderboardRow(key=make_key(f"hotkey{uid:03}"), uid=uid, message=f"no row {uid}", **rejected)  # type: ignore[arg-type]
        for uid in range(50)
    ]
    store.record_leaderboard(opened.id, Leaderboard(rows, []))
    cut, whole = show(path.parent).output, show(path.parent, "--all").output
    assert cut.count("  empty ") == 20
    assert "\n... and 30 more, --all shows them\n" in cut and "no row 20" not in cut
    assert whole.count("  empty ") == 50 and "--all" not in whole and "no row 49" in whole


def test_disk_use_counts_each_file_once_by_kind(path: Path, store: Store, tmp_path: Path) -> None:
    folder = path.parent
    dataset = folder / "data" / "a" / "data.jsonl"
    dataset.parent.mkdir(parents=True)
    dataset.write_bytes(b"x" * 3_000_000)
    (folder / "data" / "again").hardlink_to(dataset)
    (folder / "data" / "link").symlink_to(dataset)
    large = tmp_path / "large-disk"
    large.mkdir()
    (large / "weights").write_bytes(b"x" * 7_000_000)
    (folder / "cache").symlink_to(large)
    (folder / "validator.log").write_bytes(b"x" * 1000)
    sizes = measure_disk(folder)
    assert (sizes["datasets"], sizes["cache"], sizes["other"]) == (3_000_000, 7_000_000, 1000)
    assert sizes["state"] >= sum(file.stat().st_size for file in folder.glob("validator.sqlite3*"))
    assert count_bytes(folder / "nothing here") == 0
    output = show(folder).output
    assert "3.0 MB  datasets" in output and " MB  total" in output and " MB  free" in output


@pytest.mark.slow
@pytest.mark.parametrize("is_terminal", [False, True])
def test_watch_prints_until_interrupted(path: Path, store: Store, is_terminal: bool) -> None:
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    with (
        os.fdopen(ours, "rb", buffering=0) as reader,
        subprocess.Popen([*SCRIPT, path.parent, "--watch", "0.05"], stdout=theirs) as watch,
    ):
        os.close(theirs)
        output = b""
        while output.count(b"validator   ") < 3:
            output += reader.read(4096)
        watch.send_signal(signal.SIGINT)
        assert watch.wait(60) == 0
    output = re.sub(rb"\033\[\d*m", b"", output)
    screens = output.count(b"PROBLEM     no_report: ")
    assert output.count(b"\033[2J\033[HPROBLEM     ") == (screens if is_terminal else 0)


def test_watch_pause_out_of_range_is_refused(path: Path, store: Store) -> None:
    for pause in ("0", "-1", "nan", "inf"):
        ended = show(path.parent, "--watch", pause)
        assert ended.status == ConfigError.exit_code and "--watch must be" in ended.logs[-1]
