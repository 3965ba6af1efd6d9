"""A real neurons/validator.py in a process of its own.

    python -m tests.campaigns.process_under_test SETUP.json VALIDATOR'S FLAGS...

is what such a process runs. SETUP.json names a module whose `install` prepares the process, by wrapping functions of
the product, before the program runs as it is.
"""

import importlib
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from template.localnet.network import NETUID
from template.telemetry.wandb_run import child_processes
from template.workers.worker import set_parent_death_signal
from tests.campaigns.synthetic_subnet import VALIDATOR, SyntheticSubnet

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "neurons" / "validator.py"
STATE_FILE = "validator.sqlite3"
# A worker takes some time to notice that its parent is gone.
_GRACE_S = 10.0


class ValidatorProcess:
    """A validator of a subnet with its state in one folder, over any number of starts.

    Args:
        folder: holds the log and the setup; the state too unless `state_dir` is given.
        hooks: module with an `install` function, which is called with `options` before the program runs.
        flags: of neurons/validator.py, beside those that name subnet and folders.
    """

    def __init__(
        self,
        subnet: SyntheticSubnet,
        folder: Path,
        *,
        hub_endpoint: str,
        hooks: str,
        options: Mapping[str, object],
        flags: Mapping[str, object],
        wallet: str = VALIDATOR,
        state_dir: Path | None = None,
    ) -> None:
        self.folder = folder
        self.state_dir = (state_dir or folder / "state").resolve()
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.state_file = self.state_dir / STATE_FILE
        self.options = dict(options)
        self.process: subprocess.Popen[bytes] | None = None
        self._hooks = hooks
        pairs = {
            "--netuid": NETUID,
            "--subtensor.network": subnet.network,
            "--wallet.path": subnet.net.wallets,
            "--wallet.name": wallet,
            "--competition": subnet.net.competition,
            "--state_dir": self.state_dir,
            **flags,
        }
        self._flags = [str(word) for pair in pairs.items() for word in pair if word is not None]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        self._environment = {
            **inherited,
            "HF_ENDPOINT": hub_endpoint,
            "HF_HOME": str(folder / "hf_home"),
            "BITTENSOR_RUNTIME_CACHE_DIR": str(folder / "runtime_cache"),
            "BTCLI_TOKEN_SYMBOLS_CACHE": str(folder / "token_symbols.json"),
            "PYTHONPATH": str(ROOT),
            # The bits of a loss depend on the number of threads.
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def start(self, **streams: object) -> "subprocess.Popen[bytes]":
        """Start a process in a session of its own, with stderr in the log."""
        setup = self.folder / "setup.json"
        setup.write_text(json.dumps({"hooks": self._hooks, "options": self.options}), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "tests.campaigns.process_under_test", str(setup), *self._flags]
        with (self.folder / "log").open("ab") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": log, **streams}
            self.process = subprocess.Popen(
                [*command, "--wandb.off"],
                cwd="/",
                env=self._environment,
                start_new_session=True,
                **streams,  # type: ignore[call-overload]
            )
        return self.process

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """Kill the process with SIGKILL and wait for its end."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def terminate(self, timeout_s: float) -> int | None:
        """Send SIGTERM; return the exit status, None when the process had to be killed."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def worker_pid(self) -> int | None:
        """Return the newest child process, None without one."""
        return next(reversed(child_processes(self.pid)), None)

    def lines(self, name: str = "log") -> list[str]:
        """Return the lines of the log, or of another file of the folder."""
        path = self.folder / name
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []

    def last_log_line(self) -> str:
        return (self.lines() or [""])[-1][:300]

    def logged_bugs(self) -> list[str]:
        """Return the log lines that only a bug of the validator writes."""
        return [line[:200] for line in self.lines() if "Traceback" in line or "this is a bug" in line]


def find_orphans(session: int, *, grace_s: float = _GRACE_S) -> list[str]:
    """Return the processes of a session that are still alive after a grace time."""
    until = time.monotonic() + grace_s
    while (living := _living(session)) and time.monotonic() < until:
        time.sleep(0.005)
    return living


def _living(session: int) -> list[str]:
    living = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
            command = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            living.append(f"process {stat.parent.name} in state {state}: {command[:120]}")
    return living


def write_training_args(path: Path) -> Path:
    """Write the training arguments for the tiny model."""
    # Not for the process under test, which starts often.
    from tests.campaigns.fake_executors import HYPERPARAMETERS, MODEL_ID

    path.write_text(json.dumps({MODEL_ID: HYPERPARAMETERS.to_dict()}), encoding="utf-8")
    return path


def write_empty_model(folder: Path) -> Path:
    """Write a model without weights, for a validator whose executor loads none."""
    folder.mkdir()
    header = json.dumps({"none": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    files = {"config.json": b"{}", "tokenizer.json": b"{}"}
    files["model.safetensors"] = len(header).to_bytes(8, "little") + header
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def set_default(owner: type, name: str, value: object) -> None:
    """Replace the default of a keyword argument of a class. For `install` functions."""
    defaults: Any = owner.__init__.__kwdefaults__  # type: ignore[misc]
    assert name in defaults, f"{owner.__name__} has no keyword argument {name}"
    defaults[name] = value


def main() -> None:
    """Install the hooks and run neurons/validator.py."""
    set_parent_death_signal()
    setup = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    importlib.import_module(setup["hooks"]).install(**setup["options"])
    sys.argv = [str(SCRIPT), *sys.argv[2:]]
    runpy.run_path(str(SCRIPT), run_name="__main__")


if __name__ == "__main__":
    main()
