"""`LLM`: vLLM's offline engine with prompt modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import vllm
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from vllm_promptcache.compat.engine_core import call_utility
from vllm_promptcache.config import CONFIG_KEY
from vllm_promptcache.core.reports.introspection import PIN_UTILITY
from vllm_promptcache.entrypoints.ended import check_served
from vllm_promptcache.entrypoints.engine_request import plan_if_pml, planned_prompt
from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.entrypoints.pinning import EnginePins, engine_pins, make_pin
from vllm_promptcache.entrypoints.prompt_parts import ModulePart, PromptPart, TextPart, part_texts
from vllm_promptcache.entrypoints.request_options import PromptModules
from vllm_promptcache.entrypoints.schema_info import SchemaInfo
from vllm_promptcache.entrypoints.store_view import ModuleStoreView
from vllm_promptcache.errors import ConflictError, PlanError, UnsupportedError
from vllm_promptcache.plan import Explanation
from vllm_promptcache.plugin import register
from vllm_promptcache.pml import Pin

# Modules that are encoded in one call; a schema may have thousands.
_WARM_BATCH = 256


@dataclass(frozen=True, slots=True)
class Module:
    """Text of a prompt that prompts share, wherever they have it.

    Attributes:
        text: The text.
        name: What reports call it.
    """

    text: str
    name: str | None = None


class LLM(vllm.LLM):
    """`vllm.LLM` that takes PML prompts and reuses the KV of their modules.

    Args:
        model: As for `vllm.LLM`.
        prompt_modules: Options of prompt modules; see `PromptModulesConfig`.
        kwargs: Arguments of `vllm.LLM`.

    Raises:
        UnsupportedError: An option is not for offline use, or the engine cannot have modules.
    """

    def __init__(
        self, model: str | Path, *, prompt_modules: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        register()
        if (prompt_modules or {}).get("prompts_from") == "field":
            # Not ignored: who sets it counts on it that no text is taken for PML.
            raise UnsupportedError(
                "offline there are no requests with a field `prompt_modules`, so `prompts_from` "
                "cannot be 'field'",
                "for texts of end users, pass `prompt_token_ids`",
            )
        additional_config = {
            **(kwargs.pop("additional_config", None) or {}),
            CONFIG_KEY: dict(prompt_modules or {}),
        }
        super().__init__(str(model), additional_config=additional_config, **kwargs)
        for name in self.schemas:
            self._prepare(name, None)

    @property
    def front_end(self) -> FrontEnd:
        """The compiled schemas and the planner."""
        front_end: FrontEnd = self.renderer.front_end
        return front_end

    @property
    def module_store(self) -> ModuleStoreView:
        """The engine's modules: `llm.module_store.stats()`."""
        return ModuleStoreView(self.llm_engine.engine_core, self.front_end)

    def add_schema(
        self,
        source: str | Path,
        *,
        warm: bool = False,
        pin: bool = False,
        ttl: str | None = None,
    ) -> SchemaInfo:
        """Compiles a schema; one of the same name is replaced.

        Args:
            source: PML text, or the path of a file.
            warm: Encode its modules now, not when the first prompt imports them.
            pin: Encode them now and keep them in the KV cache, whatever the document says.
            ttl: For how long they are pinned, such as `1h`.

        Raises:
            PMLError: The schema is not valid.
            ConflictError: More would be pinned than may be; the schema is added without pins.
        """
        wanted = make_pin(wanted=pin, ttl=ttl)
        info = self.front_end.add_schema(source)
        self._prepare(info.name, wanted, warm=warm)
        return info

    def _prepare(self, name: str, pin: Pin | None, *, warm: bool = False) -> None:
        """Pins and encodes what a schema or `pin` asks for."""
        layout = self.front_end.planner.schemas.get(name).layout
        pins = engine_pins(layout, self.front_end.block_size, pin)
        self._pin(name, pins)
        if warm or pins:
            plans = self.front_end.planner.warm_plans(name)
            params = SamplingParams(max_tokens=1, detokenize=False)
            while batch := [planned_prompt("", plan) for plan in islice(plans, _WARM_BATCH)]:
                check_served(super().generate(batch, params))

    def remove_schema(self, name: str) -> None:
        """Forgets a schema; its modules leave the KV cache as room is needed.

        Raises:
            ClientError: There is no such schema.
        """
        self.front_end.planner.schemas.remove(name)
        self._pin(name, [])

    def _pin(self, name: str, pins: EnginePins) -> None:
        core = self.llm_engine.engine_core
        if refusal := call_utility(core, PIN_UTILITY, name, pins):
            call_utility(core, PIN_UTILITY, name, [])
            raise ConflictError(refusal)

    @property
    def schemas(self) -> Mapping[str, SchemaInfo]:
        """The schemas by name (read-only)."""
        return MappingProxyType(self.front_end.schemas)

    def explain(self, prompt: str) -> Explanation:
        """Tells how a PML prompt is laid out: what is reused, what is computed, and where.

        Raises:
            PMLError: The prompt is not valid, or does not fit its schema.
        """
        return self.front_end.explain(prompt)

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        reuse: bool = True,
        **kwargs: Any,
    ) -> list[RequestOutput]:
        """Generates from PML prompts, plain strings and token prompts, mixed as you like.

        All PML prompts are planned before any prompt is run, so that a bad one stops nothing
        half-way.

        Args:
            prompts: One prompt or a sequence, as for `vllm.LLM.generate`. A prompt may also be a
                list of texts and `Module`s.
            sampling_params: As for `vllm.LLM.generate`.
            reuse: False runs each PML prompt as one plain prefill of the same tokens at the same
                positions, with no module: the baseline to compare with.
            kwargs: As for `vllm.LLM.generate`.

        Raises:
            PMLError: A PML prompt is not valid, or does not fit its schema.
            RequestsEnded: The engine could not serve some of them; the outputs are on it.
        """
        if isinstance(prompts, str | Mapping) or _has_modules(prompts):
            prompts = [prompts]
        planned = [self._planned(prompt, reuse=reuse) for prompt in prompts]
        return check_served(super().generate(planned, sampling_params, **kwargs))

    def _planned(self, prompt: Any, *, reuse: bool) -> Any:
        if not _has_modules(prompt):
            return plan_if_pml(self.front_end, prompt, reuse=reuse)
        parts = [_part(part) for part in prompt]
        plan = self.front_end.plan(PromptModules(parts=parts).to_prompt(""), reuse=reuse)
        return planned_prompt("".join(part_texts(parts)), plan)

    def chat(self, *args: Any, **kwargs: Any) -> list[RequestOutput]:
        """As `vllm.LLM.chat`, with messages that may be PML.

        Raises:
            PMLError: A PML message is not valid, or does not fit its schema.
            RequestsEnded: As `generate`.
        """
        return check_served(super().chat(*args, **kwargs))

    def beam_search(self, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        """As `vllm.LLM.beam_search`, which cannot take PML prompts.

        Raises:
            PlanError: A prompt is PML.
        """
        texts = [p.get("prompt") if isinstance(p, Mapping) else p for p in prompts]
        if any(isinstance(text, str) and self.front_end.is_pml(text) for text in texts):
            raise PlanError("beam search cannot be combined with a PML prompt")
        return super().beam_search(prompts, *args, **kwargs)


def _has_modules(prompt: Any) -> bool:
    return isinstance(prompt, list | tuple) and any(isinstance(part, Module) for part in prompt)


def _part(part: str | Module) -> PromptPart:
    return (
        TextPart(text=part)
        if isinstance(part, str)
        else ModulePart(module=part.text, name=part.name)
    )
