"""The Hub token reaches the endpoint and nobody else, wherever the Hub points: every request to both is looked at."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub import HfApi, get_session, hf_hub_url, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from template.competition import Competition
from template.config import load_training_args
from template.errors import RemoteError, SubnetError
from template.hub import client as hub_client
from template.hub import datasets
from template.hub.network import RequestBudget
from template.hub.transport import BoundedTransport
from template.localnet.hub import server as hub_server
from template.localnet.hub.api import Request, Response
from template.localnet.hub.faults import FaultKind, HubFault, set_faults
from template.localnet.hub.server import HubServer
from template.localnet.hub.store import HubStore, upload_files
from template.training.model import load_model
from tests.fixtures.hub import DATA, OLD, REPO, TOKEN
from tests.fixtures.training import MODEL_ID

LISTING, FILE = "/paths-info/", "/resolve/"


@dataclass(frozen=True)
class Hosts:
    """The endpoint, another host, and what each was asked, as (endpoint, request)."""

    hub: HubServer
    elsewhere: HubServer
    seen: list[Request]

    def at(self, server: HubServer) -> list[Request]:
        return [call for call in self.seen if call.endpoint == server.endpoint]

    def misbehave(self, *faults: HubFault) -> None:
        set_faults(self.hub.store.root, *faults)

    def check(self, *, is_reached: bool = True) -> None:
        """The endpoint was given the token, and the other host, if it was reached at all, heard nothing of it."""
        assert any(TOKEN in call.headers.get("authorization", "") for call in self.at(self.hub))
        assert bool(self.at(self.elsewhere)) == is_reached
        for call in self.at(self.elsewhere):
            assert not {"authorization", "cookie", "proxy-authorization"} & set(call.headers)
            assert TOKEN not in repr(call)


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """Both hosts as this process would meet them with HF_ENDPOINT and HF_TOKEN set at its start."""
    seen: list[Request] = []
    respond: Callable[[HubStore, Request], Response] = vars(hub_server)["respond"]

    def record(store: HubStore, call: Request) -> Response:
        seen.append(call)
        return respond(store, call)

    monkeypatch.setattr(hub_server, "respond", record)
    with HubServer(tmp_path / "hub") as here, HubServer(tmp_path / "elsewhere") as elsewhere:
        template = here.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", here.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        # transformers keeps what it once made for another endpoint.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        datasets.configure_client()
        yield Hosts(here, elsewhere, seen)


def to(hosts: Hosts, status: int, *, at: str, path: str = "/x", **more: str) -> HubFault:
    headers = (("Location", hosts.elsewhere.endpoint + path), *more.items())
    return HubFault(kind=FaultKind.REPLY, status=status, headers=headers, pattern=at)


def told(body: object, *, at: str, headers: tuple[tuple[str, str], ...] = ()) -> HubFault:
    return HubFault(kind=FaultKind.REPLY, status=200, headers=headers, body=json.dumps(body), pattern=at)


def download(hosts: Hosts, commit: str, folder: Path) -> None:
    datasets.download_dataset(REPO, commit, folder, token=TOKEN, endpoint=hosts.hub.endpoint)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_file_at_a_store(hosts: Hosts, tmp_path: Path, status: int) -> None:
    commit = upload_files(hosts.hub.store.root, REPO, {DATA: OLD})
    there = upload_files(hosts.elsewhere.store.root, REPO, {DATA: OLD})
    hosts.misbehave(to(hosts, status, at=FILE, path=f"/datasets/{REPO}/resolve/{there}/{DATA}"))
    download(hosts, commit, tmp_path / "data")
    hosts.check()


def test_a_store_by_the_name_of_this_machine(hosts: Hosts, tmp_path: Path) -> None:
    """Another port is another host, whatever it is called."""
    commit = upload_files(hosts.hub.store.root, REPO, {DATA: OLD})
    there = upload_files(hosts.elsewhere.store.root, REPO, {DATA: OLD})
    port = hosts.elsewhere.endpoint.rsplit(":", 1)[1]
    target = f"http://{TOKEN[:3]}@localhost:{port}/datasets/{REPO}/resolve/{there}/{DATA}"
    hosts.misbehave(HubFault(kind=FaultKind.REPLY, status=302, headers=(("Location", target),), pattern=FILE))
    download(hosts, commit, tmp_path / "data")
    hosts.check()


@pytest.mark.parametrize(("status", "is_reached"), [(301, True), (302, True), (303, True), (307, False), (308, False)])
def test_a_listing_that_is_said_to_be_elsewhere(hosts: Hosts, tmp_path: Path, status: int, is_reached: bool) -> None:
    commit = upload_files(hosts.hub.store.root, REPO, {DATA: OLD})
    hosts.misbehave(to(hosts, status, at=LISTING))
    with pytest.raises(RemoteError):
        download(hosts, commit, tmp_path / "data")
    hosts.check(is_reached=is_reached)


def test_cookies_are_neither_kept_nor_passed_on(hosts: Hosts, tmp_path: Path) -> None:
    commit = upload_files(hosts.hub.store.root, REPO, {DATA: OLD})
    cookie = f"session={TOKEN}; Path=/"
    hosts.misbehave(
        replace(to(hosts, 302, at=FILE), headers=(*to(hosts, 302, at=FILE).headers, ("Set-Cookie", cookie)))
    )
    for _ in range(2):
        with pytest.raises(RemoteError):
            download(hosts, commit, tmp_path / "data")
    hosts.check()
    assert not any("cookie" in call.headers for call in hosts.seen)


def test_an_evaluation_set_at_a_store(hosts: Hosts, tmp_path: Path) -> None:
    commit = upload_files(hosts.hub.store.root, "alice/pool", {"pool.jsonl": OLD})
    there = upload_files(hosts.elsewhere.store.root, "alice/pool", {"pool.jsonl": OLD})
    hosts.misbehave(to(hosts, 302, at=FILE, path=f"/datasets/alice/pool/resolve/{there}/pool.jsonl"))
    competition = replace(Competition.from_defaults(), repo="alice/pool", eval_commit=commit)
    assert datasets.fetch_eval_set(competition, tmp_path / "eval", None, TOKEN).read_bytes() == OLD
    hosts.check()


@pytest.mark.parametrize("at", ["/repos/create", "/preupload/", "/commit/", "/revision/"])
@pytest.mark.parametrize("status", [302, 307])
def test_an_upload_that_is_sent_elsewhere(hosts: Hosts, at: str, status: int) -> None:
    if at == "/revision/":
        upload_files(hosts.hub.store.root, REPO, {DATA: OLD})
    hosts.misbehave(to(hosts, status, at=at))
    with pytest.raises(SubnetError):
        datasets.upload_dataset(OLD, REPO, token=TOKEN, endpoint=hosts.hub.endpoint)
    hosts.check(is_reached=status == 302 or at == "/revision/")
    assert not any(OLD in call.body for call in hosts.at(hosts.elsewhere))


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_an_upload_to_a_store_and_its_report(hosts: Hosts) -> None:
    """The library sends the token with the report, wherever the Hub says that it is to go."""
    upload_files(hosts.hub.store.root, REPO, {"readme.md": b"#"})
    place = hosts.elsewhere.endpoint
    actions = {"upload": {"href": f"{place}/store"}, "verify": {"href": f"{place}/report"}}
    listed = {"oid": hashlib.sha256(OLD).hexdigest(), "size": len(OLD), "actions": actions}
    hosts.misbehave(
        told({"files": [{"path": DATA, "uploadMode": "lfs", "shouldIgnore": False}]}, at="/preupload/"),
        told({"transfer": "basic", "objects": [listed]}, at="/objects/batch"),
    )
    set_faults(hosts.elsewhere.store.root, told({}, at="/"))
    with pytest.raises(RemoteError):
        datasets.upload_dataset(OLD, REPO, token=TOKEN, endpoint=hosts.hub.endpoint)
    hosts.check()
    assert [(call.method, call.target, call.body) for call in hosts.at(hosts.elsewhere)] == [("PUT", "/store", OLD)]


def test_no_request_of_the_library_carries_a_secret_elsewhere(hosts: Hosts) -> None:
    """Whatever makes it ask there: it gives its headers to any address that it was told."""
    secrets = {"Authorization": f"Bearer {TOKEN}", "Cookie": f"token={TOKEN}", "Proxy-Authorization": TOKEN}
    for place in (hosts.hub.endpoint, hosts.elsewhere.endpoint):
        assert get_session().get(f"{place}/x", headers=secrets).status_code == 404
        assert get_session().put(f"{place}/x", headers=secrets, content=b"x").status_code == 404
    hosts.check()


def test_a_second_page_is_not_looked_for(hosts: Hosts) -> None:
    """As transformers lists a model's folder."""
    upload_files(hosts.hub.store.root, MODEL_ID, {"config.json": b"{}"}, repo_type="model")
    hosts.misbehave(told([], at="/tree/", headers=(("Link", f'<{hosts.elsewhere.endpoint}/next>; rel="next"'),)))
    assert list(HfApi(endpoint=hosts.hub.endpoint).list_repo_tree(MODEL_ID)) == []
    hosts.check(is_reached=False)


def test_a_model_at_a_store(hosts: Hosts, tiny_model: Path, tmp_path: Path) -> None:
    files: dict[str, bytes | Path] = {path.name: path for path in tiny_model.iterdir()}
    commit = upload_files(hosts.hub.store.root, MODEL_ID, files, repo_type="model")
    there = upload_files(hosts.elsewhere.store.root, MODEL_ID, files, repo_type="model")
    hosts.misbehave(
        *(
            to(hosts, 302, at=f"^GET .*{name}$", path=f"/{MODEL_ID}/resolve/{there}/{name}")
            for name in ("model.safetensors", "tokenizer.json")
        )
    )
    args = replace(load_training_args(), revision=commit)
    model = load_model(args, device=torch.device("cpu"), dtype=torch.float32, cache_dir=tmp_path / "cache")
    assert model.source.revision == commit
    hosts.check()
    assert any(call.target.endswith("model.safetensors") for call in hosts.at(hosts.elsewhere))


@pytest.mark.parametrize(
    "target",
    [
        "http://8.8.8.8/x",
        "http://127.0.0.1:9/x",
        "https://127.0.0.1:9/x",
        "https://[::1]:9/x",
        "https://169.254.169.254/x",
    ],
)
def test_no_way_leads_from_https_to_less_or_inside(hosts: Hosts, target: str) -> None:
    """Asked of the library's own client as the library does after a redirect; nothing is connected to."""
    budget = RequestBudget(deadline=float("inf"), endpoint="https://8.8.8.8", max_bytes=1000)
    with budget.activate(), pytest.raises(RemoteError, match=r"not followed"):
        get_session().get(target)


def test_the_library_is_met_by_its_own_client(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rules stand on: one client for all calls, guarded from the first of them, which looks for the token."""
    monkeypatch.setattr(hub_client, "_is_configured", False)
    set_client_factory(default_client_factory)
    assert datasets.saved_token() == TOKEN
    client = get_session()
    assert isinstance(client, httpx2.Client) and isinstance(client._transport, BoundedTransport)
    assert hf_hub_url(REPO, DATA, repo_type="dataset").startswith(hosts.hub.endpoint)
