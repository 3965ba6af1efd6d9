"""Storage items, storage maps and the metagraph of the local chain.

The names, keys and shapes are those that the client's own decoder yields from a real node.
"""

from collections.abc import Callable
from typing import Any

from template.localnet.chain import pallets
from template.localnet.chain.ledger import State
from template.localnet.chain.pallets import HYPERPARAMETERS, find, neurons, parameter, schedule


def _uid_of(state: State, hotkey: str) -> int | None:
    row = find(state, hotkey)
    return None if row is None else row.uid


def _decode_record(record: Any) -> Any:
    """Decode a commitment like the client: unbounded byte strings become text."""
    if record is None:
        return None
    return {**record, "info": {"fields": [_decode_field(field) for field in record["info"]["fields"]]}}


def _decode_reveals(reveals: Any) -> Any:
    return None if reveals is None else [[_decode_hex(plaintext), block] for plaintext, block in reveals]


def _decode_hex(data: str) -> str:
    """Decode bytes like the client: text where they are UTF-8, else 0x-hex."""
    try:
        return bytes.fromhex(data[2:]).decode()
    except ValueError:
        return data


def _decode_field(field: Any) -> Any:
    if not isinstance(field, dict):
        return field
    ((variant, value),) = field.items()
    if variant in ("TimelockEncrypted", "TimelockRevealFailed"):
        value = {**value, "encrypted": _decode_hex(value["encrypted"])}
    elif variant == "BigRaw":
        value = _decode_hex(value)
    elif variant == "Raw0":
        # The client decodes an array of no bytes as an array.
        value = []
    return {variant: value}


# The value of a neuron that serves no axon.
_NO_AXON = dict.fromkeys(("block", "version", "ip", "port", "ip_type", "protocol", "placeholder1", "placeholder2"), 0)

_VALUES: dict[str, Callable[..., Any]] = {
    "SubtensorModule.Uids": _uid_of,
    "SubtensorModule.LastUpdate": lambda state: [row.last_update for row in neurons(state)],
    "SubtensorModule.SubnetEpochConsensus": lambda state: "Yuma",
    "SubtensorModule.LastEpochBlock": lambda state: schedule(state).last_block,
    "SubtensorModule.SubnetEpochIndex": lambda state: schedule(state).index,
    "SubtensorModule.BlocksSinceLastStep": lambda state: state.block - schedule(state).last_block,
    # No owner can trigger an epoch here.
    "SubtensorModule.PendingEpochAt": lambda state: 0,
    "SubtensorModule.Weights": lambda state, uid: state.get("Weights", str(uid)) or [],
    "Commitments.CommitmentOf": lambda state, hotkey: _decode_record(state.get("CommitmentOf", hotkey)),
    "Commitments.RevealedCommitments": lambda state, hotkey: _decode_reveals(state.get("RevealedCommitments", hotkey)),
}


def value(state: State, item: str, keys: list[Any]) -> Any:
    """Return a storage value; keys follow the netuid. Raises: NotImplementedError."""
    pallet, name = item.split(".")
    if pallet == "SubtensorModule" and name in HYPERPARAMETERS:
        return parameter(state, name)
    if item not in _VALUES:
        raise NotImplementedError(f"the local chain has no storage item {item}")
    return _VALUES[item](state, *keys)


def entries(state: State, item: str) -> list[tuple[Any, Any]]:
    """List a storage map of the subnet. Raises: NotImplementedError."""
    if item == "SubtensorModule.Uids":
        return [(row.hotkey, row.uid) for row in neurons(state)]
    if item == "Commitments.CommitmentOf":
        return [(hotkey, _decode_record(record)) for hotkey, record in state.entries("CommitmentOf")]
    if item == "Commitments.RevealedCommitments":
        return [(hotkey, _decode_reveals(reveals)) for hotkey, reveals in state.entries("RevealedCommitments")]
    if item == "SubtensorModule.TimelockedWeightCommits":
        return [(int(epoch), commits) for epoch, commits in state.entries("TimelockedWeightCommits")]
    raise NotImplementedError(f"the local chain has no storage map {item}")


def metagraph(state: State, netuid: int) -> dict[str, Any]:
    """Return SubnetInfoRuntimeApi.get_metagraph, with all emissions zero."""
    rows = neurons(state)
    epochs = pallets.schedule(state)
    zeros = [0] * len(rows)
    return {
        "netuid": netuid,
        "name": list(pallets.NAME.encode()),
        "symbol": list(pallets.SYMBOL.encode()),
        "block": state.block,
        "tempo": parameter(state, "Tempo"),
        "last_step": epochs.last_block,
        "blocks_since_last_step": state.block - epochs.last_block,
        "owner_hotkey": state.get("SubnetOwnerHotkey"),
        "owner_coldkey": state.get("SubnetOwner"),
        "network_registered_at": 0,
        "min_allowed_weights": parameter(state, "MinAllowedWeights"),
        "max_weights_limit": parameter(state, "MaxWeightsLimit"),
        "weights_version": parameter(state, "WeightsVersionKey"),
        "weights_rate_limit": parameter(state, "WeightsSetRateLimit"),
        "commit_reveal_weights_enabled": parameter(state, "CommitRevealWeightsEnabled"),
        "commit_reveal_period": parameter(state, "RevealPeriodEpochs"),
        "activity_cutoff": parameter(state, "ActivityCutoffFactorMilli") * parameter(state, "Tempo") // 1000,
        "num_uids": len(rows),
        "max_uids": parameter(state, "MaxAllowedUids"),
        "hotkeys": [row.hotkey for row in rows],
        "coldkeys": [row.coldkey for row in rows],
        "active": [True] * len(rows),
        "validator_permit": [row.has_permit for row in rows],
        "last_update": [row.last_update for row in rows],
        "block_at_registration": [row.registered_at for row in rows],
        "alpha_stake": [row.stake for row in rows],
        "total_stake": [row.stake for row in rows],
        **dict.fromkeys(
            (
                "collateral_locked",
                "collateral_min",
                "collateral_earned",
                "rank",
                "trust",
                "consensus",
                "incentives",
                "dividends",
                "pruning_score",
                "emission",
                "tao_stake",
            ),
            zeros,
        ),
        "axons": [_NO_AXON] * len(rows),
        "identities": [None] * len(rows),
    }
