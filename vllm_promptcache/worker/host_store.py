"""The host-memory tier's KV, in a worker."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm_promptcache.kernels.reference import SlotCopier
from vllm_promptcache.kernels.transfers import HostCopy
from vllm_promptcache.log import module_logger
from vllm_promptcache.steps.step import HostMove, ModuleBlocks
from vllm_promptcache.store.disk_tier import KEY_BYTES, ReadModule
from vllm_promptcache.worker.disk_store import DiskStore
from vllm_promptcache.worker.module_file import ModuleFile

logger = module_logger(__name__)


@dataclass(slots=True)
class HostStore:
    """Holds the blocks of modules that have left the KV cache, as the scheduler says.

    Those of a GPU may still be on their way here: who writes a file waits for them, no step does.

    Attributes:
        copier: Reads and writes blocks of all layers.
        disk: Where modules are kept for good.
        num_clears: How often all were forgotten.
    """

    copier: SlotCopier
    disk: DiskStore | None = None
    num_clears: int = 0
    _blocks: dict[bytes, HostCopy] = field(default_factory=dict)
    # Fetches that were answered at once.
    _absent: list[bytes] = field(default_factory=list)

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
            case "fetch", ModuleBlocks(key):
                self._absent.append(key)
            case "clear", None:
                self._clear()
            case action, _:
                logger.warning_once("Prompt modules: a move %r means nothing here", action)

    def take_read(self) -> tuple[list[ReadModule], list[bytes]]:
        """Takes over what has been read from disk; see `WorkerReport`."""
        absent, self._absent = self._absent, []
        if self.disk is None:
            return [], absent
        modules, not_read = self.disk.take_read()
        found = []
        for module in modules:
            if self.copier.fits(module.blocks, module.num_tokens):
                # One that was saved meanwhile is whole; of this one others may lack their shards.
                self._blocks.setdefault(module.key, module.blocks)
                num_blocks = module.blocks.shape[1]
                found.append(
                    ReadModule(module.key, module.num_tokens, num_blocks, module.encode_id)
                )
            else:
                shape = tuple(module.blocks.shape)
                logger.warning_once(
                    "Prompt modules are encoded again: files hold no blocks of this KV cache, but "
                    "%s of %s for %d tokens",
                    shape,
                    module.blocks.dtype,
                    module.num_tokens,
                )
                absent.append(module.key)
        return found, absent + not_read

    def keep(self, module: ModuleBlocks, encode_id: bytes) -> None:
        """Writes a module that was just encoded to disk, if there is a disk tier."""
        if self.disk is not None and len(module.key) == KEY_BYTES:
            blocks = self.copier.read_blocks(module.block_ids)
            self.disk.write(ModuleFile(module.key, module.num_tokens, encode_id, blocks))

    def _clear(self) -> None:
        self.num_clears += 1
        self._blocks.clear()
        self._absent.clear()
        if self.disk is not None:
            self.disk.clear()
