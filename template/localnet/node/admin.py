"""JSON-RPC methods that administer the local chain; a real node has none of them."""

from collections.abc import Callable
from typing import Any

from template.localnet.chain.ledger import ChainFault
from template.localnet.faults.answers import AnswerFaults
from template.localnet.faults.node_chain import NodeChain
from template.localnet.node.pool import Pool
from template.localnet.node.state import StateReader


def admin_methods(
    chain: NodeChain, pool: Pool, state: StateReader, answer_faults: AnswerFaults
) -> dict[str, Callable[..., Any]]:
    """Return the methods by their names.

    Each has the parameters and the result of the Python method that it calls.
    """
    return {
        "localnet_advance": chain.advance,
        "localnet_deregister": chain.deregister,
        "localnet_dissolveSubnet": chain.dissolve_subnet,
        "localnet_downgradeRuntime": chain.downgrade_runtime,
        "localnet_failReveal": chain.fail_reveal,
        "localnet_hideEvents": state.hide_events,
        "localnet_refuseExtrinsics": pool.refuse,
        "localnet_register": lambda hotkey, coldkey=None, is_validator=False: chain.register(
            hotkey, coldkey, is_validator=is_validator
        ),
        "localnet_reorganise": chain.reorganise,
        "localnet_replaceChain": chain.replace,
        "localnet_replaceSubnet": chain.replace_subnet,
        "localnet_reveal": chain.reveal,
        "localnet_setAnswerFault": answer_faults.set,
        "localnet_setBlockTime": chain.set_block_time,
        "localnet_setFault": lambda kind, fault, calls=1: chain.set_fault(kind, ChainFault(fault), calls=calls),
        "localnet_setFinalityLag": chain.set_finality_lag,
        "localnet_setHyperparameter": chain.set_hyperparameter,
        "localnet_setKeptStates": chain.set_kept_states,
        "localnet_setMissingBlocks": chain.set_missing_blocks,
        "localnet_setPermit": lambda hotkey, has_permit: chain.set_permit(hotkey, has_permit=has_permit),
        "localnet_upgradeRuntime": chain.upgrade_runtime,
        "localnet_useNonce": chain.use_nonce,
    }
