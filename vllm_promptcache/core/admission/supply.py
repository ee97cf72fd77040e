"""Where a missing module comes from: its origin, a tier below the KV cache, or an encode."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_promptcache.core.admission.encodes import Encodes
from vllm_promptcache.core.reports.metrics import ModuleMetrics
from vllm_promptcache.core.request import EncodeRequest, ModularRequest
from vllm_promptcache.core.tiers.tiers import ModuleTiers
from vllm_promptcache.sequence.spans import Relocation
from vllm_promptcache.store import ModuleStore, Pins


@dataclass(frozen=True, slots=True)
class ModuleSupply:
    """Makes missing modules resident in the cheapest way there is."""

    store: ModuleStore
    pins: Pins
    tiers: ModuleTiers
    encodes: Encodes
    metrics: ModuleMetrics

    def provide(self, modular: ModularRequest, key: bytes) -> EncodeRequest | None:
        """Makes a missing module of a plan resident, or starts what will.

        Returns:
            An encode that was started and has to run; None if the module is here now, is on its
            way, or is being encoded already.

        Raises:
            PlanError: As `encode`.
        """
        store_key = modular.store_key(key)
        if (relocation := self.tiers.relocation_of(modular, key)) is not None:
            return self._relocate(modular, relocation)
        if self.tiers.may_have(store_key):
            self._bring_back(store_key)
        elif not self.encodes.join(store_key, modular):
            return self.encode(modular, key)
        return None

    def encode(self, waiter: ModularRequest, key: bytes) -> EncodeRequest:
        """Starts the encode of a module of the waiter's plan, and counts it.

        Raises:
            PlanError: The packed module is malformed.
        """
        waiter.account.encoded_keys.add(waiter.store_key(key))
        return self.encodes.start(waiter, key)

    def _relocate(self, modular: ModularRequest, relocation: Relocation) -> EncodeRequest | None:
        """Makes a module from its origin; that one comes first if it is missing."""
        encode = None
        key = modular.store_key(relocation.key)
        origin_key = modular.store_key(relocation.origin)
        if self.store.lookup(origin_key) is None:
            encode = self.provide(modular, relocation.origin)
            if encode is not None:
                modular.account.encoded_keys.add(key)
        origin = self.store.lookup(origin_key)
        if origin is not None:
            kept = modular.prompt.spec(relocation.origin).kept_position_runs
            self.tiers.relocate(origin, key, kept, relocation.shift)
        return encode

    def _bring_back(self, key: bytes) -> None:
        """Brings a module back from where it may be, if there is room."""
        module = self.tiers.bring_back(key)
        if module is not None:
            self.pins.fulfil(key)
            self.metrics.restored(module)
