"""Runtime APIs by their names for `state_call`.

Source: the runtime's metadata for parameters and results; pallets/subtensor/src/rpc_info for their meaning.
"""

from collections.abc import Callable
from typing import Any

from template.localnet.chain import pallets, storage
from template.localnet.chain.ledger import Ledger
from template.localnet.chain.scale_codec import encode_compact
from template.localnet.node.items import BlockView, nonce_of
from template.localnet.node.runtime import Runtime

_METADATA_VERSIONS = (14, 15)


class UnknownApiError(Exception):
    """A runtime API that the local chain has no rules for."""


def call_api(ledger: Ledger, runtime: Runtime, name: str, data: bytes, block: int) -> bytes:
    """Run a runtime API call; return its encoded result.

    Raises: UnknownApiError, ValueError.
    """
    if name == "Metadata_metadata_at_version":
        return _metadata(runtime, int.from_bytes(data, "little"))
    if name == "Metadata_metadata_versions":
        versions = [version.to_bytes(4, "little") for version in _METADATA_VERSIONS]
        return encode_compact(len(versions)) + b"".join(versions)
    api, _, method = name.partition("_")
    described = runtime.codec.runtime_api_map.get(api, {}).get(method)
    rule = _APIS.get(name)
    if described is None or rule is None:
        raise UnknownApiError(name)
    types = [type_string for _, type_string in described["inputs"]]
    # A fee does not depend on the extrinsic, whose type has no decoder.
    parameters = [] if name.startswith("TransactionPaymentApi") else _decode(runtime, types, data)
    return runtime.encode(described["output"], rule(BlockView(ledger, block), *parameters))


def _decode(runtime: Runtime, types: list[str], data: bytes) -> list[Any]:
    if len(types) == 1:
        return [runtime.codec.decode(types[0], data)]
    return list(runtime.codec.decode(f"({', '.join(types)})", data)) if types else []


def _metadata(runtime: Runtime, version: int) -> bytes:
    """Return Option<Vec<u8>>."""
    if version not in _METADATA_VERSIONS:
        return b"\x00"
    data = runtime.metadata(version)
    return b"\x01" + encode_compact(len(data)) + data


def _metagraph(view: BlockView, netuid: int) -> dict[str, Any] | None:
    return storage.metagraph(view.state, netuid) if netuid == view.netuid and view.exists else None


def _next_epoch(view: BlockView, netuid: int) -> int | None:
    return pallets.schedule(view.state).next_block if netuid == view.netuid and view.exists else None


def _fee(view: BlockView) -> dict[str, Any]:
    return {"weight": {"ref_time": 0, "proof_size": 0}, "class": "Normal", "partial_fee": 0}


_APIS: dict[str, Callable[..., Any]] = {
    "AccountNonceApi_account_nonce": lambda view, account: nonce_of(view.state, account),
    "SubnetInfoRuntimeApi_get_metagraph": _metagraph,
    "SubnetInfoRuntimeApi_get_next_epoch_start_block": _next_epoch,
    "TransactionPaymentApi_query_info": _fee,
}
