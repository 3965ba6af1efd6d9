"""The node's process and its port."""

import json
import os
import signal
from pathlib import Path

import pytest

from template.chain.client import Chain
from template.errors import ConfigError
from template.localnet.__main__ import main as run_localnet
from template.localnet.chain.chain import LocalChain
from template.localnet.node.server import NodeServer
from tests.fixtures.network import ROOT, Process, call_main
from tests.fixtures.node import open_wire


def test_port_in_use_is_a_config_error(local: LocalChain, node: NodeServer) -> None:
    port = int(node.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
        NodeServer(local.path, port)


def test_impossible_port_is_a_config_error(local: LocalChain) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1:70000: .*0-65535"):
        NodeServer(local.path, 70_000)


@pytest.mark.parametrize("flag", ["--port", "--hub_port"])
def test_command_on_a_port_in_use_makes_no_folder(node: NodeServer, tmp_path: Path, flag: str) -> None:
    port = int(node.url.rpartition(":")[2])
    others = ("--sample", "--port", 0) if flag == "--hub_port" else ()
    ended = call_main(run_localnet, "--dir", tmp_path / "net", *others, flag, port)
    assert ended.status == ConfigError.exit_code
    assert f"{flag} {port}: Address already in use on 127.0.0.1" in ended.logs[-1] and not (tmp_path / "net").exists()


def test_file_without_a_chain_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        NodeServer(tmp_path / "none.sqlite3")


def test_closing_ends_open_connections(local: LocalChain) -> None:
    node = NodeServer(local.path)
    with open_wire(node) as wire:
        wire.result("chain_subscribeNewHeads")
        node.close()
    with pytest.raises(OSError, match="refused"), open_wire(node):
        pass


@pytest.mark.parametrize("names", [("a", "a"), ("owner", "b"), ("a,a", "b")])
def test_command_wallet_named_twice_is_refused(names: tuple[str, str], tmp_path: Path) -> None:
    validators, miners = names
    arguments = ("--dir", tmp_path / "net", "--port", 0, "--validators", validators, "--miners", miners)
    ended = call_main(run_localnet, *arguments)
    assert ended.status == ConfigError.exit_code
    assert "name every wallet once" in ended.logs[-1]


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--netuid", 0, "netuid must be"),
        ("--tempo", -1, "Tempo must be"),
        ("--block_seconds", -1, "block time must be"),
    ],
)
def test_command_with_a_wrong_value_leaves_no_folder(flag: str, value: int, message: str, tmp_path: Path) -> None:
    ended = call_main(run_localnet, "--dir", tmp_path / "net", "--port", 0, flag, value)
    assert ended.status == ConfigError.exit_code and message in ended.logs[-1], ended.logs
    assert not (tmp_path / "net").exists()


def test_command_in_a_folder_with_wallets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wallets").mkdir()
    ended = call_main(run_localnet, "--dir", tmp_path, "--port", 0)
    assert ended.status == ConfigError.exit_code and "remove the folder or name another" in ended.logs[-1]


@pytest.mark.slow
def test_command_starts_the_chain_of_any_subnet(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    arguments = ("--dir", folder, "--port", 0, "--netuid", 7, "--tempo", 100, "--miners", "a,b,c")
    with Process("template.localnet", *arguments, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        process.wait_for("local network ready")
        parts = json.loads((folder / "localnet.json").read_text())
        with Chain(parts["network"], 7, deadline_s=20) as chain:
            view = chain.view()
        assert (view.tempo, len(view.neurons)) == (100, 5)
        process.send(signal.SIGTERM)
        assert process.finish(20) == 0, process.logs
