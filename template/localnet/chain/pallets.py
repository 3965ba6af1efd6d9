"""The chain's rules for one subnet: registration, commitments, weights and epochs.

Checks run in the chain's own order and raise its error names. Nothing is paid, and only an administrator reveals.
Source: subtensor, of which the later runtimes are at github.com/RaoFoundation/subtensor; each rule names its function.
"""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from template.chain.client import bt
from template.localnet.chain.ledger import State
from template.localnet.chain.scale_codec import Call

U16_MAX = 65535
RAO_PER_TAO = 10**9
MAX_FIELDS = 3

# The subnet's name and the symbol of its token.
NAME, SYMBOL = "local subnet", "L"
_MIN_COMMITMENT_SPACE = 100
_MAX_UNREVEALED_COMMITS = 10
_MAX_COMMIT_BYTES = 5000
_MAX_REVEALS = 10
_LOCALHOST = {4: 0x7F000001, 6: 1}
_HIGHEST_ADDRESS = {4: 2**32 - 1, 6: 2**128 - 1}

# Defaults of a new subnet: those of the runtime's metadata, but for what a new subnet is given and for the stake that
# mainnet's root has set. Source: the Default* functions of pallets/subtensor/src/lib.rs and their values in
# runtime/src/lib.rs; init_new_network, pallets/subtensor/src/subnets/subnet.rs, for Tempo and MinAllowedWeights;
# sudo_set_stake_threshold, pallets/admin-utils/src/lib.rs.
HYPERPARAMETERS: dict[str, Any] = {
    "Tempo": 360,
    "WeightsSetRateLimit": 100,
    "CommitRevealWeightsEnabled": True,
    "CommitRevealWeightsVersion": 4,
    "RevealPeriodEpochs": 1,
    "MinAllowedWeights": 1,
    "MaxWeightsLimit": U16_MAX,
    "WeightsVersionKey": 0,
    "MaxAllowedUids": 256,
    "MaxSpace": 3100,
    "StakeThreshold": 1000 * RAO_PER_TAO,
    "ServingRateLimit": 50,
    # Per mille of the tempo: 5,000 blocks at a tempo of 360.
    "ActivityCutoffFactorMilli": 13_889,
}


class DispatchError(Exception):
    """The chain refuses a call; `name` is the chain's error."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, kw_only=True)
class NeuronRow:
    """A uid's row, with the stake in rao; `last_update` starts at the registration."""

    uid: int
    hotkey: str
    coldkey: str
    registered_at: int
    last_update: int
    has_permit: bool
    stake: int


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The subnet's epochs as of one block; a tempo of 0 has no `next_block`."""

    last_block: int
    index: int
    next_block: int | None


def parameter(state: State, name: str) -> Any:
    """Return a hyperparameter by the name of its storage item."""
    return state.get("Hyperparameter", name, HYPERPARAMETERS[name])


def neurons(state: State) -> list[NeuronRow]:
    """List every neuron by uid."""
    return sorted((NeuronRow(**row) for _, row in state.entries("Neuron")), key=lambda row: row.uid)


def find(state: State, hotkey: str) -> NeuronRow | None:
    return next((row for row in neurons(state) if row.hotkey == hotkey), None)


def replace_neuron(state: State, row: NeuronRow) -> None:
    """Give a uid to a new neuron, and drop the weights by and for the former one, its commitment and its axon.

    Source: replace_neuron and clear_neuron, pallets/subtensor/src/subnets/uids.rs, and, in a runtime after 425,
    purge_neuron, pallets/commitments/src/lib.rs. All that a former neuron had to reveal is lost.
    """
    former = state.get("Neuron", str(row.uid))
    for item in ("CommitmentOf", "RevealedCommitments", "UsedSpaceOf", "Axon") if former else ():
        if state.get(item, former["hotkey"]) is not None:
            state.put(item, former["hotkey"], None)
    state.put("Weights", str(row.uid), None)
    for uid, weights in state.entries("Weights"):
        if any(target == row.uid and value for target, value in weights):
            state.put("Weights", uid, [[target, 0 if target == row.uid else value] for target, value in weights])
    _put_neuron(state, row)


def registered_at(state: State) -> int | None:
    """Return the block in which the subnet was registered, None while there is none; it begins in block 1."""
    return state.get("SubnetRegisteredAt", default=1) if state.block > 0 else None


def clear_subnet(state: State) -> None:
    """Remove the subnet with its neurons, commitments and weights.

    Source: do_dissolve_network and remove_network, pallets/subtensor/src/coinbase/root.rs.
    """
    for item in ("Neuron", "CommitmentOf", "RevealedCommitments", "UsedSpaceOf", "Weights", "TimelockedWeightCommits"):
        for key, _ in state.entries(item):
            state.put(item, key, None)
    state.put("SubnetRegisteredAt", "", None)


def set_permit(state: State, hotkey: str, *, has_permit: bool) -> None:
    """Grant or withdraw a permit. Raises: ValueError for a hotkey without a uid."""
    row = find(state, hotkey)
    if row is None:
        raise ValueError(f"{hotkey} has no uid")
    _put_neuron(state, replace(row, has_permit=has_permit))


def _put_neuron(state: State, row: NeuronRow) -> None:
    state.put("Neuron", str(row.uid), asdict(row))


def schedule(state: State) -> Schedule:
    """Return the epochs: every `Tempo` blocks from the last change of tempo.

    Source: should_run_epoch and get_next_epoch_start_block, pallets/subtensor/src/coinbase/run_coinbase.rs.
    """
    base = state.get("Epochs")
    tempo = parameter(state, "Tempo")
    if tempo == 0:
        return Schedule(last_block=base["last_block"], index=base["index"], next_block=None)
    passed = (state.block - base["last_block"]) // tempo
    last = base["last_block"] + passed * tempo
    return Schedule(last_block=last, index=base["index"] + passed, next_block=last + tempo)


def set_parameter(state: State, name: str, value: Any) -> None:
    """Set a hyperparameter as root; a new tempo starts a new cycle at this block."""
    if name == "Tempo":
        state.put("Epochs", "", {"last_block": state.block, "index": schedule(state).index})
    state.put("Hyperparameter", name, value)


def dispatch(state: State, netuid: int, signer: str, call: Call) -> None:
    """Run a signed call. Raises: DispatchError, and leaves `state` unchanged."""
    rules = {
        "set_commitment": _set_commitment,
        "set_mechanism_weights": _set_weights,
        "commit_timelocked_mechanism_weights": _commit_weights,
        "serve_axon": _serve_axon,
    }
    rules[call.function](state, netuid, signer, call.params)


def _set_commitment(state: State, netuid: int, signer: str, params: dict[str, Any]) -> None:
    """Source: set_commitment, pallets/commitments/src/lib.rs, and CanCommit for AllowCommitments of the runtime."""
    if params["netuid"] != netuid or find(state, signer) is None:
        raise DispatchError("AccountNotAllowedCommit")
    fields = params["info"]["fields"]
    if len(fields) > MAX_FIELDS:
        raise DispatchError("TooManyFieldsInCommitmentInfo")
    if any(isinstance(field, dict) and "TimelockRevealFailed" in field for field in fields):
        raise DispatchError("TimelockRevealFailedNotAllowed")
    epoch = schedule(state).index
    usage = state.get("UsedSpaceOf", signer) or {"last_epoch": epoch, "used_space": 0}
    used = usage["used_space"] if usage["last_epoch"] == epoch else 0
    used += max(_MIN_COMMITMENT_SPACE, sum(_field_size(field) for field in fields))
    if used > parameter(state, "MaxSpace"):
        raise DispatchError("SpaceLimitExceeded")
    state.put("UsedSpaceOf", signer, {"last_epoch": epoch, "used_space": used})
    state.put("CommitmentOf", signer, {"deposit": 0, "block": state.block, "info": {"fields": fields}})


def reveal(state: State, hotkey: str, plaintext: bytes) -> None:
    """Reveal a hotkey's timelocked field as `plaintext` in `state.block`.

    The chain drops a commitment whose last field it reveals, and keeps the newest ten reveals. Raises: ValueError when
    the hotkey has no timelocked field. Source: reveal_timelocked_commitments, pallets/commitments/src/lib.rs.
    """
    record = state.get("CommitmentOf", hotkey)
    fields = [] if record is None else record["info"]["fields"]
    rest = [field for field in fields if not (isinstance(field, dict) and "TimelockEncrypted" in field)]
    if len(rest) == len(fields):
        raise ValueError(f"{hotkey} has no timelocked commitment")
    reveals = state.get("RevealedCommitments", hotkey) or []
    state.put("RevealedCommitments", hotkey, [*reveals, ["0x" + plaintext.hex(), state.block]][-_MAX_REVEALS:])
    state.put("CommitmentOf", hotkey, {**record, "info": {"fields": rest}} if rest else None)


def fail_reveal(state: State, hotkey: str) -> None:
    """Mark a hotkey's timelocked field as one that cannot be revealed, for ever.

    The chain does so when the ciphertext cannot be decrypted, or when the round's signature has expired. Raises:
    ValueError when the hotkey has no timelocked field. Source: reveal_timelocked_commitments of a runtime after 425,
    pallets/commitments/src/lib.rs.
    """
    record = state.get("CommitmentOf", hotkey)
    fields = [] if record is None else record["info"]["fields"]
    failed = [
        {"TimelockRevealFailed": field["TimelockEncrypted"]}
        if isinstance(field, dict) and "TimelockEncrypted" in field
        else field
        for field in fields
    ]
    if failed == fields:
        raise ValueError(f"{hotkey} has no timelocked commitment")
    state.put("CommitmentOf", hotkey, {**record, "info": {"fields": failed}})


def _field_size(field: Any) -> int:
    if not isinstance(field, dict):
        return 0
    ((_, value),) = field.items()
    data = value["encrypted"] if isinstance(value, dict) else value
    return (len(data) - 2) // 2


def _set_weights(state: State, netuid: int, signer: str, params: dict[str, Any]) -> None:
    """Source: do_set_mechanism_weights and internal_set_weights, pallets/subtensor/src/subnets/weights.rs."""
    uids, values = params["dests"], params["weights"]
    if parameter(state, "CommitRevealWeightsEnabled"):
        raise DispatchError("CommitRevealEnabled")
    if len(uids) != len(values):
        raise DispatchError("WeightVecNotEqualSize")
    rows = neurons(state)
    _check_mechanism(netuid, params)
    if len(uids) > len(rows):
        raise DispatchError("UidsLengthExceedUidsInSubNet")
    row = _require_neuron(state, signer)
    is_owner = signer == state.get("SubnetOwnerHotkey")
    is_self_weight = uids == [row.uid]
    if row.stake < parameter(state, "StakeThreshold") and not is_owner:
        raise DispatchError("NotEnoughStakeToSetWeights")
    if params["version_key"] < parameter(state, "WeightsVersionKey"):
        raise DispatchError("IncorrectWeightVersionKey")
    _check_rate(state, row, "SettingWeightsTooFast")
    if not (is_self_weight or is_owner or row.has_permit):
        raise DispatchError("NeuronNoValidatorPermit")
    if len(set(uids)) != len(uids):
        raise DispatchError("DuplicateUids")
    if any(uid >= len(rows) for uid in uids):
        raise DispatchError("UidVecContainInvalidOne")
    # MaxWeightsLimit is stored and not enforced: max_weight_limited, weights.rs, takes the constant 65535.
    if not is_self_weight and len(values) < min(len(rows), parameter(state, "MinAllowedWeights")):
        raise DispatchError("WeightVecLengthIsLow")
    largest = max(values, default=0)
    scaled = [value * U16_MAX // largest for value in values] if largest else values
    state.put("Weights", str(row.uid), list(zip(uids, scaled, strict=True)))
    _put_neuron(state, replace(row, last_update=state.block))


def _commit_weights(state: State, netuid: int, signer: str, params: dict[str, Any]) -> None:
    """Source: do_commit_timelocked_mechanism_weights, pallets/subtensor/src/subnets/weights.rs."""
    _check_mechanism(netuid, params)
    if not parameter(state, "CommitRevealWeightsEnabled"):
        raise DispatchError("CommitRevealDisabled")
    if params["commit_reveal_version"] != parameter(state, "CommitRevealWeightsVersion"):
        raise DispatchError("IncorrectCommitRevealVersion")
    row = _require_neuron(state, signer)
    _check_rate(state, row, "CommittingWeightsTooFast")
    if len(params["commit"]) > 2 + 2 * _MAX_COMMIT_BYTES:
        raise DispatchError("CommitPayloadTooLarge")
    # The chain compares with the newest round that it has stored.
    if params["reveal_round"] < bt.timelock.round_at(time.time()) - 1:
        raise DispatchError("InvalidRevealRound")
    epoch = str(schedule(state).index)
    commits = state.get("TimelockedWeightCommits", epoch, [])
    if sum(commit[0] == signer for commit in commits) >= _MAX_UNREVEALED_COMMITS:
        raise DispatchError("TooManyUnrevealedCommits")
    commits.append([signer, state.block, params["commit"], params["reveal_round"]])
    state.put("TimelockedWeightCommits", epoch, commits)
    _put_neuron(state, replace(row, last_update=state.block))


def find_axon_problem(state: State, netuid: int, signer: str, params: dict[str, Any]) -> str | None:
    """Return the error of a call that serves an axon.

    Source: validate_serve_axon, pallets/subtensor/src/subnets/serving.rs.
    """
    kind, address, served = params["ip_type"], params["ip"], state.get("Axon", signer)
    if params["netuid"] != netuid or find(state, signer) is None:
        return "HotKeyNotRegisteredInNetwork"
    if kind not in _LOCALHOST:
        return "InvalidIpType"
    if not 0 < address < _HIGHEST_ADDRESS[kind] or address == _LOCALHOST[kind]:
        return "InvalidIpAddress"
    if served and state.block - served["block"] < parameter(state, "ServingRateLimit"):
        return "ServingRateLimitExceeded"
    return None if params["port"] else "InvalidPort"


def _serve_axon(state: State, netuid: int, signer: str, params: dict[str, Any]) -> None:
    """Source: do_serve_axon, pallets/subtensor/src/subnets/serving.rs."""
    if problem := find_axon_problem(state, netuid, signer, params):
        raise DispatchError(problem)
    axon = {name: value for name, value in params.items() if name != "netuid"}
    state.put("Axon", signer, {"block": state.block, **axon})


def _check_mechanism(netuid: int, params: dict[str, Any]) -> None:
    if params["netuid"] != netuid or params["mecid"] != 0:
        raise DispatchError("MechanismDoesNotExist")


def _require_neuron(state: State, hotkey: str) -> NeuronRow:
    row = find(state, hotkey)
    if row is None:
        raise DispatchError("HotKeyNotRegisteredInSubNet")
    return row


def is_too_fast(state: State, row: NeuronRow) -> bool:
    """Tell whether the rate limit of weights refuses a neuron's weights."""
    return bool(row.last_update) and state.block - row.last_update < parameter(state, "WeightsSetRateLimit")


def _check_rate(state: State, row: NeuronRow, name: str) -> None:
    if is_too_fast(state, row):
        raise DispatchError(name)
