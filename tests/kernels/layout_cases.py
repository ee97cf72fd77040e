"""What copiers do to KV caches of any layout, against vLLM's logical indexes.

Memory is compared as a whole: nothing but what was asked for may change.
"""

import torch

from vllm_promptcache.kernels.block_rows import BlockRows
from vllm_promptcache.kernels.rotation import rotate_keys

from .layouts import NUM_BLOCKS, Caches
from .test_rotate_blocks import random_rotation

SOURCE, TARGET = [3, 1], [5, 2]


def check_copy(form, make_copier):
    """Slots far apart, in runs, and onto each other's places."""
    actual, expected = Caches(form), Caches(form)
    num_slots = NUM_BLOCKS * form.block_size
    source = torch.cat([torch.arange(5, 40), torch.tensor([2, num_slots - 1, 60])])
    target = torch.cat([torch.arange(3, 38), torch.tensor([60, 41, num_slots - 3])])
    expected[target] = expected[source]
    make_copier(actual).copy(source.numpy(), target.numpy())
    assert torch.equal(actual.memory, expected.memory)


def check_rotate(form, make_copier):
    """A module whose last block is not full is copied with its keys turned."""
    actual, expected = Caches(form), Caches(form)
    num_tokens = form.block_size + 7
    source, target = (slots_of(ids, form)[:num_tokens] for ids in (SOURCE, TARGET))
    rotation = random_rotation(num_tokens, form.head_size)
    key, value = expected[source].chunk(2, dim=-1)
    key = torch.stack([rotate_keys(layer, rotation) for layer in key])
    expected[target] = torch.cat([key, value], dim=-1)
    make_copier(actual).rotate_blocks(SOURCE, TARGET, rotation, head_size=form.head_size)
    # What the last block's unused slots hold is undefined.
    unused = slots_of(TARGET, form)[num_tokens:]
    actual[unused] = expected[unused]
    assert torch.equal(actual.memory, expected.memory)


def check_read(form, make_copier):
    """Blocks that are read hold their slots' elements, and the cache stays as it is."""
    actual, before = Caches(form), Caches(form)
    copier, elements = make_copier(actual), actual.elements()
    blocks = copier.read_blocks(SOURCE)
    assert copier.fits(blocks, form.block_size + 7)
    assert not copier.fits(blocks, form.block_size)
    found = blocks.wait().view(form.dtype)[:, :, elements.T].flatten(1, 2)
    key, value = before[slots_of(SOURCE, form)].chunk(2, dim=-1)
    assert torch.equal(found, torch.cat([key.flatten(2), value.flatten(2)], dim=-1))
    assert torch.equal(actual.memory, before.memory)


def check_write(form, make_copier):
    """Blocks that were read are written elsewhere, whole, and their checksums are the same."""
    actual, expected = Caches(form), Caches(form)
    copier = make_copier(actual)
    expected[slots_of(TARGET, form)] = expected[slots_of(SOURCE, form)]
    copier.write_blocks(TARGET, copier.read_blocks(SOURCE))
    assert torch.equal(actual.memory, expected.memory)
    before, after = (copier.checksum(slots_of(ids, form).numpy()) for ids in (SOURCE, TARGET))
    assert after == before != copier.checksum(slots_of([0, 4], form).numpy())


def check_probe(form, make_copier):
    """The elements of slots are where blocks as rows have them; probing writes nothing."""
    actual, before = Caches(form), Caches(form)
    elements = actual.elements()
    assert torch.equal(actual.memory, before.memory)
    layers = BlockRows.of_layers(actual.layers, elements.numel())
    found = torch.stack([layer.rows[:, elements.T].flatten(0, 1) for layer in layers])
    key, value = before[torch.arange(NUM_BLOCKS * form.block_size)].chunk(2, dim=-1)
    assert torch.equal(found, torch.cat([key.flatten(2), value.flatten(2)], dim=-1))


def slots_of(block_ids, form):
    """All slots of some of the scheduler's blocks."""
    first = torch.tensor(block_ids)[:, None] * form.block_size
    return (first + torch.arange(form.block_size)).flatten()


CHECKS = {
    "copy": check_copy,
    "rotate": check_rotate,
    "read": check_read,
    "write": check_write,
    "probe": check_probe,
}
