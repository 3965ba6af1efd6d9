"""Keys, wallets, local chains and connections that count their calls, for every test that meets the chain."""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from template.chain import Chain, Wallet, bt
from template.localnet.localchain import LocalChain
from template.localnet.substrate import LocalSubstrate

ROOT = Path(__file__).resolve().parent.parent
NETUID = 7

READS = ("query", "query_map", "query_batch", "runtime_call", "block_hash", "block_number", "finalized_block_number")


def make_key(name: str) -> Any:
    """A keypair that is the same in every test, as //Alice is."""
    return bt.sp_core.Keypair.create_from_uri(f"//{name}")


def make_wallet(folder: Path, name: str) -> Wallet:
    """A wallet on disk with a fresh hotkey `default` without a password, and no coldkey."""
    wallet = bt.Wallet(name, "default", path=str(folder))
    wallet.create_new_hotkey(suppress=True)
    return wallet


def make_local_chain(folder: Path, **settings: Any) -> LocalChain:
    """A stepped chain owned by //owner, who has no uid; the first weights may be set at once."""
    defaults: dict[str, Any] = {
        "netuid": NETUID,
        "owner_hotkey": make_key("owner").ss58_address,
        "tempo": 100,
        "weights_rate_limit": 0,
    }
    return LocalChain.create(folder / "chain.db", **(defaults | settings))


def connect(local: LocalChain, wallet: Any = None, **settings: Any) -> Chain:
    """A product connection of its own to a local chain, as `wallet` or a bare keypair."""
    if wallet is not None and not hasattr(wallet, "hotkey"):
        wallet = wallet_of(wallet)
    return Chain(
        local.network,
        local.netuid,
        wallet=wallet,
        substrate=LocalSubstrate(local.path),
        **({"deadline_s": 20} | settings),
    )


def wallet_of(key: object) -> Any:
    """What `Chain` needs of a wallet, around a bare keypair."""
    return SimpleNamespace(hotkey=key)


class CountingSubstrate(LocalSubstrate):
    """Counts the reads that reach it, by name."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.calls: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        if name in READS:
            super().__getattribute__("calls")[name] += 1
        return super().__getattribute__(name)


def run_async(local: LocalChain, use: Callable[[LocalSubstrate], Coroutine[Any, Any, Any]]) -> Any:
    """What `use` returns, given an open connection below the client."""

    async def main() -> Any:
        substrate = LocalSubstrate(local.path)
        await substrate.connect()
        try:
            return await use(substrate)
        finally:
            await substrate.close()

    return asyncio.run(main())


def submit(local: LocalChain, key: Any, module: str, function: str, **params: Any) -> Any:
    """The result of one signed call, below the client."""

    async def use(substrate: LocalSubstrate) -> Any:
        return await substrate.submit(await substrate.compose((module, function, params)), key)

    return run_async(local, use)


def commit(local: LocalChain, key: Any, *fields: object) -> Any:
    return submit(local, key, "Commitments", "set_commitment", netuid=NETUID, info={"fields": list(fields)})


def start_python(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """Another process that runs `code` with this package and these fixtures importable."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]", timeout_s: float = 60.0) -> str:
    """The process's output once it has ended well."""
    output, errors = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, errors
    return output
