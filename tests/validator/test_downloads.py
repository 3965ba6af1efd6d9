"""Downloads in threads: a hub that answers late delays nothing else."""

import re
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from template.competition import CommitmentRecord
from template.constants import DATA_FILE, DOWNLOAD_DEADLINE_S, MAX_SUBMISSION_BYTES
from template.errors import HostError, Reason, RemoteError, SubmissionError
from template.hub.datasets import check_eval_set_available
from template.hub.storage import HubFile
from template.localnet.hub import server as hub_server
from template.localnet.hub.messages import Request, Response
from template.localnet.hub.store import HubStore
from template.records import SubmissionKey
from template.rules.schedule import Policy
from template.validator.downloads import Downloader, dataset_folder
from template.validator.evaluation import TIMEOUT_FIRST_S
from tests.fixtures.faulty_hub import FaultKind, HubFault, set_faults
from tests.fixtures.network import LARGE, POOL, SMALL, Net, make_copy, run_bounded
from tests.fixtures.validator import open_bench
from tests.fixtures.views import make_entry


class Gate:
    """Records requests to the hub, and holds those that match `held` until opened."""

    def __init__(self, respond: Callable[[HubStore, Request], Response]) -> None:
        self._respond = respond
        self.held = ""
        self.opened = threading.Event()
        self.inside: list[str] = []
        self.seen: list[str] = []

    def __call__(self, store: HubStore, request: Request) -> Response:
        self.seen.append(request.target)
        self.inside.append(request.target)
        try:
            if self.held and re.search(self.held, request.target):
                # Below the client's own timeout.
                self.opened.wait(8.0)
            return self._respond(store, request)
        finally:
            self.inside.remove(request.target)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate(hub_server.respond)
    monkeypatch.setattr(hub_server, "respond", gate)
    return gate


def wait_until(is_reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not is_reached():
        assert time.monotonic() < deadline, "not reached"
        time.sleep(0.002)


def drain(downloader: Downloader) -> dict[SubmissionKey, object]:
    """Wait for every running download, and return its file or its error."""
    ended: dict[SubmissionKey, object] = {}
    deadline = time.monotonic() + 60.0
    while downloader.in_flight():
        assert time.monotonic() < deadline, "a download does not end"
        downloader.wait(1.0)
        ended |= {result.key: result.file or result.error for result in downloader.collect()}
    return ended


# Downloader


def test_downloads_keep_the_limit_and_never_start_twice(net: Net, gate: Gate, tmp_path: Path) -> None:
    lines = {name: POOL[start : start + 20] for start, name in enumerate("abcde")}
    keys = [SubmissionKey(name, f"{name}/data:1:{net.upload(name, rows)}") for name, rows in lines.items()]
    downloader = Downloader(3)

    def start(*keys: SubmissionKey) -> None:
        for key in keys:
            downloader.start(make_entry(key), tmp_path / key.hotkey, 1)

    gate.held = "/data"
    start(*keys[:3])
    assert downloader.available_slots() == 0 and downloader.in_flight().keys() == set(keys[:3])
    with pytest.raises(RuntimeError):
        start(keys[3])
    wait_until(lambda: len(gate.inside) == 3)
    assert downloader.collect() == []
    gate.opened.set()
    assert drain(downloader).keys() == set(keys[:3])
    with pytest.raises(RuntimeError):
        start(keys[3], keys[3])
    start(keys[4])
    assert drain(downloader).keys() == set(keys[3:])
    assert {name: (tmp_path / name / DATA_FILE).read_text().splitlines() for name in lines} == lines


def test_download_errors_are_returned_not_raised_in_threads(tmp_path: Path) -> None:
    errors: list[Exception] = [
        SubmissionError(Reason.MISSING_REPO, "x"), RemoteError("x"), HostError("x"), ZeroDivisionError("a bug"),
    ]  # fmt: skip
    keys = [SubmissionKey(str(number), f"a/b:1:{number:040x}") for number in range(len(errors))]

    def fail(record: CommitmentRecord, folder: Path, deadline_s: float) -> HubFile:
        raise errors[int(record.commit)]

    downloader = Downloader(4, fail)
    for key in keys:
        downloader.start(make_entry(key), tmp_path / key.hotkey, 1)
    assert drain(downloader) == dict(zip(keys, errors, strict=True))
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="cannot make the dataset folder"):
        downloader.start(make_entry(keys[0]), tmp_path / "file" / "below", 1)
    assert downloader.available_slots() == 4


@pytest.mark.parametrize("is_wall", [True, False], ids=["login wall", "missing repo"])
def test_missing_repo_is_believed_with_a_control_only(net: Net, tmp_path: Path, is_wall: bool) -> None:
    key = SubmissionKey("a", f"a/b:1:{'0' * 40}")
    if is_wall:
        wall = {"status": 401, "headers": (("X-Error-Message", "Invalid username or password."),), "body": "{}"}
        set_faults(net.hub.store.root, HubFault(kind=FaultKind.REPLY, pattern=".*", **wall))  # type: ignore[arg-type]
    downloader = Downloader(1, control=partial(check_eval_set_available, net.competition))
    downloader.start(make_entry(key), tmp_path / "a", 1)
    (error,) = drain(downloader).values()
    assert isinstance(error, RemoteError if is_wall else SubmissionError), error


def test_collected_downloads_are_bounded_in_size(tmp_path: Path) -> None:
    sizes = [3, MAX_SUBMISSION_BYTES - 3, 1, 5, MAX_SUBMISSION_BYTES, MAX_SUBMISSION_BYTES // 2 + 1, 7]

    def fetch(record: CommitmentRecord, folder: Path, deadline_s: float) -> HubFile:
        size = int(folder.name)
        return HubFile(path=folder, repo=record.namespace, revision=record.commit, sha256="0" * 64, size=size)

    downloader = Downloader(len(sizes), fetch)
    for number, size in enumerate(sizes, start=1):
        downloader.start(make_entry(SubmissionKey(str(number), f"a/b:1:{'0' * 40}")), tmp_path / str(size), 0)
        wait_until(lambda number=number: len(downloader._ended) == number)  # type: ignore[misc]
    batches = []
    for _ in range(4):
        started = time.monotonic()
        downloader.wait(30.0)
        assert time.monotonic() - started < 10.0, "the rest wakes it up"
        batches.append([result.file.size for result in downloader.collect() if result.file])
    assert batches == [sizes[:2], sizes[2:4], sizes[4:5], sizes[5:]] and not downloader.in_flight()


# Validator


def test_hanging_downloads_do_not_delay_weights(net: Net, gate: Gate) -> None:
    net.submit("alice", SMALL)
    policy = Policy(blocks_per_epoch=60, block_threshold=20, max_rounds=2)
    with open_bench(net, policy=policy, downloader=Downloader(2), blocks=0) as bench:
        bench.tick_until(lambda: bench.evaluator.scored)
        late = [net.submit(name, rows) for name, rows in (("bob", LARGE), ("carol", POOL[:30]), ("owner", POOL[9:50]))]
        net.admin.advance(60)
        bench.run_rounds()
        gate.held = "/data"
        bench.tick_until(lambda: len(gate.inside) == 2)
        opened = bench.store.open_round(bench.eval_config)
        assert opened is not None
        bench.tick(5)
        assert bench.outcomes() == [], "the weights are not due"
        net.admin.advance(opened.end_block - net.admin.block() - 20)
        bench.tick_until(bench.outcomes)
        assert bench.outcomes() == [True] and len(gate.inside) == 2
        assert not set(late) & bench.verdicts().keys()
        gate.opened.set()
    assert net.admin.weights(net.hotkey("validator")) == {net.uid("alice"): 65535}


def test_plan_waits_for_the_downloads(net: Net, gate: Gate) -> None:
    net.submit("carol", SMALL)
    alice, bob = net.submit("alice", LARGE), net.submit("bob", make_copy())
    gate.held = "alice/data"
    with open_bench(net, downloader=Downloader(8), blocks=0, workers=2) as bench:
        bench.tick_until(lambda: bob in bench.datasets())
        bench.tick(20)
        assert bench.evaluator.scored == [] and len(gate.inside) == 1
        gate.opened.set()
        run_bounded(bench.validator)
        lines = bench.lines()
    assert len(bench.evaluator.scored) == 2
    assert lines[bob.hotkey].reason is Reason.DUPLICATE and lines[alice.hotkey].weight > 0


def test_download_that_outlives_its_round_counts_next(net: Net, gate: Gate) -> None:
    key = net.submit("alice", LARGE)
    gate.held = "alice/data"
    policy = Policy(blocks_per_epoch=20, block_threshold=5)
    with open_bench(net, policy=policy, downloader=Downloader(8), blocks=0) as bench:
        bench.tick_until(lambda: len(gate.inside) == 1)
        net.admin.advance(25)
        bench.run_rounds()
        assert dataset_folder(bench.validator.config.data_dir, key).is_dir()
        bench.tick_until(lambda: bench.store.open_round(bench.eval_config))
        gate.opened.set()
        bench.tick_until(bench.losses)
        assert bench.store.last_round_id() == 2 and sum("paths-info" in target for target in gate.seen) == 1


def test_replaced_file_is_removed_before_new_ones_come(net: Net, gate: Gate) -> None:
    old = net.submit("alice", LARGE)
    policy = Policy(blocks_per_epoch=20, block_threshold=5)
    with open_bench(net, policy=policy, downloader=Downloader(8), blocks=0) as bench:
        bench.tick_until(bench.datasets)
        new = net.submit("alice", SMALL)
        net.admin.advance(25)
        bench.run_rounds()
        gate.held = "alice/data"
        bench.tick_until(lambda: len(gate.inside) == 1)
        folders = [dataset_folder(bench.validator.config.data_dir, key) for key in (old, new)]
        assert [folder.is_dir() for folder in folders] == [False, True]
        gate.opened.set()


def test_stop_does_not_wait_for_a_download(net: Net, gate: Gate) -> None:
    key = net.submit("alice", LARGE)
    with open_bench(net, downloader=Downloader(8), blocks=0) as bench:
        gate.held = "alice/data"
        bench.tick_until(lambda: len(gate.inside) == 1)
        bench.validator.stop.set()
        bench.validator.run()
        assert len(gate.inside) == 1, "its answer is still delayed"
        assert bench.verdicts() == bench.retry_states() == {}
    gate.held = ""
    with open_bench(net, downloader=Downloader(8), blocks=0) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0
    gate.opened.set()
    wait_until(lambda: not gate.inside)


@pytest.mark.parametrize("wait_s", [100.0, -86_400.0], ids=["in time", "by a clock that was fast"])
def test_pause_by_the_hub_ends_for_all_downloads(net: Net, gate: Gate, wait_s: float) -> None:
    now = [1_000_000.0]
    keys = {net.submit("alice", LARGE), net.submit("bob", SMALL)}
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=429, retry_after="100", pattern="alice/data"))
    with open_bench(net, downloader=Downloader(1), blocks=0, now=lambda: now[0]) as bench:
        bench.tick_until(bench.retry_states)
        set_faults(net.hub.store.root)
        now[0] += 99.0
        bench.tick(20)
        assert not [target for target in gate.seen if "bob/data" in target]
        assert not bench.validator._downloader.in_flight()
        now[0] += wait_s - 99.0
        bench.tick_until(lambda: bench.scored_hotkeys() == {key.hotkey for key in keys})


def test_download_timeout_doubles_with_each_failure(net: Net) -> None:
    now, given = [1_000_000.0], list[float]()

    def hang(record: CommitmentRecord, folder: Path, deadline_s: float) -> HubFile:
        given.append(deadline_s)
        raise RemoteError(f"the Hub did not answer in {deadline_s:g} s")

    net.submit("alice", LARGE)
    with open_bench(net, downloader=Downloader(1, hang), blocks=0, now=lambda: now[0]) as bench:
        for tries in range(1, 6):
            bench.tick_until(lambda tries=tries: len(given) == tries)  # type: ignore[misc]
            bench.tick_until(lambda: not bench.validator._downloader.in_flight())
            now[0] += 3600.0
    assert given == [TIMEOUT_FIRST_S, 60.0, DOWNLOAD_DEADLINE_S, DOWNLOAD_DEADLINE_S, DOWNLOAD_DEADLINE_S]


@pytest.mark.parametrize("sentence", ["the disk is full", "cannot read the dataset of .*Is a directory"])
def test_disk_fault_in_a_download_ends_the_validator(net: Net, sentence: str) -> None:
    net.submit("alice", SMALL)

    def fetch(record: CommitmentRecord, folder: Path, deadline_s: float) -> HubFile:
        if sentence == "the disk is full":
            raise HostError(sentence)
        return HubFile(path=folder, repo=record.namespace, revision=record.commit, sha256="0" * 64, size=1)

    with open_bench(net, downloader=Downloader(8, fetch), blocks=0) as bench:
        with pytest.raises(HostError, match=sentence):
            bench.tick_until(lambda: False)
        assert bench.verdicts() == bench.retry_states() == {}


def test_file_removed_before_evaluation_is_downloaded_again(net: Net, gate: Gate) -> None:
    key = net.submit("alice", SMALL)
    with open_bench(net, downloader=Downloader(8), blocks=0) as bench:
        bench.executor.idle_workers = lambda: 0  # type: ignore[method-assign]
        bench.tick_until(bench.datasets)
        shutil.rmtree(dataset_folder(bench.validator.config.data_dir, key))
        del bench.executor.idle_workers  # type: ignore[method-assign]
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0
    assert sum("alice/data/resolve" in target for target in gate.seen) == 2
