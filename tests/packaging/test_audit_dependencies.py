"""Test the audit of locked versions: its questions and its exit status."""

import http.server
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from scripts.dev.audit_dependencies import main, read_pins
from template.errors import ConfigError, RemoteError
from tests.fixtures.http import Answer, serve
from tests.fixtures.network import ROOT, call_main

FOUND = 1


@contextmanager
def database(content: bytes | None = None, status: int = 200, **against: list[str]) -> Iterator[tuple[str, list[Any]]]:
    """Serve a database of advisories; yield its address and the requests it got."""
    asked: list[Any] = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> Answer:
        asked.extend(json.loads(request.rfile.read(int(request.headers["Content-Length"])))["queries"])
        advisories = [against.get(query["package"]["name"], []) for query in asked]
        results = [{"vulns": [{"id": name} for name in names]} if names else {} for names in advisories]
        body = json.dumps({"results": results}).encode() if content is None else content
        return (status if request.path == "/v1/querybatch" else 404), {}, body

    with serve(answer) as url:
        yield url, asked


def test_every_version_of_the_lock_is_asked_about_torch_included() -> None:
    with database() as (url, asked):
        ended = call_main(main, "--database", url)
    pins = read_pins(ROOT / "requirements.lock")
    assert ended.status == 0 and f"{len(pins)} versions, 0 with" in ended.output
    normal = {(canonicalize_name(name), version) for name, version in pins}
    assert {(query["package"]["name"], query["version"]) for query in asked} == normal
    assert all(query["package"]["ecosystem"] == "PyPI" for query in asked)
    assert len(pins) == len(asked) > 100 and "torch" in dict(pins) and "huggingface_hub" in dict(pins)


def test_what_is_known_is_listed_and_told_by_the_status() -> None:
    with database(torch=["GHSA-1", "PYSEC-2"]) as (url, _):
        ended = call_main(main, "--database", url)
    assert ended.status == FOUND
    assert "GHSA-1, PYSEC-2" in ended.output and " 1 with known vulnerabilities" in ended.output


ANSWERS = {
    "an error": (b'{"results": []}', 503),
    "no JSON": (b"<html>", 200),
    "another form": (b'{"vulns": []}', 200),
    "results that are none": (b'{"results": [7]}', 200),
    "an advisory without a name": (b'{"results": [{"vulns": [{}]}]}', 200),
    "fewer results than questions": (b'{"results": [{}]}', 200),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_that_is_none_is_never_taken_for_a_clean_one(case: str) -> None:
    answer, status = ANSWERS[case]
    with database(answer, status) as (url, _):
        ended = call_main(main, "--database", url)
    assert ended.status == RemoteError.exit_code
    assert ended.output == "" and ended.logs[0].startswith("NOT AUDITED")


def test_database_and_lock_failures_have_their_own_status(tmp_path: Path) -> None:
    ended = call_main(main, "--database", "http://127.0.0.1:9")
    assert ended.status == RemoteError.exit_code and ended.logs[0].startswith("NOT AUDITED") and ended.output == ""
    (tmp_path / "empty").write_text("# nothing\n")
    for path in (tmp_path / "empty", tmp_path / "missing"):
        ended = call_main(main, "--lock", path)
        assert ended.status == ConfigError.exit_code and ended.logs[0].startswith("NOT AUDITED")


@pytest.mark.network
def test_no_version_that_is_locked_has_a_known_vulnerability() -> None:
    ended = call_main(main)
    if ended.status == RemoteError.exit_code:
        pytest.skip(f"not audited: {ended.logs[0]}")
    assert ended.status == 0, ended.output
