"""What a worker does for prompt modules in a step: slot copies and, on request, fingerprints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_promptcache.compat.worker import attention_layers, hide_llvmlite
from vllm_promptcache.config import PromptModulesConfig
from vllm_promptcache.kernels.copier import make_slot_copier
from vllm_promptcache.kernels.reference import SlotCopier
from vllm_promptcache.kernels.transfers import HostCopy
from vllm_promptcache.steps.slots import SlotCopy, ranges, slots_of
from vllm_promptcache.steps.step import ModuleBlocks, RelocationCopy, StepMetadata, WorkerReport
from vllm_promptcache.worker.attention_probe import AttentionProbe, MeasuredAttention
from vllm_promptcache.worker.disk_store import DiskStore
from vllm_promptcache.worker.fingerprint import Fingerprints, Shard, model_fingerprint, weights_of
from vllm_promptcache.worker.host_store import HostStore
from vllm_promptcache.worker.kv_caches import as_floats, find_slot_elements
from vllm_promptcache.worker.placement import Placement
from vllm_promptcache.worker.rotary import Rotary
from vllm_promptcache.worker.runner_inputs import RunnerInputs


@dataclass(slots=True)
class ModuleWorker:
    """Executes the connector's part of a step.

    Attributes:
        copier: Reads and writes slots of all layers.
        block_size: Slots a block.
        host: Modules in host memory.
        placement: Where the tokens of the step go.
        rotary: How the model rotates its keys; None if modules cannot be relocated.
        probe: Measures attention; None if it cannot be measured.
    """

    copier: SlotCopier
    block_size: int
    host: HostStore
    placement: Placement
    rotary: Rotary | None
    probe: AttentionProbe | None = None
    _has_reported: bool = False
    _fingerprints: Fingerprints = field(default_factory=Fingerprints)
    _attention: dict[str, HostCopy] = field(default_factory=dict)
    _adapters: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        vllm_config: VllmConfig,
        kv_caches: dict[str, torch.Tensor],
        model: torch.nn.Module,
        inputs: RunnerInputs,
    ) -> ModuleWorker:
        """Probes how the backend lays out the KV of a slot, and how the model rotates its keys.

        Args:
            vllm_config: The engine's.
            kv_caches: KV cache of each layer, as vLLM registers it.
            model: The model; its weights may change later.
            inputs: Those of the model's runner.

        Raises:
            UnsupportedError, ValueError: See `as_floats` and `find_slot_elements`.
        """
        layers = attention_layers(vllm_config, kv_caches)
        block_size = vllm_config.cache_config.block_size
        floats = as_floats(layers, kv_caches)
        elements = find_slot_elements(layers, kv_caches, block_size)
        copier = make_slot_copier(list(floats.values()), elements)
        hide_llvmlite()
        config = PromptModulesConfig.of(vllm_config)
        disk = None
        if config.dir is not None:
            layout, shard = elements.numpy().tobytes(), Shard.of_this_worker()
            disk = DiskStore(
                Path(config.dir),
                int(config.dir_size * 2**30),
                lambda: model_fingerprint(weights_of(model), floats, layout, shard),
            )
        host = HostStore(copier, disk)
        rotary = Rotary.find(model, kv_caches)
        probe = AttentionProbe.create(layers, floats, elements)
        return cls(copier, block_size, host, Placement(inputs), rotary, probe)

    def begin(self, step: StepMetadata) -> None:
        """Moves modules to and from host memory and to other places, in the order given; then
        compares those that are mapped with their fingerprints.

        Mutates the cache. Nothing here waits for the device, but for fingerprints: copies are in
        the order of the stream, so what a move reads is read before anything behind it is written,
        and need not have been read when this returns. vLLM calls this in every step, also in one
        that computes nothing.
        """
        for move in step.moves:
            if isinstance(move, RelocationCopy):
                self._relocate(move)
                if step.is_verified:
                    self._fingerprints.take(move.target.key, self._fingerprint(move.target))
            else:
                self.host.apply(move)
                if step.is_verified and move.action == "restore" and move.module is not None:
                    self._note_restored(move.module)
        for check in step.checks:
            self._fingerprints.check(check.key, self._fingerprint(check))

    def before_forward(self, step: StepMetadata) -> None:
        """Copies tails of modules. Mutates the cache."""
        self._copy(step.loads)

    def after_forward(self, step: StepMetadata) -> None:
        """Compacts modules whose encode has ended and fingerprints them. Mutates the cache."""
        self.placement.end()
        # First of all: whoever reads the answer waits for what was launched before it.
        if step.observed and self.probe is not None:
            self._attention |= self.probe.take()
        self._copy(step.stores)
        for module in step.encoded:
            self.host.keep(module, step.encode_id)
            if step.is_verified:
                self._fingerprints.take(module.key, self._fingerprint(module))

    def split_rows(
        self, batch: CommonAttentionMetadata, block_size: int
    ) -> CommonAttentionMetadata | None:
        """What attention is told of the step's batch, None for what vLLM has made.

        Args:
            batch: As vLLM made it; not changed.
            block_size: Of the attention backend.
        """
        if self.placement.split is None:
            return None
        return self.placement.split.apply(batch, self.block_size // block_size)

    def place(self, prepared: Any) -> None:
        """Gives the tokens of the step their places, and observes some of them.

        Args:
            prepared: What the runner has prepared; mutated.
        """
        batch, observed = self.placement.place(prepared), self.placement.step.observed
        if observed and self.probe is not None:
            self.probe.start(batch.observed(observed))

    def report(self) -> WorkerReport | None:
        """Tells what the worker found out and, once, what it can do; None if there is no news."""
        found, absent = self.host.take_read()
        attention, self._attention = self._attention, {}
        adapters, self._adapters = self._adapters, {}
        if not (found or absent or attention or adapters) and self._has_reported:
            return None
        self._has_reported = True
        can_relocate, num_clears = self.rotary is not None, self.host.num_clears
        measured = MeasuredAttention(attention)
        return WorkerReport(found, absent, can_relocate, measured, adapters, num_clears)

    def loaded_adapter(self, lora_int_id: int, files: bytes) -> None:
        """A LoRA adapter was read from its files, which have this fingerprint."""
        self._adapters[lora_int_id] = files

    def forget_model(self) -> None:
        """The model has other weights now: files are found and written for these."""
        if self.host.disk is not None:
            self.host.disk.forget_model()

    def close(self) -> None:
        """Waits until all that is to be kept on disk is there."""
        if self.host.disk is not None:
            self.host.disk.close()

    def _relocate(self, copy: RelocationCopy) -> None:
        assert self.rotary is not None, "the scheduler was told that modules cannot be relocated"
        source, target = copy.source.block_ids, copy.target.block_ids
        rotation = self.rotary.between(copy)
        self.copier.rotate_blocks(source, target, rotation, head_size=self.rotary.head_size)

    def _note_restored(self, module: ModuleBlocks) -> None:
        """A file may be of an earlier engine, whose fingerprints went with it."""
        if module.key not in self._fingerprints:
            self._fingerprints.take(module.key, self._fingerprint(module))

    def _copy(self, copy: SlotCopy | None) -> None:
        if copy is not None:
            self.copier.copy(copy.source, copy.target)

    def _fingerprint(self, check: ModuleBlocks) -> int:
        indexes = ranges([(0, check.num_tokens)])
        return self.copier.checksum(slots_of(check.block_ids, indexes, self.block_size))
