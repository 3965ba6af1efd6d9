"""The real Hub's answers, as the local one gives them: by itself, or by a rule."""

import base64
import gzip
import hashlib
import http.client
import json
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi

from template.hub.client import configure_client
from template.localnet.hub.answers import Answer, Rule, read_answers, set_answers
from template.localnet.hub.store import upload_files
from tests.fixtures.faulty_hub import FaultyHub
from tests.fixtures.hub import DATA, NEW, OLD, REPO, TOKEN, upload_data, upload_large, use_endpoint

BOB, READER = "hf_local_bob", "hf_read_alice"
INFO, PATHS = f"/api/datasets/{REPO}", f"/api/datasets/{REPO}/paths-info/main"
FILE, COMMIT = f"/datasets/{REPO}/resolve/main/{DATA}", f"/api/datasets/{REPO}/commit/main"
CREATE = "/api/repos/create"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def code(self) -> str | None:
        return self.headers["X-Error-Code"]

    @property
    def message(self) -> str:
        return str(self.headers["X-Error-Message"])

    def json(self) -> dict[str, object]:
        return dict(json.loads(self.body))


def ask(
    server: FaultyHub, path: str, token: str | None = None, *, method: str = "GET", body: object = None, **more: str
) -> Reply:
    """Send one request, follow no redirect."""
    url = urlsplit(path if "://" in path else server.endpoint + path)
    headers = ({} if token is None else {"Authorization": f"Bearer {token}"}) | more
    content = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    with closing(http.client.HTTPConnection(str(url.hostname), url.port, timeout=10)) as connection:
        connection.request(method, f"{url.path}?{url.query}" if url.query else url.path, body=content, headers=headers)
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())


def make_commit(content: bytes, **header: str) -> bytes:
    """Return the body of a commit of data.jsonl."""
    file = {"path": DATA, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    lines: list[dict[str, object]] = [{"key": "header", "value": {"summary": "s", **header}}]
    return b"\n".join(json.dumps(line).encode() for line in [*lines, {"key": "file", "value": file}])


@pytest.mark.parametrize("path", [INFO, FILE])
@pytest.mark.parametrize("is_private", [False, True], ids=["missing", "private"])
def test_unseen_repo_is_a_401_or_a_404(server: FaultyHub, path: str, is_private: bool) -> None:
    if is_private:
        upload_data(server, private=True)
    reply = ask(server, path)
    assert (reply.status, reply.code, reply.message) == (401, None, "Invalid username or password.")
    assert reply.headers["WWW-Authenticate"] == 'Bearer realm="Authentication required", charset="UTF-8"'
    assert reply.body == b"Invalid username or password." if path == FILE else reply.json()["error"] == reply.message
    reply = ask(server, path, BOB)
    assert (reply.status, reply.code) == (404, "RepoNotFound")


def test_refused_token_is_a_401_or_ignored(server: FaultyHub) -> None:
    upload_data(server)
    assert "credentials" in ask(server, INFO, "hf_unknown").message
    set_answers(server.store.root, Rule(answer=Answer.TOKEN_REFUSED, account="alice"))
    assert ask(server, INFO, TOKEN).status == 401
    assert ask(server, INFO, BOB).status == ask(server, INFO).status == 200
    set_answers(server.store.root, Rule(answer=Answer.TOKEN_IGNORED))
    assert ask(server, INFO, "hf_unknown").status == 200
    assert ask(server, CREATE, TOKEN, method="POST", body={"name": "x", "organization": "alice"}).status == 401


def test_gated_repo_is_listed_and_sent_to_its_owner_only(server: FaultyHub) -> None:
    upload_data(server)
    set_answers(server.store.root, Rule(answer=Answer.GATED, repo=REPO))
    assert ask(server, INFO).json()["gated"] == "auto"
    assert ask(server, PATHS, method="POST", body=f"paths={DATA}".encode()).status == 200
    assert (ask(server, FILE).status, ask(server, FILE).code) == (401, "GatedRepo")
    assert (ask(server, FILE, BOB).status, ask(server, FILE, BOB).code) == (403, "GatedRepo")
    assert ask(server, FILE, TOKEN).status == 307
    upload_data(server, repo="bob/data")
    assert ask(server, "/datasets/bob/data/resolve/main/data.jsonl").status == 307


def test_disabled_repo_is_a_403_or_says_so(server: FaultyHub) -> None:
    upload_data(server)
    set_answers(server.store.root, Rule(answer=Answer.DISABLED, repo=REPO))
    reply = ask(server, INFO)
    assert (reply.status, reply.code, reply.message) == (403, None, "Access to this resource is disabled.")
    set_answers(server.store.root, Rule(answer=Answer.DISABLED_LISTED, repo=REPO))
    assert ask(server, INFO).json()["disabled"] is True


def test_missing_commit_and_file_have_their_codes(server: FaultyHub) -> None:
    commit = upload_data(server)
    reply = ask(server, f"{INFO}/revision/{'0' * 40}")
    assert (reply.status, reply.code) == (404, "RevisionNotFound")
    reply = ask(server, f"/datasets/{REPO}/resolve/{commit}/absent")
    assert (reply.status, reply.code, reply.body) == (404, "EntryNotFound", b"Entry not found")
    assert reply.headers["X-Repo-Commit"] == commit and reply.headers["ETag"].startswith('W/"f-')


@pytest.mark.parametrize("is_renamed", [False, True], ids=["other case", "renamed"])
def test_other_name_of_a_repo_leads_to_it(server: FaultyHub, is_renamed: bool) -> None:
    upload_data(server)
    other, present = "Alice/TALK", REPO
    if is_renamed:
        server.store.rename("datasets", REPO, "alice/speech")
        other, present = REPO, "alice/speech"
    for method, path in (
        ("GET", f"/api/datasets/{other}?expand=sha"),
        ("GET", f"/datasets/{other}/resolve/main/{DATA}"),
        ("POST", f"/api/datasets/{other}/paths-info/main"),
    ):
        reply = ask(server, path, method=method, body=f"paths={DATA}".encode())
        assert (reply.status, reply.headers["Location"]) == (307, path.replace(other, present))
        assert reply.headers["RateLimit"]
        assert ask(server, reply.headers["Location"], method=method, body=f"paths={DATA}".encode()).status in (200, 307)


def test_private_repo_is_not_betrayed_by_another_case(server: FaultyHub) -> None:
    upload_data(server, private=True)
    assert ask(server, "/api/datasets/ALICE/talk").status == 401
    assert ask(server, "/api/datasets/ALICE/talk", TOKEN).status == 307


def test_small_file_comes_from_the_resolver_cache(server: FaultyHub) -> None:
    commit = upload_data(server)
    first = ask(server, FILE)
    place = first.headers["Location"]
    assert (first.status, first.headers["X-Repo-Commit"]) == (307, commit)
    assert place.startswith(f"/api/resolve-cache/datasets/{REPO}/{commit}/{DATA}?")
    second = ask(server, place)
    oid = hashlib.sha1(b"blob %d\0" % len(OLD) + OLD, usedforsecurity=False).hexdigest()
    assert (second.status, second.headers["ETag"], second.body) == (200, f'"{oid}"', OLD)


def test_small_file_is_compressed_for_who_accepts_it(server: FaultyHub) -> None:
    upload_data(server)
    reply = ask(server, ask(server, FILE).headers["Location"], **{"Accept-Encoding": "gzip, deflate"})
    assert (reply.headers["Content-Encoding"], reply.headers["Transfer-Encoding"]) == ("gzip", "chunked")
    assert reply.headers["ETag"].startswith('W/"') and "Accept-Encoding" in reply.headers["Vary"]
    assert gzip.decompress(reply.body) == OLD


def test_large_file_is_on_another_origin(server: FaultyHub) -> None:
    upload_large(server)
    sha256 = hashlib.sha256(OLD).hexdigest()
    listing = ask(server, PATHS, method="POST", body=f"paths={DATA}".encode())
    (row,) = json.loads(listing.body)
    assert (row["lfs"]["oid"], row["lfs"]["size"], len(row["xetHash"])) == (sha256, len(OLD), 64)
    assert row["oid"] != sha256 and row["lfs"]["pointerSize"] in range(100, 140)
    reply = ask(server, FILE)
    assert (reply.status, reply.headers["X-Linked-ETag"]) == (302, f'"{sha256}"')
    assert (reply.headers["X-Linked-Size"], reply.headers["X-Xet-Hash"]) == (str(len(OLD)), row["xetHash"])
    place = reply.headers["Location"]
    assert place.startswith(server.storage) and not place.startswith(server.endpoint)
    assert ask(server, place).body == OLD
    assert ask(server, place, TOKEN).status == 403, "a signed address and a token are one too many"


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize("size", [100, 11 * 2**20], ids=["by its name", "by its size"])
def test_official_client_uploads_a_large_file(
    server: FaultyHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int
) -> None:
    configure_client()
    use_endpoint(server, monkeypatch)
    api = HfApi(endpoint=server.endpoint, token=TOKEN)
    api.create_repo(REPO, repo_type="dataset")
    name, content = ("weights.bin" if size == 100 else DATA), b"x" * size
    api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=REPO, repo_type="dataset")
    (row,) = api.get_paths_info(REPO, [name], repo_type="dataset")
    assert row.lfs.sha256 == hashlib.sha256(content).hexdigest()
    path = api.hf_hub_download(REPO, name, repo_type="dataset", cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == content


def test_refusal_of_the_storage_is_xml(server: FaultyHub) -> None:
    upload_large(server)
    set_answers(server.store.root, Rule(answer=Answer.STORE_REFUSES, repo=REPO))
    reply = ask(server, ask(server, FILE).headers["Location"])
    assert reply.status == 403 and b"<Code>AccessDenied</Code>" in reply.body and reply.code is None


@pytest.mark.parametrize(("path", "name", "quota"), [(INFO, "api", 500), (FILE, "resolvers", 3000)])
def test_rate_limit_is_always_told(server: FaultyHub, path: str, name: str, quota: int) -> None:
    for expected in (401, 200 if path == INFO else 307):
        reply = ask(server, path)
        assert reply.status == expected
        assert reply.headers["RateLimit"] == f'"{name}";r={quota - 1};t=295'
        assert reply.headers["RateLimit-Policy"] == f'"fixed window";"{name}";q={quota};w=300'
        upload_data(server)


BUSY = {
    Answer.QUOTA: (429, '"api";r=0;t=60', None, b'{"error"'),
    Answer.QUOTA_HTML: (429, '"api";r=0;t=60', None, b"<h1>429"),
    Answer.COMMIT_QUOTA: (429, '"api";r=499;t=295', "60", b"128 per hour"),
    Answer.GIT_QUEUE: (429, '"api";r=499;t=295', None, b"maximum time in concurrency queue reached"),
    Answer.UNAVAILABLE: (503, '"api";r=499;t=295', None, b"<h1>503"),
    Answer.GATEWAY_TIMEOUT: (504, '"api";r=499;t=295', None, b"<h1>504"),
}


@pytest.mark.parametrize("answer", BUSY)
def test_busy_hub_answers_by_rule(server: FaultyHub, answer: Answer) -> None:
    head = upload_data(server)
    set_answers(server.store.root, Rule(answer=answer, repo="Alice/Talk", account="alice", count=1))
    assert ask(server, COMMIT.replace(REPO, "bob/data"), BOB, method="POST", body=make_commit(NEW)).status == 404
    reply = ask(server, COMMIT, TOKEN, method="POST", body=make_commit(NEW))
    status, limit, wait, part = BUSY[answer]
    assert (reply.status, reply.headers["RateLimit"], reply.headers["Retry-After"]) == (status, limit, wait)
    assert part in reply.body and ask(server, INFO).json()["sha"] == head
    assert ask(server, COMMIT, TOKEN, method="POST", body=make_commit(NEW)).status == 200, "the rule is used up"


def test_commit_quota_may_tell_no_time(server: FaultyHub) -> None:
    upload_data(server)
    set_answers(server.store.root, Rule(answer=Answer.COMMIT_QUOTA, seconds=0))
    reply = ask(server, COMMIT, TOKEN, method="POST", body=make_commit(NEW))
    assert (reply.status, reply.headers["Retry-After"]) == (429, None)


def test_repo_is_created_in_ones_own_namespace_only(server: FaultyHub) -> None:
    def create(owner: str, token: str = TOKEN) -> Reply:
        body = {"name": "talk", "organization": owner, "type": "dataset"}
        return ask(server, CREATE, token, method="POST", body=body)

    assert create("alice").status == 200
    assert create("alice").status == 409
    assert create("alice").json()["url"] == f"{server.endpoint}/datasets/{REPO}"
    assert create("bob").status == create("Alice").status == create("alice", READER).status == 403
    set_answers(server.store.root, Rule(answer=Answer.CREATE_BUSY, repo=REPO))
    busy = create("alice")
    assert busy.status == 409 and "another conflicting operation is in progress" in busy.message


def test_read_token_writes_nothing(server: FaultyHub) -> None:
    upload_data(server, private=True)
    assert ask(server, INFO, READER).status == 200
    for path in (COMMIT, f"{INFO}/branch/b", f"/datasets/{REPO}.git/info/lfs/objects/batch"):
        assert ask(server, path, READER, method="POST", body={}).status == 403


def test_commit_is_refused_for_its_parent_and_its_pointers(server: FaultyHub) -> None:
    first = upload_data(server)
    upload_data(server, NEW)
    assert ask(server, COMMIT, TOKEN, method="POST", body=make_commit(OLD, parentCommit=first)).status == 412
    pointer = {"path": DATA, "algo": "sha256", "oid": "a" * 64, "size": 3}
    body = json.dumps({"key": "lfsFile", "value": pointer}).encode()
    reply = ask(server, COMMIT, TOKEN, method="POST", body=body)
    assert reply.status == 400 and "pointed to a file that does not exist" in reply.message


def test_commit_lands_late_or_in_spite_of_an_error(server: FaultyHub) -> None:
    heads = [upload_data(server)]
    set_answers(server.store.root, Rule(answer=Answer.COMMIT_LOST, count=1), Rule(answer=Answer.COMMIT_SLOW, seconds=1))
    assert ask(server, COMMIT, TOKEN, method="POST", body=make_commit(NEW)).status == 504
    heads.append(str(ask(server, INFO).json()["sha"]))
    started = time.monotonic()
    heads.append(str(ask(server, COMMIT, TOKEN, method="POST", body=make_commit(OLD)).json()["commitOid"]))
    assert time.monotonic() - started > 1 and len(set(heads)) == 3


def test_main_is_stale_after_a_forced_push(server: FaultyHub) -> None:
    old, new = upload_data(server), upload_data(server, NEW)
    set_answers(server.store.root, Rule(answer=Answer.STALE_MAIN, repo=REPO))
    assert ask(server, f"{INFO}/revision/main").json()["sha"] == old
    assert ask(server, f"/datasets/{REPO}/resolve/{old}/{DATA}").code == "EntryNotFound"
    assert ask(server, f"/datasets/{REPO}/resolve/{new}/{DATA}").status == 307


RULES: dict[Answer, tuple[str, str | None, int, str | None]] = {
    Answer.MISSING: (INFO, None, 401, None),
    Answer.UNKNOWN_COMMIT: (FILE, None, 404, "RevisionNotFound"),
    Answer.MISSING_FILE: (FILE, None, 404, "EntryNotFound"),
    Answer.READ_ONLY: (COMMIT, TOKEN, 403, None),
    Answer.COMMIT_OUTDATED: (COMMIT, TOKEN, 412, None),
    Answer.COMMIT_WITHOUT_OBJECT: (COMMIT, TOKEN, 400, None),
}


@pytest.mark.parametrize("answer", RULES)
def test_answer_of_content_is_selected_by_a_rule_too(server: FaultyHub, answer: Answer) -> None:
    path, token, status, code = RULES[answer]
    head = upload_data(server)
    upload_data(server, repo="bob/data")
    method, body = ("POST", make_commit(NEW)) if path == COMMIT else ("GET", None)
    set_answers(server.store.root, Rule(answer=answer, repo=REPO, account=None if token is None else "alice", count=1))
    assert ask(server, path.replace(REPO, "bob/data"), BOB, method=method, body=body).status in (200, 307)
    reply = ask(server, path, token, method=method, body=body)
    assert (reply.status, reply.code) == (status, code) and ask(server, INFO).json()["sha"] == head
    assert ask(server, path, token, method=method, body=body).status in (200, 307), "the rule is used up"


def test_missing_repo_by_a_rule_is_a_404_for_an_account(server: FaultyHub) -> None:
    upload_data(server)
    set_answers(server.store.root, Rule(answer=Answer.MISSING, account="bob"))
    assert ask(server, INFO, BOB).code == "RepoNotFound" and ask(server, INFO, TOKEN).status == 200


def test_repo_without_files_by_a_rule_lists_none(server: FaultyHub) -> None:
    upload_data(server)
    set_answers(server.store.root, Rule(answer=Answer.MISSING_FILE, repo=REPO))
    assert ask(server, PATHS, method="POST", body=f"paths={DATA}".encode()).body == b"[]"


def test_rule_selects_by_the_request(server: FaultyHub) -> None:
    upload_files(server.store.root, REPO, {DATA: OLD, "readme.md": b"#"})
    set_answers(server.store.root, Rule(answer=Answer.QUOTA, pattern="^GET .*readme", count=2, seconds=7))
    statuses = [ask(server, FILE.replace(DATA, name)).status for name in (DATA, "readme.md", "readme.md", "readme.md")]
    assert statuses == [307, 429, 429, 307]
    assert read_answers(server.store.root) == []


def test_branch_takes_commits_of_its_own(server: FaultyHub) -> None:
    head = upload_data(server)
    branch = f"{INFO}/branch/trial"
    assert ask(server, branch, TOKEN, method="POST", body={}).status == 200
    assert ask(server, branch, TOKEN, method="POST", body={}).status == 409
    assert ask(server, COMMIT.replace("main", "trial"), TOKEN, method="POST", body=make_commit(NEW)).status == 200
    assert ask(server, INFO).json()["sha"] == head != ask(server, f"{INFO}/revision/trial").json()["sha"]
    assert ask(server, branch, TOKEN, method="DELETE").status == 200
    assert ask(server, f"{INFO}/revision/trial").code == "RevisionNotFound"
