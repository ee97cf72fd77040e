"""Which tokens of a prompt's modules are reused, and which are computed again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from vllm_promptcache.layout.first import as_first
from vllm_promptcache.layout.module_layout import ModuleLayout
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.plan.chain import Chain, ChainPolicy
from vllm_promptcache.plan.parts import NewTokens, PlannedModule, repeated_tokens
from vllm_promptcache.plan.repair import repaired
from vllm_promptcache.plan.standing import standing_first
from vllm_promptcache.pml.ast import Prompt
from vllm_promptcache.sequence.runs import Run, subtract_runs

# Of the tokens that are reused, those that promotion may make a request compute again.
_MAX_SHARE_REPEATED = 0.15


@dataclass(frozen=True, slots=True)
class Reuse:
    """How the modules of a prompt are used.

    Attributes:
        modules: What is reused, and what that was encoded behind, in the order of the block table.
        repeated: Kept tokens of modules that are computed again.
    """

    modules: list[PlannedModule]
    repeated: list[NewTokens]


@dataclass(frozen=True, slots=True)
class ReuseChooser:
    """Decides about the modules of one prompt.

    Attributes:
        prompt: The prompt.
        layout: Its schema.
        imported: The modules it imports, the root among them, where they are in the prompt.
        new: Its arguments and its text.
        block_size: Tokens in a KV cache block.
    """

    prompt: Prompt
    layout: SchemaLayout
    imported: Sequence[ModuleLayout]
    new: Sequence[NewTokens]
    block_size: int

    def promoted(self, reuse: Reuse) -> Chain | None:
        """The same modules one behind the other, where that is worth an encode of all of them.

        It is not if it computes much more again than what was chosen, as with an argument in front
        of the modules.
        """
        imported = {planned.layout.path for planned in reuse.modules if planned.reused}
        if len(imported) < 2 or any(m.layout.chain for m in reuse.modules):
            return None
        chain = self._chain(self.imported, "exact", self._exact_end)
        num_linked = sum(link.num_kept_tokens for link in chain.modules)
        num_repeated = sum(m.num_kept_tokens for m in self.imported) - num_linked
        num_more = num_repeated - sum(len(tokens.token_ids) for tokens in reuse.repeated)
        num_reused = sum(planned.num_tokens for planned in reuse.modules)
        return chain if num_linked and num_more <= _MAX_SHARE_REPEATED * num_reused else None

    def choose(self) -> Reuse:
        """Follows the prompt's policy, then its schema's.

        A scaffold whose modules are all imported is used as a whole. Where nothing else is
        imported, that is `exact`.
        """
        if self.prompt.is_exact or self.layout.is_exact:
            return self._exact()
        scaffold = self._scaffold()
        if not scaffold:
            return self._with_logits(self._with_unread(self._modular(self.imported)))
        if all(m.index in scaffold for m in self.imported if m.kept_token_ids):
            return self._exact()
        return self._with_logits(self._with_unread(self._jointly(scaffold)))

    def _modular(self, imported: Iterable[ModuleLayout]) -> Reuse:
        """Every module by itself."""
        planned = [
            PlannedModule.first(module, module.num_reusable if module.cached else 0)
            for module in self._as_they_stand(imported)
        ]
        planned = repaired(planned, self.prompt.repair)
        repeated = [tokens for item in planned for tokens in item.computed_again()]
        return Reuse([item for item in planned if item.layout.cached], repeated)

    def _as_they_stand(self, imported: Iterable[ModuleLayout]) -> Iterator[ModuleLayout]:
        """Modules, those that stand first with the KV of their variants."""
        first = {module.index for module in standing_first(self.imported, self.new)}
        for module in imported:
            if module.first is None or module.index not in first:
                yield module
            else:
                yield as_first(self.layout, module)

    def _with_unread(self, reuse: Reuse) -> Reuse:
        """Adds what modules were encoded behind and the prompt reads nothing of."""
        known = {item.layout.index for item in reuse.modules}
        used = {index for item in reuse.modules for index in item.layout.dependencies}
        unread = [PlannedModule(self.layout.at(index), ()) for index in sorted(used - known)]
        return Reuse([*reuse.modules, *unread], reuse.repeated)

    def _exact(self) -> Reuse:
        """Everything behind all that lies before it, up to the first token that is new."""
        return self._chained(self.imported, "exact", self._exact_end)

    @property
    def _exact_end(self) -> int:
        uncached = (t for m in self.imported if not m.cached for t in _all_tokens(m))
        starts = (tokens.start for tokens in (*self.new, *uncached))
        ends = (m.kept_position_runs[-1].end for m in self.imported if m.kept_token_ids)
        # Where nothing is new, the last token is computed again for its logits.
        return min(starts, default=max(ends, default=0) - 1)

    def _jointly(self, scaffold: Collection[int]) -> Reuse:
        """The members of a scaffold behind each other, every other module by itself."""
        members = [module for module in self.imported if module.index in scaffold]
        joint = self._chained(members, "scaffold")
        others = self._modular(m for m in self.imported if m.index not in scaffold)
        contexts = {i for m in others.modules for i in m.layout.dependencies}
        alone = [PlannedModule(m, ()) for m in members if m.index in contexts]
        return Reuse([*alone, *joint.modules, *others.modules], [*joint.repeated, *others.repeated])

    def _scaffold(self) -> Collection[int]:
        """Members of the largest scaffold that is imported as a whole, the root among them."""
        imported = {module.index for module in self.imported}
        fitting = (members for members in self.layout.scaffolds if members <= imported)
        return next(fitting, frozenset())

    def _chained(
        self, members: Sequence[ModuleLayout], policy: ChainPolicy, end: int | None = None
    ) -> Reuse:
        """Modules before `end` behind each other; what lies behind it is computed again."""
        chain = self._chain(members, policy, end)
        used = defaultdict(list)
        for piece in chain.pieces:
            used[piece.module.path].append(piece.kept)
        repeated = [tokens for module in members for tokens in _without(module, used[module.path])]
        return Reuse([PlannedModule.first(m, m.num_kept_tokens) for m in chain.modules], repeated)

    def _chain(
        self, members: Sequence[ModuleLayout], policy: ChainPolicy, end: int | None
    ) -> Chain:
        return Chain.of(self.layout, members, policy, block_size=self.block_size, end=end)

    def _with_logits(self, reuse: Reuse) -> Reuse:
        """Takes out the last token if no other one is computed behind it: it has the logits."""
        reused = (planned for planned in reuse.modules if planned.reused)
        last = max(reused, key=attrgetter("last_position"), default=None)
        end = max((tokens.end for tokens in (*self.new, *reuse.repeated)), default=0)
        if last is None or last.last_position < end:
            return reuse
        hole = [Run(last.reused[-1].end - 1, 1)]
        modules = [item.without(hole) if item is last else item for item in reuse.modules]
        return Reuse(modules, [*reuse.repeated, *repeated_tokens(last.layout, hole)])


def _without(module: ModuleLayout, used: Iterable[Run]) -> Iterator[NewTokens]:
    """The kept tokens of a module that are in none of some ascending runs."""
    return repeated_tokens(module, subtract_runs([Run(0, module.num_kept_tokens)], used))


def _all_tokens(module: ModuleLayout) -> Iterator[NewTokens]:
    return repeated_tokens(module, [Run(0, module.num_kept_tokens)])
