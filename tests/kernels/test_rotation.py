"""Rotation of keys in plain torch, against angles and against vLLM's own rotary embeddings."""

from types import SimpleNamespace

import pytest
import torch

from vllm_promptcache.kernels.rotation import Rotation, rotate_keys

NUM_TOKENS, NUM_HEADS, HEAD_SIZE, MAX_POSITION, ORIGINAL = 23, 3, 80, 4096, 1024
FACTORS = [1.0 + 0.1 * i for i in range(HEAD_SIZE // 2)]
VARIANTS = {
    "default": {"rope_type": "default"},
    "partial": {"rope_type": "default", "partial_rotary_factor": 0.4},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "max_trained_positions": ORIGINAL},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": FACTORS,
        "long_factor": [4 * factor for factor in FACTORS],
        "original_max_position_embeddings": ORIGINAL,
    },
    "longrope, short": {
        "rope_type": "longrope",
        "short_factor": FACTORS,
        "long_factor": FACTORS,
        "original_max_position_embeddings": ORIGINAL,
    },
}
INTERLEAVED = ("default", "partial", "linear", "dynamic", "llama3", "yarn")
CASES = [(name, True) for name in VARIANTS] + [(name, False) for name in INTERLEAVED]

EIGHTH_TURN = Rotation(torch.full((1, 1), 0.5**0.5), torch.full((1, 1), 0.5**0.5), is_neox=True)


def tokens(dtype=torch.float32, seed=0, num_positions=MAX_POSITION):
    """Keys, and old and new positions."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(NUM_TOKENS, NUM_HEADS, HEAD_SIZE, generator=generator).to(dtype)
    old, new = torch.randint(num_positions, (2, NUM_TOKENS), generator=generator)
    return keys, old, new


def make_rope(monkeypatch, name, is_neox, dtype):
    """vLLM's rotary embedding of a variant."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers import rotary_embedding

    # Its cache of embeddings does not know that longrope's depends on the model's maximum length.
    monkeypatch.setattr(rotary_embedding, "_ROPE_DICT", {})
    config = VllmConfig()
    max_model_len = ORIGINAL if name == "longrope, short" else MAX_POSITION
    config.model_config = SimpleNamespace(max_model_len=max_model_len)
    with set_current_vllm_config(config):
        return rotary_embedding.get_rope(
            HEAD_SIZE, MAX_POSITION, is_neox, dict(VARIANTS[name]), dtype
        )


def cos_sin_cache(rope):
    if not hasattr(rope, "long_short_cos_sin_cache"):
        return rope.cos_sin_cache
    short, long = rope.long_short_cos_sin_cache.split([ORIGINAL, MAX_POSITION])
    return long if rope.use_long_rope else short


def keys_at(rope, positions, keys):
    """Keys as the embedding itself turns them."""
    forward = getattr(rope, "forward_native", rope.forward)
    flat = keys.flatten(1)
    return forward(positions, flat.clone(), flat.clone())[1].view(keys.shape)


def relative_error(actual, expected):
    return ((actual - expected).float().norm() / expected.float().norm()).item()


def relocation_error(rope, is_neox, dtype, seed):
    """How far relocated keys are from keys that are computed at the new positions."""
    cache = cos_sin_cache(rope)
    keys, old, new = tokens(dtype, seed, len(cache))
    rotation = Rotation.between(cache, old, new, is_neox=is_neox)
    relocated = rotate_keys(keys_at(rope, old, keys), rotation)
    return relative_error(relocated, keys_at(rope, new, keys))


@pytest.mark.parametrize(("name", "is_neox"), CASES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
def test_relocated_keys_are_those_of_the_new_positions(
    monkeypatch, record_property, name, is_neox, dtype, bound
):
    rope = make_rope(monkeypatch, name, is_neox, dtype)
    error = max(relocation_error(rope, is_neox, dtype, seed) for seed in range(5))
    record_property("relative_error", error)
    assert error < bound


@pytest.mark.parametrize("is_neox", [True, False])
def test_a_pair_is_turned_by_the_difference_of_its_angles(is_neox):
    keys, old, new = tokens()
    speed = torch.tensor([1.0, 0.01])
    angles = torch.arange(MAX_POSITION)[:, None] * speed
    # Any scale of the rows cancels.
    cache = 1.7 * torch.cat([angles.cos(), angles.sin()], dim=1)
    rotated = rotate_keys(keys, Rotation.between(cache, old, new, is_neox=is_neox))
    for pair, (a, b) in enumerate([(0, 2), (1, 3)] if is_neox else [(0, 1), (2, 3)]):
        before = torch.complex(keys[..., a], keys[..., b])
        turn = torch.polar(torch.ones(NUM_TOKENS), (new - old) * speed[pair])
        expected = before * turn[:, None]
        after = torch.complex(rotated[..., a], rotated[..., b])
        torch.testing.assert_close(after, expected, atol=1e-3, rtol=0)
    assert torch.equal(rotated[..., 4:], keys[..., 4:])


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.7])
def test_8_bit_keys_are_rounded_to_the_nearest_whatever_their_scale(scale):
    keys, old, new = tokens()
    angles = torch.arange(MAX_POSITION)[:, None] * torch.tensor([1.0, 0.1, 0.01])
    cache = torch.cat([angles.cos(), angles.sin()], dim=1)
    rotation = Rotation.between(cache, old, new, is_neox=True)
    stored = (keys / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    rotated = scale * rotate_keys(stored, rotation).float()
    exact = rotate_keys(scale * stored.float(), rotation)
    # Half of the last of 3 bits, and of the smallest number there is.
    bound = (exact.abs() / 16).clamp(min=scale * 2**-10)
    assert ((rotated - exact).abs() <= 1.0001 * bound).all()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_8_bit_keys_saturate(dtype):
    largest = torch.finfo(dtype).max
    rotated = rotate_keys(torch.full((1, 1, 2), largest).to(dtype), EIGHTH_TURN).float()
    assert rotated.tolist() == [[[0.0, largest]]]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
)
def test_keys_that_stay_where_they_are_do_not_change(dtype):
    keys, old, _ = tokens(dtype)
    before = keys.clone()
    angles = torch.arange(MAX_POSITION)[:, None] * torch.tensor([1.0, 0.1, 0.01])
    cache = torch.cat([angles.cos(), angles.sin()], dim=1)
    rotated = rotate_keys(keys, Rotation.between(cache, old, old, is_neox=True))
    assert rotated.dtype == dtype
    assert torch.equal(rotated.float(), before.float())
    assert torch.equal(keys.float(), before.float())
