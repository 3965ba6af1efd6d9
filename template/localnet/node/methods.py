"""The JSON-RPC methods of the node, without their transport.

Source: https://polkadot.js.org/docs/substrate/rpc for methods and answers; sc-rpc-api for the numbers of errors.
"""

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

from template.errors import ConfigError
from template.localnet.chain.chain import runtime_upgrades
from template.localnet.chain.headers import Header
from template.localnet.chain.ledger import UnknownBlockError
from template.localnet.faults.answers import AnswerFaults
from template.localnet.faults.node_chain import DiscardedStateError, NodeChain
from template.localnet.node.admin import admin_methods
from template.localnet.node.apis import UnknownApiError, call_api
from template.localnet.node.events import block_extrinsics
from template.localnet.node.metadata import SPEC_VERSION
from template.localnet.node.pool import Pool, PoolError
from template.localnet.node.runtime import SPEC_NAME, SS58_FORMAT, TRANSACTION_VERSION, Runtime
from template.localnet.node.state import StateReader

T = TypeVar("T")

METHOD_NOT_FOUND, INVALID_PARAMS = -32601, -32602
_CLIENT_ERROR = 4003
_TOKEN_DECIMALS = 9
_MAX_PAGE = 1000

# The metadata holds no versions of APIs. Clients need these two, from polkadot-sdk.
_API_VERSIONS = {"Core": 5, "Metadata": 2}


class RpcError(Exception):
    """An error answer."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class Methods:
    """Answers requests from the chain. For one thread."""

    def __init__(self, ledger: NodeChain, runtime: Runtime) -> None:
        self.ledger = ledger
        self.runtime = runtime
        self.pool = Pool(ledger)
        self.answer_faults = AnswerFaults()
        self._state = StateReader(ledger, runtime)
        self._apis = [[_api_id(name), _API_VERSIONS.get(name, 1)] for name in runtime.codec.runtime_api_map]
        self._methods: dict[str, Callable[..., Any]] = {
            "account_nextIndex": lambda account: self.pool.next_nonce(_text(account)),
            "author_pendingExtrinsics": list,
            "author_submitExtrinsic": self._submit,
            "chain_getBlock": self._block,
            "chain_getBlockHash": self._block_hash,
            "chain_getFinalizedHead": lambda: self.ledger.hash_of(self.ledger.finalized()),
            "chain_getHead": lambda: self.ledger.hash_of(self.ledger.block()),
            "chain_getHeader": self._header,
            "rpc_methods": lambda: {"methods": sorted(self.names)},
            "state_call": self._call,
            "state_getKeysPaged": self._keys,
            "state_getMetadata": self._metadata,
            "state_getRuntimeVersion": self.runtime_version,
            "state_getStorage": self._storage,
            "state_queryStorageAt": self._query_storage,
            "system_chain": lambda: "Bittensor",
            "system_chainType": lambda: "Local",
            "system_health": lambda: {"peers": 0, "isSyncing": False, "shouldHavePeers": False},
            "system_name": lambda: "subtensor stand-in",
            "system_properties": _properties,
            "system_version": lambda: "1.0.0",
        }
        aliases = {
            "chain_getFinalisedHead": "chain_getFinalizedHead",
            "state_getKeysPagedAt": "state_getKeysPaged",
            "state_getStorageAt": "state_getStorage",
            "system_accountNextIndex": "account_nextIndex",
            "chain_getRuntimeVersion": "state_getRuntimeVersion",
        }
        self._methods |= {alias: self._methods[name] for alias, name in aliases.items()}
        self._methods |= admin_methods(ledger, self.pool, self._state, self.answer_faults)
        # Of subscriptions too, which `Subscriptions` adds.
        self.names = set(self._methods)

    def call(self, method: str, params: list[Any]) -> Any:
        """Answer a request. Raises: RpcError."""
        handler = self._methods.get(method)
        if handler is None:
            raise RpcError(METHOD_NOT_FOUND, "Method not found")
        return self.guard(lambda: handler(*params))

    def guard(self, answer: Callable[[], T]) -> T:
        """Return an answer. Raises: RpcError for every error that a client can cause."""
        try:
            return answer()
        except UnknownBlockError as error:
            raise RpcError(_CLIENT_ERROR, f"Client error: UnknownBlock: Header was not found: {error}") from error
        except UnknownApiError as error:
            text = f"Client error: Execution failed: Other: Exported method {error} is not found"
            raise RpcError(_CLIENT_ERROR, text) from error
        except DiscardedStateError as error:
            text = f"Client error: UnknownBlock: State already discarded for {error}"
            raise RpcError(_CLIENT_ERROR, text) from error
        except PoolError as error:
            raise RpcError(error.code, error.message, error.data) from error
        except (ConfigError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise RpcError(INVALID_PARAMS, "Invalid params", repr(error)) from error

    def runtime_version(self, block_hash: str | None = None) -> dict[str, Any]:
        """Return the runtime version of a block's state. Raises: UnknownBlockError."""
        state = self.ledger.at(self._state_number(block_hash))
        return {
            "specName": SPEC_NAME,
            "implName": SPEC_NAME,
            "authoringVersion": 1,
            "specVersion": SPEC_VERSION + runtime_upgrades(state),
            "implVersion": 1,
            "apis": self._apis,
            "transactionVersion": TRANSACTION_VERSION,
            "stateVersion": 1,
        }

    def header(self, block: int) -> dict[str, Any]:
        """Return a block's header."""
        return _header_json(self.ledger.header(block))

    def changes(self, keys: list[str], block: int) -> dict[str, Any]:
        """Return the values of keys in a block, as a storage change set."""
        values = [[key, _hex_or_none(self._state.value(_bytes(key), block))] for key in keys]
        return {"block": self.ledger.hash_of(block), "changes": values}

    def _number(self, block_hash: str | None) -> int:
        return self.ledger.block() if block_hash is None else self.ledger.number_of(_text(block_hash))

    def _state_number(self, block_hash: str | None) -> int:
        """Return the number of a block whose state is read. Raises: DiscardedStateError."""
        number = self._number(block_hash)
        self.ledger.check_state(number)
        return number

    def _known(self, block_hash: str | None) -> int | None:
        """Return a block's number, None for an unknown hash."""
        try:
            return self._number(block_hash)
        except UnknownBlockError:
            return None

    def _header(self, block_hash: str | None = None) -> dict[str, Any] | None:
        number = self._known(block_hash)
        return None if number is None else self.header(number)

    def _block(self, block_hash: str | None = None) -> dict[str, Any] | None:
        number = self._known(block_hash)
        if number is None:
            return None
        extrinsics = [_hex(data) for data in block_extrinsics(self.ledger, self.runtime, number)]
        return {"block": {"header": self.header(number), "extrinsics": extrinsics}, "justifications": None}

    def _block_hash(self, number: int | str | list[int | str] | None = None) -> Any:
        if isinstance(number, list):
            return [self._block_hash(each) for each in number]
        head = self.ledger.block()
        block = head if number is None else int(number, 16) if isinstance(number, str) else number
        return self.ledger.hash_of(block) if 0 <= block <= head else None

    def _call(self, name: str, data: str, block_hash: str | None = None) -> str:
        return _hex(call_api(self.ledger, self.runtime, name, _bytes(data), self._state_number(block_hash)))

    def _metadata(self, block_hash: str | None = None) -> str:
        upgrades = runtime_upgrades(self.ledger.at(self._state_number(block_hash)))
        return _hex(self.runtime.metadata(14, upgrades))

    def _storage(self, key: str, block_hash: str | None = None) -> str | None:
        return _hex_or_none(self._state.value(_bytes(key), self._state_number(block_hash)))

    def _query_storage(self, keys: list[str], block_hash: str | None = None) -> list[dict[str, Any]]:
        return [self.changes(keys, self._state_number(block_hash))]

    def _keys(self, prefix: str, count: int, start: str | None = None, block_hash: str | None = None) -> list[str]:
        if not 0 < count <= _MAX_PAGE:
            raise RpcError(INVALID_PARAMS, f"count exceeds maximum value. value: {count}, max: {_MAX_PAGE}")
        keys = self._state.keys(_bytes(prefix), self._state_number(block_hash))
        after = b"" if start is None else _bytes(start)
        return [_hex(key) for key in keys if key > after][:count]

    def _submit(self, data: str) -> str:
        return self.pool.submit(_bytes(data)).extrinsic.hash


def _api_id(name: str) -> str:
    """Return the number by which the runtime names an API: sp_api's hash of its name."""
    return "0x" + hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


def _properties() -> dict[str, Any]:
    return {"ss58Format": SS58_FORMAT, "tokenDecimals": _TOKEN_DECIMALS, "tokenSymbol": "TAO"}


def _header_json(header: Header) -> dict[str, Any]:
    return {
        "parentHash": header.parent_hash,
        "number": hex(header.number),
        "stateRoot": header.state_root,
        "extrinsicsRoot": header.extrinsics_root,
        "digest": {"logs": []},
    }


def _text(value: object) -> str:
    """Return a parameter that must be a text. Raises: TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {value!r}")
    return value


def _bytes(value: str) -> bytes:
    return bytes.fromhex(value.removeprefix("0x"))


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


def _hex_or_none(data: bytes | None) -> str | None:
    return None if data is None else _hex(data)
