"""Modules in the engine, as an API server sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any
from uuid import uuid4

from vllm.sampling_params import SamplingParams

from vllm_promptcache.core.reports.introspection import (
    PIN_UTILITY,
    RESIDENTS_UTILITY,
    STATUS_UTILITY,
    ModuleStatus,
)
from vllm_promptcache.entrypoints.engine_request import planned_prompt
from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.entrypoints.module_status import by_module, joined, keys_by_module
from vllm_promptcache.entrypoints.pinning import engine_pins
from vllm_promptcache.entrypoints.warming import Warming
from vllm_promptcache.errors import ConflictError, PromptCacheError
from vllm_promptcache.layout import SchemaLayout
from vllm_promptcache.log import module_logger
from vllm_promptcache.plan import Explanation, PromptPlan
from vllm_promptcache.pml import Pin

# Behind whatever users ask for, where the scheduler heeds priorities.
_LAST = 2**31 - 1

logger = module_logger(__name__)


@dataclass(frozen=True, slots=True)
class EngineModules:
    """Asks the engine about modules, and makes it encode them.

    Attributes:
        front_end: Plans prompts.
        client: vLLM's client of the engine.
    """

    front_end: FrontEnd
    client: Any

    async def status(self, layout: SchemaLayout) -> list[ModuleStatus]:
        """The status of each module of a schema, that of all ranks together.

        Empty for a private schema, whose modules are those of tenants.
        """
        if layout.private:
            return []
        keys = chain.from_iterable(keys_by_module(layout))
        return by_module(layout, await self._status(list(keys)))

    async def warm(self, layout: SchemaLayout, salt: str | None) -> None:
        """Encodes all modules of a schema, behind the requests of users where it can be.

        Raises:
            ClientError: It is private and there is no salt.
            ConflictError: It is not the one that is served, or not any more.
        """
        planner = self.front_end.planner
        plans = await asyncio.to_thread(planner.warm_plans, layout.name, salt=salt)
        await Warming(layout, plans, self._encode, lambda: planner.schemas.serves(layout)).run()

    async def pin(self, layout: SchemaLayout, pin: Pin | None = None) -> bool:
        """Pins the modules of a schema that it or `pin` says, and no other of it.

        Returns:
            Whether there are any. Those that are not resident are held once they are encoded.

        Raises:
            ConflictError: Too much of the KV cache would be pinned; nothing has changed.
            ClientError: The schema is private.
        """
        pins = engine_pins(layout, self.front_end.block_size, pin)
        for refusal in await self._call(PIN_UTILITY, layout.name, pins):
            if refusal:
                raise ConflictError(refusal)
        return bool(pins)

    async def unpin(self, name: str) -> None:
        """Lets go of all modules that a schema has pinned."""
        await self._call(PIN_UTILITY, name, [])

    async def start(self) -> None:
        """Pins what the documents of all schemas ask for, and encodes it; logs what fails."""
        for layout in self.front_end.planner.schemas.layouts.values():
            try:
                if await self.pin(layout):
                    await self.warm(layout, None)
            except PromptCacheError as error:
                logger.error("Schema %s is not pinned: %s", layout.name, error)

    async def residents(
        self, known: Sequence[str]
    ) -> list[tuple[str, list[tuple[bytes, int]] | None]]:
        """The modules in the KV cache of each engine; see `prompt_module_residents`."""
        return [tuple(answer) for answer in await self._call(RESIDENTS_UTILITY, list(known))]

    async def explain(self, name: str, prompt: str, salt: str | None) -> dict[str, Any]:
        """Explains a prompt: its layout, what is resident, what would be computed.

        Raises:
            PMLError: The prompt is not valid, or does not fit its schema.
        """
        plan, explained = await self.client.renderer.planning.run(self._explain, prompt, salt)
        status = await self._status([item.layout.key for item in plan.modules])
        num_encoded = 0
        for planned, module, found in zip(plan.modules, explained["modules"], status, strict=True):
            module["tier"] = found.tier
            num_encoded += planned.num_tokens * (found.tier is None)
        return explained | {"num_tokens_to_encode": num_encoded}

    def _explain(self, prompt: str, salt: str | None) -> tuple[PromptPlan, dict[str, Any]]:
        plan = self.front_end.plan(prompt, salt=salt)
        return plan, Explanation.of(plan).to_dict()

    async def _status(self, keys: Sequence[bytes]) -> list[ModuleStatus]:
        answers = await self._call(STATUS_UTILITY, list(keys))
        return [
            joined([ModuleStatus(*status) for status in ranks])
            for ranks in zip(*answers, strict=True)
        ]

    async def _call(self, utility: str, *args: Any) -> list[Any]:
        """Calls a utility of all engines."""
        core = self.client.engine_core
        # Only clients of several engines can ask all of them.
        call_all = getattr(core, "call_utility_all_async", None)
        if call_all is not None:
            answers: list[Any] = await call_all(utility, *args)
            return answers
        return [await core.call_utility_async(utility, *args)]

    async def _encode(self, plan: PromptPlan) -> None:
        renderer = self.client.renderer
        (prompt,) = await renderer.render_cmpl_async([planned_prompt("", plan)])
        params = SamplingParams(max_tokens=1, detokenize=False)
        is_ranked = self.front_end.vllm_config.scheduler_config.policy == "priority"
        priority = _LAST if is_ranked else 0
        async for _ in self.client.generate(prompt, params, f"warm-{uuid4()}", priority=priority):
            pass
