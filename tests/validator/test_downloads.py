"""Downloads in threads: a hub that answers late delays nothing else."""

import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from template.competition import CommitmentRecord
from template.constants import DOWNLOAD_DEADLINE_S, MAX_SUBMISSION_BYTES
from template.errors import HostError, Reason, RemoteError, SubmissionError
from template.hub.storage import HubFile
from template.localnet.hub import server as hub_server
from template.localnet.hub.api import Request, Response
from template.localnet.hub.store import HubStore
from template.records import SubmissionKey
from template.rules.schedule import Policy
from template.validator.downloads import Downloader, dataset_folder, download
from template.validator.evaluation import TIMEOUT_FIRST_S
from tests.fixtures.faulty_hub import FaultKind, HubFault, set_faults
from tests.fixtures.network import LARGE, POOL, SMALL, Net, SteppingChain, make_copy, run_bounded
from tests.fixtures.validator import Bench, open_bench
from tests.fixtures.views import make_entry

# Below the client's own timeout.
HOLD_S = 8.0


class Gate:
    """Counts requests to the hub and delays those that match `held`."""

    def __init__(self, respond: Callable[[HubStore, Request], Response]) -> None:
        self._answer = respond
        self._lock = threading.Lock()
        self.held = ""
        self.opened = threading.Event()
        self.inside = self.most = 0
        self.seen: list[str] = []

    def __call__(self, store: HubStore, call: Request) -> Response:
        with self._lock:
            self.seen.append(call.target)
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            if self.held and re.search(self.held, call.target):
                self.opened.wait(HOLD_S)
            return self._answer(store, call)
        finally:
            with self._lock:
                self.inside -= 1


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


def tick_until(bench: Bench, is_reached: Callable[[], bool]) -> None:
    """Tick until reached, however many ticks a download takes on this machine."""
    deadline = time.monotonic() + 30.0
    while not is_reached():
        assert time.monotonic() < deadline, "not reached"
        assert not bench.validator.tick()


def still(net: Net) -> SteppingChain:
    """A chain whose blocks only `net.admin` makes."""
    return SteppingChain(net, "validator", blocks=0)


def drain(fetcher: Downloader, count: int) -> dict[SubmissionKey, object]:
    found: dict[SubmissionKey, object] = {}
    deadline = time.monotonic() + 60.0
    while len(found) < count:
        assert time.monotonic() < deadline, "a download does not end"
        fetcher.wait(1.0)
        found |= {one.key: one.file or one.error for one in fetcher.collect()}
    return found


# Downloader


def test_downloads_keep_the_limit_and_never_start_twice(net: Net, gate: Gate, tmp_path: Path) -> None:
    keys = [SubmissionKey(name, f"{name}/data:1:{net.upload(name, SMALL)}") for name in "abcdefg"]
    gate.held = "/data"
    fetcher = Downloader(3)
    for key in keys[:3]:
        fetcher.start(make_entry(key), tmp_path / key.hotkey, 1)
    assert fetcher.available_slots() == 0 and fetcher.in_flight().keys() == set(keys[:3])
    with pytest.raises(RuntimeError):
        fetcher.start(make_entry(keys[3]), tmp_path / "d", 1)
    wait_until(lambda: gate.inside == 3)
    assert fetcher.collect() == []
    gate.opened.set()
    found = drain(fetcher, 3)
    with pytest.raises(RuntimeError):
        fetcher.start(make_entry(keys[3]), tmp_path / "d", 1)
        fetcher.start(make_entry(keys[3]), tmp_path / "d", 1)
    found |= drain(fetcher, 1)
    for key in keys[4:]:
        fetcher.start(make_entry(key), tmp_path / key.hotkey, 1)
    found |= drain(fetcher, 3)
    assert all(isinstance(one, HubFile) for one in found.values()) and len(found) == 7
    assert gate.most == 3


def test_many_downloads_each_get_their_own_file(net: Net, tmp_path: Path) -> None:
    lines = {f"miner{number}": POOL[number : number + 20] for number in range(40)}
    keys = {name: SubmissionKey(name, f"{name}/data:1:{net.upload(name, rows)}") for name, rows in lines.items()}
    fetcher = Downloader(40)
    for name, key in keys.items():
        fetcher.start(make_entry(key), tmp_path / name, 1)
    drain(fetcher, 40)
    for name, rows in lines.items():
        assert (tmp_path / name / "data.jsonl").read_text().splitlines() == rows


def test_download_errors_are_returned_not_raised_in_threads(tmp_path: Path) -> None:
    errors: list[Exception] = [
        SubmissionError(Reason.MISSING_REPO, "x"), RemoteError("x"), HostError("x"), ZeroDivisionError("a bug"),
    ]  # fmt: skip
    keys = [SubmissionKey(str(at), f"a/b:1:{at:040x}") for at in range(len(errors))]

    def fail(record: CommitmentRecord, folder: Path, deadline_s: float) -> HubFile:
        raise errors[int(record.commit)]

    fetcher = Downloader(4, fail)
    for key in keys:
        fetcher.start(make_entry(key), tmp_path / key.hotkey, 1)
    found = drain(fetcher, 4)
    assert [found[key] for key in keys] == errors
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="cannot make the dataset folder"):
        fetcher.start(make_entry(keys[0]), tmp_path / "file" / "below", 1)
    assert fetcher.available_slots() == 4


# Validator


def test_hanging_downloads_do_not_delay_weights(net: Net, gate: Gate) -> None:
    net.submit("alice", SMALL)
    policy = Policy(blocks_per_epoch=60, block_threshold=20, max_rounds=2)
    with open_bench(net, policy=policy, fetcher=Downloader(2), chain=still(net)) as bench:
        tick_until(bench, lambda: bool(bench.evaluator.scored))
        late = [net.submit(name, rows) for name, rows in (("bob", LARGE), ("carol", POOL[:30]), ("owner", POOL[9:50]))]
        net.admin.advance(60)
        tick_until(bench, lambda: bench.validator.rounds_done == 1)
        gate.held = "/data"
        tick_until(bench, lambda: gate.inside == 2)
        opened = bench.store.open_round(bench.eval_config)
        assert opened is not None
        for _ in range(5):
            assert not bench.validator.tick()
        assert bench.outcomes() == [], "the weights are not due"
        net.admin.advance(opened.end_block - net.admin.block() - 20)
        tick_until(bench, lambda: bool(bench.outcomes()))
        assert bench.outcomes() == [True] and gate.inside == gate.most == 2
        assert not set(late) & bench.store.verdicts(bench.eval_config).keys()
        gate.opened.set()
    assert net.admin.weights(net.hotkey("validator")) == {net.uid("alice"): 65535}


def test_duplicate_waits_for_its_original(net: Net, gate: Gate) -> None:
    carol, alice, bob = net.submit("carol", SMALL), net.submit("alice", LARGE), net.submit("bob", make_copy())
    gate.held = "alice/data"
    with open_bench(net, fetcher=Downloader(8), chain=still(net), workers=2) as bench:
        tick_until(bench, lambda: bob in bench.validator.evaluator.datasets if bench.validator.evaluator else False)
        tick_until(bench, lambda: len(bench.evaluator.scored) == 1)
        for _ in range(20):
            assert not bench.validator.tick()
        assert set(bench.store.verdicts(bench.eval_config)) == {carol} and gate.inside == 1
        gate.opened.set()
        run_bounded(bench.validator)
        lines = bench.lines()
    assert len(bench.evaluator.scored) == 2
    assert lines[bob.hotkey].reason is Reason.DUPLICATE and lines[alice.hotkey].weight > 0


def test_download_that_outlives_its_round_counts_next(net: Net, gate: Gate) -> None:
    key = net.submit("alice", LARGE)
    gate.held = "alice/data"
    policy = Policy(blocks_per_epoch=20, block_threshold=5)
    with open_bench(net, policy=policy, fetcher=Downloader(8), chain=still(net)) as bench:
        tick_until(bench, lambda: gate.inside == 1)
        net.admin.advance(25)
        tick_until(bench, lambda: bench.validator.rounds_done == 1)
        assert (
            bench.validator.evaluator is not None
            and dataset_folder(bench.validator.config.data_dir, make_entry(key)).is_dir()
        )
        tick_until(bench, lambda: bench.store.open_round(bench.eval_config) is not None)
        gate.opened.set()
        tick_until(bench, lambda: key in bench.store.verdicts(bench.eval_config))
        assert bench.store.last_round_id() == 2 and sum("paths-info" in target for target in gate.seen) == 1


def test_stop_does_not_wait_for_a_download(net: Net, gate: Gate) -> None:
    key = net.submit("alice", LARGE)
    with open_bench(net, fetcher=Downloader(8), chain=still(net)) as bench:
        tick_until(bench, lambda: bench.store.last_round() is not None)
        gate.held = "alice/data"
        tick_until(bench, lambda: gate.inside == 1)
        bench.validator.stop.set()
        bench.validator.run()
        assert gate.inside == 1, "its answer is still delayed"
        assert bench.store.verdicts(bench.eval_config) == {} and bench.store.retry_states(bench.eval_config) == {}
    gate.held = ""
    with open_bench(net, fetcher=Downloader(8), chain=still(net)) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0
    gate.opened.set()
    wait_until(lambda: gate.inside == 0)


def test_pause_by_the_hub_applies_to_all_downloads(net: Net, gate: Gate) -> None:
    now = [1_000_000.0]
    alice, bob = net.submit("alice", LARGE), net.submit("bob", SMALL)
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=429, retry_after="100", pattern="alice/data"))
    with open_bench(net, fetcher=Downloader(1), chain=still(net), now=lambda: now[0]) as bench:
        tick_until(bench, lambda: bool(bench.validator.evaluator and bench.store.retry_states(bench.eval_config)))
        set_faults(net.hub.store.root)
        now[0] += 99.0
        for _ in range(20):
            assert not bench.validator.tick()
        assert not [target for target in gate.seen if "bob/data" in target]
        assert not bench.validator._downloader.in_flight()
        now[0] += 1.0
        tick_until(bench, lambda: set(bench.store.verdicts(bench.eval_config)) == {alice, bob})


def test_collected_downloads_are_bounded_in_size(tmp_path: Path) -> None:
    sizes = [3, MAX_SUBMISSION_BYTES - 3, 1, 5, MAX_SUBMISSION_BYTES, MAX_SUBMISSION_BYTES // 2 + 1, 7]

    def fetch(record: CommitmentRecord, folder: Path, deadline_s: float) -> HubFile:
        size = int(folder.name)
        return HubFile(path=folder, repo=record.namespace, revision=record.commit, sha256="0" * 64, size=size)

    fetcher = Downloader(len(sizes), fetch)
    for at, size in enumerate(sizes):
        fetcher.start(make_entry(SubmissionKey(str(at), f"a/b:1:{'0' * 40}")), tmp_path / str(size), 0)
        wait_until(lambda at=at: len(fetcher._ended) == at + 1)  # type: ignore[misc]
    found = []
    for _ in range(4):
        started = time.monotonic()
        fetcher.wait(30.0)
        assert time.monotonic() - started < 10.0, "the rest wakes it up"
        found.append([one.file.size for one in fetcher.collect()])
    assert found == [sizes[:2], sizes[2:4], sizes[4:5], sizes[5:]] and not fetcher.in_flight()


def test_download_timeout_doubles_with_each_failure(net: Net) -> None:
    now, given = [1_000_000.0], list[float]()

    def hang(record: CommitmentRecord, folder: Path, deadline_s: float) -> HubFile:
        given.append(deadline_s)
        raise RemoteError(f"the Hub did not answer in {deadline_s:g} s")

    net.submit("alice", LARGE)
    with open_bench(net, fetcher=Downloader(1, hang), chain=still(net), now=lambda: now[0]) as bench:
        for tries in range(1, 6):
            tick_until(bench, lambda tries=tries: len(given) == tries)  # type: ignore[misc]
            tick_until(bench, lambda: not bench.validator._downloader.in_flight())
            now[0] += 3600.0
    assert given == [TIMEOUT_FIRST_S, 60.0, DOWNLOAD_DEADLINE_S, DOWNLOAD_DEADLINE_S, DOWNLOAD_DEADLINE_S]


def test_hanging_repos_delay_others_once_at_most(net: Net) -> None:
    now, asked = [1_000_000.0], list[str]()
    hung = [net.submit(name, SMALL) for name in ("alice", "bob")]
    carol = net.submit("carol", LARGE)

    def fetch(record: CommitmentRecord, folder: Path, deadline_s: float) -> HubFile:
        asked.append(record.namespace)
        if record.namespace != "carol/data":
            now[0] += 120.0  # by then, those before could be tried again
            raise RemoteError("the Hub did not answer")
        return download(record, folder, deadline_s)

    with open_bench(net, fetcher=Downloader(1, fetch), chain=still(net), now=lambda: now[0]) as bench:
        tick_until(bench, lambda: bool(bench.evaluator.scored))
        assert asked[:3] == ["alice/data", "bob/data", "carol/data"]
        assert carol in bench.validator.evaluator.datasets if bench.validator.evaluator else False
        assert all(bench.store.retry_states(bench.eval_config)[key].remote_failures for key in hung)


def test_disk_fault_in_a_download_ends_the_validator(net: Net) -> None:
    net.submit("alice", SMALL)

    def fail(record: CommitmentRecord, folder: Path, deadline_s: float) -> HubFile:
        raise HostError("the disk is full")

    with open_bench(net, fetcher=Downloader(8, fail), chain=still(net)) as bench:
        with pytest.raises(HostError, match="the disk is full"):
            tick_until(bench, lambda: False)
        assert bench.store.verdicts(bench.eval_config) == {} and bench.store.retry_states(bench.eval_config) == {}


def test_file_removed_before_evaluation_is_downloaded_again(net: Net, gate: Gate) -> None:
    key = net.submit("alice", SMALL)
    with open_bench(net, fetcher=Downloader(8), chain=still(net)) as bench:
        bench.executor.idle_workers = lambda: 0  # type: ignore[method-assign]
        tick_until(bench, lambda: bool(bench.validator.evaluator and bench.validator.evaluator.datasets))
        assert bench.validator.evaluator is not None
        shutil.rmtree(dataset_folder(bench.validator.config.data_dir, make_entry(key)))
        del bench.executor.idle_workers  # type: ignore[method-assign]
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0
    assert sum("alice/data/resolve" in target for target in gate.seen) == 2
