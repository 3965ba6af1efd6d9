"""A short campaign of tricks holds its bounds, and finds a planted fault."""

import pytest

from template.rules import duplicates
from tests.campaigns.game import __main__ as command

SHORT = ["--days", "12", "--seeds", "1", "--first_seed", "2", "--improvements", "0", "--workers", "2", "--strategies"]
COPIES = "identical copies of others,copies of 45% of the rows,copies of its own"

pytestmark = pytest.mark.slow


def test_game_short_campaign_holds_its_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    names = f"{COPIES},new commitment and row order each round,empty promises each round"
    assert command.main([*SHORT, names]) == 0
    assert capsys.readouterr().out.endswith("all bounds hold\n")


def test_game_paid_copies_exit_with_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_SHARED_PERCENT", 100)
    assert command.main([*SHORT, COPIES]) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_game_real_improvement_is_paid() -> None:
    arguments = [*SHORT, "one honest dataset"]
    arguments[arguments.index("--improvements") + 1] = "4"
    assert command.main(arguments) == 0
