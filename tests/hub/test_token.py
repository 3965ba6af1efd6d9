"""The Hub token goes to the endpoint only, wherever the Hub redirects."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub import get_session, hf_hub_url, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from template.config import load_training_args
from template.errors import RemoteError, SubnetError
from template.hub import client as hub_client
from template.hub import datasets
from template.hub.transport import BoundedTransport
from template.localnet.hub import server as hub_server
from template.localnet.hub.messages import Request, Response
from template.localnet.hub.store import HubStore, upload_files
from template.training.model import load_model
from tests.fixtures.faulty_hub import FaultKind, FaultyHub, HubFault, set_faults
from tests.fixtures.hub import DATA, OLD, REPO, TOKEN, upload_model, use_endpoint
from tests.fixtures.training import MODEL_ID

LISTING, FILE = "/paths-info/", "/resolve/"


@dataclass(frozen=True)
class Hosts:
    """The endpoint, another host, and the requests that both received."""

    hub: FaultyHub
    elsewhere: FaultyHub
    seen: list[Request]

    def received(self, server: FaultyHub) -> list[Request]:
        return [call for call in self.seen if call.endpoint == server.endpoint]

    def misbehave(self, *faults: HubFault) -> None:
        set_faults(self.hub.store.root, *faults)

    def check(self, *, is_reached: bool = True) -> None:
        """Assert that the endpoint got the token, and that the other host got no secret."""
        assert any(TOKEN in call.headers.get("authorization", "") for call in self.received(self.hub))
        assert bool(self.received(self.elsewhere)) == is_reached
        for call in self.received(self.elsewhere):
            assert not {"authorization", "cookie", "proxy-authorization"} & set(call.headers)
            assert TOKEN not in repr(call)


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """Two hubs, of which the first is this process's HF_ENDPOINT, with HF_TOKEN set."""
    seen: list[Request] = []
    respond: Callable[[HubStore, Request], Response] = vars(hub_server)["respond"]

    def record(store: HubStore, call: Request) -> Response:
        seen.append(call)
        return respond(store, call)

    monkeypatch.setattr(hub_server, "respond", record)
    with FaultyHub(tmp_path / "hub") as hub, FaultyHub(tmp_path / "elsewhere") as elsewhere:
        use_endpoint(hub, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub_client.configure_client()
        yield Hosts(hub, elsewhere, seen)


def redirect(hosts: Hosts, status: int, *, pattern: str, path: str = "/x", **more: str) -> HubFault:
    headers = (("Location", hosts.elsewhere.endpoint + path), *more.items())
    return HubFault(kind=FaultKind.REPLY, status=status, headers=headers, pattern=pattern)


def reply(body: object, *, pattern: str, headers: tuple[tuple[str, str], ...] = ()) -> HubFault:
    return HubFault(kind=FaultKind.REPLY, status=200, headers=headers, body=json.dumps(body), pattern=pattern)


def download(hosts: Hosts, commit: str, folder: Path) -> None:
    datasets.download_dataset(REPO, commit, folder, token=TOKEN, endpoint=hosts.hub.endpoint)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirected_download_sends_no_token(hosts: Hosts, tmp_path: Path, status: int) -> None:
    commit = upload_files(hosts.hub.store.root, REPO, {DATA: OLD})
    other_commit = upload_files(hosts.elsewhere.store.root, REPO, {DATA: OLD})
    hosts.misbehave(redirect(hosts, status, pattern=FILE, path=f"/datasets/{REPO}/resolve/{other_commit}/{DATA}"))
    download(hosts, commit, tmp_path / "data")
    hosts.check()


@pytest.mark.parametrize(("status", "is_reached"), [(301, True), (302, True), (303, True), (307, False), (308, False)])
def test_redirected_listing_sends_no_token(hosts: Hosts, tmp_path: Path, status: int, is_reached: bool) -> None:
    commit = upload_files(hosts.hub.store.root, REPO, {DATA: OLD})
    hosts.misbehave(redirect(hosts, status, pattern=LISTING))
    with pytest.raises(RemoteError):
        download(hosts, commit, tmp_path / "data")
    hosts.check(is_reached=is_reached)


@pytest.mark.parametrize("pattern", ["/repos/create", "/preupload/", "/commit/", "/revision/"])
@pytest.mark.parametrize("status", [302, 307])
def test_redirected_upload_sends_neither_token_nor_file(hosts: Hosts, pattern: str, status: int) -> None:
    if pattern == "/revision/":
        upload_files(hosts.hub.store.root, REPO, {DATA: OLD})
    hosts.misbehave(redirect(hosts, status, pattern=pattern))
    with pytest.raises(SubnetError):
        datasets.upload_dataset(OLD, REPO, token=TOKEN, endpoint=hosts.hub.endpoint)
    hosts.check(is_reached=status == 302 or pattern == "/revision/")
    assert not any(OLD in call.body for call in hosts.received(hosts.elsewhere))


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_large_file_upload_sends_the_store_no_token(hosts: Hosts) -> None:
    """The library reports an upload, with the token, to any address named by the Hub."""
    upload_files(hosts.hub.store.root, REPO, {"readme.md": b"#"})
    place = hosts.elsewhere.endpoint
    actions = {"upload": {"href": f"{place}/store"}, "verify": {"href": f"{place}/report"}}
    listed = {"oid": hashlib.sha256(OLD).hexdigest(), "size": len(OLD), "actions": actions}
    hosts.misbehave(
        reply({"files": [{"path": DATA, "uploadMode": "lfs", "shouldIgnore": False}]}, pattern="/preupload/"),
        reply({"transfer": "basic", "objects": [listed]}, pattern="/objects/batch"),
    )
    set_faults(hosts.elsewhere.store.root, reply({}, pattern="/"))
    with pytest.raises(RemoteError):
        datasets.upload_dataset(OLD, REPO, token=TOKEN, endpoint=hosts.hub.endpoint)
    hosts.check()
    assert [(call.method, call.target, call.body) for call in hosts.received(hosts.elsewhere)] == [
        ("PUT", "/store", OLD)
    ]


def test_library_request_elsewhere_carries_no_secret(hosts: Hosts) -> None:
    secrets = {"Authorization": f"Bearer {TOKEN}", "Cookie": f"token={TOKEN}", "Proxy-Authorization": TOKEN}
    for place in (hosts.hub.endpoint, hosts.elsewhere.endpoint):
        assert get_session().get(f"{place}/x", headers=secrets).status_code == 404
        assert get_session().put(f"{place}/x", headers=secrets, content=b"x").status_code == 404
    hosts.check()


def test_redirected_model_download_sends_no_token(hosts: Hosts, tiny_model: Path, tmp_path: Path) -> None:
    commit, other_commit = (upload_model(hub, MODEL_ID, tiny_model) for hub in (hosts.hub, hosts.elsewhere))
    hosts.misbehave(
        *(
            redirect(hosts, 302, pattern=f"^GET .*{name}$", path=f"/{MODEL_ID}/resolve/{other_commit}/{name}")
            for name in ("model.safetensors", "tokenizer.json")
        )
    )
    args = replace(load_training_args(), revision=commit)
    model = load_model(args, device=torch.device("cpu"), dtype=torch.float32, cache_dir=tmp_path / "cache")
    assert model.source.revision == commit
    hosts.check()
    assert any(call.target.endswith("model.safetensors") for call in hosts.received(hosts.elsewhere))


def test_configured_library_uses_the_bounded_transport(hosts: Hosts) -> None:
    hub_client.configure_client.cache_clear()
    set_client_factory(default_client_factory)
    assert hub_client.saved_token() == TOKEN
    client = get_session()
    assert isinstance(client, httpx2.Client) and isinstance(client._transport, BoundedTransport)
    assert hf_hub_url(REPO, DATA, repo_type="dataset").startswith(hosts.hub.endpoint)
