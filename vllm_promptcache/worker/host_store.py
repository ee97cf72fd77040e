"""The host-memory tier's KV, in a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from vllm_promptcache.core.step import HostMove, ModuleBlocks
from vllm_promptcache.kernels.reference import SlotCopier


@dataclass(slots=True)
class HostStore:
    """Holds the blocks of modules that have left the KV cache, as the scheduler says.

    Attributes:
        copier: Reads and writes blocks of all layers.
    """

    copier: SlotCopier
    _blocks: dict[bytes, torch.Tensor] = field(default_factory=dict)

    def apply(self, moves: Sequence[HostMove]) -> None:
        """Does a step's moves in order. Mutates the KV cache.

        Raises:
            KeyError: Scheduler and worker disagree on what is here.
        """
        for move in moves:
            match move.action, move.module:
                case "save", ModuleBlocks(key, block_ids):
                    self._blocks[key] = self.copier.read_blocks(block_ids)
                case "restore", ModuleBlocks(key, block_ids):
                    self.copier.write_blocks(block_ids, self._blocks[key])
                case "drop", ModuleBlocks(key):
                    del self._blocks[key]
                case _:
                    self._blocks.clear()
