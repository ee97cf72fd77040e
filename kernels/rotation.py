"""Rotation of keys from the positions they were computed at to others, in plain torch.

RoPE turns each pair of a key's elements by an angle that grows with the position. So a key is moved
by turning it back from the old position and on to the new one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Rotation:
    """What turns the keys of some tokens, each by angles of its own.

    Attributes:
        cos: Cosine of the angle of each pair, float32 `[num_tokens, rotary_dim // 2]`.
        sin: Its sine, of the same shape.
        is_neox: Whether a pair has one element of each half of a key's first `rotary_dim`, or two
            neighbours.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    is_neox: bool

    @classmethod
    def between(
        cls, cos_sin_cache: torch.Tensor, old: torch.Tensor, new: torch.Tensor, *, is_neox: bool
    ) -> Rotation:
        """Turns keys so that they are as if computed at other positions.

        Args:
            cos_sin_cache: The model's own, `[num_positions, rotary_dim]` of any dtype: cosines,
                then sines. Where rows are scaled (YaRN's mscale), the scale cancels.
            old: Positions at which the keys were computed, int64 `[num_tokens]`.
            new: Their new positions, alike.
            is_neox: See `Rotation`.
        """
        cos_old, sin_old = cos_sin_cache[old].float().chunk(2, dim=-1)
        cos_new, sin_new = cos_sin_cache[new].float().chunk(2, dim=-1)
        # Not one, even without a scale: the model's rows are rounded to its dtype.
        norm = cos_old * cos_old + sin_old * sin_old
        cos = (cos_new * cos_old + sin_new * sin_old) / norm
        sin = (sin_new * cos_old - cos_new * sin_old) / norm
        return cls(cos, sin, is_neox)

    def pairs(self) -> tuple[slice, slice]:
        """Where the first and the second elements of all pairs are in a head."""
        num_pairs = self.cos.shape[1]
        if self.is_neox:
            return slice(0, num_pairs), slice(num_pairs, 2 * num_pairs)
        return slice(0, 2 * num_pairs, 2), slice(1, 2 * num_pairs, 2)


def rotate_keys(keys: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Returns rotated keys: computed in float32, then rounded once.

    Args:
        keys: `[num_tokens, num_heads, head_size]` of any float dtype; not changed. Of 8-bit floats
            the scale is of no matter: one for all elements of a head cancels.
        rotation: Of these tokens. Elements of a head behind its pairs stay as they are.
    """
    first, second = rotation.pairs()
    cos, sin = rotation.cos[:, None], rotation.sin[:, None]
    x, y = keys[..., first].float(), keys[..., second].float()
    rotated = keys.clone()
    rotated[..., first] = _rounded(x * cos - y * sin, keys.dtype)
    rotated[..., second] = _rounded(y * cos + x * sin, keys.dtype)
    return rotated


def largest_of(dtype: torch.dtype) -> float | None:
    """The value at which keys of this type saturate, as vLLM's do; None if they do not."""
    return torch.finfo(dtype).max if dtype.itemsize == 1 else None


def _rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values in another type, to the nearest, ties to even."""
    largest = largest_of(dtype)
    # A rotation makes larger ones; of these torch makes NaN in some 8-bit types.
    return (values if largest is None else values.clamp(-largest, largest)).to(dtype)
