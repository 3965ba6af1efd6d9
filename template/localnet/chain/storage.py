"""The metagraph of the local chain, by the names of the runtime's own record."""

from typing import Any

from template.localnet.chain import pallets
from template.localnet.chain.ledger import State
from template.localnet.chain.pallets import neurons, parameter

# The value of a neuron that serves no axon.
_NO_AXON = dict.fromkeys(("block", "version", "ip", "port", "ip_type", "protocol", "placeholder1", "placeholder2"), 0)


def axon_of(state: State, hotkey: str) -> dict[str, int]:
    """Return a hotkey's axon, all zero without one."""
    return state.get("Axon", hotkey) or _NO_AXON


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
        "network_registered_at": pallets.registered_at(state),
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
        "axons": [axon_of(state, row.hotkey) for row in rows],
        "identities": [None] * len(rows),
    }
