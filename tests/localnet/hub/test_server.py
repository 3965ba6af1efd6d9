"""The local hub, spoken to by the unmodified huggingface_hub client."""

import http.client
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.file_download import get_hf_file_metadata

from template.errors import ConfigError
from template.hub.client import configure_client
from template.localnet.hub.server import HubServer
from template.localnet.hub.store import HubError, HubStore, upload_files
from tests.fixtures.faulty_hub import FaultKind, FaultyHub, HubFault, read_faults, set_faults, take_fault
from tests.fixtures.hub import DATA, REPO, use_endpoint


@pytest.fixture
def server(server: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> FaultyHub:
    configure_client()  # or the client asks the public Hub for its agents first
    use_endpoint(server, monkeypatch)  # no other host is given a token or written to
    return server


def client(server: FaultyHub, name: str | None = "alice") -> HfApi:
    return HfApi(endpoint=server.endpoint, token=f"hf_local_{name}" if name else False)


def upload(api: HfApi, content: bytes, path: str = DATA, parent_commit: str | None = None) -> str:
    info = api.upload_file(
        path_or_fileobj=content, path_in_repo=path, repo_id=REPO, repo_type="dataset", parent_commit=parent_commit
    )
    return str(info.oid)


SIGNED = {"Authorization": "Bearer hf_local_alice"}


@pytest.fixture
def api(server: FaultyHub) -> HfApi:
    """Alice's client, whose repo is empty."""
    api = client(server)
    api.create_repo(REPO, repo_type="dataset")
    return api


def cached_path(revision: str) -> str:
    """Return the path to which the hub redirects for the small file."""
    return f"/api/resolve-cache/datasets/{REPO}/{revision}/{DATA}"


def raw(
    server: FaultyHub, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", int(server.endpoint.rsplit(":", 1)[1]), timeout=5)
    connection.request(method, path, body=body, headers=headers or {})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


def test_the_official_client_makes_a_round_trip(server: FaultyHub, api: HfApi, tmp_path: Path) -> None:
    assert api.create_repo(REPO, repo_type="dataset", exist_ok=True).repo_id == REPO
    sha = upload(api, b"one\n")
    info = api.dataset_info(REPO, files_metadata=True)
    assert info.sha == sha
    assert {row.rfilename: row.size for row in info.siblings or []}[DATA] == 4
    (row,) = api.get_paths_info(REPO, [DATA, "absent"], revision=sha, repo_type="dataset")
    assert row.path == DATA
    assert sorted(api.list_repo_files(REPO, repo_type="dataset")) == [".gitattributes", DATA]
    path = hf_hub_download(REPO, DATA, repo_type="dataset", revision=sha, cache_dir=tmp_path, token=False)
    assert Path(path).read_bytes() == b"one\n"


def test_a_model_repo_downloads_whole_with_its_folders(server: FaultyHub, tmp_path: Path) -> None:
    weights = os.urandom(3 * 2**20 + 7)
    (tmp_path / "weights").write_bytes(weights)
    files: dict[str, bytes | Path] = {"config.json": b"{}", "model.safetensors": tmp_path / "weights"}
    sha = upload_files(server.store.root, "Qwen/Tiny", {**files, "extra/deep/note.txt": b"hi"}, repo_type="model")
    folder = Path(snapshot_download("Qwen/Tiny", cache_dir=tmp_path / "cache", endpoint=server.endpoint, token=False))
    assert folder.name == sha
    assert (folder / "model.safetensors").read_bytes() == weights
    assert (folder / "extra/deep/note.txt").read_bytes() == b"hi"
    tree = client(server).list_repo_tree("Qwen/Tiny", "extra")
    assert [row.path for row in tree] == ["extra/deep"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(client(server).list_repo_tree("Qwen/Tiny", "nowhere"))


def test_history_is_kept_and_commits_are_unique(server: FaultyHub, api: HfApi) -> None:
    shas = [upload(api, content) for content in (b"a", b"b", b"a")]
    assert upload(api, b"a") == upload_files(server.store.root, REPO, {DATA: b"a"}) == shas[-1], "nothing changed"
    assert len(set(shas)) == 3
    for sha, content in zip(shas, (b"a", b"b", b"a"), strict=True):
        assert len(sha) == 40
        assert raw(server, "GET", cached_path(sha))[1] == content


def test_stale_parents_and_existing_repos_are_conflicts(api: HfApi) -> None:
    first = upload(api, b"a")
    upload(api, b"b", parent_commit=first)
    with pytest.raises(HfHubHTTPError, match="412"):
        upload(api, b"c", parent_commit=first)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO, repo_type="dataset")
    api.create_repo(REPO, repo_type="model")


def test_concurrent_commits_are_all_kept(api: HfApi) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: upload(api, b"x", f"{index}.txt"), range(8)))
    assert len(api.list_repo_files(REPO, repo_type="dataset")) == 9


@pytest.mark.parametrize("name", [None, "bob"])
def test_only_the_owner_writes_and_sees_what_is_private(server: FaultyHub, name: str | None) -> None:
    client(server).create_repo(REPO, repo_type="dataset", private=True)
    sha = upload(client(server), b"a")
    other = client(server, name)
    url = hf_hub_url(REPO, DATA, repo_type="dataset")
    for call in (
        lambda: other.repo_info(REPO, repo_type="dataset"),
        lambda: other.get_paths_info(REPO, [DATA], revision=sha, repo_type="dataset"),
        lambda: get_hf_file_metadata(url, token=other.token),
    ):
        # The library recognizes a 401 without a code at addresses with https only.
        with pytest.raises(RepositoryNotFoundError if name else HfHubHTTPError):
            call()
    upload_files(server.store.root, "alice/open", {DATA: b"a"})
    with pytest.raises(HfHubHTTPError):
        other.upload_file(path_or_fileobj=b"b", path_in_repo=DATA, repo_id="alice/open", repo_type="dataset")
    with pytest.raises(HfHubHTTPError):
        other.create_repo("alice/new", repo_type="dataset")


def test_unknown_token_is_invalid_until_it_is_added(server: FaultyHub) -> None:
    upload_files(server.store.root, REPO, {DATA: b"a"})
    api = HfApi(endpoint=server.endpoint, token="hf_custom")
    with pytest.raises(HfHubHTTPError) as caught:
        api.repo_info(REPO, repo_type="dataset")
    assert caught.value.response.headers["X-Error-Message"] == "Invalid credentials in Authorization header"
    server.store.add_token("hf_custom", "alice")
    assert upload(api, b"b")


def test_a_commit_of_another_repo_is_unknown_here(server: FaultyHub) -> None:
    sha = upload_files(server.store.root, "alice/one", {DATA: b"a"})
    upload_files(server.store.root, "alice/two", {DATA: b"a"})
    for revision in (sha, "dev", "refs%2Fheads%2Fmain", "..", "%2E%2E%2Frepo.json"):
        response, _ = raw(server, "GET", f"/datasets/alice/two/resolve/{revision}/{DATA}")
        assert (response.status, response.headers["X-Error-Code"]) == (404, "RevisionNotFound")


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../x", "a//x", "a\0x", ".git/config", "a\\x", "a\nb", ""])
def test_a_path_that_climbs_is_refused(server: FaultyHub, path: str) -> None:
    with pytest.raises(HubError):
        upload_files(server.store.root, REPO, {path: b"x"})
    lines = [{"key": "header", "value": {"summary": "s"}}]
    lines.append({"key": "file", "value": {"path": path, "content": "eA==", "encoding": "base64"}})
    body = "\n".join(json.dumps(line) for line in lines).encode()
    assert raw(server, "POST", f"/api/datasets/{REPO}/commit/main", SIGNED, body)[0].status == 400
    assert client(server).list_repo_files(REPO, repo_type="dataset") == [".gitattributes"]


def test_a_repo_id_that_climbs_is_refused(server: FaultyHub) -> None:
    for repo_id in ("../..", "alice/..", "..", "a/b/c"):
        with pytest.raises(HubError):
            upload_files(server.store.root, repo_id, {DATA: b"x"})
    body = json.dumps({"name": "../../up", "organization": "alice", "type": "dataset"}).encode()
    assert raw(server, "POST", "/api/repos/create", SIGNED, body)[0].status == 400


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b'{"key": 1}', b'{"key": "lfsFile", "value": {}}'])
def test_a_malformed_commit_is_a_client_error(server: FaultyHub, body: bytes) -> None:
    head = upload_files(server.store.root, REPO, {DATA: b"x"})
    response, content = raw(server, "POST", f"/api/datasets/{REPO}/commit/main", SIGNED, body)
    assert response.status == 400 or json.loads(content)["commitOid"] == head


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=0-", 206, b"0123456789"),
        ("bytes=4-", 206, b"456789"),
        ("bytes=2-3", 206, b"23"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=-3", 206, b"789"),
        ("bytes=10-", 416, b""),
        ("bytes=5-4", 416, b""),
        ("lines=1-2", 200, b"0123456789"),
    ],
)
def test_ranges_are_served(server: FaultyHub, asked: str, status: int, expected: bytes) -> None:
    upload_files(server.store.root, REPO, {DATA: b"0123456789"})
    response, content = raw(server, "GET", cached_path("main"), {"Range": asked})
    assert (response.status, content) == (status, expected)


def test_listings_have_etags_like_the_real_hub(server: FaultyHub) -> None:
    """By Express, in base64, which has slashes."""
    upload_files(server.store.root, REPO, {DATA: b"hello"})
    etags = [raw(server, "GET", f"/{place}")[0].headers["ETag"] for place in ("x", f"api/datasets/{REPO}", "api/x")]
    assert all(re.fullmatch(r'W/"[0-9a-f]+-[A-Za-z0-9+/]{27}"', name) for name in etags)
    names = [raw(server, "GET", f"/datasets/{REPO}/resolve/main/{n}")[0].headers["ETag"] for n in range(9)]
    names += [raw(server, "GET", f"/api/datasets/{REPO}/tree/{n}")[0].headers["ETag"] for n in range(40)]
    assert any("/" in name[2:] for name in names)


def test_a_closed_server_drops_connections_that_clients_keep(server: FaultyHub) -> None:
    upload_files(server.store.root, REPO, {DATA: b"x"})
    with httpx2.Client() as keeping:
        assert keeping.get(f"{server.endpoint}/api/datasets/{REPO}").status_code == 200
        server.close()
        with pytest.raises(httpx2.TransportError):
            keeping.get(f"{server.endpoint}/api/datasets/{REPO}")


def test_a_fault_is_used_up_and_only_where_it_fits(server: FaultyHub) -> None:
    upload_files(server.store.root, REPO, {DATA: b"x"})
    busy = HubFault(kind=FaultKind.STATUS, pattern="^GET .*/resolve-cache/", count=2, retry_after="3")
    set_faults(server.store.root, busy)
    page, listing = cached_path("main"), f"/api/datasets/{REPO}"
    statuses = [raw(server, "GET", path)[0].status for path in (listing, page, listing, page, page)]
    assert statuses == [200, 503, 200, 503, 200]
    assert read_faults(server.store.root) == []


def test_a_counted_fault_is_shared_between_threads(tmp_path: Path) -> None:
    set_faults(tmp_path, HubFault(kind=FaultKind.DROP, count=5))
    with ThreadPoolExecutor(12) as pool:
        taken = list(pool.map(lambda _: take_fault(tmp_path, "GET /"), range(12)))
    assert len([fault for fault in taken if fault is not None]) == 5


def test_a_token_file_is_no_builtin_namespace(tmp_path: Path) -> None:
    store = HubStore(tmp_path)
    assert store.owner_of("hf_local_alice") == "alice"
    for token in ("hf_local_", "alice", "", "hf_local_../x", "hf_local_a b"):
        assert store.owner_of(token) is None


@pytest.mark.parametrize(("token", "role"), [("hf_local_alice", "write"), ("hf_read_alice", "read")])
def test_account_of_a_token_is_told_with_its_role(server: FaultyHub, token: str, role: str) -> None:
    answer = HfApi(endpoint=server.endpoint, token=token).whoami()
    assert (answer["name"], answer["auth"]["accessToken"]["role"]) == ("alice", role)


def test_port_that_cannot_be_used_is_a_config_error(server: FaultyHub, tmp_path: Path) -> None:
    for port, reason in ((int(server.endpoint.rpartition(":")[2]), "Address already in use"), (70_000, "0-65535")):
        with pytest.raises(ConfigError, match=f"the Hub cannot listen on 127.0.0.1:{port}: .*{reason}"):
            HubServer(tmp_path / "another", port)
