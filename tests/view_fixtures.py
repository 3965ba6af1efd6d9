"""Chain views and commitments, made without a chain."""

from collections.abc import Sequence
from typing import Any

from template.records import ChainCommitment, ChainView, Neuron
from template.state import SubmissionKey

OWNER = "owner"


def make_entry(repo: str = "me/data", *, competition_id: str = "1", commit: str = "a" * 40) -> str:
    """The text of a commitment."""
    return f"{repo}:{competition_id}:{commit}"


def make_key(hotkey: str, commit: str = "a" * 40) -> SubmissionKey:
    """The submission of a hotkey's own repo at a commit."""
    return SubmissionKey(hotkey, make_entry(f"{hotkey}/data", commit=commit))


def make_commitment(hotkey: str, block: int, text: str | None = "") -> ChainCommitment:
    """A commitment of the hotkey's own repo, or of `text`."""
    return ChainCommitment(hotkey=hotkey, block=block, text=make_key(hotkey).entry if text == "" else text)


def make_neuron(uid: int, hotkey: str, *, registration_block: int = 5, last_update_block: int = 5) -> Neuron:
    return Neuron(uid=uid, hotkey=hotkey, registration_block=registration_block, last_update_block=last_update_block)


def make_view(
    block: int = 100, *, neurons: Sequence[Neuron] = (), commitments: Sequence[ChainCommitment] = (), **changes: Any
) -> ChainView:
    """A view of a subnet whose owner holds a uid only when it is among the neurons."""
    values: dict[str, Any] = {
        "netuid": 7,
        "block": block,
        "block_hash": f"0x{block:064x}",
        "timestamp": 1_800_000_000.0 + 12 * block,
        "tempo": 360,
        "blocks_until_epoch": 360,
        "weights_rate_limit": 0,
        "activity_cutoff": 5000,
        "weights_version": 0,
        "neurons": tuple(neurons),
        "commitments": tuple(commitments),
        "owner_hotkey": OWNER,
        "owner_uid": next((neuron.uid for neuron in neurons if neuron.hotkey == OWNER), None),
    }
    return ChainView(**{**values, **changes})
