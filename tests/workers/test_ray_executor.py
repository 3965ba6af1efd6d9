"""Evaluations in a real Ray cluster of two nodes, with losses of both.

Nodes and workers take seconds to start, so the tests share them. pytest-xdist may run any of them in another process,
so none relies on one before it.
"""

import dataclasses
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from template.constants import DATA_FILE
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.records import SubmissionKey, TrainResult
from template.store.store import Store
from template.workers.executor import Evaluator
from template.workers.messages import RayConfig
from template.workers.ray_executor import RayExecutor
from tests.fixtures.logs import log_lines
from tests.fixtures.network import SMALL, VALIDATOR, Net, call_main, load_main, write_training_args
from tests.fixtures.ray import CLUSTER_TOKEN, NODE_TOKEN, Cluster, actors, child_of, open_cluster
from tests.fixtures.training import Bench, make_rows, write_rows
from tests.fixtures.workers import (
    EAGER,
    KEY,
    OTHER,
    SEED,
    children,
    collect,
    is_alive,
    ready,
    start_long,
    timeless,
    until,
)

pytestmark = pytest.mark.slow

TOKEN = "hf_of_the_validator"


@pytest.fixture(scope="module")
def remote(evaluator: Evaluator) -> Evaluator:
    # Workers choose their device, and have caches of their own.
    return dataclasses.replace(evaluator, device=None, cache_dir=Path("/nowhere"))


@pytest.fixture(scope="module")
def long_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that trains long enough to be interrupted."""
    return write_rows(tmp_path_factory.mktemp("long"), make_rows(250, seed=3))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster() as opened:
        opened.run("add")
        yield opened


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def logged(lines: list[str]) -> Iterator[list[str]]:
    """Log lines of all tests so far."""
    with log_lines("DEBUG", lines):
        yield lines


class SharedExecutor:
    """Two workers, one on each node, opened for the first test that needs them and closed for one that needs room."""

    def __init__(self, remote: Evaluator, cluster: Cluster) -> None:
        self._remote, self._cluster = remote, cluster
        self._opened = ExitStack()
        self._executor: RayExecutor | None = None

    def open(self) -> RayExecutor:
        if self._executor is None:
            patch = self._opened.enter_context(pytest.MonkeyPatch.context())
            patch.setenv("HF_TOKEN", TOKEN)
            self._executor = self._opened.enter_context(open_executor(self._remote, self._cluster, workers=2))
        return self._executor

    def close(self) -> None:
        self._opened.close()
        self._executor = None


@pytest.fixture(scope="module")
def shared(remote: Evaluator, cluster: Cluster) -> Iterator[SharedExecutor]:
    executor = SharedExecutor(remote, cluster)
    yield executor
    executor.close()


@pytest.fixture
def pair(shared: SharedExecutor) -> RayExecutor:
    """The two workers, idle, even if an earlier test lost one."""
    executor = shared.open()
    ready(executor, 2)
    return executor


@pytest.fixture
def room(shared: SharedExecutor, logged: list[str]) -> None:
    """No worker in the cluster."""
    shared.close()
    until(lambda: not actors(logged))


def open_executor(
    evaluator: Evaluator, cluster: Cluster, *, workers: int = 1, address: str | None = None
) -> closing[RayExecutor]:
    options = RayConfig(address=address or cluster.address, workers=workers, gpus_per_worker=0)
    return closing(RayExecutor(evaluator, options, timeouts=EAGER))


def drivers() -> set[int]:
    """Return the drivers of all open executors."""
    return set(children("template.workers.ray_driver"))


def running_on(executor: RayExecutor) -> dict[str, SubmissionKey]:
    """Return the running job of each node."""
    return {job.device.split()[1]: job.key for job in executor.running()}


def test_results_of_two_nodes_have_equal_bits_and_a_place(
    pair: RayExecutor, bench: Bench, evaluator: Evaluator, expected: TrainResult, logged: list[str]
) -> None:
    pair.submit(KEY, bench.data_dir, SEED)
    pair.submit(OTHER, bench.data_dir, SEED)
    assert pair.idle_workers() == 0 and len(running_on(pair)) == 2
    nodes = {job.key: job.device for job in pair.running()}
    results = {job.key: job.result for job in collect(pair, 2)}
    for key, result in results.items():
        assert timeless(result) == timeless(expected)
        assert result is not None and result.environment["where"] == f"ray {nodes[key]}"
        assert not any(socket.gethostname() in value for value in result.environment.values())
    assert {node.split()[1] for node in nodes.values()} == set(actors(logged))
    assert pair.start() == evaluator.load_model()
    assert [line for line in logged if line.startswith(f"INFO [{nodes[KEY]}] evaluated loss=")]


def test_wrong_dataset_is_a_submission_error(
    pair: RayExecutor, tmp_path: Path, bench: Bench, expected: TrainResult, logged: list[str]
) -> None:
    before = actors(logged)
    (tmp_path / DATA_FILE).write_text('{"conversations": 7}\n')
    pair.submit(KEY, tmp_path, SEED)
    pair.submit(OTHER, tmp_path / "missing", SEED)
    errors = {job.key: job.error for job in collect(pair, 2)}
    assert isinstance(errors[KEY], SubmissionError) and errors[KEY].reason == Reason.MALFORMED
    assert isinstance(errors[OTHER], SubmissionError) and errors[OTHER].reason == Reason.MISSING_FILE
    pair.submit(KEY, bench.data_dir, SEED)
    assert timeless(collect(pair)[0].result) == timeless(expected)
    assert actors(logged) == before


def test_hub_token_of_the_validator_is_not_in_the_cluster(pair: RayExecutor, cluster: Cluster) -> None:
    logs = [path for path in cluster.folder.rglob("*") if path.is_file()]
    assert len(logs) > 10
    assert [path for path in logs if TOKEN.encode() in path.read_bytes()] == []
    environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid in cluster.processes()]
    assert len(environments) > 5 and not any(TOKEN.encode() in environment for environment in environments)


def test_evaluating_process_has_no_token(pair: RayExecutor, cluster: Cluster, logged: list[str]) -> None:
    for actor in actors(logged).values():
        outer, child = (Path(f"/proc/{pid}/environ").read_bytes() for pid in (actor, child_of(actor)))
        assert NODE_TOKEN.encode() in outer and b"RAY_TMPDIR" in child
        assert not any(token.encode() in child for token in (TOKEN, NODE_TOKEN, CLUSTER_TOKEN))


def test_cluster_with_a_token_refuses_a_driver_without(
    remote: Evaluator, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with open_executor(remote, cluster) as executor, pytest.raises(ConfigError, match="no cluster"):
        ready(executor)


def test_lost_actor_and_node_are_remote_errors_and_replaced(
    pair: RayExecutor, cluster: Cluster, long_dir: Path, bench: Bench, expected: TrainResult, logged: list[str]
) -> None:
    before = actors(logged)
    scoring = [child_of(pid) for pid in before.values()]
    start_long(pair, {KEY: long_dir, OTHER: long_dir})
    jobs = running_on(pair)
    cluster.run("remove")
    (first,) = collect(pair)
    gone = next(node for node, key in jobs.items() if key == first.key)
    assert type(first.error) is RemoteError and first.result is None
    left = next(node for node in jobs if node != gone)
    assert running_on(pair) == {left: jobs[left]}

    os.kill(before[left], signal.SIGKILL)
    (second,) = collect(pair)
    assert type(second.error) is RemoteError and {first.key, second.key} == {KEY, OTHER}
    until(lambda: not any(map(is_alive, [*before.values(), *scoring])))

    ready(pair, 1)
    assert actors(logged).keys() == {left} and actors(logged)[left] != before[left]
    # The second worker waits for a node.
    cluster.run("add")
    ready(pair, 2)
    for lost in (first, second):
        pair.submit(lost.key, bench.data_dir, SEED)
        assert timeless(collect(pair)[0].result) == timeless(expected)


@pytest.mark.usefixtures("room")
def test_close_ends_actors_and_children_and_deletes_files(
    remote: Evaluator, cluster: Cluster, long_dir: Path, logged: list[str]
) -> None:
    with open_executor(remote, cluster) as executor:
        ready(executor)
        start_long(executor, {KEY: long_dir})
        (node,) = running_on(executor)
        actor = actors(logged)[node]
        scoring = child_of(actor)
        executor.close()
        assert drivers() == set()
        until(lambda: not is_alive(actor) and not is_alive(scoring))
        assert list(cluster.folder.glob("dataset-worker-*")) == [] and cluster.processes()
        executor.close()
        assert executor.start() is None and executor.collect() == [] and executor.running() == ()


@pytest.mark.usefixtures("room")
def test_killed_child_or_driver_is_replaced(
    remote: Evaluator, cluster: Cluster, tmp_path: Path, logged: list[str]
) -> None:
    def start(executor: RayExecutor) -> int:
        before = dict(actors(logged))
        until(lambda: executor.start() or actors(logged) != before, executor)
        (actor,) = set(actors(logged).values()) - set(before.values())
        return actor

    with open_executor(dataclasses.replace(remote, model_path=tmp_path / "absent"), cluster) as executor:
        actor = start(executor)
        os.kill(child_of(actor), signal.SIGKILL)
        with pytest.raises(HostError, match="the worker was killed by SIGKILL, probably"):
            ready(executor)
        until(lambda: not is_alive(actor))

        actor = start(executor)
        (driver,) = drivers()
        os.kill(driver, signal.SIGKILL)
        with pytest.raises(RemoteError, match="is the cluster gone"):
            ready(executor)
        until(lambda: not is_alive(actor))

        # The next driver starts a worker, whose error names its node.
        with pytest.raises(ConfigError, match=rf"^node \w{{16}}: --model_path {tmp_path}/absent"):
            ready(executor)
        assert drivers() not in (set(), {driver})


@pytest.mark.usefixtures("room")
def test_validator_with_ray_workers_completes_a_round(net: Net, cluster: Cluster, tiny_model: Path) -> None:
    key = net.submit("alice", SMALL)
    net.align(20)
    ended = call_main(
        load_main(VALIDATOR),
        *("--netuid", 96, "--subtensor.network", net.network, "--offline", "--wandb.off"),
        *("--competition", net.parts.competition, "--state_dir", net.parts.folder / "process"),
        *("--training_args", write_training_args(net.parts.folder / "args.yaml"), "--model_path", tiny_model),
        *("--max_epochs", 1, "--blocks_per_epoch", 20, "--block_threshold", 5),
        *("--poll_seconds", 0.05, "--executor", "ray"),
        *("--ray.address", cluster.address, "--ray.gpus_per_worker", 0),
    )
    assert ended.status == 0, ended.logs
    with Store(net.parts.folder / "process" / "validator.sqlite3", is_read_only=True) as store:
        assert [(line.key, line.weight) for line in store.leaderboard(1)] == [(key, 1.0)]
    (receipt,) = (net.parts.folder / "process" / "receipts").rglob("*.json")
    assert '"where": "ray node ' in receipt.read_text()


def test_missing_cluster_is_a_config_error(remote: Evaluator, cluster: Cluster) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    others = drivers()
    with open_executor(remote, cluster, address=address) as executor:
        with pytest.raises(ConfigError, match=f"--ray.address {address}: no cluster"):
            ready(executor)
        until(lambda: drivers() == others)
