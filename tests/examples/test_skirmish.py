"""The source code that the code example imports is a game that works."""

from __future__ import annotations

import pytest

from vllm_promptcache.examples.skirmish.database import Database
from vllm_promptcache.examples.skirmish.game import Game
from vllm_promptcache.examples.skirmish.map import Map
from vllm_promptcache.examples.skirmish.player import Player

FIELD = """
    ..v.
    .~~.
    ..f.
"""


@pytest.fixture
def game() -> Game:
    return Game(Map.parse(FIELD), [Player("Ada", home=(0, 0)), Player("Bob", home=(3, 0))])


def test_a_rider_captures_a_village_and_attacks(game: Game) -> None:
    game.recruit("rider").start_turn()
    game.move((0, 0), (2, 0))
    game.end_turn()
    target = game.recruit("archer")
    game.end_turn()
    ada = game.current
    assert (ada.name, ada.villages, ada.income) == ("Ada", {(2, 0)}, 8)
    assert game.attack((2, 0), (3, 0)) == 11
    assert target.health == 14
    assert game.winner() is None


def test_water_is_no_way(game: Game) -> None:
    game.recruit("swordsman").start_turn()
    with pytest.raises(ValueError, match="cannot reach"):
        game.move((0, 0), (1, 1))


def test_a_saved_game_can_be_loaded(game: Game) -> None:
    game.recruit("archer")
    database = Database()
    database.save("first", game)
    database.add_score("Ada", 90, turns=7)
    assert database.load("first")["players"][0]["units"][0]["type"] == "archer"
    assert database.list_saves() == [("first", 1)]
    assert database.best_scores() == [("Ada", 90, 7)]
    database.close()
