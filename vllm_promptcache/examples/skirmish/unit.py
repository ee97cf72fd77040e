"""unit.py: the pieces that players move over the map."""

from __future__ import annotations

from dataclasses import dataclass, field

Position = tuple[int, int]


@dataclass(frozen=True)
class UnitType:
    """What all units of a kind have in common."""

    name: str
    cost: int
    max_health: int
    attack: int
    defense: int
    moves: int
    reach: int = 1


SWORDSMAN = UnitType("swordsman", cost=20, max_health=40, attack=12, defense=8, moves=2)
ARCHER = UnitType("archer", cost=25, max_health=25, attack=10, defense=3, moves=2, reach=3)
RIDER = UnitType("rider", cost=35, max_health=35, attack=14, defense=5, moves=5)
UNIT_TYPES = {unit_type.name: unit_type for unit_type in (SWORDSMAN, ARCHER, RIDER)}


@dataclass
class Unit:
    """One piece on the map."""

    type: UnitType
    owner: str
    position: Position
    health: int = field(default=0)
    moves_left: int = 0
    has_attacked: bool = False

    def __post_init__(self) -> None:
        if self.health == 0:
            self.health = self.type.max_health

    @property
    def is_alive(self) -> bool:
        return self.health > 0

    def start_turn(self) -> None:
        """Gives the unit its moves back."""
        self.moves_left = self.type.moves
        self.has_attacked = False

    def distance_to(self, position: Position) -> int:
        """Steps to a field, without regard to what lies between."""
        return abs(self.position[0] - position[0]) + abs(self.position[1] - position[1])

    def can_attack(self, target: Unit) -> bool:
        is_enemy = target.owner != self.owner and target.is_alive
        return (
            is_enemy
            and not self.has_attacked
            and self.distance_to(target.position) <= self.type.reach
        )

    def attack(self, target: Unit, cover: int = 0) -> int:
        """Hits another unit and returns the damage done."""
        if not self.can_attack(target):
            raise ValueError(f"{self.type.name} cannot attack {target.type.name}")
        strength = self.type.attack * self.health / self.type.max_health
        damage = max(1, round(strength) - target.type.defense - cover)
        target.take_damage(damage)
        self.has_attacked = True
        return damage

    def take_damage(self, damage: int) -> None:
        self.health = max(0, self.health - damage)
