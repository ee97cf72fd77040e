"""map.py: the board, its terrain and the way over it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from .unit import Position

PLAIN, FOREST, HILL, WATER, VILLAGE = ".", "f", "h", "~", "v"
MOVE_COST = {PLAIN: 1, FOREST: 2, HILL: 2, VILLAGE: 1}
COVER = {FOREST: 2, HILL: 3, VILLAGE: 1}


class Map:
    """A rectangle of fields, each with one kind of terrain."""

    def __init__(self, rows: list[str]) -> None:
        if len({len(row) for row in rows}) != 1:
            raise ValueError("all rows of a map must have the same length")
        self.rows = rows
        self.height = len(rows)
        self.width = len(rows[0])

    @classmethod
    def parse(cls, text: str) -> Map:
        """Reads a map from text, one line a row."""
        return cls([line.strip() for line in text.strip().splitlines()])

    def terrain(self, position: Position) -> str:
        x, y = position
        return self.rows[y][x]

    def cover(self, position: Position) -> int:
        """How much the terrain protects a unit that stands on it."""
        return COVER.get(self.terrain(position), 0)

    def contains(self, position: Position) -> bool:
        x, y = position
        return 0 <= x < self.width and 0 <= y < self.height

    def neighbors(self, position: Position) -> Iterator[Position]:
        """Fields beside a field on which a unit can stand."""
        x, y = position
        for step in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
            if self.contains(step) and self.terrain(step) in MOVE_COST:
                yield step

    def villages(self) -> list[Position]:
        """All villages, row by row."""
        fields = ((x, y) for y in range(self.height) for x in range(self.width))
        return [position for position in fields if self.terrain(position) == VILLAGE]

    def reachable(self, start: Position, moves: int, blocked: set[Position]) -> dict[Position, int]:
        """Fields that a unit can reach, with what it costs to go there."""
        costs = {start: 0}
        queue = [(0, start)]
        while queue:
            cost, position = heapq.heappop(queue)
            for step in self.neighbors(position):
                new_cost = cost + MOVE_COST[self.terrain(step)]
                if step in blocked or new_cost > moves:
                    continue
                if new_cost < costs.get(step, moves + 1):
                    costs[step] = new_cost
                    heapq.heappush(queue, (new_cost, step))
        return costs
