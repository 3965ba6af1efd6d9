"""A real Ray cluster of this machine, of several nodes, in processes of its own; this process never loads Ray."""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from worker_fixtures import is_alive, until

NODE_TOKEN = "hf_of_the_node"
CLUSTER_TOKEN = secrets.token_hex(32)
ROOT = Path(__file__).resolve().parent.parent

# Obeys one word a line and answers each with the cluster's address. Every node has room for one worker.
_CLUSTER = """
import sys
from ray.cluster_utils import Cluster

size = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}
cluster, nodes = Cluster(), []
try:
    cluster.add_node(**size, gcs_server_port=0, include_dashboard=False)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "add":
            nodes.append(cluster.add_node(**size))
        else:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        print(cluster.address, flush=True)
finally:
    cluster.shutdown()
"""


class Cluster:
    """A cluster whose head is one node. folder: where Ray keeps its sockets and logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            # Sockets lie below, whose paths may not be long.
            "RAY_TMPDIR": str(folder),
            "TMPDIR": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "HF_TOKEN": NODE_TOKEN,
        }
        with (folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CLUSTER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                text=True,
            )
        self.address = self._hear()

    def say(self, word: str) -> None:
        """Adds a node, or removes the one that was added last, without warning; returns when it is done."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        self._hear()

    def processes(self) -> list[int]:
        """All that belongs to the cluster and lives, workers included."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"RAY_TMPDIR={self.folder}".encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return [pid for pid in found if is_alive(pid)]

    def close(self) -> None:
        """Ends every process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
            until(lambda: not self.processes())
        finally:
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)
            self._process.wait(60)
            self._process.stdout.close()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, (self.folder / "output").read_text()
        return line


@contextmanager
def open_cluster() -> Iterator[Cluster]:
    """A cluster of one node, gone in the end. It knows its own by a token, which this process has meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="r"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", CLUSTER_TOKEN)
        try:
            cluster = Cluster(folder)
            try:
                yield cluster
            finally:
                cluster.close()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def actors(logged: Sequence[str]) -> dict[str, int]:
    """Of every node that said so in the log, the process of the actor that started there last."""
    found = [re.search(r"worker starts host=\S+ node=(\w{16})\w* pid=(\d+)", line) for line in logged]
    return {match[1]: int(match[2]) for match in found if match}


def child_of(actor: int) -> int:
    """The process in which the actor's scores run."""
    shown = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(actor)], capture_output=True, text=True)
    (pid,) = [int(line.split()[0]) for line in shown.stdout.splitlines() if "template.worker_main" in line]
    return pid
