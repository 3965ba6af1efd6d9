"""A model comes from the Hub by another library: bounded, pinned, checked, and never written beside its cache."""

import hashlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import close_session

from template.config import TrainingArgs, load_training_args
from template.data.encoding import Tokenize
from template.errors import RemoteError, SubnetError
from template.hub import datasets, transport
from template.localnet.hub.faults import FaultKind, HubFault, set_faults
from template.localnet.hub.server import HubServer
from template.localnet.hub.store import HubStore, upload_files
from template.training.model import ScoringModel, load_model, load_tokenizer
from tests.fixtures.training import MODEL_ID

WEIGHTS = "^GET .*safetensors"
SMALL = 2**20
HUGE = f"HTTP/1.1 200 OK\r\nContent-Length: {2**40}\r\n\r\n"

Load = Callable[[], ScoringModel]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that this process meets as it would with HF_ENDPOINT set at its start."""
    datasets.configure_client()
    monkeypatch.setattr(transport, "_SLOWEST_BYTES_PER_S", 1e9)
    monkeypatch.setattr(transport, "_MAX_UNDECLARED_BYTES", SMALL)
    with HubServer(tmp_path / "hub") as running:
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        # transformers keeps what it once made for another endpoint.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        yield running


@pytest.fixture
def load(server: HubServer, tiny_model: Path, tmp_path: Path) -> Load:
    """Loads the tiny model from the hub, by its commit, into an empty cache."""
    files: dict[str, bytes | Path] = {path.name: path for path in tiny_model.iterdir()}
    args = replace(load_training_args(), revision=upload_files(server.store.root, MODEL_ID, files, repo_type="model"))
    return lambda: load_model(args, device=torch.device("cpu"), dtype=torch.float32, cache_dir=tmp_path / "cache")


def size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))


FAULTS = {
    "weights that never end": ("longer than", HubFault(kind=FaultKind.ENDLESS, pattern=WEIGHTS)),
    "weights beyond any model's": (
        "longer than",
        HubFault(kind=FaultKind.RAW, body=HUGE, rest="x", repeat=None, pattern=WEIGHTS),
    ),
    "weights of gzip": ("compressed", HubFault(kind=FaultKind.GZIP_BOMB, size=64 * SMALL, pattern=WEIGHTS)),
    "a tokenizer that never ends": (
        "longer than",
        HubFault(kind=FaultKind.ENDLESS, pattern="^GET .*/resolve/.*tokenizer.json"),
    ),
    "a configuration that never ends": (
        "longer than",
        HubFault(kind=FaultKind.ENDLESS, pattern="^GET .*/resolve/.*config.json"),
    ),
    "weights that drip": ("time allowed", HubFault(kind=FaultKind.DRIP, seconds=0.01, pattern=WEIGHTS)),
    "a header that drips": ("time allowed", HubFault(kind=FaultKind.HEADER_DRIP, seconds=0.01, pattern=WEIGHTS)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_hostile_hub_is_given_up_on(
    server: HubServer, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sentence, fault = FAULTS[name]
    if sentence == "time allowed":
        monkeypatch.setattr(transport, "_ANSWER_S", 0.4)
    set_faults(server.store.root, fault)
    started = time.monotonic()
    with pytest.raises(RemoteError, match=sentence):
        load()
    assert time.monotonic() - started < 20.0
    assert size_of(tmp_path / "cache") < 20 * SMALL


def test_the_library_waits_its_own_second_and_not_the_years_it_is_asked_for(server: HubServer, load: Load) -> None:
    busy = HubFault(kind=FaultKind.STATUS, status=429, retry_after="999999999", pattern=WEIGHTS, count=1)
    set_faults(server.store.root, busy)
    assert load().source.model_id == MODEL_ID


@pytest.mark.parametrize("what", ["safetensors", "tokenizer.json", "config.json"])
def test_other_bytes_than_the_listed_ones_are_not_used_and_not_kept(
    server: HubServer, load: Load, tiny_model: Path, what: str
) -> None:
    """Of the right length: the library compares no more."""
    name = next(path.name for path in sorted(tiny_model.iterdir()) if path.name.endswith(what))
    content = (tiny_model / name).read_bytes()
    other = content.replace(b" ", b"\t", 1) if what.endswith("json") else content[:-1] + bytes([content[-1] ^ 1])
    assert other != content
    forged = HubFault(
        kind=FaultKind.REPLY, status=200, body=other.decode("latin-1"), pattern=f"^GET .*/resolve/.*/{name}"
    )
    set_faults(server.store.root, forged)
    with pytest.raises(RemoteError, match="not the one it lists"):
        load()
    set_faults(server.store.root)
    load()


@pytest.mark.parametrize("header", ["ETag", "X-Linked-ETag", "X-Repo-Commit"])
@pytest.mark.parametrize("name", ["../../../evil", "{tmp}/evil", "../evil", "..", "a/b", ".hidden", "a\tb", "a" * 200])
def test_no_name_of_the_hubs_leads_out_of_the_cache(
    server: HubServer, load: Load, tmp_path: Path, name: str, header: str
) -> None:
    """The library makes paths of them, and says itself when it has none."""
    told = {"ETag": '"abc"', "X-Repo-Commit": "a" * 40, header: name.replace("{tmp}", str(tmp_path))}
    reply = HubFault(kind=FaultKind.REPLY, status=200, headers=tuple(told.items()), body="{}", pattern="/resolve/")
    set_faults(server.store.root, reply)
    with pytest.raises(RemoteError):
        load()
    assert {path.name for path in tmp_path.iterdir()} <= {"hub", "cache"}
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size == 2]


def test_what_names_no_file_may_have_any_name(server: HubServer, load: Load, tiny_model: Path, tmp_path: Path) -> None:
    """The real Hub calls its listings, errors and redirects by digests in base64, with slashes: Express's ETags."""
    commit = HubStore(server.store.root).repo("models", MODEL_ID).head
    weights = tiny_model / "model.safetensors"
    express = ("ETag", 'W/"a27-vndQfbspAL31/eKATEOf36LyR8k"')
    with HubServer(tmp_path / "store") as store:
        there = upload_files(store.store.root, MODEL_ID, {weights.name: weights}, repo_type="model")
        moved = (
            express,
            ("Location", f"{store.endpoint}/{MODEL_ID}/resolve/{there}/{weights.name}"),
            ("X-Linked-ETag", f'"{hashlib.sha256(weights.read_bytes()).hexdigest()}"'),
            ("X-Linked-Size", str(weights.stat().st_size)),
            ("X-Repo-Commit", commit),
        )
        gone = (express, ("X-Error-Code", "EntryNotFound"), ("X-Repo-Commit", commit))
        set_faults(
            server.store.root,
            HubFault(kind=FaultKind.REPLY, status=302, headers=moved, pattern=f"/resolve/.*{weights.name}"),
            HubFault(kind=FaultKind.REPLY, status=404, headers=gone, pattern=r"/resolve/.*/chat_template\."),
            HubFault(kind=FaultKind.REPLY, status=200, headers=(express,), body="[]", pattern="/api/.*/tree/"),
        )
        assert load().source.revision == commit
    assert [path for path in (tmp_path / "cache").rglob("blobs/*") if len(path.name) == 64]


AWAY = {
    "no name server": None,
    "a closed port": None,
    "connections that end": HubFault(kind=FaultKind.RAW, body=""),
    "headers that drip": HubFault(kind=FaultKind.HEADER_DRIP, seconds=0.01, pattern="^HEAD"),
    "listings that drip": HubFault(kind=FaultKind.DRIP, seconds=0.1, pattern="/api/"),
    "an answer that is compressed": HubFault(kind=FaultKind.GZIP_BOMB, size=SMALL, pattern="/api/|HEAD"),
    "a listing that is said to be inside": HubFault(
        kind=FaultKind.REPLY, status=302, headers=(("Location", "http://10.0.0.1/x"),), pattern="/api/"
    ),
    "answers of 503": HubFault(kind=FaultKind.STATUS, status=503),
}


@pytest.mark.parametrize("how", AWAY)
def test_a_cached_model_is_loaded_while_the_hub_is_away(
    server: HubServer, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """By the branch, so that the library asks the Hub each time."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    args = replace(load_training_args(), revision=None)
    model, tokenize = load_cached(args, tmp_path)
    close_session()  # with the connections that it keeps
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library's half a minute before it gives up
    monkeypatch.setattr(transport, "_QUESTION_S", 0.1)
    if how == "no name server":
        monkeypatch.setattr(socket, "getaddrinfo", _unknown)
    elif how == "a closed port":
        server.close()
    elif fault := AWAY[how]:
        set_faults(server.store.root, fault)
    again, tokenize_again = load_cached(args, tmp_path)
    assert again.source == model.source
    assert tokenize_again("a text") == tokenize("a text")


def load_cached(args: TrainingArgs, folder: Path) -> tuple[ScoringModel, Tokenize]:
    model = load_model(args, device=torch.device("cpu"), dtype=torch.float32, cache_dir=folder / "cache")
    return model, load_tokenizer(args)


def _unknown(*question: object, **named: object) -> None:
    raise socket.gaierror(socket.EAI_AGAIN, "the name server is away")


def test_a_commit_that_goes_away_is_named(server: HubServer, load: Load) -> None:
    headers = (("X-Error-Code", "RevisionNotFound"),)
    set_faults(server.store.root, HubFault(kind=FaultKind.REPLY, status=404, headers=headers, pattern="/resolve/"))
    with pytest.raises(SubnetError, match=MODEL_ID):
        load()
