"""The local chain below the official client."""

import asyncio
import os
import sqlite3
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from template.chain.client import bt
from template.errors import ConfigError
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.ledger import ChainFault, Ledger
from tests.fixtures.chain import NETUID, commit, connect, make_key, make_local_chain, run_async
from tests.fixtures.substrate import LocalSubstrate

VALIDATOR, MINER, OWNER = make_key("validator"), make_key("miner"), make_key("owner")


def test_official_client_reads_the_subnet(local: LocalChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BTCLI_TOKEN_SYMBOLS_CACHE", str(tmp_path / "symbols.json"))

    async def use() -> None:
        async with bt.Client("ws://127.0.0.1:1", substrate=LocalSubstrate(local.path)) as client:
            graph = await client.subnets.metagraph(NETUID)
            assert graph is not None
            assert [neuron.hotkey for neuron in graph.neurons] == [VALIDATOR.ss58_address, MINER.ss58_address]
            assert [neuron.hotkey for neuron in graph.validators] == [VALIDATOR.ss58_address]
            assert await client.subnets.metagraph(NETUID + 1) is None
            assert dict(await client.subnets.commitments(NETUID)) == {}
            status = await client.epochs.epoch_status(NETUID)
            assert (status["last_epoch_block"], status["next_epoch_start_block"]) == (1, 101)
            assert await client.neurons.uid(hotkey_ss58=MINER.ss58_address, netuid=NETUID) == 1

    asyncio.run(use())


def test_future_block_raises_like_a_node(local: LocalChain) -> None:
    async def use(substrate: LocalSubstrate) -> None:
        for block in (local.block() + 1, -1):
            with pytest.raises(bt.ChainError, match=f"no block at height {block}"):
                await substrate.block_hash(block)
        with pytest.raises(bt.ChainError, match="no block"):
            await substrate.query("SubtensorModule", "Tempo", [NETUID], block_hash="0x" + "00" * 32)

    run_async(local, use)


def test_submitting_waits_for_the_clock(tmp_path: Path) -> None:
    with make_local_chain(tmp_path) as local:
        local.register(MINER.ss58_address)
        local.set_block_time(0.3)
        before = local.block()
        result = commit(local, MINER, {"Raw1": b"a"})
        included = int(result.extrinsic_id.split("-")[0])
        assert result.success and before < included <= local.block()


def commit_texts(path: Path, name: str) -> list[tuple[int, str]]:
    """Commit as `name`; return each text with its block."""
    with LocalChain(path) as local, connect(local, make_key(name)) as chain:
        return [(chain.publish(text).block or 0, text) for text in (f"{name} {number}" for number in range(15))]


@pytest.mark.slow
def test_two_processes_commit_concurrently_and_lose_nothing(local: LocalChain) -> None:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        committing = [pool.submit(commit_texts, local.path, name) for name in ("validator", "miner")]
        while local.block() < 10 and not committing[0].done():
            time.sleep(0.01)
        local.set_block_time(0.05)
        committed = [pair for texts in committing for pair in texts.result()]
    assert len(committed) == 30
    with Ledger(local.path) as ledger:
        for block, text in committed:
            signer = make_key(text.split()[0]).ss58_address
            (field,) = ledger.at(block).get("CommitmentOf", signer)["info"]["fields"]
            assert bytes.fromhex(next(iter(field.values()))[2:]).decode() == text
            assert signer in [who for _, who in ledger.extrinsics(block)]


class Impostor:
    """Signs with its own key under another's address."""

    ss58_address = MINER.ss58_address
    public_key = MINER.public_key
    crypto_type = 1

    def sign(self, payload: bytes) -> bytes:
        return bytes(VALIDATOR.sign(payload))


def test_wrong_key_cannot_write(local: LocalChain) -> None:
    before = local.block()
    result = commit(local, Impostor(), {"Raw1": b"a"})
    assert (result.success, result.error.name) == (False, "BadProof")
    assert local.block() == before


def test_faults_count_down_over_connections(local: LocalChain) -> None:
    local.set_fault("read", ChainFault.DISCONNECT, calls=2)

    async def use(substrate: LocalSubstrate) -> None:
        for node in (substrate, LocalSubstrate(local.path)):
            await node.connect()
            with pytest.raises(bt.RpcConnectionError):
                await node.block_number()
            await node.close()
        await substrate.connect()
        assert await substrate.block_number() == local.block()
        local.set_fault("read", ChainFault.ERROR, calls=5)
        local.set_fault("read", ChainFault.ERROR, calls=0)
        assert await substrate.block_number() == local.block()

    run_async(local, use)


def test_chain_with_a_wrong_value_leaves_no_open_file(tmp_path: Path) -> None:
    path = tmp_path / "chain.db"
    with pytest.raises(ConfigError, match="Tempo"):
        LocalChain.create(path, netuid=NETUID, owner_hotkey="owner", tempo=-1)
    files = [os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()]
    assert not [name for name in files if name.startswith(str(path))]


def test_broken_file_is_a_lost_connection(local: LocalChain) -> None:
    async def use(substrate: LocalSubstrate) -> None:
        with sqlite3.connect(local.path) as connection:
            connection.execute("DROP TABLE state")
        connection.close()
        with pytest.raises(bt.RpcConnectionError):
            await substrate.query("SubtensorModule", "Tempo", [NETUID])

    run_async(local, use)


def test_use_before_connect_and_unknown_items_are_lines(local: LocalChain) -> None:
    with pytest.raises(bt.ConnectionNotReady):
        asyncio.run(LocalSubstrate(local.path).block_number())

    async def use(substrate: LocalSubstrate) -> None:
        for ask in (
            substrate.query("SubtensorModule", "Bonds", [NETUID]),
            substrate.query_map("SubtensorModule", "Bonds", [NETUID]),
            substrate.runtime_call("NeuronInfoRuntimeApi", "get_neurons", [NETUID]),
        ):
            with pytest.raises(NotImplementedError, match="local chain has no"):
                await ask
        with pytest.raises(NotImplementedError, match="prepare"):
            substrate.prepare()

    run_async(local, use)


@pytest.mark.parametrize(
    ("name", "value"), [("Nope", 1), ("Tempo", -1), ("Tempo", True), ("Tempo", 1.5), ("CommitRevealWeightsEnabled", 1)]
)
def test_meaningless_hyperparameters_are_config_errors(local: LocalChain, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="hyperparameter"):
        local.set_hyperparameter(name, value)


def test_chain_is_created_once_and_with_sense(tmp_path: Path) -> None:
    make_local_chain(tmp_path).close()
    with pytest.raises(ConfigError, match="exists"):
        make_local_chain(tmp_path)
    senseless: list[dict[str, Any]] = [{"netuid": 0}, {"block_time_s": -1.0}, {"block_time_s": float("nan")}]
    for number, settings in enumerate(senseless):
        with pytest.raises(ConfigError):
            make_local_chain(tmp_path / str(number), **settings)
        assert not (tmp_path / str(number) / "chain.db").exists()
