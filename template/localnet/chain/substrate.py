"""A `bittensor.Substrate` over a local chain's file: the client's own seam, below which the network would be.

The network name `sim:PATH` reaches it, and `open_substrate` is the one place that resolves it. Submitting encodes the
call to bytes and signs them with a nonce and the genesis; what applies them reads bytes, verifies the sr25519
signature against the signer's address, and answers with the chain's own error names.
"""

import asyncio
import hashlib
import inspect
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from template.chain.client import bt, verify_signature
from template.localnet.chain import pallets, storage
from template.localnet.chain.ledger import Ledger, State, UnknownBlockError
from template.localnet.chain.scale_codec import Call, decode_call, encode_call

NETWORK_PREFIX = "sim:"

# What block_time() reports while blocks are stepped: times in the client need a pace, and this is mainnet's.
_NOMINAL_BLOCK_TIME_S = 12.0
_SHORTEST_WAIT_S = 0.01

# The runtime's System.BlockHashCount.
_HASHES_KEPT = 2400
_LOST = "Connection lost while waiting for the inclusion of an extrinsic. The transaction may already be on chain."


def open_substrate(network: str) -> "LocalSubstrate | None":
    """The local chain that a `sim:PATH` network names, or None when the network is a real one.

    Raises: ConfigError when PATH holds no local chain.
    """
    if not network.startswith(NETWORK_PREFIX):
        return None
    path = Path(network.removeprefix(NETWORK_PREFIX)).expanduser()
    Ledger(path).close()
    return LocalSubstrate(path)


@dataclass(frozen=True)
class ComposedCall:
    """A call ready to sign: its SCALE bytes, beside the parts that the client looks at."""

    data: bytes
    module: str
    function: str
    params: dict[str, Any]


@dataclass(frozen=True)
class SignedCall:
    """All that a node sees of an extrinsic."""

    data: bytes
    signer: str
    nonce: int
    signature: bytes


def signing_payload(data: bytes, nonce: int, genesis: str) -> bytes:
    """The 32 bytes that are signed: a call of one chain, at one place in its signer's sequence."""
    return hashlib.blake2b(data + nonce.to_bytes(8, "little") + bytes.fromhex(genesis[2:]), digest_size=32).digest()


def _unsupported(name: str) -> Callable[..., Any]:
    def method(self: object, *args: object, **kwargs: object) -> Any:
        raise NotImplementedError(f"the local chain has no {name}: the product does not use it")

    return method


class LocalSubstrate:
    """One process's connection to a local chain. `path` is the chain's file, made by `LocalChain.create`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token_symbols: dict[int, str] = {}
        self._ledger: Ledger | None = None

    def balance(self, rao: int, netuid: int = 0) -> Any:
        return bt.Balance(int(rao), netuid, self.token_symbols.get(netuid) if netuid else None)

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
            return ledger.head()

    async def finalized_block_number(self) -> int:
        async with self._reading() as ledger:
            return ledger.finalized()

    async def block_time(self) -> float:
        async with self._reading() as ledger:
            return ledger.block_time_s() or _NOMINAL_BLOCK_TIME_S

    async def spec_version(self) -> int:
        return 1

    async def get_block(self, block_number: int | None = None, block_hash: str | None = None) -> dict[str, Any] | None:
        async with self._reading() as ledger:
            try:
                number = ledger.number_of(block_hash) if block_hash else ledger.at(block_number).block
            except UnknownBlockError:
                return None
            calls = [("", Call("Timestamp", "set", {"now": _milliseconds(ledger, number)}))]
            calls += [(signer, decode_call(data)) for data, signer in ledger.extrinsics(number)]
            return {"header": _header(ledger, number), "extrinsics": [_extrinsic(*call) for call in calls]}

    async def blocks(self, *, finalized: bool = False) -> AsyncIterator[dict[str, Any]]:
        seen = await (self.finalized_block_number() if finalized else self.block_number())
        while True:
            head = await (self.finalized_block_number() if finalized else self.block_number())
            for number in range(seen + 1, head + 1):
                async with self._reading() as ledger:
                    header = _header(ledger, number)
                yield {"header": header}
            seen = head
            await asyncio.sleep(self._poll_s())

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
            if (module, storage_function) == ("SubtensorModule", "TokenSymbol"):
                return [(0, "τ"), (ledger.netuid, storage.SYMBOL)]
            if params != [ledger.netuid]:
                return []
            return storage.entries(state, f"{module}.{storage_function}")

    async def map_has_entries(
        self, module: str, storage_function: str, params: list[Any], block_hash: str | None = None
    ) -> bool:
        return bool(await self.query_map(module, storage_function, params, block_hash))

    async def query_batch(
        self, module: str, storage_function: str, param_sets: list[list[Any]], block_hash: str | None = None
    ) -> list[Any]:
        return [await self.query(module, storage_function, params, block_hash) for params in param_sets]

    async def runtime_call(self, api: str, method: str, params: list[Any], block_hash: str | None = None) -> Any:
        async with self._reading() as ledger:
            state = _state(ledger, block_hash)
            # The subnet begins in block 1.
            is_there = params == [ledger.netuid] and state.block > 0
            if (api, method) == ("SubnetInfoRuntimeApi", "get_metagraph"):
                return storage.metagraph(state, ledger.netuid) if is_there else None
            if (api, method) == ("SubnetInfoRuntimeApi", "get_next_epoch_start_block"):
                return pallets.schedule(state).next_block if is_there else None
            raise NotImplementedError(f"the local chain has no runtime call {api}.{method}")

    async def constant(self, module: str, name: str) -> Any:
        if (module, name) == ("Aura", "SlotDuration"):
            return int(await self.block_time() * 1000)
        if (module, name) == ("Commitments", "MaxFields"):
            return pallets.MAX_FIELDS
        raise NotImplementedError(f"the local chain has no constant {module}.{name}")

    async def compose(self, call: tuple[str, str, dict[str, Any]]) -> ComposedCall:
        module, function, params = call
        return ComposedCall(encode_call(module, function, params), module, function, params)

    async def estimate_fee(self, call: object, keypair: object) -> Any:
        """Zero: a local chain has no balances."""
        return self.balance(0)

    async def estimate_weight(self, call: object, keypair: object) -> dict[str, int]:
        return {"ref_time": 0, "proof_size": 0}

    async def account_next_index(self, address: str) -> int:
        async with self._reading() as ledger:
            return int(ledger.pending().get("Nonce", address, 0))

    async def sign(self, call: ComposedCall, keypair: Any, *, nonce: int) -> SignedCall:
        """Signs a composed call for this chain; `submit_signed` sends it."""
        payload = signing_payload(call.data, nonce, self._open().genesis)
        signature = keypair.sign(payload)
        if inspect.isawaitable(signature):
            signature = await signature
        return SignedCall(call.data, keypair.ss58_address, nonce, bytes(signature))

    async def submit(
        self,
        call: ComposedCall,
        keypair: Any,
        *,
        nonce: int | None = None,
        period: int | None = None,
        wait_for_inclusion: bool = True,
        wait_for_finalization: bool = True,
    ) -> Any:
        nonce = await self.account_next_index(keypair.ss58_address) if nonce is None else nonce
        extrinsic = await self.sign(call, keypair, nonce=nonce)
        waits = wait_for_inclusion or wait_for_finalization
        return await self.submit_signed(
            extrinsic, keypair, wait_for_inclusion=waits, wait_for_finalization=wait_for_finalization
        )

    async def submit_signed(
        self,
        extrinsic: SignedCall,
        keypair: Any = None,
        *,
        wait_for_inclusion: bool = True,
        wait_for_finalization: bool = False,
    ) -> Any:
        """Applies a signed call and, when asked to wait, returns once its block is on the chain.

        Neither a call that the pool rejects nor a block in which the call failed raises: both are results.
        """
        answer = await self._fault("write")
        ledger = self._open()
        try:
            with _as_client_errors():
                block, position, error = _apply(ledger, extrinsic)
        except pallets.DispatchError as refusal:
            return _failed(refusal.name)
        while wait_for_inclusion and (ledger.finalized() if wait_for_finalization else ledger.head()) < block:
            await asyncio.sleep(self._poll_s())
        if answer == "lose_answer":
            # As the client's own transport reports it: a failure without a name or a block.
            return bt.ExtrinsicResult(success=False, message=_LOST, error=bt.ChainError(_LOST))
        included: dict[str, Any] = {"block_hash": ledger.hash_of(block), "extrinsic_id": f"{block}-{position:04d}"}
        if error:
            return _failed(error, **included)
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

    async def _fault(self, kind: str) -> str | None:
        """Goes wrong as `LocalChain.set_fault` asked for; "lose_answer" is returned, to be done after the write."""
        with _as_client_errors():
            mode = self._open().take_fault(kind)
        if mode == "hang":
            await asyncio.Event().wait()
        if mode == "disconnect":
            raise bt.RpcConnectionError("the connection was dropped (injected fault)")
        if mode == "error":
            raise bt.ChainError("the node could not answer (injected fault)")
        return mode

    def _poll_s(self) -> float:
        """Seconds to wait before looking for a new block: a fraction of one."""
        return max(_SHORTEST_WAIT_S, min(1.0, self._open().block_time_s() / 10))

    decode_scale = _unsupported("decode_scale")
    events = _unsupported("events")
    mev_next_key = _unsupported("mev_next_key")
    sign_extrinsic = _unsupported("sign_extrinsic")
    find_extrinsic = _unsupported("find_extrinsic")
    prepare = _unsupported("prepare")
    submit_signature = _unsupported("submit_signature")
    multisig_account = _unsupported("multisig_account")
    submit_multisig = _unsupported("submit_multisig")


@contextmanager
def _as_client_errors() -> Iterator[None]:
    """Failures as the client's transport reports them: a file that cannot be used is a lost connection."""
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


def _past_hash(ledger: Ledger, block: int, asked: int) -> str:
    """A block's hash as a later block's state has it: of the newest ones below it, else zeros, as on chain."""
    is_kept = max(0, block - _HASHES_KEPT) <= asked < block
    return ledger.hash_of(asked) if is_kept else "0x" + "00" * 32


def _header(ledger: Ledger, number: int) -> dict[str, Any]:
    parent = ledger.hash_of(number - 1) if number else "0x" + "00" * 32
    return {"number": number, "hash": ledger.hash_of(number), "parentHash": parent}


def _extrinsic(signer: str, call: Call) -> dict[str, Any]:
    arguments = [{"name": name, "value": value} for name, value in call.params.items()]
    spelled = {"call_module": call.module, "call_function": call.function, "call_args": arguments}
    return {"address": signer, "call": spelled} if signer else {"call": spelled}


def _apply(ledger: Ledger, extrinsic: SignedCall) -> tuple[int, int, str | None]:
    """Puts an extrinsic into the next block; returns block, position and, when the call failed, its error's name.

    Raises: pallets.Refusal when the pool would not take it, and then there is no trace of it.
    """
    with ledger.write() as state:
        call = _admit(state, extrinsic, ledger.genesis)
        state.put("Nonce", extrinsic.signer, extrinsic.nonce + 1)
        error = None
        try:
            pallets.dispatch(state, ledger.netuid, extrinsic.signer, call)
        except pallets.DispatchError as refusal:
            error = refusal.name
        return state.block, state.record_extrinsic(extrinsic.data, extrinsic.signer, error), error


def _admit(state: State, extrinsic: SignedCall, genesis: str) -> Call:
    payload = signing_payload(extrinsic.data, extrinsic.nonce, genesis)
    if not verify_signature(extrinsic.signer, payload, extrinsic.signature.hex()):
        raise pallets.DispatchError("BadProof")
    expected = state.get("Nonce", extrinsic.signer, 0)
    if extrinsic.nonce != expected:
        raise pallets.DispatchError("Stale" if extrinsic.nonce < expected else "Future")
    try:
        return decode_call(extrinsic.data)
    except ValueError as exc:
        raise pallets.DispatchError("Call") from exc


def _failed(name: str, **included: Any) -> Any:
    text = bt.ChainError(name, name).description or name
    return bt.ExtrinsicResult(success=False, message=text, error=bt.ChainError(text, name), **included)
