"""The host-memory tier's KV, in a worker."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from vllm_promptcache.core.step import HostMove, ModuleBlocks
from vllm_promptcache.kernels.reference import SlotCopier
from vllm_promptcache.store.disk_tier import KEY_BYTES
from vllm_promptcache.worker.disk_store import DiskStore
from vllm_promptcache.worker.module_file import ModuleFile


@dataclass(slots=True)
class HostStore:
    """Holds the blocks of modules that have left the KV cache, as the scheduler says.

    Attributes:
        copier: Reads and writes blocks of all layers.
        disk: Where modules are kept for good.
    """

    copier: SlotCopier
    disk: DiskStore | None = None
    _blocks: dict[bytes, torch.Tensor] = field(default_factory=dict)

    def apply(self, move: HostMove) -> None:
        """Does one move. Mutates the KV cache.

        Raises:
            KeyError: Scheduler and worker disagree on what is here.
        """
        match move.action, move.module:
            case "save", ModuleBlocks(key, block_ids):
                self._blocks[key] = self.copier.read_blocks(block_ids)
            case "restore", ModuleBlocks(key, block_ids):
                self.copier.write_blocks(block_ids, self._blocks[key])
            case "drop", ModuleBlocks(key):
                # Gone already if all were cleared while a read was on its way.
                self._blocks.pop(key, None)
            case "fetch", ModuleBlocks(key) if self.disk is not None:
                self.disk.read(key)
            case _:
                self._clear()

    def take_read(self) -> tuple[list[tuple[bytes, int, int]], list[bytes]]:
        """Takes over what has been read from disk; see `WorkerReport`."""
        if self.disk is None:
            return [], []
        modules, absent = self.disk.take_read()
        for module in modules:
            self._blocks[module.key] = module.blocks
        return [(m.key, m.num_tokens, m.blocks.shape[1]) for m in modules], absent

    def keep(self, module: ModuleBlocks) -> None:
        """Writes a module that was just encoded to disk, if there is a disk tier."""
        if self.disk is not None and len(module.key) == KEY_BYTES:
            blocks = self.copier.read_blocks(module.block_ids)
            self.disk.write(ModuleFile(module.key, module.num_tokens, blocks))

    def _clear(self) -> None:
        self._blocks.clear()
        if self.disk is not None:
            self.disk.forget_model()
