"""JSON-RPC methods that administer the local chain; a real node has none of them."""

from collections.abc import Callable
from typing import Any

from template.localnet.chain.chain import LocalChain
from template.localnet.chain.ledger import ChainFault


def admin_methods(chain: LocalChain) -> dict[str, Callable[..., Any]]:
    """Return the methods by their names.

    Each has the parameters and the result of the method of `LocalChain`.
    """
    return {
        "localnet_advance": chain.advance,
        "localnet_deregister": chain.deregister,
        "localnet_failReveal": chain.fail_reveal,
        "localnet_register": lambda hotkey, coldkey=None, is_validator=False: chain.register(
            hotkey, coldkey, is_validator=is_validator
        ),
        "localnet_reorganise": chain.reorganise,
        "localnet_reveal": chain.reveal,
        "localnet_setBlockTime": chain.set_block_time,
        "localnet_setFault": lambda kind, fault, calls=1: chain.set_fault(kind, ChainFault(fault), calls=calls),
        "localnet_setFinalityLag": chain.set_finality_lag,
        "localnet_setHyperparameter": chain.set_hyperparameter,
        "localnet_setPermit": lambda hotkey, has_permit: chain.set_permit(hotkey, has_permit=has_permit),
    }
