"""What is encoded though nobody waits for it: links of chains, modules that prompts computed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from vllm_promptcache.core.admission.cold import ColdModules
from vllm_promptcache.core.admission.encodes import Encodes
from vllm_promptcache.core.admission.waiting import WaitingRequests
from vllm_promptcache.core.promotion.promotions import Promotions
from vllm_promptcache.core.request import InternalRequest
from vllm_promptcache.errors import PlanError


@dataclass(frozen=True, slots=True)
class EncodesForNobody:
    """Starts them one by one.

    A bad plan is passed over here: requests of the same plan say what is wrong with it.

    Attributes:
        promotions: Which combinations of modules are encoded exactly.
        cold: Which modules prompts computed themselves.
        encodes: The encodes under way.
        waiting: Lets encodes in.
    """

    promotions: Promotions
    cold: ColdModules
    encodes: Encodes
    waiting: WaitingRequests

    def __bool__(self) -> bool:
        """Whether there may be something to encode, or it is under way."""
        return self.encodes.for_nobody is not None or bool(self.promotions) or bool(self.cold)

    def start(self, *, is_idle: bool) -> Sequence[InternalRequest]:
        """Starts the next one, if none is under way; returns it, behind those of its contexts.

        Args:
            is_idle: Whether there is no user's request. Only then there is time for cold modules.
        """
        return self._promote() or (self._encode_cold() if is_idle else [])

    def interrupt(self) -> None:
        """Takes note that what was started last was given up; it is to come later."""
        self.promotions.interrupt()
        self.cold.interrupt()

    def forget(self, lora_int_ids: Collection[int]) -> None:
        """Forgets what would be encoded with weights that have changed, or are gone."""
        self.promotions.forget(lora_int_ids)
        self.cold.forget(lora_int_ids)

    def _promote(self) -> Sequence[InternalRequest]:
        """One link of a chain."""
        while self.encodes.for_nobody is None and (found := self.promotions.next()) is not None:
            modular, key = found
            if modular.store_key(key) in self.encodes:
                self.promotions.interrupt()
                break
            with suppress(PlanError):
                if self.waiting.fits(modular):
                    return self.waiting.encode_for_nobody(modular, key)
            self.promotions.give_up()
        return []

    def _encode_cold(self) -> Sequence[InternalRequest]:
        with suppress(PlanError):
            if self.encodes.for_nobody is None and (found := self.cold.next()) is not None:
                return self.waiting.encode_for_nobody(*found)
        return []
