"""player.py: who owns units and spends gold."""

from __future__ import annotations

from dataclasses import dataclass, field

from .map import Map
from .unit import Position, Unit, UnitType

START_GOLD = 60
BASE_INCOME = 5
VILLAGE_INCOME = 3


@dataclass
class Player:
    """One side of the game."""

    name: str
    home: Position
    gold: int = START_GOLD
    units: list[Unit] = field(default_factory=list)
    villages: set[Position] = field(default_factory=set)

    @property
    def is_defeated(self) -> bool:
        """A player without units and without gold for a new one has lost."""
        return not self.living_units() and self.gold < 20

    @property
    def income(self) -> int:
        return BASE_INCOME + VILLAGE_INCOME * len(self.villages)

    def living_units(self) -> list[Unit]:
        return [unit for unit in self.units if unit.is_alive]

    def unit_at(self, position: Position) -> Unit | None:
        """The living unit on a field, if there is one."""
        for unit in self.living_units():
            if unit.position == position:
                return unit
        return None

    def recruit(self, unit_type: UnitType) -> Unit:
        """Buys a unit and puts it on the home field."""
        if unit_type.cost > self.gold:
            raise ValueError(f"{unit_type.name} costs {unit_type.cost}, you have {self.gold} gold")
        if self.unit_at(self.home) is not None:
            raise ValueError("the home field is not free")
        self.gold -= unit_type.cost
        unit = Unit(unit_type, owner=self.name, position=self.home)
        self.units.append(unit)
        return unit

    def start_turn(self) -> None:
        """Collects income and wakes all units."""
        self.gold += self.income
        for unit in self.living_units():
            unit.start_turn()

    def capture(self, game_map: Map, position: Position, others: list[Player]) -> bool:
        """Takes the village on a field; says whether it changed hands."""
        if position not in game_map.villages() or position in self.villages:
            return False
        for other in others:
            other.villages.discard(position)
        self.villages.add(position)
        return True

    def score(self) -> int:
        """Points for the table of best games."""
        health = sum(unit.health for unit in self.living_units())
        return self.gold + health + 25 * len(self.villages)
