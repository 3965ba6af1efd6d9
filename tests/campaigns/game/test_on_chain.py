"""A short game on the local chain equals the simulation; a planted fault is found."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from template.competition import Reward
from template.rules import evaluations
from template.validator import rounds
from tests.campaigns.game import chain_run
from tests.campaigns.game.chain_world import ChainGame, DifferenceError
from tests.campaigns.game.hiding import Flipper
from tests.campaigns.game.miners import Researcher
from tests.campaigns.game.tricks import Copier
from tests.campaigns.game.world import Settings

pytestmark = pytest.mark.slow

ROUNDS = 10


def _play(folder: Path) -> Mapping[str, float]:
    """Return the shares on the chain after some rounds with two tricks."""
    incentives = dataclasses.replace(chain_run.make_incentives(Reward.IMPROVEMENT), evaluations=4)
    settings = Settings(rounds_per_find=2.0)
    with ChainGame(folder / "net", incentives, 3, settings) as game:
        miners = [Researcher(game, "rival"), Copier(game, "copier", 2), Flipper(game, "flipper", 2)]
        for _ in range(ROUNDS):
            game.play_round(miners)
        return game.paid


def test_validator_on_the_chain_equals_the_simulation(tmp_path: Path) -> None:
    paid = _play(tmp_path)
    assert paid and not {"owner", "copier0", "copier1"} & paid.keys()


def test_validator_with_other_seeds_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def derive_next(block_hash: str, digest: str, number: int) -> int:
        return evaluations.derive_seed(block_hash, digest, number + 1)

    monkeypatch.setattr(rounds, "derive_seed", derive_next)
    with pytest.raises(DifferenceError, match=r"the row of \w+ is"):
        _play(tmp_path)
