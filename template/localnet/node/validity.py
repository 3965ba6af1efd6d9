"""Checks of a call before it enters the pool, and the numbers of their refusals.

The chain runs them again in the block, where the pallets here refuse the same calls by name.
Source: subtensor, pallets/subtensor/src/guards/check_weights.rs and check_rate_limits.rs, extensions/subtensor.rs for
the error of each refusal, and common/src/transaction_error.rs for its number.
"""

import time

from template.chain.client import bt
from template.localnet.chain import pallets
from template.localnet.chain.ledger import State
from template.localnet.chain.scale_codec import Call

_STAKE_AMOUNT_TOO_LOW, _RATE_LIMIT_EXCEEDED, _INVALID_REVEAL_ROUND = 1, 6, 15
_AXON_ERRORS = {
    "HotKeyNotRegisteredInNetwork": 10,
    "InvalidIpAddress": 11,
    "ServingRateLimitExceeded": 12,
    "InvalidPort": 13,
    "InvalidIpType": 255,
}


def find_refusal(state: State, netuid: int, signer: str, call: Call) -> int | None:
    """Return the number of the error that keeps a call out of the pool."""
    if call.function == "serve_axon":
        problem = pallets.find_axon_problem(state, netuid, signer, call.params)
        return None if problem is None else _AXON_ERRORS[problem]
    if call.function == "set_commitment" or call.params["netuid"] != netuid:
        return None
    row = pallets.find(state, signer)
    is_owner = row is not None and signer == state.get("SubnetOwnerHotkey")
    if not is_owner and (0 if row is None else row.stake) < pallets.parameter(state, "StakeThreshold"):
        return _STAKE_AMOUNT_TOO_LOW
    if call.function == "commit_timelocked_mechanism_weights":
        is_past = call.params["reveal_round"] < bt.timelock.round_at(time.time()) - 1
        return _INVALID_REVEAL_ROUND if is_past else None
    is_plain = not pallets.parameter(state, "CommitRevealWeightsEnabled")
    if is_plain and row is not None and pallets.is_too_fast(state, row):
        return _RATE_LIMIT_EXCEEDED
    return None
