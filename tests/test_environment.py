"""Faults of the environment: each is named with its remedy, before any work."""

import os
import subprocess
from pathlib import Path

import pytest

from template import files
from template.arguments import check_home
from template.errors import ConfigError, HostError
from template.hub import client
from template.localnet import __main__ as localnet
from template.localnet.models import download
from template.proxies import check_proxies
from tests.fixtures.network import ROOT, call_main

PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy", "socks_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "url", "scheme"),
    [
        ("ALL_PROXY", "socks5://user:s3cr3t@127.0.0.1:1080", "socks5"),
        ("https_proxy", "socks5h://127.0.0.1:1080", "socks5h"),
        ("HTTP_PROXY", "ftp://127.0.0.1:1080", "ftp"),
    ],
)
def test_proxy_that_no_client_can_use_is_named(
    name: str, url: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, url)
    with pytest.raises(ConfigError) as error:
        client.configure_client.__wrapped__()
    assert str(error.value).startswith(f"{name.upper()}: {scheme}:// proxies are not supported; give an http:// proxy")
    assert "s3cr3t" not in str(error.value)


def test_usable_proxies_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, url in {"ALL_PROXY": "http://h:1", "HTTPS_PROXY": "https://h", "HTTP_PROXY": "h:1"}.items():
        monkeypatch.setenv(name, url)
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    check_proxies()


@pytest.mark.parametrize("endpoint", ["", "huggingface.co", "ftp://huggingface.co", "https://"])
def test_hub_endpoint_that_is_no_url_is_named(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    with pytest.raises(ConfigError, match=f"HF_ENDPOINT must be a url like https://huggingface.co, not '{endpoint}'"):
        client.configure_client.__wrapped__()


@pytest.mark.parametrize("quote", ['"', "'"])
def test_token_in_quotes_is_named_and_not_shown(quote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{quote}hf_abcdefghijklmnopqrstuv{quote}")
    with pytest.raises(ConfigError, match="the Hub token is in quotes: remove them") as error:
        client.saved_token()
    assert "hf_abc" not in str(error.value)


def test_temporary_folder_that_fails_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(HostError, match="no temporary folder: No such file or directory; set TMPDIR"):
        files.temporary_folder().__enter__()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(files, "find_write_problem", lambda folder: "No space left on device")
    with pytest.raises(HostError, match=f"the temporary folder {tmp_path}: No space left on device; free space"):
        files.temporary_folder().__enter__()
    assert list(tmp_path.iterdir()) == []


def test_user_without_a_passwd_entry_needs_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_no_user(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", find_no_user)
    monkeypatch.delenv("USER", raising=False)
    monkeypatch.setenv("HOME", "/tmp")
    check_home()
    assert os.environ.pop("USER") == f"uid{os.getuid()}"
    monkeypatch.delenv("HOME")
    with pytest.raises(ConfigError, match="this user has no home: set HOME"):
        check_home()


def test_local_network_without_a_home_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_no_user(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", find_no_user)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    ended = call_main(localnet.main, "--dir", tmp_path / "net", "--port", 0)
    assert ended.status == 3 and "this user has no home: set HOME" in ended.logs[-1]
    assert call_main(download.main).status == 3
    with pytest.raises(ConfigError, match="this user has no home: set HOME, or name the folder with --dir"):
        download.default_model_dir()


SCRIPTS = {
    "setup": "Make the environment: .venv",
    "quickstart": "Run a whole competition on this machine",
    "lock": "Write requirements.lock: ",
    "test": "Make the environment, check style",
}
# Other arguments of test.sh go to pytest.
PAIRS = [(name, word) for name in SCRIPTS for word in ("--help", "-h", "--bogus")]
WORDS = [pair for pair in PAIRS if pair != ("test", "--bogus")]


@pytest.mark.parametrize(("name", "word"), WORDS)
def test_script_with_an_argument_does_nothing(name: str, word: str, tmp_path: Path) -> None:
    environment = {**os.environ, "VENV": str(tmp_path / "venv")}
    command = ["bash", str(ROOT / "scripts" / f"{name}.sh"), word]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == (2 if word == "--bogus" else 0) and done.stdout.startswith(SCRIPTS[name])
    assert ("unknown argument --bogus" in done.stderr) == (word == "--bogus")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "reason"),
    [(None, "is a build for CPUs; install the CUDA build"), ("13.0", "check the driver with nvidia-smi")],
)
def test_missing_gpu_is_told_from_a_cpu_build(
    version: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from template.training.environment import choose_device

    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=f"--device cuda:0: .*{reason}"):
        choose_device("cuda:0")
