"""The storage items that the local chain has values for, as maps from their keys.

An item without keys is a map with the key `()`. Items that are not listed have no values, as on a new chain.
Source: the runtime's metadata for names, keys and types; the pallets of subtensor for their meaning.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from template.chain.client import bt
from template.localnet.chain import pallets
from template.localnet.chain.ledger import Ledger, State

# What each account owns, so that a tool that checks a fee goes on. No call costs anything.
FREE_RAO = 1_000_000 * pallets.RAO_PER_TAO
ROOT = 0

Values = dict[tuple[Any, ...], Any]


class BlockView:
    """The state of a block, with what several items read."""

    def __init__(self, ledger: Ledger, block: int) -> None:
        self.ledger = ledger
        self.state = ledger.at(block)
        self.netuid = ledger.netuid

    @cached_property
    def neurons(self) -> list[pallets.NeuronRow]:
        return pallets.neurons(self.state)

    @cached_property
    def accounts(self) -> list[str]:
        """Every account that has a uid, owns one, or has signed a call."""
        owners = [self.state.get("SubnetOwner"), self.state.get("SubnetOwnerHotkey")]
        signers = [signer for signer, _ in self.state.entries("Nonce")]
        named = [key for row in self.neurons for key in (row.hotkey, row.coldkey)]
        return list(dict.fromkeys(filter(None, [*owners, *named, *signers])))

    @cached_property
    def exists(self) -> bool:
        return pallets.registered_at(self.state) is not None

    @property
    def timestamp_ms(self) -> int:
        return int(self.ledger.timestamp(self.state.block) * 1000)


def nonce_of(state: State, account: str) -> int:
    """Return the nonce of an account's next call."""
    return int(state.get("Nonce", account, 0))


def account_info(state: State, account: str) -> dict[str, Any]:
    """Return the value of System.Account."""
    return {"nonce": nonce_of(state, account), "providers": 1, "data": {"free": FREE_RAO}}


def weight_commits(view: BlockView) -> Values:
    """Return TimelockedWeightCommits, a list for each netuid and epoch."""
    commits = view.state.entries("TimelockedWeightCommits")
    return {(view.netuid, int(epoch)): [tuple(commit) for commit in epoch_commits] for epoch, epoch_commits in commits}


def _by_netuid(value: Callable[[BlockView], Any]) -> Callable[[BlockView], Values]:
    return lambda view: {(view.netuid,): value(view)} if view.exists else {}


def _column(value: Callable[[pallets.NeuronRow], Any]) -> Callable[[BlockView], Values]:
    """Return a vector of one value for each uid."""
    return _by_netuid(lambda view: [value(row) for row in view.neurons])


def _by_uid(value: Callable[[pallets.NeuronRow], Any]) -> Callable[[BlockView], Values]:
    return lambda view: {(view.netuid, row.uid): value(row) for row in view.neurons}


def _single(value: Callable[[BlockView], Any]) -> Callable[[BlockView], Values]:
    return lambda view: {(): value(view)}


def _parameter(name: str) -> Callable[[BlockView], Any]:
    return lambda view: pallets.parameter(view.state, name)


def _by_account(item: str) -> Callable[[BlockView], Values]:
    return lambda view: {(view.netuid, account): value for account, value in view.state.entries(item)}


def _weights(view: BlockView) -> Values:
    rows = view.state.entries("Weights")
    return {(view.netuid, int(uid)): [tuple(pair) for pair in pairs] for uid, pairs in rows}


def _owned_hotkeys(view: BlockView) -> Values:
    owned: Values = {}
    for row in view.neurons:
        owned.setdefault((row.coldkey,), []).append(row.hotkey)
    return owned


def _revealed(view: BlockView) -> Values:
    # The codec takes text that begins with 0x for hex, so these are bytes.
    entries = view.state.entries("RevealedCommitments")
    return {
        (view.netuid, account): [(bytes.fromhex(plaintext[2:]), block) for plaintext, block in reveals]
        for account, reveals in entries
    }


def _timelocked_index(view: BlockView) -> list[tuple[int, str]]:
    entries = view.state.entries("CommitmentOf")
    return [
        (view.netuid, account)
        for account, record in entries
        if any(isinstance(part, dict) and "TimelockEncrypted" in part for part in record["info"]["fields"])
    ]


def _symbol(view: BlockView) -> Values:
    return {(ROOT,): "τ".encode(), (view.netuid,): pallets.SYMBOL.encode()}


def _beacon_round(view: BlockView) -> int:
    return int(bt.timelock.round_at(view.timestamp_ms / 1000)) - 1


_SUBNET_PARAMETERS = (
    "Tempo",
    "WeightsSetRateLimit",
    "CommitRevealWeightsEnabled",
    "RevealPeriodEpochs",
    "MinAllowedWeights",
    "MaxWeightsLimit",
    "WeightsVersionKey",
    "MaxAllowedUids",
    "ServingRateLimit",
    "ActivityCutoffFactorMilli",
)

ITEMS: dict[tuple[str, str], Callable[[BlockView], Values]] = {
    ("System", "Number"): _single(lambda view: view.state.block),
    ("System", "Account"): lambda view: {(who,): account_info(view.state, who) for who in view.accounts},
    ("Timestamp", "Now"): _single(lambda view: view.timestamp_ms),
    ("Balances", "TotalIssuance"): _single(lambda view: FREE_RAO * len(view.accounts)),
    ("Drand", "LastStoredRound"): _single(_beacon_round),
    ("Commitments", "CommitmentOf"): _by_account("CommitmentOf"),
    ("Commitments", "LastCommitment"): lambda view: {
        (view.netuid, account): record["block"] for account, record in view.state.entries("CommitmentOf")
    },
    ("Commitments", "UsedSpaceOf"): _by_account("UsedSpaceOf"),
    ("Commitments", "RevealedCommitments"): _revealed,
    ("Commitments", "TimelockedIndex"): _single(_timelocked_index),
    ("Commitments", "MaxSpace"): _single(_parameter("MaxSpace")),
    **{("SubtensorModule", name): _by_netuid(_parameter(name)) for name in _SUBNET_PARAMETERS},
    ("SubtensorModule", "CommitRevealWeightsVersion"): _single(_parameter("CommitRevealWeightsVersion")),
    ("SubtensorModule", "StakeThreshold"): _single(_parameter("StakeThreshold")),
    ("SubtensorModule", "TotalNetworks"): _single(lambda view: 2 if view.exists else 1),
    ("SubtensorModule", "NetworksAdded"): lambda view: {
        (netuid,): True for netuid in ([ROOT, view.netuid] if view.exists else [ROOT])
    },
    ("SubtensorModule", "NetworkRegisteredAt"): _by_netuid(lambda view: pallets.registered_at(view.state)),
    ("SubtensorModule", "TokenSymbol"): _symbol,
    ("SubtensorModule", "SubnetworkN"): _by_netuid(lambda view: len(view.neurons)),
    ("SubtensorModule", "MechanismCountCurrent"): _by_netuid(lambda view: 1),
    ("SubtensorModule", "SubtokenEnabled"): _by_netuid(lambda view: True),
    ("SubtensorModule", "SubnetOwner"): _by_netuid(lambda view: view.state.get("SubnetOwner")),
    ("SubtensorModule", "SubnetOwnerHotkey"): _by_netuid(lambda view: view.state.get("SubnetOwnerHotkey")),
    ("SubtensorModule", "SubnetEpochConsensus"): _by_netuid(lambda view: "Yuma"),
    ("SubtensorModule", "LastEpochBlock"): _by_netuid(lambda view: pallets.schedule(view.state).last_block),
    ("SubtensorModule", "SubnetEpochIndex"): _by_netuid(lambda view: pallets.schedule(view.state).index),
    ("SubtensorModule", "BlocksSinceLastStep"): _by_netuid(
        lambda view: view.state.block - pallets.schedule(view.state).last_block
    ),
    ("SubtensorModule", "Uids"): lambda view: {(view.netuid, row.hotkey): row.uid for row in view.neurons},
    ("SubtensorModule", "Keys"): _by_uid(lambda row: row.hotkey),
    ("SubtensorModule", "BlockAtRegistration"): _by_uid(lambda row: row.registered_at),
    ("SubtensorModule", "IsNetworkMember"): lambda view: {(row.hotkey, view.netuid): True for row in view.neurons},
    ("SubtensorModule", "Owner"): lambda view: {(row.hotkey,): row.coldkey for row in view.neurons},
    ("SubtensorModule", "OwnedHotkeys"): _owned_hotkeys,
    ("SubtensorModule", "StakingHotkeys"): _owned_hotkeys,
    ("SubtensorModule", "TotalHotkeyAlpha"): lambda view: {
        (row.hotkey, view.netuid): row.stake for row in view.neurons if row.stake
    },
    ("SubtensorModule", "Axons"): _by_account("Axon"),
    ("SubtensorModule", "LastUpdate"): _column(lambda row: row.last_update),
    ("SubtensorModule", "ValidatorPermit"): _column(lambda row: row.has_permit),
    ("SubtensorModule", "Active"): _column(lambda row: True),
    ("SubtensorModule", "Weights"): _weights,
    ("SubtensorModule", "TimelockedWeightCommits"): weight_commits,
}
