"""The command that writes a leaderboard."""

import socket
import urllib.request
from pathlib import Path

import pytest

from scripts import leaderboard
from template import cli
from template.errors import RemoteError
from template.receipts.sources import read_signed
from tests.fixtures.network import Ended, Net, call_main, use_hub
from tests.fixtures.publication import MINERS, OTHER_REPO, REPO, Publication
from tests.fixtures.season import Season


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("season") / "rounds"
    list(Season(3).write(folder, 3))
    return folder


def write(out: Path, *sources: object, more: tuple[object, ...] = ()) -> Ended:
    return call_main(leaderboard.main, "--rounds", *sources, "--out", out / "site", "--work_dir", out / "work", *more)


def test_site_of_two_validators_is_built_from_the_hub_alone(tmp_path: Path) -> None:
    """A miner's page says why the copy was refused, by each validator."""
    with Net(tmp_path / "network", MINERS) as net, use_hub(net):
        publication = Publication(net)
        ended = write(tmp_path, net.hotkey("validator"), OTHER_REPO, more=(*publication.arguments(tmp_path / "work"),))
        assert ended.status == 0, ended.logs
        page = (tmp_path / "site" / "hotkeys" / f"{net.hotkey('carol')}.html").read_text()
        alice = net.hotkey("alice")
        copied = f'Shares 58 rows with the earlier dataset of <a class="key" href="../hotkeys/{alice}.html"'
        assert page.count(copied) >= 2 and page.count(", which counts since block ") >= 2
        assert "In their newest rounds, the 2 validators recorded the same verdict." in page
        assert f"subnet audit --from {REPO} " in page and (tmp_path / "site" / "compare.html").is_file()


def test_second_call_reads_and_writes_nothing_anew(
    rounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert " rounds=3 files=" in write(tmp_path, rounds).logs[-1]
    monkeypatch.setattr(leaderboard, "extract_round", None)
    assert " rounds=3 files=0 " in write(tmp_path, rounds).logs[-1]


def test_many_new_files_are_read_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(Season(3).write(tmp_path / "rounds", 7))
    sites, own = [], list[Path]()
    for count in (1, 3):
        own.clear()
        monkeypatch.setattr(leaderboard, "_SHARE", 2)
        monkeypatch.setattr("os.sched_getaffinity", lambda _, count=count: set(range(count)))
        monkeypatch.setattr("threading.active_count", lambda: 1)
        monkeypatch.setattr(
            leaderboard, "read_signed", lambda path, *rest: own.append(path) or read_signed(path, *rest)
        )
        assert write(tmp_path / str(count), tmp_path / "rounds").status == 0
        sites.append({path.name: path.read_bytes() for path in (tmp_path / str(count)).rglob("site/**/*.*")})
    # Its share, and the newest header for the pages.
    assert len(own) == 3 + 1
    assert sites[0] == sites[1] and len(sites[0]) > 20


def test_changed_file_is_read_again(rounds: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rounds"
    folder.mkdir()
    for path in rounds.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    write(tmp_path, folder)
    path = min(folder.iterdir())
    path.write_bytes(path.read_bytes().replace(b'"opened_block":', b'"opened_block":1'))
    assert write(tmp_path, folder).status == 0
    pages = [page.read_text() for page in (tmp_path / "site" / "rounds").glob("*.html")]
    assert sum("signature not valid" in page for page in pages) == 1


def test_damaged_file_is_left_out_and_named(rounds: Path, tmp_path: Path) -> None:
    (tmp_path / "round-96-1-x.jsonl").write_text("{}\n")
    ended = write(tmp_path, rounds, tmp_path / "round-96-1-x.jsonl")
    assert ended.status == 0 and "left out: " in ended.logs[0] and "round-96-1-x.jsonl" in ended.logs[0]


def test_folder_without_rounds_is_named(tmp_path: Path) -> None:
    ended = write(tmp_path, tmp_path)
    assert ended.status == 3 and f"{tmp_path}: no round file" in ended.logs[-1]


def test_site_is_served_on_loopback(rounds: Path, tmp_path: Path) -> None:
    write(tmp_path, rounds)
    address = leaderboard.serve(tmp_path / "site", 0)
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address, timeout=10) as response:
        assert b"Dataset leaderboard" in response.read()


def test_port_that_cannot_be_used_is_named_before_the_work(rounds: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for port, reason in ((server.getsockname()[1], "Address already in use"), (70_000, "between 1 and 65535")):
            ended = write(tmp_path, rounds, more=("--serve", port))
            assert ended.status == 3 and len(ended.logs) == 1
            assert f"--serve {port}: " in ended.logs[0] and reason in ended.logs[0]
    assert not (tmp_path / "site").exists()


def test_folder_that_takes_no_cache_costs_no_site(rounds: Path, tmp_path: Path) -> None:
    (tmp_path / "work").touch()
    ended = write(tmp_path, rounds)
    assert ended.status == 0 and (tmp_path / "site" / "index.html").is_file()
    (warning,) = [line for line in ended.logs if "WARNING" in line]
    assert f"--work_dir {tmp_path / 'work'}: Not a directory; the next call reads all rounds again" in warning


def test_site_follows_a_source_until_ctrl_c(rounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that does not answer leaves the site as it is."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            monkeypatch.setattr(cli, "open_round_sources", refuse)
        elif len(pauses) == 2:
            raise KeyboardInterrupt

    def refuse(_: object) -> None:
        raise RemoteError("the Hub answered HTTP 503")

    monkeypatch.setattr("time.sleep", sleep)
    ended = write(tmp_path, rounds, more=("--every", 600))
    assert ended.status == 0 and pauses == [600.0, 600.0]
    assert ended.logs[-1].endswith("the site stays as it is: the Hub answered HTTP 503")
