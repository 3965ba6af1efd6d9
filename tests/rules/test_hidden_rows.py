"""Who is the author of rows that came late or were sealed."""

from dataclasses import replace

import pytest

from template.competition import Incentives
from tests.fixtures.table import Game, duplicates_of

FULL, OTHER = range(250), range(500, 750)
RULES = Incentives(evaluations=4, hold=4)
MOSAIC = [*FULL[:100], *OTHER[:100], *range(1000, 1050)]


@pytest.mark.parametrize("rounds", [1, 6, 20])
def test_copier_of_a_file_that_came_late_is_the_duplicate(rounds: int) -> None:
    game = Game()
    promise = game.commit("author", FULL)
    game.withheld.add(promise)
    game.play(rounds)
    game.withheld.discard(promise)
    game.commit("copier", range(240))
    game.play()
    for _ in range(10):
        assert duplicates_of(game.play()) == {"copier": "author"}


@pytest.mark.parametrize("copy", [FULL, range(101), range(149, 400)], ids=["all", "a part", "101 of 250"])
@pytest.mark.parametrize("gives_up", [False, True], ids=["stays", "gives up"])
def test_copy_of_a_hidden_file_is_the_duplicate(copy: range, gives_up: bool) -> None:
    """Who can hide a file from others may read it, and publish a copy before it is public."""
    game = Game(incentives=replace(RULES, evaluations=48, hold=48))
    promise = game.commit("author", FULL)
    game.withheld.add(promise)
    game.play()
    game.commit("copier", copy)
    game.play(3)
    game.withheld.discard(promise)
    game.play()
    if gives_up:
        game.play(3)
        game.commit("author", OTHER)
    for _ in range(10):
        assert duplicates_of(game.play()) == {"copier": "author"}


def test_author_of_few_rows_is_no_duplicate_of_its_copier() -> None:
    game = Game()
    promise = game.commit("author", range(100))
    game.withheld.add(promise)
    game.play()
    game.commit("copier", [*range(50), *OTHER][:250])
    game.play(3)
    game.withheld.discard(promise)
    assert duplicates_of(game.play(3)) == {}


def start_with_sources() -> Game:
    """Commit the datasets that mosaic and rival take rows from."""
    game = Game(incentives=replace(RULES, evaluations=48, hold=48))
    game.commit("a", FULL)
    game.commit("b", OTHER)
    game.play()
    return game


def commit_rival(game: Game, *, is_at_once: bool, has_left: bool) -> None:
    """Commit a dataset that shares rows with the mosaic, a round later."""
    game.play()
    game.commit("rival", [*FULL[:100], *OTHER[:100], *range(2000, 2050)])
    if has_left:
        game.commit("a", range(3000, 3250))
        game.commit("b", range(4000, 4250))
    if not is_at_once:
        game.play(2)


@pytest.mark.parametrize("has_left", [False, True], ids=["sources stay", "sources are replaced"])
@pytest.mark.parametrize("is_at_once", [False, True], ids=["shown later", "shown in the same period"])
def test_hidden_mosaic_refuses_no_later_dataset(is_at_once: bool, has_left: bool) -> None:
    game = start_with_sources()
    promise = game.commit("mosaic", MOSAIC)
    game.withheld.add(promise)
    commit_rival(game, is_at_once=is_at_once, has_left=has_left)
    game.withheld.discard(promise)
    refused = [duplicates_of(game.play()) for _ in range(3)]
    assert refused[-1] == {"mosaic": "rival"} and not any("rival" in copies for copies in refused)


@pytest.mark.parametrize("has_left", [False, True], ids=["sources stay", "sources are replaced"])
@pytest.mark.parametrize("is_at_once", [False, True], ids=["revealed later", "revealed in the same period"])
def test_sealed_mosaic_refuses_no_later_dataset(is_at_once: bool, has_left: bool) -> None:
    game = start_with_sources()
    reveal = game.seal("mosaic", MOSAIC)
    commit_rival(game, is_at_once=is_at_once, has_left=has_left)
    reveal()
    refused = [duplicates_of(game.play()) for _ in range(3)]
    assert refused[-1] == {"mosaic": "rival"} and not any("rival" in copies for copies in refused)


@pytest.mark.parametrize("copy", [FULL, range(101), range(149, 400)], ids=["all", "a part", "101 of 250"])
@pytest.mark.parametrize("is_at_once", [False, True], ids=["copied later", "copied in the same period"])
def test_copy_of_a_revealed_dataset_is_the_duplicate(is_at_once: bool, copy: range) -> None:
    game = Game(incentives=replace(RULES, evaluations=48, hold=48))
    reveal = game.seal("author", FULL)
    game.play(5)
    reveal()
    if not is_at_once:
        game.play(3)
    game.commit("copier", copy)
    for _ in range(10):
        assert duplicates_of(game.play()) == {"copier": "author"}
