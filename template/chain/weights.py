"""Fit weights to the subnet's limits before they are sent.

The chain accepts timelocked weights unchecked, and silently drops those that break a limit at their
reveal. So each limit is checked first. Source: subtensor, pallets/subtensor/src/subnets/weights.rs, do_set_weights.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import bittensor as bt
from bittensor import storage as st
from bittensor.intents import weights as client_weights
from bittensor.settings import U16_MAX
from loguru import logger

from template.chain_records import PreparedWeights, WeightOutcome
from template.constants import WEIGHTS_VERSION

_RAO_PER_TAO = 10**9
_MECHANISM = 0


@dataclass(frozen=True, kw_only=True)
class WeightLimits:
    """Limits of one hotkey's weights.

    Fields have the names of the subnet's hyperparameters.
    uid: None for a hotkey that is not registered. neurons: number of uids. stake, stake_threshold: in rao.
    """

    uid: int | None
    neurons: int
    is_owner: bool
    has_permit: bool
    stake: int
    stake_threshold: int
    min_allowed_weights: int
    max_weights_limit: int
    weights_version: int


async def read_limits(snapshot: bt.Snapshot, netuid: int, hotkey: str) -> WeightLimits:
    """Read the limits at one block. Raises: LookupError for an incomplete metagraph."""
    graph, version, threshold, least, most = await asyncio.gather(
        snapshot.subnets.metagraph(netuid, commitments=False),
        snapshot.query(st.SubtensorModule.WeightsVersionKey, [netuid]),
        snapshot.query(st.SubtensorModule.StakeThreshold),
        snapshot.query(st.SubtensorModule.MinAllowedWeights, [netuid]),
        snapshot.query(st.SubtensorModule.MaxWeightsLimit, [netuid]),
    )
    if graph is None:
        raise LookupError(f"there is no subnet {netuid}")
    uid = next((neuron.uid for neuron in graph.neurons if neuron.hotkey == hotkey), None)
    return WeightLimits(
        uid=uid,
        neurons=len(graph.neurons),
        is_owner=hotkey == graph.owner_hotkey,
        has_permit=uid is not None and bool(graph.raw["validator_permit"][uid]),
        stake=0 if uid is None else int(graph.raw["total_stake"][uid]),
        stake_threshold=int(threshold or 0),
        min_allowed_weights=int(least or 0),
        max_weights_limit=U16_MAX if most is None else int(most),
        weights_version=int(version or 0),
    )


def fit_weights(weights: Mapping[int, float], limits: WeightLimits, block: int) -> PreparedWeights:
    """Return the u16 weights to send at `block`, or why the chain would not count them.

    The largest becomes 65535. Uids of weight 0 fill up to min_allowed_weights: the chain counts them and pays them
    nothing. Raises: ValueError for weights that are not finite, negative or all zero.
    """
    values = list(weights.values())
    if not any(values) or not all(isfinite(value) and value >= 0 for value in values):
        raise ValueError(f"weights must be finite, not negative and not all zero: {dict(weights)}")
    sent = {uid: round(weight / max(values) * U16_MAX) for uid, weight in sorted(weights.items())}
    sent = {uid: value for uid, value in sent.items() if value}
    is_self_weight = list(sent) == [limits.uid]
    problem = _find_problem(limits, is_self_weight=is_self_weight)
    if problem is not None:
        name, message = problem
        return PreparedWeights(
            sent={}, block=block, rejection=WeightOutcome(is_accepted=False, error=name, message=message)
        )
    if not is_self_weight:
        _warn_of_limit(sent, limits)
        sent |= dict.fromkeys(_padding(sent, limits), 0)
    return PreparedWeights(sent=dict(sorted(sent.items())), block=block)


def _find_problem(limits: WeightLimits, *, is_self_weight: bool) -> tuple[str, str] | None:
    """Return the chain's error for this hotkey, with advice."""
    if limits.uid is None:
        return "HotKeyNotRegisteredInSubNet", "this hotkey has no uid on the subnet: register it again"
    if limits.stake < limits.stake_threshold and not limits.is_owner:
        stake, threshold = (f"{rao / _RAO_PER_TAO:.3f}" for rao in (limits.stake, limits.stake_threshold))
        return (
            "NotEnoughStakeToSetWeights",
            f"this hotkey has a stake weight of {stake} on the subnet, and weights need {threshold}: add stake to it",
        )
    if limits.weights_version > WEIGHTS_VERSION:
        return (
            "IncorrectWeightVersionKey",
            f"the subnet requires weights version {limits.weights_version}, this validator has {WEIGHTS_VERSION}:"
            " update it",
        )
    if not (limits.has_permit or limits.is_owner or is_self_weight):
        return (
            "NeuronNoValidatorPermit",
            "this hotkey has no validator_permit, so the chain would drop its weights: add stake to it, because at each"
            " epoch the max_validators uids with the most stake get a permit",
        )
    return None


def _padding(sent: Mapping[int, int], limits: WeightLimits) -> list[int]:
    """Return the lowest uids without a weight that are needed for min_allowed_weights."""
    missing = min(limits.min_allowed_weights, limits.neurons) - len(sent)
    free = [uid for uid in range(limits.neurons) if uid not in sent]
    return free[: max(0, missing)]


def _warn_of_limit(sent: Mapping[int, int], limits: WeightLimits) -> None:
    largest, limit = max(sent.values()) / sum(sent.values()), limits.max_weights_limit / U16_MAX
    if largest > limit:
        logger.warning(
            "max_weights_limit={:.4f} is below the largest share {:.4f}: weights are sent unchanged, because the chain"
            " does not enforce this limit any more. If it rejects them with MaxWeightExceeded, the subnet's owner must"
            " set max_weights_limit to 65535",
            limit, largest,
        )  # fmt: skip


async def compose_weights(substrate: Any, signer: Any, netuid: int, sent: Mapping[int, int]) -> tuple[Any, int | None]:
    """Compose the call for u16 weights, unchanged; return it with its reveal round if it is timelocked.

    The client's own call drops weights of 0 and flattens the others to the stored max_weights_limit.
    Raises: bt.ChainError for the client's own refusals.
    """
    state = await client_weights._preflight(substrate, signer.ss58_address, netuid, _MECHANISM)
    uids, values = list(sent), list(sent.values())
    if state.commit_reveal:
        built = await client_weights._build_timelocked(
            substrate,
            signer.public_key,
            netuid,
            _MECHANISM,
            uids,
            values,
            WEIGHTS_VERSION,
            client_weights.DEFAULT_COMMIT_REVEAL_VERSION,
        )
        return built.call, built.extras["reveal_round"]
    call = bt.calls.SubtensorModule.set_mechanism_weights(
        netuid=netuid, mecid=_MECHANISM, dests=uids, weights=values, version_key=WEIGHTS_VERSION
    )
    return await substrate.compose(call), None
