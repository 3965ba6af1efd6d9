"""Weights that the transaction pool refuses, that another writer races, and that are timelocked, at the wire."""

import pytest

from template.constants import ERA_BLOCKS
from tests.fixtures.network import Net
from tests.fixtures.wire_world import FEW_BLOCKS, open_world

pytestmark = pytest.mark.slow

OUTDATED = (1010, "Invalid Transaction", "Transaction is outdated")
LOW_PRIORITY = (1014, "Priority is too low: (0 vs 0)", "The transaction has too low priority")
ANOTHER_WRITER = "another program signs with this hotkey"

# Error of the pool, how often, and what the warning names; None where the call is sent again at once.
REFUSALS = (
    (OUTDATED, 1, None),
    (OUTDATED, 2, ANOTHER_WRITER),
    (LOW_PRIORITY, 1, None),
    (LOW_PRIORITY, 2, ANOTHER_WRITER),
    ((1010, "Invalid Transaction", "Transaction has a bad signature"), 1, "its signature is refused"),
    ((1010, "Invalid Transaction", "Transaction has an ancient birth block"), 1, "its signature is refused"),
    ((1010, "Invalid Transaction", "Custom error: 1"), 1, "StakeAmountTooLow"),
    ((1010, "Invalid Transaction", "Custom error: 255"), 1, "BadRequest"),
    ((1012, "Transaction is temporarily banned", None), 1, "temporarily banned"),
    ((1016, "Immediately Dropped", "The transaction couldn't enter the pool"), 1, "Immediately Dropped"),
)


def test_refused_weights_are_named_and_set_at_once(net: Net) -> None:
    with open_world(net, round_blocks=20) as world:
        for rounds, (error, count, reason) in enumerate(REFUSALS, start=1):
            world.wire.result("localnet_refuseExtrinsics", *error, count)
            warnings = world.finish_round()
            assert len(warnings) == (reason is not None), (error, warnings)
            assert reason is None or reason in warnings[0]
            world.check(rounds)


def test_timelocked_weights_without_an_answer_are_set_once(net: Net) -> None:
    net.admin.set_hyperparameter("CommitRevealWeightsEnabled", True)
    with open_world(net) as world:
        world.wire.result("localnet_setAnswerFault", "author_submitAndWatchExtrinsic", "drop_in_answer", 1)
        (warning,) = world.finish_round()
        assert "result unknown" in warning and world.bench.outcomes() == [True]
        world.check()
        assert len(net.admin.weight_commits(net.hotkey("validator"))) == 1


def test_lost_weights_are_set_when_they_cannot_land_any_more(net: Net) -> None:
    with open_world(net, round_blocks=80) as world:
        # No answer of the pool, so that a gateway may have passed the call on.
        world.wire.result("localnet_refuseExtrinsics", -32000, "upstream timed out", None)
        (warning,) = world.finish_round()
        assert "result unknown" in warning and "upstream timed out" in warning
        assert world.bench.outcomes() == [False, True]
        world.check(blocks=ERA_BLOCKS + FEW_BLOCKS)
