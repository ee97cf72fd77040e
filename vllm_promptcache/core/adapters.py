"""Which weights of a LoRA adapter a request runs with.

KV depends on an adapter's weights, and nothing that a request says of its adapter stands for these:
a name can be given to other files, an id is any number, and files are written anew and loaded in
place. So every request with an adapter gets a name here for the weights that it runs with. Keys of
modules, hashes of blocks and all that is remembered of a request are made with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec
from vllm.lora.request import LoRARequest
from vllm.v1.request import Request, RequestStatus

from vllm_promptcache.compat.requests import name_adapter
from vllm_promptcache.log import module_logger
from vllm_promptcache.steps.adapter_files import fingerprint_files

NAME_BYTES = 16
MAX_NUM_ADAPTERS = 4096
"""Adapters that are remembered; each load over HTTP has an id of its own."""

logger = module_logger(__name__)


@dataclass(slots=True)
class _Adapter:
    """What is known of an adapter.

    Attributes:
        generation: Another number after each time that its weights may have changed.
        files: Fingerprint of the files that workers have loaded last; None if it is not known.
    """

    generation: int
    files: bytes | None = None


@dataclass(slots=True)
class Adapters:
    """Names the weights that requests run with, for one engine.

    The workers load an adapter when a step needs it, and say so after that step. An adapter that is
    not in use may leave their memory and be loaded again, from what its files are then.
    """

    _by_id: OrderedDict[int, _Adapter] = field(default_factory=OrderedDict)
    _changed: set[int] = field(default_factory=set)
    _generation: int = 0
    # Of those that are not known; a forgotten one may have had any before.
    _first_generation: int = 0

    def name(self, request: Request) -> None:
        """Names the weights that a request with an adapter runs with, and its blocks by that name.

        Mutates the request. Called when it arrives and, while it waits, when they change.
        """
        if (lora := request.lora_request) is not None:
            name_adapter(request, self._name(lora, request.request_id))

    def reloaded(self, lora_int_id: int) -> None:
        """Takes note that a client had an adapter loaded again, or removed."""
        adapter = self._find(lora_int_id)
        adapter.generation, adapter.files = self._next_generation(), None
        self._changed.add(lora_int_id)

    def loaded(self, adapters: Mapping[int, bytes]) -> None:
        """Takes note of what the workers have loaded.

        Args:
            adapters: By vLLM's id, the fingerprint of an adapter's files then.
        """
        for lora_int_id, files in adapters.items():
            adapter = self._find(lora_int_id)
            if adapter.files not in (None, files):
                adapter.generation = self._next_generation()
                self._changed.add(lora_int_id)
            adapter.files = files

    def take_changed(self) -> set[int]:
        """Returns the ids of adapters whose weights have changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def _name(self, lora: LoRARequest, request_id: str) -> bytes:
        adapter, files = self._find(lora.lora_int_id), fingerprint_files(lora.lora_path)
        parts = [lora.lora_name, lora.lora_int_id, lora.lora_path, adapter.generation, files]
        if not lora.load_inplace and adapter.files not in (None, files):
            # In the workers' memory are the old weights, until these need room for other adapters.
            logger.warning_once(
                "The files of LoRA adapter %r are not those that were loaded. Until it is loaded "
                "again (load_inplace), its requests share neither modules nor blocks.",
                lora.lora_name,
            )
            parts.append(request_id)
        return sha256(msgspec.msgpack.encode(parts)).digest()[:NAME_BYTES]

    def _find(self, lora_int_id: int) -> _Adapter:
        adapter = self._by_id.setdefault(lora_int_id, _Adapter(self._first_generation))
        self._by_id.move_to_end(lora_int_id)
        if len(self._by_id) > MAX_NUM_ADAPTERS:
            self._by_id.popitem(last=False)
            self._first_generation = self._next_generation()
        return adapter

    def _next_generation(self) -> int:
        self._generation += 1
        return self._generation


def runs_with(request: Request, lora_int_ids: Collection[int]) -> bool:
    """Whether a request runs with one of some adapters."""
    return request.lora_request is not None and request.lora_request.lora_int_id in lora_int_ids


def not_started(lora_int_ids: Collection[int], requests: Iterable[Request]) -> list[Request]:
    """Those of some requests that run with adapters and have read and computed nothing yet."""
    return [
        request
        for request in requests
        if runs_with(request, lora_int_ids)
        and request.num_computed_tokens == 0
        and request.status != RequestStatus.RUNNING
        and not request.is_finished()
    ]
