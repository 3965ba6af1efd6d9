"""What an operator is told of a validator: the truth, while it runs too, and nothing that a stranger could forge."""

import dataclasses
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import status
from template.errors import ConfigError, Reason
from template.files import lock_holder_pid
from template.records import EvalConfig, LeaderboardRow, RetryState
from template.rules.schedule import MAX_HOST_FAILURES, Policy
from template.store.store import Store
from template.validator.status import count_bytes, measure_disk, read_status
from tests.fixtures.network import LARGE, ROOT, SMALL, Net, SteppingChain, call_main, make_copy, run_process
from tests.fixtures.status import ALICE, BOB, NOW, entry, make_round
from tests.fixtures.validator import Bench, open_bench
from tests.fixtures.views import make_key

SCRIPT = ROOT / "scripts" / "status.py"


def state_dir(net: Net) -> Path:
    return net.parts.folder / "state"


def hear_now(bench: Bench) -> None:
    """The bench's clock is its own, the script's is the machine's."""
    metrics = bench.store.heartbeat()
    assert metrics is not None
    bench.store.record_heartbeat(dataclasses.replace(metrics, now=time.time()), time.time())


def test_a_validator_at_work_is_seen_from_another_process_and_goes_on(net: Net) -> None:
    net.submit("alice", LARGE)
    key = net.submit("bob", make_copy())
    with open_bench(net) as bench:
        bench.executor.hold = True
        bench.tick_until(lambda: bool(bench.executor.running()))
        bench.validator.tick()
        hear_now(bench)
        seen = run_process(SCRIPT, "--state_dir", state_dir(net), "--json", env=net.environment("validator"))
        shown = call_main(status.main, "--state_dir", state_dir(net))
        assert call_main(status.main, "--state_dir", state_dir(net), "--check").status == 0
        bench.executor.hold = False
        bench.validator.run()
        bench.validator.stop.clear()
        lines = bench.lines()
    assert seen.status == 0, seen.logs
    told_json = json.loads(seen.output)
    assert told_json["alive"]["process"] == os.getpid()
    assert [one["key"]["hotkey"] for one in told_json["activity"]["running"]] == [net.hotkey("alice")]
    assert told_json["round"] is None and told_json["standings"] == []
    assert f"runs, process {os.getpid()}" in shown.output
    assert "round 1 has no table yet: 2 submissions" in shown.output
    assert f"{net.hotkey('alice')} on fake:0: load" in shown.output
    assert lines[key.hotkey].reason is Reason.DUPLICATE, "the round was finished all the same"


def test_after_the_end_the_table_stands_and_no_process_is_seen(net: Net) -> None:
    net.submit("alice", LARGE)
    net.submit("bob", make_copy())
    with open_bench(net) as bench:
        bench.validator.run()
        lines = bench.store.leaderboard(1)
    ended = call_main(status.main, "--state_dir", state_dir(net))
    assert ended.status == 0
    assert "no process is seen to hold the state" in ended.output
    assert "1 duplicate in the table of round 1" in ended.output
    table = ended.output[ended.output.index("\nround 1, blocks ") + 1 :].splitlines()
    assert table[2].split() == ["hotkey", "uid", "dataset", "verdict", "loss", "score", "weight"]
    assert set(table[3]) == {"-", " "}
    short = f"{lines[0].key.hotkey[:6]}..{lines[0].key.hotkey[-4:]}"
    assert table[4].split() == [
        short,
        "2",
        "alice/data",
        "scored",
        f"{lines[0].loss:.6f}",
        f"{lines[0].score:.4f}",
        "1.0000",
    ]
    assert table[-1].startswith("weights: on chain since block ")
    told_json = json.loads(call_main(status.main, "--state_dir", state_dir(net), "--json").output)
    assert told_json["standings"][0]["key"]["hotkey"] == net.hotkey("alice")
    assert told_json["weights"]["accepted"]["outcome"]["is_accepted"]
    assert set(told_json) >= {"round", "intents", "activity", "failures", "disk", "alive"}


def test_looking_takes_no_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A validator that starts at that moment would be refused, and its supervisor leave it stopped."""
    assert lock_holder_pid(path) is None
    code = f"from pathlib import Path\nfrom template.store.store import Store\nStore(Path({str(path)!r}))\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as holder:
        deadline = time.monotonic() + 60
        while lock_holder_pid(path) is None:
            assert holder.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        assert lock_holder_pid(path) == holder.pid
        holder.kill()
    assert lock_holder_pid(path) is None, "the file of one that was killed still names it"
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", None)
        patch.setattr("fcntl.lockf", None)
        assert lock_holder_pid(path) is None


def test_there_is_no_status_without_a_state(tmp_path: Path) -> None:
    for words in ([], ["--json"], ["--check"], ["--watch", "1"]):
        ended = call_main(status.main, "--state_dir", tmp_path, *words)
        assert (ended.status, ended.output) == (ConfigError.exit_code, "")
    assert list(tmp_path.iterdir()) == []


def test_a_state_without_a_word_or_a_round_is_told_of(path: Path, store: Store) -> None:
    ended = call_main(status.main, "--state_dir", path.parent)
    assert ended.status == 0
    assert "it has not said yet" in ended.output
    assert "no round was opened yet" in ended.output
    check = call_main(status.main, "--state_dir", path.parent, "--check")
    assert (check.status, check.output) == (1, "the validator has not said what it is doing\n")


def test_a_check_fails_when_the_chain_keeps_refusing(net: Net) -> None:
    net.submit("alice", LARGE)
    # Of the miner's wallet: the chain lets nobody without a permit set weights, round after round.
    with open_bench(net, chain=SteppingChain(net, "alice", blocks=20), policy=Policy(max_rounds=3)) as bench:
        bench.tick_until(lambda: bench.validator.rounds_done > 0, ticks=400)
        hear_now(bench)
        ended = call_main(status.main, "--state_dir", state_dir(net), "--check", "--max_overdue_blocks", "50")
        patient = call_main(status.main, "--state_dir", state_dir(net), "--check", "--max_overdue_blocks", "100000")
        silent = call_main(status.main, "--state_dir", state_dir(net), "--check", "--max_silence_minutes", "0")
    assert ended.status == 1, ended
    assert ended.output.startswith("weights are overdue by ") and ended.output.count("\n") == 1
    assert "the last were refused at block" in ended.output
    assert (patient.status, patient.output) == (0, "all is well\n")
    assert silent.status == 1 and "no word from the validator" in silent.output


def test_only_attempts_of_who_still_stands_are_told(path: Path, store: Store, eval_config: EvalConfig) -> None:
    store.begin_round(eval_config, dataclasses.replace(make_round(), entries=(entry(ALICE),), queue=(ALICE,)), now=1.0)
    for key in (ALICE, BOB):
        store.record_retry_state(eval_config, key, RetryState(1, 0, 5.0, "the Hub did not answer in 60 s"))
    seen = read_status(path.parent, NOW)
    assert set(seen.attempts) == {ALICE}
    assert seen.model == "org/model@abc"


def test_the_contest_told_is_that_of_the_newest_round(path: Path, store: Store, eval_config: EvalConfig) -> None:
    from template.competition import Competition

    other = store.get_or_create_config(Competition.from_defaults(), "h" * 64, "org/model@def", now=2.0)
    assert read_status(path.parent, NOW).model == "org/model@def", "before the first round, the newest"
    store.begin_round(eval_config, make_round(), now=3.0)
    store.record_retry_state(eval_config, ALICE, RetryState(1, 0, 5.0, "ours"))
    store.record_retry_state(other, BOB, RetryState(1, 0, 5.0, "of the other"))
    seen = read_status(path.parent, NOW)
    assert (seen.model, set(seen.attempts)) == ("org/model@abc", {ALICE})


def test_what_strangers_wrote_reaches_the_terminal_spelt_out(net: Net) -> None:
    net.commit("alice", "\x1b[2J\x1b[31m\u202eall is well:x\x07")
    net.submit("bob", SMALL)
    with open_bench(net) as bench:
        bench.validator.run()
        attempt = RetryState(0, MAX_HOST_FAILURES, time.time() + 9_000, "\x1b]0;owned\x07\nparked      none")
        (bob,) = [key for key in bench.store.submissions() if key.hotkey == net.hotkey("bob")]
        bench.store.record_retry_state(bench.eval_config, bob, attempt)
    ended = call_main(status.main, "--state_dir", state_dir(net), "--all")
    assert "\\x1b[2J\\x1b[31m\\u202eall" in ended.output and "\\x1b]0;owned\\x07\\nparked" in ended.output
    assert [line for line in ended.output.splitlines() if not line.isprintable()] == []
    assert sum(line.startswith("parked") for line in ended.output.splitlines()) == 1
    raw = call_main(status.main, "--state_dir", state_dir(net), "--json").output
    assert raw.strip().isprintable() and raw.isascii()


def test_a_long_table_is_cut_unless_all_of_it_is_asked_for(path: Path, store: Store, eval_config: EvalConfig) -> None:
    opened = store.begin_round(eval_config, make_round(), now=1.0)
    lines = [
        LeaderboardRow(
            key=make_key(f"hotkey{uid:03}"), uid=uid, reason=Reason.EMPTY, message=f"no row {uid}", loss=None,
            score=0.0, weight=0.0,
        )
        for uid in range(50)
    ]  # fmt: skip
    store.record_leaderboard(opened.id, lines)
    cut = call_main(status.main, "--state_dir", path.parent).output
    whole = call_main(status.main, "--state_dir", path.parent, "--all").output
    assert cut.count("  empty  ") == 20
    assert "\n... and 30 more, --all shows them\n" in cut and "no row 20" not in cut
    assert whole.count("  empty  ") == 50 and "--all" not in whole and "no row 49" in whole


def test_disk_is_measured_by_what_it_holds(path: Path, store: Store, tmp_path: Path) -> None:
    folder = path.parent
    (folder / "data" / "a").mkdir(parents=True)
    (folder / "data" / "a" / "data.jsonl").write_bytes(b"x" * 3_000_000)
    (folder / "data" / "again").hardlink_to(folder / "data" / "a" / "data.jsonl")
    (folder / "data" / "link").symlink_to(folder / "data" / "a" / "data.jsonl")
    large = tmp_path / "large-disk"
    large.mkdir()
    (large / "weights").write_bytes(b"x" * 7_000_000)
    (folder / "cache").symlink_to(large)
    (folder / "validator.log").write_bytes(b"x" * 1000)
    found = {one.name: one.bytes for one in measure_disk(folder)}
    assert (found["datasets"], found["cache"], found["other"]) == (3_000_000, 7_000_000, 1000)
    assert found["state"] >= sum(one.stat().st_size for one in folder.glob("validator.sqlite3*"))
    assert count_bytes(folder / "nothing here") == 0
    output = call_main(status.main, "--state_dir", folder).output
    assert "3.0 MB  datasets" in output and " MB  total" in output and " MB  free" in output


def test_watching_goes_on_until_it_is_interrupted(net: Net, path: Path, store: Store) -> None:
    command = [sys.executable, str(SCRIPT), "--state_dir", str(path.parent), "--watch", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=net.environment("validator")) as watch:
        assert watch.stdout is not None
        seen: list[str] = []
        while sum("validator   " in line for line in seen) < 3:
            line = watch.stdout.readline()
            assert line, seen
            seen.append(line)
        watch.send_signal(signal.SIGINT)
        watch.stdout.read()
        assert watch.wait(60) == 0
    assert "\033" not in "".join(seen)


def test_only_a_terminal_is_cleared(net: Net, path: Path, store: Store) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, str(SCRIPT), "--state_dir", str(path.parent), "--watch", "0.05"]
    with (
        os.fdopen(ours, "rb", buffering=0) as terminal,
        subprocess.Popen(command, stdout=theirs, env=net.environment("validator")) as watch,
    ):
        os.close(theirs)
        seen = b""
        while seen.count(b"validator   ") < 3:
            seen += terminal.read(4096)
        watch.send_signal(signal.SIGINT)
        assert watch.wait(60) == 0
    assert seen.count(b"\033[H\033[2Jvalidator   ") == seen.count(b"validator   ")


def test_a_senseless_pause_is_refused(path: Path, store: Store) -> None:
    for pause in ("0", "-1", "nan", "inf"):
        ended = call_main(status.main, "--state_dir", path.parent, "--watch", pause)
        assert ended.status == ConfigError.exit_code and "--watch must be" in ended.logs[-1]
