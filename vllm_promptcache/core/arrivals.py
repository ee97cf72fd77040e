"""New requests: their plans are read, and say what they read of modules."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import TypeAlias

from vllm.v1.request import Request

from vllm_promptcache.core.promotion.promotions import Promotions
from vllm_promptcache.core.reports.account import Account
from vllm_promptcache.core.request import ModularRequest
from vllm_promptcache.errors import PlanError
from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.sequence.codec import DETAIL_KEY, PLAN_KEY, unpack_plan
from vllm_promptcache.sequence.promoted import PromotedPrompt
from vllm_promptcache.sequence.prompt import ModulePrompt
from vllm_promptcache.sequence.spans import SequencePlan

Detail: TypeAlias = dict[str, list[tuple[str, str]]]
"""Path of each span of a plan, and of each link, and what it is read as, for a client that asks."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Makes the state of new requests.

    Attributes:
        promotions: Says which requests read a chain in place of what their plans say.
        fits: Whether the pool can hold a request, should its modules be gone again.
        block_size: Tokens a block.
        max_rows: Rows of attention that a request may take; None for any number.
    """

    promotions: Promotions
    fits: Callable[[ModularRequest], bool]
    block_size: int
    max_rows: int | None

    def read(self, request: Request) -> ModularRequest | None:
        """Takes the plan out of a request; returns what it says, None if there is none.

        Mutates the request: its parameters are without the plan then.

        Raises:
            PlanError: The plan is bad, or the engine cannot take it.
        """
        packed, detail = _take_plan(request)
        if packed is None:
            return None
        plan = unpack_plan(packed, num_prompt_tokens=request.num_prompt_tokens)
        prompt = ModulePrompt.of(plan, request.prompt_token_ids or ())
        modular = self._promoted(request, prompt, detail)
        modular = modular or self._as_planned(request, prompt, detail)
        self._check_rows(modular)
        return modular

    def _as_planned(
        self, request: Request, prompt: ModulePrompt, detail: Detail | None
    ) -> ModularRequest:
        modular = self._of(request, prompt, prompt.plan.sequence)
        modular.attended = prompt.plan.attended
        if detail is not None:
            modular.account.modules = detail["modules"]
        return modular

    def _promoted(
        self, request: Request, prompt: ModulePrompt, detail: Detail | None
    ) -> ModularRequest | None:
        plan = prompt.plan
        if not plan.can_promote:
            return None
        num_links = self.promotions.num_ready(prompt, request)
        is_whole = num_links == len(plan.links)
        if not is_whole and num_links <= plan.num_exact_links:
            return None
        promoted = PromotedPrompt.of(plan, num_links)
        modular = self._of(request, prompt, promoted.sequence)
        if not self.fits(modular):
            return None
        modular.attended = promoted.attended
        self.promotions.served(is_whole=is_whole)
        modular.account.num_links, modular.account.is_promoted = num_links, is_whole
        if detail is not None:
            others = (detail["modules"][number] for number in promoted.numbers)
            modular.account.modules = [*detail["links"][:num_links], *others]
        return modular

    def _of(self, request: Request, prompt: ModulePrompt, sequence: SequencePlan) -> ModularRequest:
        return ModularRequest(
            request,
            prompt,
            BlockTable.of(sequence, self.block_size),
            Account(prompt.plan.schema),
            reads_private_blocks=not request.skip_reading_prefix_cache,
        )

    def _check_rows(self, modular: ModularRequest) -> None:
        num_rows = modular.table.num_attention_rows
        if self.max_rows is not None and num_rows > self.max_rows:
            raise PlanError(
                f"the prompt takes {num_rows} rows of attention, the engine {self.max_rows} "
                "(max_num_seqs), and chunked prefill is off"
            )


def _take_plan(request: Request) -> tuple[object, Detail | None]:
    """Takes a plan, and the detail that a client asked for, out of a request's parameters.

    Workers are sent the parameters. These are copied, since several requests may share them.
    """
    params = request.sampling_params
    if params is None or PLAN_KEY not in (params.extra_args or ()):
        return None, None
    extra_args = dict(params.extra_args)
    packed, detail = extra_args.pop(PLAN_KEY), extra_args.pop(DETAIL_KEY, None)
    request.sampling_params = copy(params)
    request.sampling_params.extra_args = extra_args or None
    return packed, detail
