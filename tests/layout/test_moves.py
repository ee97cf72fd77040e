"""Sums of moves against sums of lists."""

from __future__ import annotations

from random import Random

from vllm_promptcache.layout.moves import Moves


def test_moves_against_sums() -> None:
    rng = Random(0)
    for _ in range(200):
        starts = sorted(rng.sample(range(100), rng.randint(0, 20)))
        moves, made = Moves(starts), [0] * len(starts)
        for _ in range(rng.randint(0, 30) if starts else 0):
            index, distance = rng.randrange(len(starts)), rng.randint(1, 9)
            moves.add(index, distance)
            made[index] += distance
        places = [start + sum(made[: at + 1]) for at, start in enumerate(starts)]
        for at in range(len(starts) + 1):
            assert moves.before(at) == sum(made[:at])
        for position in range(-1, 400):
            assert moves.num_until(position) == sum(place <= position for place in places)
        for position in range(-1, 120):
            before = sum(d for start, d in zip(starts, made, strict=True) if start <= position)
            assert moves.now(position) == position + before
        assert list(moves) == [(s, d) for s, d in zip(starts, made, strict=True) if d]
        assert bool(moves) == any(made)
