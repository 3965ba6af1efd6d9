"""What the local chain answers to the client's reads: storage items, storage maps and the metagraph.

The names, keys and shapes are those that the client's own decoder yields from a real node.
"""

from collections.abc import Callable
from typing import Any

from template.localnet.chain import pallets
from template.localnet.chain.ledger import State
from template.localnet.chain.pallets import HYPERPARAMETERS, find, neurons, parameter, schedule, shown

SYMBOL = "L"
_NAME = "local subnet"


def _uid_of(state: State, hotkey: str) -> int | None:
    row = find(state, hotkey)
    return None if row is None else row.uid


def _hotkey_of(state: State, uid: int) -> str | None:
    rows = neurons(state)
    return rows[uid].hotkey if 0 <= uid < len(rows) else None


def _shown_record(record: Any) -> Any:
    """A commitment as the client's decoder hands it over: of its byte strings, those without a fixed length as text."""
    if record is None:
        return None
    return {**record, "info": {"fields": [_shown_field(field) for field in record["info"]["fields"]]}}


def _shown_field(field: Any) -> Any:
    if not isinstance(field, dict):
        return field
    ((variant, value),) = field.items()
    if variant == "TimelockEncrypted":
        value = {**value, "encrypted": shown(bytes.fromhex(value["encrypted"][2:]))}
    elif variant == "BigRaw":
        value = shown(bytes.fromhex(value[2:]))
    elif variant == "Raw0":
        # An array of no bytes is an array to it.
        value = []
    return {variant: value}


_VALUES: dict[str, Callable[..., Any]] = {
    "SubtensorModule.Uids": _uid_of,
    "SubtensorModule.Keys": _hotkey_of,
    "SubtensorModule.SubnetworkN": lambda state: len(neurons(state)),
    "SubtensorModule.LastUpdate": lambda state: [row.last_update for row in neurons(state)],
    "SubtensorModule.ValidatorPermit": lambda state: [row.has_permit for row in neurons(state)],
    "SubtensorModule.NetworksAdded": lambda state: True,
    "SubtensorModule.SubnetOwnerHotkey": lambda state: state.get("SubnetOwnerHotkey"),
    "SubtensorModule.SubnetEpochConsensus": lambda state: "Yuma",
    "SubtensorModule.LastEpochBlock": lambda state: schedule(state).last_block,
    "SubtensorModule.SubnetEpochIndex": lambda state: schedule(state).index,
    "SubtensorModule.BlocksSinceLastStep": lambda state: state.block - schedule(state).last_block,
    # No owner can trigger an epoch here, so none is ever pending.
    "SubtensorModule.PendingEpochAt": lambda state: 0,
    "Commitments.CommitmentOf": lambda state, hotkey: _shown_record(state.get("CommitmentOf", hotkey)),
    "Commitments.RevealedCommitments": lambda state, hotkey: state.get("RevealedCommitments", hotkey),
    "Commitments.UsedSpaceOf": lambda state, hotkey: state.get("UsedSpaceOf", hotkey),
    "Commitments.MaxSpace": lambda state: parameter(state, "MaxSpace"),
}


def value(state: State, item: str, keys: list[Any]) -> Any:
    """One storage value of the subnet, keys after the netuid. Raises: NotImplementedError for an unknown item."""
    pallet, name = item.split(".")
    if pallet == "SubtensorModule" and name in HYPERPARAMETERS:
        return parameter(state, name)
    if item not in _VALUES:
        raise NotImplementedError(f"the local chain has no storage item {item}")
    return _VALUES[item](state, *keys)


def entries(state: State, item: str) -> list[tuple[Any, Any]]:
    """A whole storage map of the subnet. Raises: NotImplementedError for an unknown map."""
    if item == "SubtensorModule.Uids":
        return [(row.hotkey, row.uid) for row in neurons(state)]
    if item == "Commitments.CommitmentOf":
        return [(hotkey, _shown_record(record)) for hotkey, record in state.entries("CommitmentOf")]
    if item == "Commitments.RevealedCommitments":
        return list(state.entries("RevealedCommitments"))
    raise NotImplementedError(f"the local chain has no storage map {item}")


def metagraph(state: State, netuid: int) -> dict[str, Any]:
    """The answer of SubnetInfoRuntimeApi.get_metagraph. Scores are zero: nothing is paid here."""
    rows = neurons(state)
    epochs = pallets.schedule(state)
    zeros = [0] * len(rows)
    return {
        "netuid": netuid,
        "name": _NAME,
        "symbol": SYMBOL,
        "block": state.block,
        "tempo": parameter(state, "Tempo"),
        "last_step": epochs.last_block,
        "blocks_since_last_step": state.block - epochs.last_block,
        "owner_hotkey": state.get("SubnetOwnerHotkey"),
        "owner_coldkey": state.get("SubnetOwner"),
        "network_registered_at": 0,
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
            ("rank", "trust", "consensus", "incentives", "dividends", "pruning_score", "emission", "tao_stake"), zeros
        ),
        "axons": [None] * len(rows),
        "identities": [None] * len(rows),
    }
