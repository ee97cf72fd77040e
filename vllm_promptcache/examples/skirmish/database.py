"""database.py: saved games and the table of best scores, in SQLite."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from .game import Game
from .unit import Unit

TABLES = """
CREATE TABLE IF NOT EXISTS saves (
    name TEXT PRIMARY KEY,
    turn INTEGER NOT NULL,
    state TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS scores (
    player TEXT NOT NULL,
    score INTEGER NOT NULL,
    turns INTEGER NOT NULL
);
"""


def unit_to_dict(unit: Unit) -> dict[str, Any]:
    """What is needed to put a unit back on the map."""
    return {"type": unit.type.name, "position": unit.position, "health": unit.health}


def game_to_dict(game: Game) -> dict[str, Any]:
    """A game as plain data."""
    players = [
        {
            "name": player.name,
            "gold": player.gold,
            "villages": sorted(player.villages),
            "units": [unit_to_dict(unit) for unit in player.living_units()],
        }
        for player in game.players
    ]
    return {"rows": game.map.rows, "turn": game.turn, "active": game.active, "players": players}


class Database:
    """A file that keeps games and scores."""

    def __init__(self, path: str = ":memory:") -> None:
        self.connection = sqlite3.connect(path)
        self.connection.executescript(TABLES)

    def save(self, name: str, game: Game) -> None:
        """Stores a game under a name; an older one of that name is replaced."""
        row = (name, game.turn, json.dumps(game_to_dict(game)))
        with self.connection:
            self.connection.execute("INSERT OR REPLACE INTO saves VALUES (?, ?, ?)", row)

    def load(self, name: str) -> dict[str, Any]:
        """The plain data of a saved game."""
        query = "SELECT state FROM saves WHERE name = ?"
        row = self.connection.execute(query, (name,)).fetchone()
        if row is None:
            raise KeyError(f"there is no saved game {name!r}")
        state: dict[str, Any] = json.loads(row[0])
        return state

    def list_saves(self) -> list[tuple[str, int]]:
        """Names of saved games, each with its turn."""
        return self.connection.execute("SELECT name, turn FROM saves ORDER BY name").fetchall()

    def add_score(self, player: str, score: int, turns: int) -> None:
        with self.connection:
            self.connection.execute("INSERT INTO scores VALUES (?, ?, ?)", (player, score, turns))

    def best_scores(self, limit: int = 10) -> list[tuple[str, int, int]]:
        """The best games, highest score first."""
        query = "SELECT player, score, turns FROM scores ORDER BY score DESC LIMIT ?"
        return self.connection.execute(query, (limit,)).fetchall()

    def close(self) -> None:
        self.connection.close()
