"""The local chain's rules: refusals and stored values."""

from pathlib import Path
from typing import Any

import pytest

from template.localnet.chain.chain import LocalChain
from tests.fixtures.chain import NETUID, SEALED, commit, make_key, make_local_chain, run_async, submit
from tests.fixtures.substrate import LocalSubstrate

VALIDATOR, MINER, OWNER = make_key("validator"), make_key("miner"), make_key("owner")
AXON = {"netuid": NETUID, "version": 1, "ip": 2**24, "port": 8091, "ip_type": 4, "protocol": 4}
WEIGHTS = {"netuid": NETUID, "mecid": 0, "dests": [1], "weights": [65535], "version_key": 0}


def set_weights(local: LocalChain, key: Any, **changes: Any) -> Any:
    return submit(local, key, "SubtensorModule", "set_mechanism_weights", **(WEIGHTS | changes))


def commit_weights(local: LocalChain, key: Any, **changes: Any) -> Any:
    sealed = {"netuid": NETUID, "mecid": 0, "commit": b"sealed", "reveal_round": 2**40, "commit_reveal_version": 4}
    return submit(local, key, "SubtensorModule", "commit_timelocked_mechanism_weights", **(sealed | changes))


def serve_axon(local: LocalChain, key: Any, **changes: Any) -> Any:
    placeholders = {"placeholder1": 0, "placeholder2": 0}
    return submit(local, key, "SubtensorModule", "serve_axon", **(AXON | placeholders | changes))


def test_refused_commitment_is_in_a_block(local: LocalChain) -> None:
    before = local.block()
    result = commit(local, OWNER, {"Raw1": b"a"})
    assert result.error.name == "AccountNotAllowedCommit" and result.block_hash
    assert commit(local, MINER, *[{"Raw1": b"a"}] * 4).error.name == "TooManyFieldsInCommitmentInfo"
    assert local.block() == before + 2


def test_commitment_space_is_charged_and_reset_each_epoch(local: LocalChain) -> None:
    big = [{"Raw128": bytes(128)}] * 3
    used = 0
    while (result := commit(local, MINER, *big)).success:
        used += 384
    assert used == 3072 and result.error.name == "SpaceLimitExceeded"
    assert commit(local, MINER, {"Raw1": b"a"}).error.name == "SpaceLimitExceeded", "100 bytes at least are charged"
    assert commit(local, VALIDATOR, {"Raw1": b"a"}).success
    local.advance(101 - local.block())
    assert commit(local, MINER, *big).success


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"netuid": NETUID + 1}, "MechanismDoesNotExist"),
        ({"mecid": 1}, "MechanismDoesNotExist"),
        ({"weights": [1, 2]}, "WeightVecNotEqualSize"),
        ({"dests": [0, 1, 2], "weights": [1, 1, 1]}, "UidsLengthExceedUidsInSubNet"),
        ({"dests": [1, 1], "weights": [1, 1]}, "DuplicateUids"),
        ({"dests": [2]}, "UidVecContainInvalidOne"),
    ],
)
def test_weights_of_a_wrong_shape_are_refused(local: LocalChain, changes: dict[str, Any], error: str) -> None:
    assert set_weights(local, VALIDATOR, **changes).error.name == error
    assert local.weights(VALIDATOR.ss58_address) is None


def test_weights_refused_by_who_sets_them(local: LocalChain) -> None:
    assert set_weights(local, OWNER).error.name == "HotKeyNotRegisteredInSubNet"
    assert set_weights(local, MINER, dests=[0]).error.name == "NotEnoughStakeToSetWeights"
    local.set_hyperparameter("StakeThreshold", 0)
    assert set_weights(local, MINER, dests=[0]).error.name == "NeuronNoValidatorPermit"
    local.register(OWNER.ss58_address)
    local.set_hyperparameter("StakeThreshold", 1)
    assert set_weights(local, OWNER).success, "the owner needs neither stake nor permit"


@pytest.mark.parametrize(
    ("parameter", "value", "error"),
    [
        ("WeightsVersionKey", 1, "IncorrectWeightVersionKey"),
        ("WeightsSetRateLimit", 100, "SettingWeightsTooFast"),
        ("MinAllowedWeights", 2, "WeightVecLengthIsLow"),
        ("CommitRevealWeightsEnabled", True, "CommitRevealEnabled"),
    ],
)
def test_weights_refused_by_hyperparameter(local: LocalChain, parameter: str, value: int | bool, error: str) -> None:
    local.set_hyperparameter(parameter, value)
    assert set_weights(local, VALIDATOR).error.name == error
    self_weight = set_weights(local, VALIDATOR, dests=[0])
    assert self_weight.success == (error == "WeightVecLengthIsLow")


def test_weights_of_zero_count_for_the_least_number(local: LocalChain) -> None:
    local.set_hyperparameter("MinAllowedWeights", 2)
    assert set_weights(local, VALIDATOR, dests=[1, 0], weights=[65535, 0]).success
    assert local.weights(VALIDATOR.ss58_address) == {1: 65535}


def test_stored_max_weights_limit_is_not_enforced(local: LocalChain) -> None:
    local.set_hyperparameter("MaxWeightsLimit", 1)
    assert set_weights(local, VALIDATOR).success


def test_withdrawn_permit_refuses_plain_weights_only(local: LocalChain) -> None:
    local.set_permit(VALIDATOR.ss58_address, has_permit=False)
    assert set_weights(local, VALIDATOR).error.name == "NeuronNoValidatorPermit"
    local.set_hyperparameter("CommitRevealWeightsEnabled", True)
    assert commit_weights(local, VALIDATOR).success, "the chain looks at the permit when it reveals"
    with pytest.raises(ValueError, match="no uid"):
        local.set_permit(OWNER.ss58_address, has_permit=True)


def test_weights_are_rate_limited_from_registration_on(local: LocalChain) -> None:
    local.set_hyperparameter("WeightsSetRateLimit", 10)
    registered = 2
    local.advance(registered + 10 - local.block() - 2)
    assert set_weights(local, VALIDATOR).error.name == "SettingWeightsTooFast"
    assert set_weights(local, VALIDATOR).success
    assert set_weights(local, VALIDATOR).error.name == "SettingWeightsTooFast"


def test_commitment_and_reveals_leave_with_their_uid(local: LocalChain) -> None:
    hotkey = MINER.ss58_address
    commit(local, MINER, SEALED)
    local.reveal(hotkey, "opened")
    commit(local, MINER, {"Raw5": b"hello"})
    before = local.block()
    local.deregister(hotkey)
    for item in ("CommitmentOf", "RevealedCommitments", "UsedSpaceOf"):
        assert local.at(before).get(item, hotkey) and local.at().get(item, hotkey) is None
    local.register(hotkey)
    assert commit(local, MINER, SEALED).success
    local.reveal(hotkey, "again")
    assert len(local.at().get("RevealedCommitments", hotkey)) == 1


def test_weights_are_stored_upscaled_and_leave_with_their_uid(local: LocalChain) -> None:
    assert set_weights(local, VALIDATOR, dests=[0, 1], weights=[1, 4]).success
    assert local.weights(VALIDATOR.ss58_address) == {0: 16383, 1: 65535}
    local.deregister(MINER.ss58_address)
    assert local.weights(VALIDATOR.ss58_address) == {0: 16383}
    stranger_uid = local.deregister(VALIDATOR.ss58_address, replacement=MINER.ss58_address)
    assert stranger_uid == 0 and local.weights(MINER.ss58_address) is None


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"netuid": NETUID + 1}, "MechanismDoesNotExist"),
        ({"commit_reveal_version": 3}, "IncorrectCommitRevealVersion"),
        ({"reveal_round": 1}, "InvalidRevealRound"),
        ({"commit": bytes(5001)}, "CommitPayloadTooLarge"),
    ],
)
def test_sealed_weights_are_refused(local: LocalChain, changes: dict[str, Any], error: str) -> None:
    assert commit_weights(local, VALIDATOR).error.name == "CommitRevealDisabled"
    local.set_hyperparameter("CommitRevealWeightsEnabled", True)
    assert commit_weights(local, VALIDATOR, **changes).error.name == error
    assert commit_weights(local, OWNER).error.name == "HotKeyNotRegisteredInSubNet"
    assert local.weight_commits(VALIDATOR.ss58_address) == []


def test_sealed_weights_are_kept_to_the_limits(local: LocalChain) -> None:
    local.set_hyperparameter("CommitRevealWeightsEnabled", True)
    for number in range(10):
        assert commit_weights(local, VALIDATOR, commit=bytes([number])).success
    assert commit_weights(local, VALIDATOR).error.name == "TooManyUnrevealedCommits"
    commits = local.weight_commits(VALIDATOR.ss58_address)
    assert [data for _, data, _ in commits] == [bytes([number]) for number in range(10)]
    local.set_hyperparameter("WeightsSetRateLimit", 50)
    assert commit_weights(local, VALIDATOR).error.name == "CommittingWeightsTooFast"


def test_epochs_come_every_tempo_and_a_new_tempo_starts_anew(local: LocalChain) -> None:
    async def status(substrate: LocalSubstrate) -> tuple[int, int, int, int | None]:
        read = [
            await substrate.query("SubtensorModule", item, [NETUID])
            for item in ("LastEpochBlock", "SubnetEpochIndex", "BlocksSinceLastStep")
        ]
        return *read, await substrate.runtime_call("SubnetInfoRuntimeApi", "get_next_epoch_start_block", [NETUID])

    local.advance(100 - local.block())
    assert run_async(local, status) == (1, 0, 99, 101)
    local.advance()
    assert run_async(local, status) == (101, 1, 0, 201)
    local.set_hyperparameter("Tempo", 10)
    assert run_async(local, status) == (102, 1, 0, 112)
    local.advance(25)
    assert run_async(local, status) == (122, 3, 5, 132)
    local.set_hyperparameter("Tempo", 0)
    assert run_async(local, status) == (128, 3, 0, None)


def test_full_subnet_recycles_the_oldest_uid_not_the_owners(tmp_path: Path) -> None:
    with make_local_chain(tmp_path) as local:
        local.set_hyperparameter("MaxAllowedUids", 3)
        assert [local.register(name) for name in (OWNER.ss58_address, "a", "b")] == [0, 1, 2]
        assert [local.register(name) for name in ("c", "d", "a")] == [1, 2, 1]
        with pytest.raises(ValueError, match="registered already"):
            local.register("d")
        with pytest.raises(ValueError, match="no uid"):
            local.deregister(OWNER.ss58_address)
        with pytest.raises(ValueError, match="no uid"):
            local.deregister("c")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"netuid": NETUID + 1}, "HotKeyNotRegisteredInNetwork"),
        ({"ip_type": 5}, "InvalidIpType"),
        ({"ip": 0}, "InvalidIpAddress"),
        ({"ip": 0x7F000001}, "InvalidIpAddress"),
        ({"ip": 2**32 - 1}, "InvalidIpAddress"),
        ({"ip": 1, "ip_type": 6}, "InvalidIpAddress"),
        ({"port": 0}, "InvalidPort"),
    ],
)
def test_axon_without_an_address_is_refused(local: LocalChain, changes: dict[str, Any], error: str) -> None:
    assert serve_axon(local, MINER, **changes).error.name == error
    assert serve_axon(local, OWNER).error.name == "HotKeyNotRegisteredInNetwork"


def test_axon_is_rate_limited_and_leaves_with_its_uid(local: LocalChain) -> None:
    assert serve_axon(local, MINER).success
    assert local.at().get("Axon", MINER.ss58_address)["port"] == 8091
    assert serve_axon(local, MINER).error.name == "ServingRateLimitExceeded"
    local.advance(48)
    assert serve_axon(local, MINER, ip=2**100, ip_type=6).success
    local.deregister(MINER.ss58_address)
    assert local.at().get("Axon", MINER.ss58_address) is None
