"""The index of an evaluation set, and submissions checked against it."""

import dataclasses
import itertools
import json
import random
import re
from collections.abc import Callable, Container
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from template import constants
from template.competition import Competition
from template.data.eval_set import EvalSetIndex, check_dataset, read_eval_set_index
from template.data.rows import SUBMISSION_LIMITS, content_digest, parse_rows
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.hub import progress
from template.hub.datasets import fetch_eval_set
from template.localnet.hub.store import upload_files
from template.records import Dataset
from tests.fixtures.faulty_hub import FaultyHub
from tests.fixtures.hub import REPO, use_endpoint
from tests.fixtures.logs import log_lines
from tests.fixtures.training import make_row


@pytest.fixture
def server(server: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> FaultyHub:
    use_endpoint(server, monkeypatch)
    return server


def make_line(text: str, system: str | None = None) -> bytes:
    return json.dumps({"system": system, **make_row(text, text.upper())}).encode() + b"\n"


LINES = [make_line(f"row {number}") for number in range(6)]


def write_eval_set(folder: Path, content: bytes = b"".join(LINES)) -> Path:
    path = folder / constants.DATA_FILE
    path.write_bytes(content)
    return path


def make_competition(commit: str, repo: str = REPO) -> Competition:
    return dataclasses.replace(Competition.from_defaults(), repo=repo, eval_commit=commit)


def check(content: bytes, folder: Path, max_rows: int = 250) -> int:
    return len(
        check_dataset(content, read_eval_set_index(write_eval_set(folder)), name="theirs.jsonl", max_rows=max_rows)
    )


def test_index_contains_every_row_key_once(tmp_path: Path) -> None:
    pool = read_eval_set_index(write_eval_set(tmp_path, b"".join([*LINES, *LINES, b"\n"])))
    rows = parse_rows(b"".join(LINES), name="x", limits=SUBMISSION_LIMITS)
    assert pool.canonical.keys() == {row.key for row in rows}
    assert len(pool) == len(LINES)


def test_eval_set_may_be_larger_than_a_submission(tmp_path: Path) -> None:
    content = b"".join(make_line(f"row {number}") for number in range(constants.MAX_SUBMISSION_ROWS + 1))
    assert len(read_eval_set_index(write_eval_set(tmp_path, content))) == constants.MAX_SUBMISSION_ROWS + 1
    with pytest.raises(SubmissionError, match=f"at most {constants.MAX_SUBMISSION_ROWS} rows") as caught:
        check_dataset(content, frozenset(), name="theirs.jsonl", max_rows=250)
    assert caught.value.reason is Reason.TOO_LARGE


def test_eval_set_that_cannot_be_read_is_no_submission_error(tmp_path: Path) -> None:
    path = tmp_path / constants.DATA_FILE
    with pytest.raises(ConfigError, match=rf"{constants.DATA_FILE}: evaluation set not found"):
        read_eval_set_index(path)
    path.mkdir()
    with pytest.raises(HostError, match=rf"{constants.DATA_FILE}: cannot be read: Is a directory"):
        read_eval_set_index(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(LINES[0] + b"{]\n", "line 2"), (b"", "at least one row"), (LINES[0] + b'{"x": 1}\n', "line 2")],
)
def test_malformed_eval_set_is_a_config_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = write_eval_set(tmp_path, content)
    with pytest.raises(ConfigError, match="the evaluation set cannot be used") as caught:
        read_eval_set_index(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_rows_of_the_eval_set_pass_in_order(tmp_path: Path) -> None:
    pool = read_eval_set_index(write_eval_set(tmp_path))
    rows = check_dataset(LINES[3] + b"\n" + LINES[1] + LINES[3], pool, name="theirs.jsonl", max_rows=250)
    assert [(row.line, row.messages[0].content) for row in rows] == [(1, "row 3"), (3, "row 1"), (4, "row 3")]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([LINES[0], LINES[1], make_line("mine")], r"1 of the 3 counted rows .*: line 3$"),
        ([make_line("row 0", system="be brief"), LINES[0]], r"1 of the 2 counted rows .*: line 1$"),
        ([make_line(text) for text in "abcdefghi"], r"^9 of the 9 .*: line 1, 2, 3, 4, 5, \.\.\.$"),
    ],
    ids=["a row", "another system text", "more than five rows"],
)
def test_rows_outside_the_eval_set_are_named_by_line(tmp_path: Path, lines: list[bytes], message: str) -> None:
    with pytest.raises(SubmissionError, match=message) as caught:
        check(b"".join(lines), tmp_path)
    assert caught.value.reason is Reason.NOT_IN_POOL


def test_row_that_is_not_counted_may_be_outside_the_set(tmp_path: Path) -> None:
    assert check(LINES[0] + LINES[1] + make_line("mine"), tmp_path, max_rows=2) == 2


def test_malformed_line_is_rejected_though_not_counted(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match=r"theirs\.jsonl, line 2") as caught:
        check(LINES[0] + b"nonsense\n", tmp_path, max_rows=1)
    assert caught.value.reason is Reason.MALFORMED
    with pytest.raises(SubmissionError, match=r"theirs\.jsonl") as caught:
        check(b"\n\n", tmp_path)
    assert caught.value.reason is Reason.EMPTY


def test_fetch_returns_the_jsonl_of_the_pinned_commit(server: FaultyHub, tmp_path: Path) -> None:
    commit = upload_files(server.store.root, REPO, {"deep/eval.jsonl": b"".join(LINES), "README.md": b"hello"})
    upload_files(server.store.root, REPO, {"deep/eval.jsonl": b"newer"})
    path = fetch_eval_set(make_competition(commit), tmp_path / "eval", None, None)
    assert path == tmp_path / "eval" / constants.DATA_FILE
    assert len(read_eval_set_index(path)) == len(LINES)
    server.close()
    assert fetch_eval_set(make_competition(commit), tmp_path / "eval", None, None) == path


def test_fetch_says_how_much_is_left(server: FaultyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    # A millisecond for each chunk, since on a busy machine the first estimate may be a minute.
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=partial(next, itertools.count(0.0, 0.001))))
    commit = upload_files(server.store.root, REPO, {"eval.jsonl": bytes(5_000_000)})
    with log_lines() as logs:
        fetch_eval_set(make_competition(commit), tmp_path / "eval", None, None)
    text = rf"downloading {REPO}: \d\.\d MB of 5\.0 MB, about 0 min left$"
    assert logs and all(re.search(text, line) for line in logs)


def test_fetch_without_a_usable_file_is_a_config_error(server: FaultyHub, tmp_path: Path) -> None:
    two = upload_files(server.store.root, REPO, {"a.jsonl": b"a", "b.jsonl": b"b"})
    for competition in (make_competition(two), make_competition("0" * 40), make_competition(two, "no/repo")):
        with pytest.raises(ConfigError, match="cannot download the competition's evaluation set"):
            fetch_eval_set(competition, tmp_path / "eval", None, None)


def test_fetch_from_an_unreachable_hub_is_a_remote_error(server: FaultyHub, tmp_path: Path) -> None:
    commit = upload_files(server.store.root, REPO, {"eval.jsonl": b"".join(LINES)})
    server.close()
    with pytest.raises(RemoteError):
        fetch_eval_set(make_competition(commit), tmp_path / "eval", None, None)


def test_index_check_equals_parsing_every_line(tmp_path: Path) -> None:
    index = read_eval_set_index(write_eval_set(tmp_path, b"".join(LINES)))
    assert isinstance(index, EvalSetIndex) and len(index) == len(LINES)
    draw = random.Random(5)
    other = [json.dumps(json.loads(line), indent=None, sort_keys=True).encode() + b"  \r\n" for line in LINES]
    odd = [b"\n", b"{]\n", make_line("mine"), b"\xef\xbb\xbf" + LINES[0], b"[" * 40 + b"\n", b'{"conversations": []}\n']
    outcomes: set[object] = set()
    for _ in range(300):
        content = b"".join(draw.choices([*LINES, *other, *odd], [4] * len(LINES) + [4] * len(other) + [1] * 6, k=6))
        for max_rows in (2, 250):
            result = outcome_of(index.check, content, max_rows)
            assert result == outcome_of(partial(check_every_line, index.canonical), content, max_rows)
            outcomes.add(Dataset if isinstance(result, Dataset) else str(result)[:24])
    assert len(outcomes) >= 4


def check_every_line(pool: Container[bytes], content: bytes, *, name: str, max_rows: int) -> Dataset:
    keys = tuple(row.key for row in check_dataset(content, pool, name=name, max_rows=max_rows))
    return Dataset(digest=content_digest(keys), row_keys=keys)


def test_digest_is_of_the_counted_rows_in_any_order(tmp_path: Path) -> None:
    index = read_eval_set_index(write_eval_set(tmp_path, b"".join(LINES)))

    def digest(*lines: bytes, max_rows: int = 3) -> str:
        return index.check(b"".join(lines), name="x", max_rows=max_rows).digest

    first = digest(*LINES[:3])
    other_spelling = json.dumps(json.loads(LINES[0]), sort_keys=True).encode() + b"\n"
    assert first == digest(LINES[2], b"\n", LINES[1], other_spelling) == digest(*LINES[:4])
    others = {digest(*LINES[1:4]), digest(*LINES[:2]), digest(*LINES[:3], LINES[0], max_rows=4)}
    assert first not in others and len(others) == 3


def outcome_of(check: Callable[..., Dataset], content: bytes, max_rows: int) -> object:
    try:
        return check(content, name="x", max_rows=max_rows)
    except SubmissionError as error:
        return [error.reason, str(error)]


def test_dedup_keys_are_the_indexs_own_objects(tmp_path: Path) -> None:
    index = read_eval_set_index(write_eval_set(tmp_path, b"".join(LINES)))
    written_otherwise = json.dumps(json.loads(LINES[1]), sort_keys=True).encode()
    keys = index.check(LINES[0] + written_otherwise, name="x", max_rows=9).row_keys
    copies = [bytes(bytearray(key)) for key in keys]
    own = {id(key) for key in index.canonical}
    for result in (keys, index.dedup_keys(copies)):
        assert result == keys and all(id(key) in own for key in result)
    assert index.dedup_keys([b"x" * 32]) == (b"x" * 32,)
