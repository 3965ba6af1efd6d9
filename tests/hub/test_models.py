"""Models that transformers downloads: limits, checks and the cache."""

import hashlib
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import close_session

from template.config import TrainingArgs, load_training_args
from template.data.encoding import Tokenize
from template.errors import RemoteError, SubnetError
from template.hub import transport
from template.hub.client import configure_client
from template.localnet.hub.store import HubStore, upload_files
from template.training.model import ScoringModel, load_model, load_tokenizer
from tests.fixtures.faulty_hub import FaultKind, FaultyHub, HubFault, set_faults
from tests.fixtures.hub import upload_model, use_endpoint
from tests.fixtures.training import MODEL_ID

WEIGHTS = "^GET .*safetensors"
SMALL = 2**20

Load = Callable[[], ScoringModel]


@pytest.fixture
def server(server: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> FaultyHub:
    """A hub that this process uses, with a low limit for model files."""
    configure_client()
    monkeypatch.setattr(transport, "_MAX_MODEL_FILE_BYTES", SMALL)
    use_endpoint(server, monkeypatch)
    return server


@pytest.fixture
def load(server: FaultyHub, tiny_model: Path, tmp_path: Path) -> Load:
    """A function that loads the tiny model by its commit into an empty cache."""
    args = replace(load_training_args(), revision=upload_model(server, MODEL_ID, tiny_model))
    return lambda: load_model(args, device=torch.device("cpu"), dtype=torch.float32, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("sentence", "fault"),
    [
        ("longer than", HubFault(kind=FaultKind.ENDLESS, pattern=WEIGHTS)),
        ("longer than", HubFault(kind=FaultKind.ENDLESS, pattern="^GET .*/resolve-cache/.*tokenizer.json")),
        ("longer than", HubFault(kind=FaultKind.ENDLESS, pattern="^GET .*/resolve-cache/.*config.json")),
        ("compressed", HubFault(kind=FaultKind.GZIP_BOMB, size=64 * SMALL, pattern=WEIGHTS)),
    ],
    ids=["endless weights", "endless tokenizer", "endless config", "compressed weights"],
)
def test_oversized_model_file_is_an_error(server: FaultyHub, load: Load, sentence: str, fault: HubFault) -> None:
    set_faults(server.store.root, fault)
    with pytest.raises(RemoteError, match=sentence):
        load()


def test_model_download_retries_a_busy_hub_soon(server: FaultyHub, load: Load) -> None:
    busy = HubFault(kind=FaultKind.STATUS, status=429, retry_after="999999999", pattern=WEIGHTS, count=1)
    set_faults(server.store.root, busy)
    assert load().source.model_id == MODEL_ID


@pytest.mark.parametrize("what", ["safetensors", "tokenizer.json", "config.json"])
def test_model_file_of_other_bytes_is_refused_and_removed(
    server: FaultyHub, load: Load, tiny_model: Path, what: str
) -> None:
    """The library compares only the length."""
    name = next(path.name for path in sorted(tiny_model.iterdir()) if path.name.endswith(what))
    content = (tiny_model / name).read_bytes()
    other = content.replace(b" ", b"\t", 1) if what.endswith("json") else content[:-1] + bytes([content[-1] ^ 1])
    assert other != content
    file = rf"^GET /(storage|api/resolve-cache)/.*[/=]{name}"
    forged = HubFault(kind=FaultKind.REPLY, status=200, body=other.decode("latin-1"), pattern=file)
    set_faults(server.store.root, forged)
    with pytest.raises(RemoteError, match="not the one it lists"):
        load()
    set_faults(server.store.root)
    load()


@pytest.mark.parametrize("header", ["ETag", "X-Linked-ETag", "X-Repo-Commit"])
@pytest.mark.parametrize("name", ["../../../evil", "{tmp}/evil", "..", 'W"{tmp}/evil"', 'WW/"{tmp}/evil"'])
def test_header_with_a_path_writes_nothing_outside_cache(
    server: FaultyHub, load: Load, tmp_path: Path, name: str, header: str
) -> None:
    headers = {"ETag": '"abc"', "X-Repo-Commit": "a" * 40, header: name.replace("{tmp}", str(tmp_path))}
    reply = HubFault(kind=FaultKind.REPLY, status=200, headers=tuple(headers.items()), body="{}", pattern="/resolve/")
    set_faults(server.store.root, reply)
    with pytest.raises(RemoteError):
        load()
    assert {path.name for path in tmp_path.iterdir()} <= {"hub", "cache"}


def test_etags_with_slashes_are_accepted(server: FaultyHub, load: Load, tiny_model: Path, tmp_path: Path) -> None:
    """The real Hub sends Express's base64 ETags with listings, errors and redirects."""
    commit = HubStore(server.store.root).repo("models", MODEL_ID).head
    weights = tiny_model / "model.safetensors"
    express = ("ETag", 'W/"a27-vndQfbspAL31/eKATEOf36LyR8k"')
    with FaultyHub(tmp_path / "store") as store:
        other_commit = upload_files(store.store.root, MODEL_ID, {weights.name: weights}, repo_type="model")
        moved = (
            express,
            ("Location", f"{store.endpoint}/{MODEL_ID}/resolve/{other_commit}/{weights.name}"),
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
    "slow listings": HubFault(kind=FaultKind.DRIP, seconds=0.1, pattern="/api/"),
    "dropped connections": HubFault(kind=FaultKind.RAW, body=""),
    "compressed answers": HubFault(kind=FaultKind.GZIP_BOMB, size=1000, pattern="/api/|HEAD"),
    "answers of 503": HubFault(kind=FaultKind.STATUS, status=503),
}
IN_THE_QUICK_LOOP = ("no name server", "slow listings")


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=() if how in IN_THE_QUICK_LOOP else pytest.mark.slow) for how in AWAY]
)
def test_cached_model_loads_while_the_hub_is_away(
    server: FaultyHub, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    args = replace(load_training_args(), revision=None)  # by the branch: the library asks the Hub each time
    model, tokenize = load_cached(args, tmp_path)
    close_session()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library's backoff
    monkeypatch.setattr(transport, "_METADATA_S", 0.02)
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


def test_missing_commit_error_names_the_model(server: FaultyHub, load: Load) -> None:
    headers = (("X-Error-Code", "RevisionNotFound"),)
    set_faults(server.store.root, HubFault(kind=FaultKind.REPLY, status=404, headers=headers, pattern="/resolve/"))
    with pytest.raises(SubnetError, match=MODEL_ID):
        load()
