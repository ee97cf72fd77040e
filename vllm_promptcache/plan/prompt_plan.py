"""What a prompt reuses and what it computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import msgspec

from vllm_promptcache.layout.module_layout import ROOT, ModuleLayout
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.plan.chain import Chain
from vllm_promptcache.plan.parts import NewTokens, PlannedModule, repeated_tokens
from vllm_promptcache.plan.standing import exact_until, is_exact, read_exactly
from vllm_promptcache.sequence.codec import (
    PackedModule,
    Plan,
    pack_plan,
    pack_recipe,
    unpack_recipe,
)
from vllm_promptcache.sequence.prompt import ModulePrompt
from vllm_promptcache.sequence.runs import Run, merge_runs
from vllm_promptcache.sequence.spans import ModuleSpan, SequencePlan


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """A prompt as it is laid out.

    Attributes:
        modules: The root, then the imported cached modules in the order of the block table, and
            what else they were encoded behind, of which nothing is reused; empty for a `baseline`.
        new: Tokens that are computed, by position.
        block_size: Tokens in a KV cache block.
        prompt_token_ids: All tokens in the order of reading, which is that of their positions:
            decoded, they are the prompt's text; `[num_tokens]`.
        request: What travels to the engine beside these tokens.
        packed: The same as it travels: the value of `extra_args["prompt_modules"]`.
        chain: Modules that may be read instead, once their combination has been promoted; None if
            that cannot be.
    """

    modules: tuple[PlannedModule, ...]
    new: tuple[NewTokens, ...]
    block_size: int
    prompt_token_ids: list[int]
    request: Plan
    packed: bytes
    chain: Chain | None = None

    @property
    def schema(self) -> str:
        """Name of its schema."""
        return self.request.schema

    @property
    def sequence(self) -> SequencePlan:
        """The modules it reads and the positions of the tokens it computes (a new object)."""
        return SequencePlan.of(self.request.spans, self.request.positions)

    @property
    def module_prompt(self) -> ModulePrompt:
        """The prompt as the engine has it (a new object)."""
        return ModulePrompt.of(self.request, self.prompt_token_ids)

    @property
    def detail(self) -> dict[str, list[tuple[str, str]]]:
        """What a client is told of modules that it reads, and of links that may be read instead.

        Path, and what it is read as, see `plan.parts.ReadAs`.
        """
        exact = read_exactly(self.modules, self.request.positions)
        links = () if self.chain is None else self.chain.modules
        return {
            "modules": [
                (planned.layout.path, planned.read_as(exact))
                for planned in self.modules
                if planned.reused
            ],
            "links": [(link.path, "exact") for link in links],
        }

    @property
    def num_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_cached_tokens(self) -> int:
        """Tokens whose KV is read from modules."""
        return sum(planned.num_tokens for planned in self.modules)

    @property
    def num_new_tokens(self) -> int:
        """Tokens that are computed."""
        return self.num_tokens - self.num_cached_tokens

    @property
    def next_position(self) -> int:
        """Position of the first generated token."""
        return self.new[-1].end


def make_plan(
    layout: SchemaLayout,
    modules: Iterable[PlannedModule],
    new: Iterable[NewTokens],
    *,
    block_size: int,
    chain: Chain | None = None,
    is_warming: bool = False,
) -> PromptPlan:
    """Puts a plan together.

    Args:
        layout: The prompt's schema.
        modules: Cached modules of the prompt.
        new: All tokens that are computed, at least one, in any order.
        block_size: Tokens in a KV cache block.
        chain: What may be promoted; see `PromptPlan.chain`. It is not if that is no gain.
        is_warming: Whether it is only there to have its modules encoded.
    """
    modules = tuple(modules)
    reused = [planned for planned in modules if planned.reused]
    ordered = tuple(sorted(new, key=attrgetter("start")))
    read = _by_position(ordered, reused)
    attended = tuple(planned.num_attended for planned in reused)
    positions = merge_runs(tokens.run for tokens in read)
    if chain is not None and is_exact(reused, positions):
        chain = None
    links = [p.layout for p in modules if p.layout.chain] if chain is None else chain.modules
    request = Plan(
        schema=layout.name,
        positions=positions,
        spans=tuple(planned.span for planned in reused),
        modules=tuple(_packed(layout, modules)),
        links=_links(links),
        can_promote=chain is not None,
        relocations=tuple(p.layout.relocation for p in reused if p.layout.relocation is not None),
        siblings=layout.siblings,
        attended=attended if any(attended) else (),
        has_root=bool(reused) and reused[0].layout.index == ROOT,
        is_warming=is_warming,
        num_exact_links=0 if chain is None else _num_exact(links, reused, positions),
    )
    token_ids = _token_ids(read)
    return PromptPlan(modules, ordered, block_size, token_ids, request, pack_plan(request), chain)


def _links(modules: Iterable[ModuleLayout]) -> tuple[ModuleSpan, ...]:
    return tuple(PlannedModule.first(m, m.num_kept_tokens).span for m in modules)


def _num_exact(
    links: Iterable[ModuleLayout], reused: Sequence[PlannedModule], positions: Sequence[Run]
) -> int:
    """The first links of a chain that hold nothing but what is exact without it."""
    end = exact_until(reused, positions)
    return sum(link.position_runs[-1].end <= end for link in links)


def num_attention_rows(modules: Iterable[PlannedModule], new: Iterable[NewTokens]) -> int:
    """Rows of attention that a prompt of some modules and new tokens takes, before it is planned.

    Args:
        modules: Cached modules of the prompt.
        new: All tokens that are computed, in any order.
    """
    last = max((planned.last_position for planned in modules if planned.reused), default=-1)
    runs = merge_runs(tokens.run for tokens in sorted(new, key=attrgetter("start")))
    return 1 + sum(run.start <= last for run in runs)


def baseline(plan: PromptPlan) -> PromptPlan:
    """The same tokens at the same positions as one plain prefill: nothing is reused."""
    new = tuple(_by_position(plan.new, plan.modules))
    request = Plan(plan.schema, plan.request.positions, ())
    packed = pack_plan(request)
    return replace(plan, modules=(), new=new, request=request, packed=packed, chain=None)


def _by_position(new: Iterable[NewTokens], modules: Iterable[PlannedModule]) -> list[NewTokens]:
    """Everything in a prompt as if it were all computed."""
    reused = (tokens for p in modules for tokens in repeated_tokens(p.layout, p.reused))
    return sorted((*new, *reused), key=attrgetter("start"))


def _token_ids(read: Iterable[NewTokens]) -> list[int]:
    token_ids: list[int] = []
    for tokens in read:
        token_ids += tokens.token_ids
    return token_ids


def _packed(layout: SchemaLayout, modules: Iterable[PlannedModule]) -> Iterator[PackedModule]:
    """Modules of the schema that are read, and what they are encoded behind, each once.

    What the prompt does not read whole spans of travels with its tokens.
    """
    packed: dict[bytes, PackedModule] = {}
    reads = {m.layout.index for m in modules if m.reused}
    for planned in modules:
        module = planned.layout
        if not planned.reused or module.chain is not None:
            continue
        for index in (*module.dependencies, module.index):
            found = layout.at(index)
            if found.key not in packed or index in reads:
                packed[found.key] = _pack(found, is_read=index in reads)
    return iter(packed.values())


def _pack(module: ModuleLayout, *, is_read: bool) -> PackedModule:
    recipe = module.packed
    if not is_read:
        whole = msgspec.structs.replace(unpack_recipe(recipe), token_ids=module.token_ids)
        recipe = pack_recipe(whole)
    return PackedModule(module.key, len(module.token_ids), recipe)
