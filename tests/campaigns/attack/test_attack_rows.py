"""Every attack by a miner's file comes to the right verdict, within its bounds of time, memory and disk."""

from pathlib import Path

import pytest

from tests.campaigns.attack.rows import ATTACKS
from tests.campaigns.attack.runner import Attack, launch


def test_no_two_attacks_have_one_name() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) > 80


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_a_hostile_file_comes_to_its_verdict_within_its_bounds(attack: Attack, tmp_path: Path) -> None:
    assert not launch(attack, tmp_path).faults()
