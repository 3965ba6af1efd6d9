"""Unmodified tools of others on the local node."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from template.localnet.chain.chain import LocalChain
from template.localnet.node.server import NodeServer
from tests.fixtures.chain import NETUID, commit, connect, make_key, make_wallet, set_weights

pytestmark = pytest.mark.slow

BTCLI = Path(sys.executable).with_name("btcli")
VALIDATOR, MINER = make_key("validator"), make_key("miner")


def btcli(node: NodeServer, home: Path, *arguments: object) -> Any:
    """Run btcli; return the JSON that it prints."""
    command = [BTCLI, *map(str, arguments), "--network", node.url, "--wallet-path", str(home), "--json"]
    environment = {**os.environ, "HOME": str(home)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return json.loads(done.stdout)


def test_btcli_lists_commitments(local: LocalChain, node: NodeServer, tmp_path: Path) -> None:
    commit(local, MINER, {"Raw5": b"hello"})
    (entry,) = btcli(node, tmp_path, "query", "commitments", "--netuid", NETUID)
    assert (entry["hotkey"], entry["uid"], entry["commitment"]) == (MINER.ss58_address, 1, "hello")


def test_btcli_lists_weights(local: LocalChain, node: NodeServer, tmp_path: Path) -> None:
    with connect(local, VALIDATOR) as chain:
        set_weights(chain, {1: 1.0})
    assert btcli(node, tmp_path, "query", "weights", "--netuid", NETUID) == {"0": {"1": 1.0}}


def test_btcli_sets_weights(local: LocalChain, node: NodeServer, tmp_path: Path) -> None:
    wallet = make_wallet(tmp_path, "other")
    wallet.create_new_coldkey(use_password=False, suppress=True)
    local.register(wallet.hotkey.ss58_address, wallet.coldkeypub.ss58_address, is_validator=True)
    arguments = ("tx", "set-weights", "--netuid", NETUID, "--uids", "0,1", "--weights", "1,0.5", "-w", "other", "-y")
    assert btcli(node, tmp_path, *arguments)["success"]
    assert local.weights(wallet.hotkey.ss58_address) == {0: 65535, 1: 32768}


def test_btcli_shows_the_stake_of_a_wallet(local: LocalChain, node: NodeServer, tmp_path: Path) -> None:
    wallet = make_wallet(tmp_path, "other")
    wallet.create_new_coldkey(use_password=False, suppress=True)
    local.register(wallet.hotkey.ss58_address, wallet.coldkeypub.ss58_address, is_validator=True)
    (overview,) = btcli(node, tmp_path, "wallet", "overview", "-w", "other")
    assert overview["coldkey"] == wallet.coldkeypub.ss58_address and overview["positions"] == 1


def test_btcli_reads_the_metagraph(node: NodeServer, tmp_path: Path) -> None:
    graph = btcli(node, tmp_path, "query", "metagraph", "--netuid", NETUID)
    assert graph["hotkeys"] == [VALIDATOR.ss58_address, MINER.ss58_address]
