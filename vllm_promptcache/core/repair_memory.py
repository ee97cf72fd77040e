"""What was repaired in earlier prompts, so that the turns of a conversation go on with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm_promptcache.core.bounded import forget_oldest
from vllm_promptcache.core.query_repair import Chosen
from vllm_promptcache.core.request import ModularRequest

# Combinations of modules that are remembered, and prompts of each; the oldest are forgotten.
MAX_NUM_COMBINATIONS = 256
MAX_NUM_PROMPTS = 16


@dataclass(slots=True)
class RepairMemory:
    """Repaired tokens by the modules and the text of a prompt.

    The next turn of a conversation begins with the prompt of the last one. With the same tokens
    repaired it needs no probe, and it finds what that prompt has behind its modules.
    """

    _by_modules: dict[tuple[object, ...], dict[tuple[int, ...], Chosen]] = field(
        default_factory=dict
    )

    def find(self, modular: ModularRequest) -> Chosen | None:
        """What was repaired in the longest prompt that this one begins with; None without any."""
        prompts = self._by_modules.get(_modules(modular), {})
        text = _text(modular)
        known = [begin for begin in prompts if text[: len(begin)] == begin]
        return prompts[max(known, key=len)] if known else None

    def add(self, modular: ModularRequest, chosen: Chosen) -> None:
        """Takes note of what is repaired in a prompt that is as its plan has it."""
        modules = _modules(modular)
        prompts = self._by_modules.pop(modules, {})
        self._by_modules[modules] = prompts
        prompts[_text(modular)] = chosen
        forget_oldest(self._by_modules, MAX_NUM_COMBINATIONS)
        forget_oldest(prompts, MAX_NUM_PROMPTS)


def _modules(modular: ModularRequest) -> tuple[object, ...]:
    spans = [(key, span.runs) for span, key in modular.span_keys()]
    # Tenants choose their salts: what one has asked must not show in what another one is told.
    return modular.request.cache_salt, tuple(modular.attended), *spans


def _text(modular: ModularRequest) -> tuple[int, ...]:
    return tuple((modular.request.prompt_token_ids or ())[modular.sequence.num_cached_tokens :])
