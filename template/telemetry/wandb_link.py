"""One wandb run in a process of its own: started, asked within a time limit, ended."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from template.errors import RemoteError
from template.telemetry.wandb_process import child_processes

# What the process gets of ours: where things are, how to reach the network, and who we are to wandb.
_PASSED_VARIABLES = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NETRC"),
    *("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_CREDENTIALS_FILE"),
    "WANDB_CONFIG_DIR",
)
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_ANSWER_BYTES = 65536


class WandbLink:
    """A run's process. Raises: RemoteError from every method that asks it, after which it is of no more use."""

    def __init__(self, folder: Path) -> None:
        self._output = folder / "process.log"
        self._socket, theirs = socket.socketpair()
        # Until there is a process, nothing else would close it.
        with contextlib.ExitStack() as unless_started, theirs, self._output.open("wb") as output:
            unless_started.callback(self._socket.close)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "template.telemetry.wandb_process", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                env=_make_environment(folder),
                start_new_session=True,
            )
            unless_started.pop_all()

    def ask(self, request: Mapping[str, Any], *, timeout_s: float) -> dict[str, str]:
        """The answer to one request."""
        self._socket.settimeout(timeout_s)
        try:
            self._socket.sendall(json.dumps(request, allow_nan=False).encode() + b"\n")
            received = b""
            while not received.endswith(b"\n") and len(received) < _ANSWER_BYTES:
                part = self._socket.recv(_ANSWER_BYTES)
                if not part:
                    raise RemoteError("wandb's process ended")
                received += part
            answer: dict[str, str] = json.loads(received)
        except TimeoutError as error:
            raise RemoteError(f"wandb's process did not answer within {timeout_s:.0f} s") from error
        except (OSError, ValueError) as error:
            raise RemoteError(f"wandb's process: {error}") from error
        if "error" in answer:
            raise RemoteError(f"wandb: {answer['error']}")
        return answer

    def finish(self, *, timeout_s: float) -> None:
        """Lets the run send what it has and end, and ends it when it takes longer."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RemoteError(f"wandb's process did not end within {timeout_s:.0f} s") from error
        finally:
            self.close()
        if status != 0:
            raise RemoteError(f"wandb's process ended with status {status}; its last words are in {self._output}")

    def close(self) -> None:
        """Ends the process and wandb's service at once, and frees the socket."""
        self.kill()
        self._socket.close()

    def kill(self) -> None:
        """Ends the process and wandb's service at once; whoever is in `ask` meanwhile, in another thread, gets out."""
        if self._process.returncode is None:
            for pid in [*child_processes(self._process.pid), self._process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()


def _make_environment(folder: Path) -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_VARIABLES if name in os.environ}
    own = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH")))),
        "WANDB_ARTIFACT_DIR": str(folder / "artifacts"),
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_DATA_DIR": str(folder / "data"),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
    }
    return {"WANDB_CONFIG_DIR": str(folder / "config"), **passed, **own}
