"""Process of one wandb run, started by `template.telemetry.wandb_tracker`.

wandb replaces `sys.exit` and the exception hook of its process and waits at exit for its own service, forever when that
hangs; in a process apart, none of this reaches the validator. Requests come from stdin, one JSON object a line: first
the run's settings, then what to log. Each is answered by one line on stdout. The end of stdin ends the run.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import wandb

OPEN_TIMEOUT_S = 120
FINISH_TIMEOUT_S = 60


def main() -> None:
    """Serve one run until stdin ends."""
    # Supervisors and terminals signal all processes at once; this one ends with the validator.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: abort())
    # The answers' pipe is for answers alone: a stray print goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**fields: str) -> None:
        # Without a validator, there is still a run to finish.
        with contextlib.suppress(OSError):
            print(json.dumps(fields), file=answers, flush=True)

    try:
        signal.alarm(OPEN_TIMEOUT_S)
        opening = json.loads(sys.stdin.readline())
        run = open_run(opening)
        signal.alarm(0)
        answer(mode="offline" if run.offline else "online", url=run.url or "")
        for line in sys.stdin:
            signal.alarm(opening["timeout_s"])
            log(run, json.loads(line))
            signal.alarm(0)
            answer()
        # Also for wandb's exit hooks.
        signal.alarm(FINISH_TIMEOUT_S)
        run.finish()
    except Exception as error:
        answer(error=str(error) or type(error).__name__)
        abort()


def abort() -> None:
    """End wandb's service and this process at once."""
    for pid in child_processes(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os._exit(1)


def child_processes(pid: int) -> list[int]:
    """Return the ids of a process's children, empty where /proc does not list them."""
    try:
        listed = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for text in listed for child in text.split()]


def open_run(request: Mapping[str, Any]) -> "wandb.Run":
    """Open or resume the run, offline without a login; never prompt."""
    import wandb

    is_offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun") or not wandb.login(prompt=False, verify=False)
    settings = wandb.Settings(
        # No automatic collection: command line, environment, code, git, host, console, other processes.
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
        # A supervisor's signal to all processes ends wandb's service, which then loses unwritten records.
        x_transaction_log_flush_interval=1.0,
    )
    run = wandb.init(
        **request["run"],
        mode="offline" if is_offline else "online",
        resume="allow",
        # Of a new release, or of other flags.
        allow_val_change=True,
        settings=settings,
    )
    for pattern, step in request["step_metrics"].items():
        run.define_metric(pattern, step_metric=step)
    return run


def log(run: "wandb.Run", request: Mapping[str, Any]) -> None:
    """Log metrics, tables and file. Raises when wandb's service does not answer."""
    import wandb

    values = dict(request["metrics"])
    for name, (columns, *rows) in request.get("tables", {}).items():
        values[name] = wandb.Table(columns=columns, data=rows)
    run.log(values)
    if "file" in request and Path(request["file"]).is_file():
        artifact = wandb.Artifact(request["artifact"], type="receipts")
        # The file of a closed round never changes, so wandb may upload it from its place.
        artifact.add_file(request["file"], policy="immutable", skip_cache=True)
        run.log_artifact(artifact)
    run.status()


if __name__ == "__main__":
    main()
