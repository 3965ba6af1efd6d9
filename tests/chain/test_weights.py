"""Weights on a local chain: sent values, and errors before they are sent."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from bittensor.intents.weights import normalize

from template import __version__
from template.chain.client import Chain
from template.constants import WEIGHTS_VERSION
from template.errors import RemoteError
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.ledger import ChainFault
from template.localnet.chain.pallets import find
from tests.fixtures.chain import connect, make_key, set_weights
from tests.fixtures.logs import log_lines

MINER, VALIDATOR, OWNER = make_key("miner"), make_key("validator"), make_key("owner")


def stored_weights(local: LocalChain) -> list[list[int]]:
    """Return the validator's pairs of uid and weight on chain, zeros too."""
    state = local.at()
    row = find(state, VALIDATOR.ss58_address)
    assert row is not None
    pairs: list[list[int]] = state.get("Weights", str(row.uid))
    return pairs


def test_weights_arrive_as_prepared(local: LocalChain, validator: Chain) -> None:
    prepared = validator.prepare_weights({0: 0.25, 1: 0.75})
    before = local.block()
    outcome = validator.set_weights(prepared)
    assert outcome.is_accepted and outcome.block == local.block() == before + 1 and not outcome.is_revealed_later
    assert local.weights(VALIDATOR.ss58_address) == prepared.sent == {0: 21845, 1: 65535}
    assert validator.view().by_hotkey[VALIDATOR.ss58_address].last_update_block == outcome.block


def test_sealed_weights_are_told_as_revealed_later(local: LocalChain, validator: Chain) -> None:
    local.set_hyperparameter("CommitRevealWeightsEnabled", True)
    outcome = set_weights(validator, {1: 1.0})
    assert outcome.is_accepted and outcome.is_revealed_later
    ((block, ciphertext, reveal_round),) = local.weight_commits(VALIDATOR.ss58_address)
    assert (block, reveal_round) == (outcome.block, outcome.reveal_round)
    assert len(ciphertext) > 100
    assert local.weights(VALIDATOR.ss58_address) is None


@pytest.mark.parametrize(
    ("hyperparameters", "weights", "error"),
    [
        ({"WeightsSetRateLimit": 50}, {0: 1.0, 1: 1.0}, "SettingWeightsTooFast"),
        ({}, {1: 1.0, 9: 1.0}, "UidVecContainInvalidOne"),
        ({"CommitRevealWeightsVersion": 5}, {1: 1.0}, None),
        (
            {"CommitRevealWeightsEnabled": True, "CommitRevealWeightsVersion": 5},
            {1: 1.0},
            "IncorrectCommitRevealVersion",
        ),
    ],
)
def test_refused_weights_are_an_outcome_with_the_error(
    local: LocalChain,
    validator: Chain,
    hyperparameters: dict[str, int],
    weights: dict[int, float],
    error: str | None,
) -> None:
    for name, value in hyperparameters.items():
        local.set_hyperparameter(name, value)
    outcome = set_weights(validator, weights)
    assert (outcome.is_accepted, outcome.error) == (error is None, error)
    assert bool(local.weights(VALIDATOR.ss58_address)) == (error is None)


def withdraw_permit(local: LocalChain) -> None:
    local.set_permit(VALIDATOR.ss58_address, has_permit=False)


@pytest.mark.parametrize(
    ("limit", "error", "words"),
    [
        (withdraw_permit, "NeuronNoValidatorPermit", "no validator_permit.* add stake"),
        (
            lambda local: local.set_hyperparameter("StakeThreshold", 10_001 * 10**9),
            "NotEnoughStakeToSetWeights",
            r"stake weight of 10000\.000 .* need 10001\.000: add stake",
        ),
        (
            lambda local: local.set_hyperparameter("WeightsVersionKey", WEIGHTS_VERSION + 1),
            "IncorrectWeightVersionKey",
            f"requires weights version {WEIGHTS_VERSION + 1}.*update it",
        ),
        (
            lambda local: local.deregister(VALIDATOR.ss58_address),
            "HotKeyNotRegisteredInSubNet",
            "no uid .*: register it again",
        ),
    ],
)
@pytest.mark.parametrize("commit_reveal", [False, True])
def test_limit_is_noticed_before_anything_is_sent(
    local: LocalChain,
    validator: Chain,
    limit: Callable[[LocalChain], object],
    error: str,
    words: str,
    commit_reveal: bool,
) -> None:
    """A chain with commit-reveal would take the weights, and drop them at the reveal."""
    local.set_hyperparameter("CommitRevealWeightsEnabled", commit_reveal)
    limit(local)
    before = local.block()
    prepared = validator.prepare_weights({1: 1.0})
    outcome = validator.set_weights(prepared)
    assert outcome == prepared.rejection and not prepared.sent
    assert (outcome.is_accepted, outcome.error, local.block()) == (False, error, before)
    assert re.search(words, outcome.message)


def test_the_weights_version_is_the_packages() -> None:
    major, minor, patch = (int(part) for part in __version__.split("."))
    expected = 1_000_000 * major + 1_000 * minor + patch
    assert expected == WEIGHTS_VERSION


def test_own_uid_alone_needs_no_permit(local: LocalChain, miner: Chain) -> None:
    local.set_hyperparameter("StakeThreshold", 0)
    local.set_hyperparameter("MinAllowedWeights", 2)
    assert set_weights(miner, {0: 1.0}).error == "NeuronNoValidatorPermit"
    assert miner.prepare_weights({1: 1.0}).sent == {1: 65535}, "and no fill"
    assert set_weights(miner, {1: 1.0}).is_accepted


def test_owner_needs_neither_stake_nor_permit(local: LocalChain) -> None:
    local.register(OWNER.ss58_address)
    with connect(local, OWNER) as owner:
        assert set_weights(owner, {1: 1.0}).is_accepted


@pytest.mark.parametrize(("least", "sent"), [(1, {1: 9}), (2, {0: 0, 1: 9}), (3, {0: 0, 1: 9, 2: 0})])
def test_min_allowed_weights_are_filled_with_zeros(
    local: LocalChain, validator: Chain, least: int, sent: dict[int, int]
) -> None:
    local.register("another")
    local.set_hyperparameter("MinAllowedWeights", least)
    prepared = validator.prepare_weights({1: 0.5})
    assert prepared.sent == {uid: weight and 65535 for uid, weight in sent.items()}
    assert validator.set_weights(prepared).is_accepted
    assert stored_weights(local) == [[uid, weight] for uid, weight in prepared.sent.items()]


def test_min_allowed_weights_above_all_uids_takes_all(local: LocalChain, validator: Chain) -> None:
    local.set_hyperparameter("MinAllowedWeights", 100)
    assert set_weights(validator, {1: 1.0}).is_accepted
    assert stored_weights(local) == [[0, 0], [1, 65535]]


def test_sealed_weights_are_those_prepared(
    local: LocalChain, validator: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed: list[dict[int, int]] = []

    def encrypt(**inputs: Any) -> tuple[bytes, int]:
        sealed.append(dict(zip(inputs["uids"], inputs["weights"], strict=True)))
        return b"sealed", 2**40

    monkeypatch.setattr("bittensor_core.get_encrypted_commit_v2", encrypt)
    local.set_hyperparameter("CommitRevealWeightsEnabled", True)
    local.set_hyperparameter("MinAllowedWeights", 2)
    local.set_hyperparameter("MaxWeightsLimit", 455)
    prepared = validator.prepare_weights({1: 1.0})
    assert validator.set_weights(prepared).is_accepted
    assert sealed == [prepared.sent] == [{0: 0, 1: 65535}]


def test_stored_max_weights_limit_flattens_nothing(local: LocalChain, validator: Chain) -> None:
    local.set_hyperparameter("MaxWeightsLimit", 455)
    with log_lines() as lines:
        assert set_weights(validator, {0: 0.75, 1: 0.25}).is_accepted
    assert local.weights(VALIDATOR.ss58_address) == {0: 65535, 1: 21845}
    (line,) = lines
    assert "max_weights_limit=0.0069 is below the largest share 0.7500" in line and "set max_weights_limit" in line


@pytest.mark.parametrize("weights", [{0: 0.3, 1: 0.7}, {0: 1e-9, 1: 1.0}, {0: 1 / 131_069, 1: 1.0}, {0: 3.0, 1: 2.0}])
def test_weights_are_rounded_as_the_client_does(validator: Chain, weights: dict[int, float]) -> None:
    uids, values = normalize(list(weights), list(weights.values()))
    assert validator.prepare_weights(weights).sent == dict(zip(uids, values, strict=True))


@pytest.mark.parametrize("weights", [{}, {0: 0.0}, {0: -1.0, 1: 2.0}, {0: float("nan"), 1: 1.0}, {0: float("inf")}])
def test_meaningless_weights_are_the_callers_error(validator: Chain, weights: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        validator.prepare_weights(weights)


def test_unreadable_limit_is_no_unknown_result(local: LocalChain, validator: Chain) -> None:
    local.set_fault("read", ChainFault.DISCONNECT)
    with pytest.raises(RemoteError, match="could not read the limits of weights"):
        validator.prepare_weights({1: 1.0})
