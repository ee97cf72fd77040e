"""Where modules go when they leave the KV cache, and how they come back."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from vllm.v1.core.kv_cache_utils import KVCacheBlock

from vllm_promptcache.compat.block_pool import before_allocation, has_empty_blocks
from vllm_promptcache.core.request import ModularRequest
from vllm_promptcache.core.step_builder import StepBuilder
from vllm_promptcache.errors import PlanError
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.sequence.spans import Relocation
from vllm_promptcache.steps.step import WorkerReport
from vllm_promptcache.store import (
    DiskTier,
    Eviction,
    GreedyDual,
    HostModule,
    HostTier,
    ModuleStore,
    StoredModule,
)


class ModuleTiers:
    """Host memory and disk below the KV cache, as the scheduler sees them.

    The workers hold the KV; they learn from `step` what to do with it, before anything of the step
    is read or written. A module is in host memory for good, or staged there on its way from disk,
    but not both.

    Args:
        store: The resident modules.
        step: Collects the workers' part of a step.
        evicts_by_value: Whether modules leave by what they are worth, else by their last use.
        num_host_blocks: Blocks that host memory has room for.
        has_disk: Whether the workers keep files.
        num_workers: Workers that compute each step.

    Attributes:
        can_relocate: Whether the workers can relocate modules; None until they have said so, which
            they do before any module is resident.
    """

    def __init__(
        self,
        store: ModuleStore,
        step: StepBuilder,
        *,
        evicts_by_value: bool,
        num_host_blocks: int,
        has_disk: bool,
        num_workers: int,
    ) -> None:
        self.can_relocate: bool | None = None
        self.host = HostTier(num_host_blocks)
        max_staged_blocks = max(num_host_blocks, store.block_pool.num_gpu_blocks // 4)
        self._disk = DiskTier(has_disk, max_staged_blocks, num_workers)
        self._num_clears = 0
        self._store = store
        self._step = step
        ranking = GreedyDual() if evicts_by_value else None
        self._eviction = Eviction(store, ranking, self._keep)
        before_allocation(store.block_pool, self._eviction.make_room)

    def used(self, key: bytes) -> None:
        """Takes note that a request reads a resident module."""
        self._eviction.use(key)

    def encoded(self, key: bytes) -> None:
        """Takes note that a module was encoded."""
        self._store.histories.used(key).num_encodes += 1
        self._disk.written(key)
        self._eviction.use(key)

    def may_have(self, key: bytes) -> bool:
        """Whether a module that is not resident can come back, or it is not known yet."""
        return key in self.host or self._disk.may_have(key)

    def bring_back(self, key: bytes, *, evicting: bool = True) -> StoredModule | None:
        """Brings a module back if it is in host memory and there is room.

        Args:
            key: A module that is not resident.
            evicting: Whether others may leave for it.

        Returns:
            The module, which nobody holds yet. None if it has to wait: for room, or for the workers
            to look on disk, which they are told to.
        """
        kept = self.host.get(key) or self._disk.staged(key)
        if kept is not None:
            return self._restore(key, kept) if evicting or self._fits(kept) else None
        if self._disk.ask(key):
            self._step.fetch(key)
        return None

    def relocation_of(self, modular: ModularRequest, key: bytes) -> Relocation | None:
        """How to make a module of a plan from one at another place; None if it is encoded there."""
        return None if self.can_relocate is False else modular.prompt.relocations.get(key)

    def relocate(self, origin: StoredModule, key: bytes, kept: Sequence[Run], shift: int) -> None:
        """Makes a module of one at another place (docs/how-it-works.md: Layouts).

        It is a copy. Without room for one the other module itself is moved, if nobody holds it:
        the first request in the queue would wait for room for ever.

        Args:
            origin: A resident module.
            key: What it is called at the other place; not resident.
            kept: Positions of its tokens where it is.
            shift: Positions between the two places.

        Raises:
            PlanError: It has another number of tokens.
        """
        if sum(run.num_tokens for run in kept) != origin.num_tokens:
            raise PlanError("malformed prompt plan: a module is not what it is moved as")
        pool, num_blocks = self._store.block_pool, len(origin.blocks)
        num_free = pool.get_num_free_blocks() - sum(b.ref_cnt == 0 for b in origin.blocks)
        has_room = num_blocks <= num_free
        if not has_room and any(block.ref_cnt for block in origin.blocks):
            return
        # It must not give way to its own copy.
        pool.touch(origin.blocks)
        blocks = pool.get_new_blocks(num_blocks) if has_room else self._take_over(origin)
        module = self._store.commit(key, blocks, origin.num_tokens, origin.key)
        self._eviction.use(key)
        self._step.relocate(origin, module, kept, shift)
        self._store.stats.num_relocations += 1
        pool.free_blocks(reversed(origin.blocks))
        pool.free_blocks(reversed(blocks))

    def _take_over(self, module: StoredModule) -> list[KVCacheBlock]:
        """Forgets a module; returns its blocks, which the caller has a reference on then."""
        self._store.block_pool.touch(module.blocks)
        self._store.evict(module.key)
        return list(module.blocks)

    def _fits(self, kept: HostModule) -> bool:
        return has_empty_blocks(self._store.block_pool, kept.num_blocks)

    def _restore(self, key: bytes, kept: HostModule) -> StoredModule | None:
        pool = self._store.block_pool
        if kept.num_blocks > pool.get_num_free_blocks():
            return None
        with self.host.keeping(key):
            blocks = pool.get_new_blocks(kept.num_blocks)
        module = self._store.commit(key, blocks, kept.num_tokens)
        self._eviction.use(key)
        self._step.restore(module)
        self._store.stats.num_restores += 1
        self._store.histories.used(key).num_restores += 1
        self._keep_restored(key, kept)
        pool.free_blocks(reversed(blocks))
        return module

    def _keep_restored(self, key: bytes, kept: HostModule) -> None:
        """A module from host memory stays there; one from disk does if there is room."""
        if key in self.host:
            self.host.use(key)
            return
        self._disk.forget(key)
        leaving = self.host.put(key, kept.num_tokens, kept.num_blocks)
        self._step.drop([key] if leaving is None else leaving)

    def _keep(self, module: StoredModule) -> None:
        """Keeps a module that is leaving the KV cache, if host memory has room for it."""
        if module.origin is not None:
            return  # what it was made from is kept
        leaving = self.host.put(module.key, module.num_tokens, len(module.blocks))
        if leaving is not None:
            self._disk.forget(module.key)
            self._step.save(module, leaving)
            self._store.stats.num_saves += 1

    def fetched(self, report: WorkerReport) -> None:
        """Takes note of what workers have read from disk, and of what they can do."""
        # Later reports may be of some of them only.
        self.can_relocate = report.can_relocate and self.can_relocate is not False
        if report.num_clears != self._num_clears:
            return  # it is from before the worker has forgotten all, which is on its way
        read, dropped = self._disk.answered(report.found, report.absent)
        # They may have been encoded and evicted since they were asked for.
        self._step.drop([key for key in dropped if key not in self.host])
        self._store.stats.num_fetches += len(read)

    def drop_unclaimed(self, keep: Collection[bytes] = ()) -> None:
        """Drops what was read from disk for requests that have gone, but for `keep`."""
        self._step.drop(self._disk.take_staged(keep))

    def forget(self) -> None:
        """Forgets all modules in host memory: the model may have changed."""
        self.host.clear()
        self._disk.clear()
        self._num_clears += 1
        self._step.forget_host()
