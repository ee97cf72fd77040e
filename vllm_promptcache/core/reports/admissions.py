"""What is noted when requests are admitted, once vLLM has counted what they reuse."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm_promptcache.core.reports.metrics import ModuleMetrics
from vllm_promptcache.core.reports.usage import uncount_encoded
from vllm_promptcache.core.request import InternalRequest, ModularRequest
from vllm_promptcache.core.tiers.tiers import ModuleTiers
from vllm_promptcache.store import ModuleStore, Pins


@dataclass(frozen=True, slots=True)
class Admissions:
    """Notes the requests that are admitted in a step, and that their modules are used."""

    store: ModuleStore
    tiers: ModuleTiers
    pins: Pins
    metrics: ModuleMetrics
    _admitted: list[ModularRequest] = field(default_factory=list)

    def add(self, modular: ModularRequest) -> None:
        """A request was admitted."""
        self._admitted.append(modular)

    def end_step(self) -> None:
        """The step is scheduled: what requests reuse is counted by now."""
        for modular in self._admitted:
            uncount_encoded(modular)
            for key in {key for _, key in modular.span_keys()} - modular.account.encoded_keys:
                self.store.histories.used(key).num_hits += 1
                self.tiers.used(key)
                self.pins.fulfil(key)
            if not isinstance(modular, InternalRequest):
                self.metrics.admitted(modular)
        self._admitted.clear()
