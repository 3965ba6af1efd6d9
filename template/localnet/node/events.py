"""The extrinsics and the events of a block.

Extrinsic 0 sets the time, as on the chain; the signed calls follow. Source: the events of pallets/commitments and
pallets/subtensor; frame_system deposits the outcome and pallet_transaction_payment the fee, here always zero.
"""

from typing import Any

from template.localnet.chain import pallets
from template.localnet.chain.headers import hash_bytes
from template.localnet.chain.ledger import ExtrinsicRecord, Ledger
from template.localnet.chain.scale_codec import decode_call, encode_compact
from template.localnet.node.runtime import Runtime

_BARE_VERSION = b"\x05"


def block_extrinsics(ledger: Ledger, runtime: Runtime, block: int) -> list[bytes]:
    """Return the bytes of every extrinsic of a block; block 0 has none."""
    if block == 0:
        return []
    now = runtime.codec.compose_call("Timestamp", "set", {"now": int(ledger.timestamp(block) * 1000)})
    return [_bare(now.data), *(record.wire or _bare(record.data) for record in ledger.records(block))]


def count_extrinsics(ledger: Ledger, block: int) -> int:
    """Count the extrinsics of a block."""
    return 1 + len(ledger.records(block)) if block else 0


def block_events(ledger: Ledger, runtime: Runtime, block: int) -> list[Any]:
    """Return the value of System.Events."""
    if block == 0:
        return []
    events = [_record(0, "System", "ExtrinsicSuccess", {"dispatch_info": {"class": "Mandatory"}})]
    for index, record in enumerate(ledger.records(block), start=1):
        events += [_record(index, *event) for event in _call_events(ledger, runtime, block, record)]
    return events


def _bare(call: bytes) -> bytes:
    """Frame a call without a signature."""
    return encode_compact(len(call) + 1) + _BARE_VERSION + call


def _record(index: int, pallet: str, name: str, content: Any) -> dict[str, Any]:
    return {"phase": {"ApplyExtrinsic": index}, "event": {pallet: {name: content}}}


def _call_events(
    ledger: Ledger, runtime: Runtime, block: int, record: ExtrinsicRecord
) -> list[tuple[str, str, dict[str, Any] | tuple[Any, ...]]]:
    """Return (pallet, event, content) of a signed call, its own first."""
    call = decode_call(record.data)
    fee = ("TransactionPayment", "TransactionFeePaid", {"who": record.signer})
    info = {"pays_fee": "No"}
    if record.error is not None:
        error = runtime.dispatch_error(call.module, record.error)
        return [fee, ("System", "ExtrinsicFailed", {"dispatch_error": error, "dispatch_info": info})]
    netuid = call.params["netuid"]
    own: tuple[str, str, dict[str, Any] | tuple[Any, ...]]
    if call.function == "set_commitment":
        own = _commitment_event(netuid, record.signer, call.params["info"]["fields"])
    elif call.function == "serve_axon":
        own = (call.module, "AxonServed", (netuid, record.signer))
    elif call.function == "set_mechanism_weights":
        row = pallets.find(ledger.at(block), record.signer)
        own = (call.module, "WeightsSet", (netuid, 0 if row is None else row.uid))
    else:
        digest = hash_bytes(bytes.fromhex(call.params["commit"][2:]))
        content = (record.signer, netuid, digest, call.params["reveal_round"])
        own = (call.module, "TimelockedWeightsCommitted", content)
    return [own, fee, ("System", "ExtrinsicSuccess", {"dispatch_info": info})]


def _commitment_event(netuid: int, who: str, fields: list[Any]) -> tuple[str, str, dict[str, Any]]:
    sealed = [part["TimelockEncrypted"] for part in fields if isinstance(part, dict) and "TimelockEncrypted" in part]
    content: dict[str, Any] = {"netuid": netuid, "who": who}
    if not sealed:
        return "Commitments", "Commitment", content
    return "Commitments", "TimelockCommitment", {**content, "reveal_round": sealed[0]["reveal_round"]}
