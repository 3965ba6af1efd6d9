"""Runtime APIs by their names for `state_call`.

Source: the runtime's metadata for parameters and results; pallets/subtensor/src/rpc_info for their meaning.
"""

from collections.abc import Callable
from typing import Any

from template.localnet.chain import pallets, storage
from template.localnet.chain.chain import runtime_upgrades
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
        return _metadata(runtime, int.from_bytes(data, "little"), runtime_upgrades(ledger.at(block)))
    if name == "Metadata_metadata_versions":
        versions = [version.to_bytes(4, "little") for version in _METADATA_VERSIONS]
        return encode_compact(len(versions)) + b"".join(versions)
    api, _, method = name.partition("_")
    described = runtime.codec.runtime_api_map.get(api, {}).get(method)
    if described is None:
        raise UnknownApiError(name)
    if name.startswith(_ABSENT):
        return runtime.default(described["output"])
    rule = _APIS.get(name)
    if rule is None:
        raise UnknownApiError(name)
    types = [type_string for _, type_string in described["inputs"]]
    # A fee does not depend on the extrinsic, whose type has no decoder.
    parameters = [] if name.startswith("TransactionPaymentApi") else _decode(runtime, types, data)
    return runtime.encode(described["output"], rule(BlockView(ledger, block), *parameters))


def _decode(runtime: Runtime, types: list[str], data: bytes) -> list[Any]:
    if len(types) == 1:
        return [runtime.codec.decode(types[0], data)]
    return list(runtime.codec.decode(f"({', '.join(types)})", data)) if types else []


def _metadata(runtime: Runtime, version: int, upgrades: int) -> bytes:
    """Return Option<Vec<u8>>."""
    if version not in _METADATA_VERSIONS:
        return b"\x00"
    data = runtime.metadata(version, upgrades)
    return b"\x01" + encode_compact(len(data)) + data


def _metagraph(view: BlockView, netuid: int) -> dict[str, Any] | None:
    return storage.metagraph(view.state, netuid) if netuid == view.netuid and view.exists else None


def _next_epoch(view: BlockView, netuid: int) -> int | None:
    return pallets.schedule(view.state).next_block if netuid == view.netuid and view.exists else None


def _neurons_lite(view: BlockView, netuid: int) -> list[dict[str, Any]]:
    return [_neuron_lite(view, row) for row in view.neurons] if netuid == view.netuid else []


def _neuron_lite(view: BlockView, row: pallets.NeuronRow) -> dict[str, Any]:
    return {
        "hotkey": row.hotkey,
        "coldkey": row.coldkey,
        "uid": row.uid,
        "netuid": view.netuid,
        "active": True,
        "axon_info": storage.axon_of(view.state, row.hotkey),
        "stake": [(row.coldkey, row.stake)] if row.stake else [],
        "last_update": row.last_update,
        "validator_permit": row.has_permit,
    }


def _hyperparameters(view: BlockView, netuid: int) -> list[dict[str, Any]] | None:
    """Return the hyperparameters with rules here; v3 is a list of names and values."""
    if netuid != view.netuid or not view.exists:
        return None
    values = {name: {kind: pallets.parameter(view.state, item)} for name, (item, kind) in _HYPERPARAMETERS.items()}
    return [{"name": name.encode(), "value": value} for name, value in values.items()]


def _stakes(view: BlockView, coldkey: str) -> list[dict[str, Any]]:
    """Return the stakes of a coldkey, which are all to its own hotkeys."""
    rows = [row for row in view.neurons if row.coldkey == coldkey and row.stake]
    common = {"coldkey": coldkey, "netuid": view.netuid, "is_registered": True}
    return [{**common, "hotkey": row.hotkey, "stake": row.stake} for row in rows]


def _stakes_of_many(view: BlockView, coldkeys: list[str]) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(coldkey, _stakes(view, coldkey)) for coldkey in coldkeys]


def _free_stakes(view: BlockView, coldkeys: list[str], netuids: list[int] | None) -> dict[str, dict[int, Any]]:
    """Return the stake that can be moved, all of it; None asks for every subnet."""
    if netuids is not None and view.netuid not in netuids:
        return {coldkey: {} for coldkey in coldkeys}
    totals = {coldkey: sum(stake["stake"] for stake in _stakes(view, coldkey)) for coldkey in coldkeys}
    return {
        coldkey: {view.netuid: {"total": total, "locked": 0, "available": total}} for coldkey, total in totals.items()
    }


def _fee(view: BlockView) -> dict[str, Any]:
    return {"weight": {"ref_time": 0, "proof_size": 0}, "class": "Normal", "partial_fee": 0}


# There is no market, so alpha costs as much as TAO.
_PRICE = pallets.RAO_PER_TAO

# Parts of the chain that are empty here: there are no delegates, locks or baskets.
_ABSENT = (
    "BetaBasketRuntimeApi_",
    "DelegateInfoRuntimeApi_",
    "StakeInfoRuntimeApi_get_coldkey_lock",
    "StakeInfoRuntimeApi_get_hotkey_conviction",
    "StakeInfoRuntimeApi_get_most_convicted_hotkey_on_subnet",
)

_HYPERPARAMETERS = {
    "tempo": ("Tempo", "U16"),
    "min_allowed_weights": ("MinAllowedWeights", "U16"),
    "max_weights_limit": ("MaxWeightsLimit", "U16"),
    "weights_version": ("WeightsVersionKey", "U64"),
    "weights_rate_limit": ("WeightsSetRateLimit", "U64"),
    "commit_reveal_weights_enabled": ("CommitRevealWeightsEnabled", "Bool"),
    "commit_reveal_period": ("RevealPeriodEpochs", "U64"),
    "activity_cutoff_factor": ("ActivityCutoffFactorMilli", "U32"),
}

_APIS: dict[str, Callable[..., Any]] = {
    "NeuronInfoRuntimeApi_get_neurons_lite": _neurons_lite,
    "StakeInfoRuntimeApi_get_stake_info_for_coldkey": _stakes,
    "StakeInfoRuntimeApi_get_stake_info_for_coldkeys": _stakes_of_many,
    "StakeInfoRuntimeApi_get_stake_availability_for_coldkeys": _free_stakes,
    "SubnetInfoRuntimeApi_get_subnet_hyperparams_v3": _hyperparameters,
    "SwapRuntimeApi_current_alpha_price": lambda view, netuid: _PRICE,
    "SwapRuntimeApi_current_alpha_price_all": lambda view: [{"netuid": view.netuid, "price": _PRICE}],
    "AccountNonceApi_account_nonce": lambda view, account: nonce_of(view.state, account),
    "SubnetInfoRuntimeApi_get_metagraph": _metagraph,
    "SubnetInfoRuntimeApi_get_next_epoch_start_block": _next_epoch,
    "TransactionPaymentApi_query_info": _fee,
}
