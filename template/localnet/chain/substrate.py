"""A `bittensor.Substrate` over a local chain's file, in place of a connection.

Network names of the form `sim:PATH` reach it; `open_substrate` alone resolves them. A call is encoded to bytes, signed,
verified, decoded and applied, and fails with the chain's own error names.
"""

import asyncio
import inspect
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from template.chain.client import bt, verify_signature
from template.localnet.chain import pallets, storage
from template.localnet.chain.ledger import ChainFault, Ledger, State, UnknownBlockError
from template.localnet.chain.scale_codec import decode_call, encode_call

NETWORK_PREFIX = "sim:"

# Mainnet's, for the client's time estimates while blocks are made by hand.
_NOMINAL_BLOCK_TIME_S = 12.0
_SHORTEST_WAIT_S = 0.01

# The runtime's System.BlockHashCount: the hashes of past blocks that a state holds.
_BLOCK_HASH_COUNT = 2400
_LOST = "Connection lost while waiting for the inclusion of an extrinsic. The transaction may already be on chain."


def open_substrate(network: str) -> "LocalSubstrate | None":
    """Open the chain of a `sim:PATH` network, else return None. Raises: ConfigError."""
    if not network.startswith(NETWORK_PREFIX):
        return None
    path = Path(network.removeprefix(NETWORK_PREFIX)).expanduser()
    Ledger(path).close()
    return LocalSubstrate(path)


@dataclass(frozen=True)
class ComposedCall:
    """A call ready to sign: its SCALE bytes, and the parts that the client reads."""

    data: bytes
    module: str
    function: str
    params: dict[str, Any]


class LocalSubstrate:
    """A connection to the local chain in the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ledger: Ledger | None = None

    def __getattr__(self, name: str) -> Any:
        if hasattr(bt.Substrate, name):
            raise NotImplementedError(f"the local chain has no {name}: the product does not use it")
        raise AttributeError(name)

    def balance(self, rao: int, netuid: int = 0) -> Any:
        return bt.Balance(int(rao), netuid)

    async def connect(self) -> None:
        if self._ledger is None:
            self._ledger = Ledger(self.path)
        await self._fault("connect")

    async def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    async def block_hash(self, block: int | None = None) -> str:
        async with self._reading() as ledger:
            return ledger.hash_of(ledger.at(block).block)

    async def block_number(self) -> int:
        async with self._reading() as ledger:
            return ledger.block()

    async def finalized_block_number(self) -> int:
        async with self._reading() as ledger:
            return ledger.finalized()

    async def block_time(self) -> float:
        async with self._reading() as ledger:
            return ledger.block_time_s() or _NOMINAL_BLOCK_TIME_S

    async def query(
        self, module: str, storage_function: str, params: list[Any] | None = None, block_hash: str | None = None
    ) -> Any:
        async with self._reading() as ledger:
            state = _state(ledger, block_hash)
            if (module, storage_function) == ("Timestamp", "Now"):
                return _milliseconds(ledger, state.block)
            if (module, storage_function) == ("System", "BlockHash"):
                return _past_hash(ledger, state.block, *(params or [0]))
            netuid, *keys = params or [ledger.netuid]
            return storage.value(state, f"{module}.{storage_function}", keys) if netuid == ledger.netuid else None

    async def query_map(
        self, module: str, storage_function: str, params: list[Any] | None = None, block_hash: str | None = None
    ) -> list[tuple[Any, Any]]:
        async with self._reading() as ledger:
            state = _state(ledger, block_hash)
            if params != [ledger.netuid]:
                return []
            return storage.entries(state, f"{module}.{storage_function}")

    async def runtime_call(self, api: str, method: str, params: list[Any], block_hash: str | None = None) -> Any:
        async with self._reading() as ledger:
            state = _state(ledger, block_hash)
            # The subnet begins in block 1.
            exists = params == [ledger.netuid] and state.block > 0
            if (api, method) == ("SubnetInfoRuntimeApi", "get_metagraph"):
                return storage.metagraph(state, ledger.netuid) if exists else None
            if (api, method) == ("SubnetInfoRuntimeApi", "get_next_epoch_start_block"):
                return pallets.schedule(state).next_block if exists else None
            raise NotImplementedError(f"the local chain has no runtime call {api}.{method}")

    async def compose(self, call: tuple[str, str, dict[str, Any]]) -> ComposedCall:
        module, function, params = call
        return ComposedCall(encode_call(module, function, params), module, function, params)

    async def estimate_fee(self, call: object, keypair: object) -> Any:
        """Return zero: a local chain has no balances."""
        return self.balance(0)

    async def submit(
        self,
        call: ComposedCall,
        keypair: Any,
        *,
        wait_for_inclusion: bool = True,
        wait_for_finalization: bool = True,
        **_: object,
    ) -> Any:
        """Sign and apply a call, and wait for its block if asked; refusals and failed calls are results too."""
        fault = await self._fault("write")
        ledger = self._open()
        signature = keypair.sign(call.data)
        if inspect.isawaitable(signature):
            signature = await signature
        if not verify_signature(keypair.ss58_address, call.data, bytes(signature).hex()):
            return _failed("BadProof")
        with _as_client_errors():
            block, position, failure = _apply(ledger, keypair.ss58_address, call.data)
        newest = ledger.finalized if wait_for_finalization else ledger.block
        while (wait_for_inclusion or wait_for_finalization) and newest() < block:
            await asyncio.sleep(max(_SHORTEST_WAIT_S, min(1.0, ledger.block_time_s() / 10)))
        if fault is ChainFault.LOSE_ANSWER:
            # The client's own transport reports a failure without a name or a block.
            return bt.ExtrinsicResult(success=False, message=_LOST, error=bt.ChainError(_LOST))
        included: dict[str, Any] = {"block_hash": ledger.hash_of(block), "extrinsic_id": f"{block}-{position:04d}"}
        if failure:
            return _failed(failure, **included)
        return bt.ExtrinsicResult(success=True, message="Success", fee=self.balance(0), **included)

    def _open(self) -> Ledger:
        if self._ledger is None:
            raise bt.ConnectionNotReady("the local chain is not open: connect first")
        return self._ledger

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Ledger]:
        await self._fault("read")
        with _as_client_errors():
            yield self._open()

    async def _fault(self, kind: str) -> ChainFault | None:
        """Apply a fault of `LocalChain.set_fault`; return LOSE_ANSWER for after the write."""
        with _as_client_errors():
            fault = self._open().take_fault(kind)
        if fault is ChainFault.HANG:
            await asyncio.Event().wait()
        if fault is ChainFault.DISCONNECT:
            raise bt.RpcConnectionError("connection dropped (injected fault)")
        if fault is ChainFault.ERROR:
            raise bt.ChainError("the node failed (injected fault)")
        return fault


@contextmanager
def _as_client_errors() -> Iterator[None]:
    """Raise the client's transport errors: an unusable file is a lost connection."""
    try:
        yield
    except UnknownBlockError as exc:
        raise bt.ChainError(str(exc)) from exc
    except sqlite3.Error as exc:
        raise bt.RpcConnectionError(f"the local chain's file failed: {exc}") from exc


def _state(ledger: Ledger, block_hash: str | None) -> State:
    return ledger.at(None if block_hash is None else ledger.number_of(block_hash))


def _milliseconds(ledger: Ledger, block: int) -> int:
    return int(ledger.timestamp(block) * 1000)


def _past_hash(ledger: Ledger, block: int, past: int) -> str:
    """Return a past block's hash in the state of `block`: zeros if too far back."""
    is_stored = max(0, block - _BLOCK_HASH_COUNT) <= past < block
    return ledger.hash_of(past) if is_stored else "0x" + "00" * 32


def _apply(ledger: Ledger, signer: str, data: bytes) -> tuple[int, int, str | None]:
    """Put a call into the next block; return block, position and error."""
    call = decode_call(data)
    with ledger.write() as state:
        failure = None
        try:
            pallets.dispatch(state, ledger.netuid, signer, call)
        except pallets.DispatchError as error:
            failure = error.name
        return state.block, state.record_extrinsic(data, signer, failure), failure


def _failed(name: str, **included: Any) -> Any:
    text = bt.ChainError(name, name).description or name
    return bt.ExtrinsicResult(success=False, message=text, error=bt.ChainError(text, name), **included)
