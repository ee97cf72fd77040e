"""Plans: a prompt against its schema's layout, and the form in which a plan reaches the engine.

Names are imported when they are first used. The engine takes `codec` and `sequence` alone and needs
neither parser nor tokenizer, and `vllm_promptcache.layout` packs its modules with these two.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_promptcache.plan.explain import Explanation
    from vllm_promptcache.plan.planner import Planner
    from vllm_promptcache.plan.prompt_plan import NewTokens, PlannedModule, PromptPlan

__all__ = ["Explanation", "NewTokens", "PlannedModule", "Planner", "PromptPlan"]

_MODULES = {
    "Explanation": "explain",
    "NewTokens": "prompt_plan",
    "PlannedModule": "prompt_plan",
    "Planner": "planner",
    "PromptPlan": "prompt_plan",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
