"""The command `subnet doctor`: everything that is wrong, in one run."""

import shutil
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts import doctor
from template.chain.client import open_wallet
from template.localnet.network import make_hotkey
from tests.fixtures.network import Ended, Net, call_main, write_training_args

_DAY_S = 86_400


def run_doctor(net: Net, name: str, *flags: object, model_path: Path) -> Ended:
    """Run the command for a validator `name`, without a measurement."""
    own = ("--measure_seconds", 0)
    state = ("--state_dir", net.parts.folder / "state", "--model_path", model_path)
    training = ("--training_args", write_training_args(net.parts.folder / "args.yaml"))
    return call_main(doctor.main, *net.chain_arguments(name), *state, *training, *own, *flags)


def levels(ended: Ended) -> dict[str, str]:
    """Return the worst level of each check, of the plain output."""
    found: dict[str, str] = {}
    for line in ended.output.splitlines():
        level, name = line[:8].strip(), line[8:26].strip()
        found[name] = max(found.get(name, ""), level, key=["", "ok", "warning", "failure"].index)
    return found


@contextmanager
def used_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def closed_port() -> Iterator[int]:
    """Yield a port on which nothing listens, and which nothing else takes."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]


def move_clock(net: Net, seconds: float) -> None:
    """Move the times of all blocks."""
    with sqlite3.connect(net.parts.chain_file) as db:
        db.execute("UPDATE clock SET started_at = started_at + ?", (seconds,))


def lock_hotkey(net: Net, name: str) -> str:
    """Register a hotkey without permit and stake, then make its file an encrypted one; return its address."""
    make_hotkey(net.parts, name)
    wallet = open_wallet(name, "default", net.parts.wallets)
    net.admin.register(wallet.hotkey.ss58_address)
    # The client's mark of an encrypted key; unlocking a real one takes seconds.
    Path(wallet.hotkey_file.path).write_bytes(b"$NACL" + bytes(300))
    return str(wallet.hotkey.ss58_address)


def test_doctor_names_ten_faults_in_one_run(
    net: Net, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = shutil.copytree(tiny_model, tmp_path / "model")
    (broken / "model.safetensors").unlink()
    hotkey = lock_hotkey(net, "dave")
    move_clock(net, -90 * _DAY_S)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 20)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with used_port() as port, closed_port() as dead:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{dead}")
        flags = ("--subtensor.fallback_endpoints", f"ws://127.0.0.1:{dead}", "--device", "cuda", "--min_free_gb", 10**7)
        ended = run_doctor(net, "dave", *flags, "--ports", port, model_path=broken)
    assert ended.status == 1
    failures = [line for line in ended.output.splitlines() if line.startswith("failure")]
    expected = {
        "wallet": "--wallet.hotkey default is encrypted: put its password into BT_PW_",
        "permit": f"btcli stake add --netuid 96 --hotkey {hotkey}",
        "endpoint": f"--subtensor.fallback_endpoints ws://127.0.0.1:{dead}: could not",
        "clock": "is 7776",
        "proxy": f"HTTPS_PROXY: 127.0.0.1:{dead} does not answer: Connection refused",
        "token": "the Hub does not accept our token. What to do: run `hf auth login`",
        "disk": "GB are needed. What to do: free space",
        "model": f"--model_path {broken}: model.safetensors is missing",
        "device": "--device cuda: torch 2.13.0+cpu is a build for CPUs; install the CUDA build",
        "port": f"{port}: Address already in use",
    }
    assert {line[8:26].strip() for line in failures} == set(expected), ended.output
    for name, text in expected.items():
        assert any(line[8:26].strip() == name and text in line for line in failures), (name, ended.output)
