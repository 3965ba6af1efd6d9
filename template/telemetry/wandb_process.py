"""The process that holds one wandb run: `python -m template.telemetry.wandb_process FD`, started by
`template.telemetry.wandb_link`.

Apart from the validator, because wandb replaces `sys.exit` and the exception hook of the process it runs in, and makes
its exit wait for wandb's own service, for ever when that one hangs.

FD is a socket to the validator, which asks in lines of JSON and gets one line for each: first what run to open, then
what to log. Its end is the run's end, however the validator came to close it.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import wandb

FINISH_SECONDS = 60.0
"""Longest time for what is still to be sent when the validator has gone."""


def main(argv: list[str]) -> int:
    """Serves one run to its end; returns the exit status."""
    # Supervisors and terminals signal every process of a family; this one ends when the validator does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=int(argv[0])) as link, link.makefile("rw", encoding="utf-8") as lines:
        link.set_inheritable(False)
        threading.Thread(target=end_after, args=[link.fileno()], daemon=True).start()
        # A validator that was killed leaves no orderly end of file.
        with contextlib.suppress(OSError):
            serve(lines)
    import wandb

    wandb.finish()
    return 0


def serve(lines: TextIO) -> None:
    """Answers requests until there are no more. Raises: OSError when the validator has gone."""
    run: wandb.Run | None = None
    for line in lines:
        answer = {}
        try:
            request = json.loads(line)
            if run is None:
                run = open_run(request)
                answer = {"mode": "offline" if run.offline else "online", "url": run.url or ""}
            else:
                log(run, request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        lines.write(json.dumps(answer) + "\n")
        lines.flush()


def open_run(request: Mapping[str, Any]) -> "wandb.Run":
    """The run that is asked for, opened or resumed; offline unless this machine's user has a key. Asks nobody."""
    import wandb

    is_offline = os.environ.get("WANDB_MODE") == "offline" or not wandb.login(prompt=False, verify=False)
    # None of what wandb collects by itself: command line, environment, code, git, host, console, other processes.
    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        host="validator",
        init_timeout=60,
        save_code=False,
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        # wandb's service ends at once when a supervisor signals the whole family, and with it what it has not written.
        x_transaction_log_flush_interval=1.0,
    )
    run = wandb.init(
        mode="offline" if is_offline else "online",
        dir=request["folder"],
        project=request["project"],
        entity=request["entity"],
        id=request["id"],
        name=request["name"],
        group=request["group"],
        config=request["config"],
        resume="allow",
        settings=settings,
    )
    for pattern, step in request["step_metrics"].items():
        run.define_metric(pattern, step_metric=step)
    return run


def log(run: "wandb.Run", request: Mapping[str, Any]) -> None:
    """Logs metrics, with a table and a file where the request has them, and sees that the service still answers."""
    import wandb

    values = dict(request["metrics"])
    if "rows" in request:
        values["round/standings"] = wandb.Table(columns=request["columns"], data=request["rows"])
    run.log(values)
    if "file" in request and Path(request["file"]).is_file():
        artifact = wandb.Artifact(request["artifact"], type="receipts")
        # A closed round's file never changes, so it is sent from where it lies.
        artifact.add_file(request["file"], policy="immutable", skip_cache=True)
        run.log_artifact(artifact)
    run.status()


def child_processes(pid: int) -> list[int]:
    """Ids of the children of a process, where the kernel lists them; else none."""
    try:
        listed = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for text in listed for child in text.split()]


def end_after(fd: int) -> None:
    """Waits until the validator closes its end of the socket, then ends what is not finished in time."""
    closing = select.poll()
    closing.register(fd, select.POLLRDHUP)
    closing.poll()
    time.sleep(FINISH_SECONDS)
    for child in child_processes(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
