"""A short campaign of tricks holds its bounds, and finds a planted fault."""

import pytest

from template.competition import Competition, Incentives
from template.rules import duplicates
from tests.campaigns.game import __main__ as command
from tests.campaigns.game.miners import Researcher
from tests.campaigns.game.tricks import BestOfEqualSets
from tests.campaigns.game.world import Game, Settings

SHORT = ["--days", "8", "--seeds", "1", "--first_seed", "2", "--workers", "2"]
COPIES = "identical copies of others"

pytestmark = pytest.mark.slow


def test_game_short_campaign_holds_its_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    names = f"{COPIES},copies of its own,new commitment and row order each round,empty promises each round"
    assert command.main([*SHORT, "--improvements", "1", "--strategies", names]) == 0
    assert capsys.readouterr().out.endswith("all bounds hold\n")


def test_game_paid_copies_exit_with_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # A copy improves on nothing, so without the duplicate rule it is paid by its score alone.
    monkeypatch.setattr(duplicates, "MAX_SHARED_PERCENT", 100)
    assert command.main([*SHORT, "--reward", "proportional", "--strategies", COPIES]) == 1
    assert "BROKEN: identical copies of others" in capsys.readouterr().out


def _first_published_loss(make: type[Researcher], hotkeys: int) -> float:
    game = Game(Competition.from_defaults(), Incentives(), 1, Settings(set_sd=0.01))
    actor = make(game, "actor", hotkeys)
    while not game.commitments:
        game.play_round([actor])
    assert game.commitments.keys() == {"actor0"}
    return game.true_loss(actor.last["actor0"])


def test_game_best_of_equal_sets_is_better_than_one() -> None:
    assert _first_published_loss(BestOfEqualSets, 20) < _first_published_loss(Researcher, 1)


def test_game_without_own_runs_exits_with_3() -> None:
    assert command.main([*SHORT, "--own_runs", "0"]) == 3


def test_game_without_duplicates_pays_copies(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--reward", "proportional", "--without", "duplicates", "--strategies", COPIES, "--improvements", "0"]
    assert command.main([*SHORT, *flags]) == 0
    columns = capsys.readouterr().out.splitlines()[1].split()
    # Each of the two halves is share, fair share, ratio, its error, wait and refused.
    assert float(columns[-12]) == 0.0 < float(columns[-6])
