"""Every attack of a hostile Hub comes to the verdict that is right, within its limits of time, memory and disk."""

from pathlib import Path

import pytest

from tests.campaigns.attack.hub import ATTACKS
from tests.campaigns.attack.hub_harness import stage
from tests.campaigns.attack.runner import Attack, launch


@pytest.fixture(scope="module", autouse=True)
def _both_hubs() -> None:
    """Before the first attack, which would be charged for what is imported and started."""
    stage()


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name[:60] for attack in ATTACKS])
def test_a_hostile_hub_gains_nothing(attack: Attack, tmp_path: Path) -> None:
    outcome = launch(attack, tmp_path)
    assert not outcome.faults()


def test_the_names_of_the_attacks_are_their_own() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
