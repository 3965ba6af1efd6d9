"""Sign a call and submit it, and tell after a failure whether the chain may have it.

A call is valid in the blocks of its era, which begins at a block that its sender chooses. So the sender can record that
block first, and needs no answer to tell from which block on the call cannot land any more.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import bittensor as bt
from bittensor._transport.errors import SubstrateRequestException
from bittensor.result import chain_error_from_substrate_request

from template.chain.reads import newest_block
from template.chain_records import Outcome
from template.constants import ERA_BLOCKS

# An era begins this many blocks below the newest block, or at the newest finalized one if that is later. On mainnet
# the two are the same, and while finality lags a call is still valid for almost all of its era. The signature is
# refused if a reorganisation has taken that block back.
_ERA_DEPTH = 2

# Blocks by which finality may lag. After as many a node stops watching a call. Source: MAX_FINALITY_WATCHERS of
# sc-transaction-pool.
_MAX_LAG = 512

# JSON-RPC errors of the transaction pool. Source: sc-rpc-api, author/error.rs.
_POOL_CODES = range(1001, 1100)
_ALREADY_IMPORTED = 1013

# The pool's errors that say nothing about the call itself. After the first ones it may be signed with the next nonce.
_NONCE_TAKEN = {"Stale", "PriorityTooLow"}
_SIGNATURE_REFUSED = {"BadProof", "AncientBirthBlock"}
_TEMPORARY = _NONCE_TAKEN | _SIGNATURE_REFUSED | {"ExhaustsResources"}

# The client's own refusals before it signs, by the chain's error names.
_PREFLIGHT_NAMES = {
    bt.ErrorCode.NOT_REGISTERED: "HotKeyNotRegisteredInSubNet",
    bt.ErrorCode.NOT_AUTHORIZED: "NeuronNoValidatorPermit",
    bt.ErrorCode.RATE_LIMITED: "SettingWeightsTooFast",
    bt.ErrorCode.INVALID_ARGUMENT: "WeightVecLengthIsLow",
}

Compose = Callable[[], Awaitable[Any]]


@dataclass
class Submission:
    """How far a call has come. may_land: the pool may have it."""

    may_land: bool = False


class _PoolRefusalError(Exception):
    """The pool refused a call and does not have it."""

    def __init__(self, error: bt.ChainError) -> None:
        super().__init__(_explain(error))
        self.name = error.name


async def signing_block(client: bt.Client, substrate: Any) -> int:
    """Return the block at which the era of a call that is signed now begins.

    Raises: ValueError for an impossible newest block, whose era would never end.
    """
    final, newest = await newest_block(client), int(await substrate.block_number())
    if newest > final + _MAX_LAG:
        raise ValueError(f"the newest block cannot be {newest}: the newest finalized one is {final}")
    return max(final, newest - _ERA_DEPTH)


async def write(substrate: Any, compose: Compose, signer: Any, block: int, submission: Submission) -> Outcome:
    """Compose a call, sign it with an era from `block` on, and wait until it is final; return also a refusal.

    A call whose nonce another writer took is signed and sent once more.
    Raises: bt.ChainError for a refusal that says nothing about the call, and for an included call without a result;
    any error of the client. After an error, `submission` tells whether the call may land.
    """
    try:
        call = await compose()
    except bt.ChainError as exc:
        # Unlike a failed read, the client's own refusals have a code but neither name nor cause.
        name = _PREFLIGHT_NAMES.get(exc.code)
        if exc.name is not None or exc.__cause__ is not None or name is None:
            raise
        return Outcome(is_accepted=False, error=name, message=exc.message)
    try:
        return _read_report(await _submit(substrate, call, signer, block, submission))
    except _PoolRefusalError as refusal:
        if refusal.name is None or refusal.name in _TEMPORARY:
            raise bt.ChainError(str(refusal)) from refusal
        return Outcome(is_accepted=False, error=refusal.name, message=str(refusal))


async def _submit(substrate: Any, call: Any, signer: Any, block: int, submission: Submission) -> Any:
    try:
        return await _submit_once(substrate, call, signer, block, submission)
    except _PoolRefusalError as refusal:
        if refusal.name not in _NONCE_TAKEN:
            raise
    return await _submit_once(substrate, call, signer, block, submission)


async def _submit_once(substrate: Any, call: Any, signer: Any, block: int, submission: Submission) -> Any:
    connection = substrate.raw
    # This asks the node for the nonce. The client's other ways count it by themselves.
    unsigned = await connection.prepare_unsigned(
        call,
        address=signer.ss58_address,
        crypto_type=signer.crypto_type,
        era={"period": ERA_BLOCKS, "current": block},
    )
    extrinsic = await connection.attach_signature(unsigned, signer.sign(unsigned.payload))
    submission.may_land = True
    try:
        return await connection.submit_extrinsic(extrinsic, wait_for_inclusion=True, wait_for_finalization=True)
    except SubstrateRequestException as exc:
        if not _is_refusal(exc):
            raise
        submission.may_land = False
        raise _PoolRefusalError(chain_error_from_substrate_request(exc)) from exc


def _read_report(report: Any) -> Outcome:
    """Return the outcome of an included call. Raises: bt.ChainError for one without a result."""
    if report.is_success:
        return Outcome(is_accepted=True, message="Success", block=report.block_number)
    if report.error_message is None:
        raise bt.ChainError(f"it is in block {report.block_number}, and no event there tells whether it succeeded")
    docs = report.error_message.get("docs") or report.error_message["name"]
    message = docs if isinstance(docs, str) else " ".join(docs)
    return Outcome(is_accepted=False, error=report.error_message["name"], message=message)


def _is_refusal(exc: SubstrateRequestException) -> bool:
    """Return whether this is the pool's answer that it does not take the call."""
    error = (exc.payload or {}).get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code in _POOL_CODES and code != _ALREADY_IMPORTED


def _explain(error: bt.ChainError) -> str:
    if error.name is None:
        return f"the node's transaction pool refuses the call, for a reason that bittensor has no name for: {error}"
    if error.name in _NONCE_TAKEN:
        return f"another program signs with this hotkey and took the nonce twice ({error.name})"
    if error.name in _SIGNATURE_REFUSED:
        return (
            f"its signature is refused ({error.name}): the runtime was upgraded, or the block that it is for was taken"
            " back or is too old; the next attempt is signed anew"
        )
    return str(error)
