"""game.py: whose turn it is, and what a turn may do."""

from __future__ import annotations

from .map import Map
from .player import Player
from .unit import UNIT_TYPES, Position, Unit

MAX_TURNS = 50


class Game:
    """A running game of two or more players on one map."""

    def __init__(self, game_map: Map, players: list[Player]) -> None:
        if len(players) < 2:
            raise ValueError("a game needs at least two players")
        self.map = game_map
        self.players = players
        self.turn = 1
        self.active = 0
        self.current.start_turn()

    @property
    def current(self) -> Player:
        """The player whose turn it is."""
        return self.players[self.active]

    def opponents(self) -> list[Player]:
        return [player for player in self.players if player is not self.current]

    def occupied(self) -> set[Position]:
        """Fields on which a living unit stands."""
        return {unit.position for player in self.players for unit in player.living_units()}

    def recruit(self, type_name: str) -> Unit:
        return self.current.recruit(UNIT_TYPES[type_name])

    def move(self, start: Position, end: Position) -> Unit:
        """Moves a unit of the current player, and captures a village at the end of its way."""
        unit = self._own_unit(start)
        costs = self.map.reachable(start, unit.moves_left, self.occupied() - {start})
        if end not in costs:
            raise ValueError(f"{unit.type.name} cannot reach {end}")
        unit.position = end
        unit.moves_left -= costs[end]
        self.current.capture(self.map, end, self.opponents())
        return unit

    def attack(self, start: Position, target: Position) -> int:
        """Attacks the enemy on a field and returns the damage done."""
        unit = self._own_unit(start)
        for opponent in self.opponents():
            enemy = opponent.unit_at(target)
            if enemy is not None:
                return unit.attack(enemy, cover=self.map.cover(target))
        raise ValueError(f"there is no enemy at {target}")

    def end_turn(self) -> None:
        """Passes the turn to the next player who is still in the game."""
        while True:
            self.active = (self.active + 1) % len(self.players)
            if self.active == 0:
                self.turn += 1
            if not self.current.is_defeated:
                break
        self.current.start_turn()

    def winner(self) -> Player | None:
        """The last player left, or the one with the best score when time is up."""
        left = [player for player in self.players if not player.is_defeated]
        if len(left) == 1:
            return left[0]
        if self.turn > MAX_TURNS:
            return max(left, key=Player.score)
        return None

    def _own_unit(self, position: Position) -> Unit:
        unit = self.current.unit_at(position)
        if unit is None:
            raise ValueError(f"you have no unit at {position}")
        return unit
