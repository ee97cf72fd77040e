"""Plans: a prompt against its schema's layout, and the form in which a plan reaches the engine."""

from vllm_promptcache.plan.explain import Explanation
from vllm_promptcache.plan.parts import NewTokens, PlannedModule
from vllm_promptcache.plan.planner import Planner
from vllm_promptcache.plan.prompt_plan import PromptPlan

__all__ = ["Explanation", "NewTokens", "PlannedModule", "Planner", "PromptPlan"]
