"""What a module is encoded behind (docs/how-it-works.md: Context)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_promptcache.layout.drafts import ModuleDraft
from vllm_promptcache.layout.module_layout import ContextSpan
from vllm_promptcache.layout.placement import Placement
from vllm_promptcache.layout.primer import path_to


@dataclass(frozen=True, slots=True)
class Contexts:
    """Derives the encode contexts of the modules of a schema.

    Attributes:
        drafts: All modules, placed.
        primers: Primers by the index of the module that they stand before.
        placement: How they were placed.
    """

    drafts: Sequence[ModuleDraft]
    primers: Mapping[int, ModuleDraft]
    placement: Placement

    def of(self, draft: ModuleDraft) -> tuple[ContextSpan, ...]:
        """The context of a module or primer, outermost first.

        If it is `anchored`, what every prompt with it has before it. If it is `primed`, also a
        primer wherever a prompt may have other modules: as much of it as there are positions.
        """
        if draft.policy.encode == "isolated":
            return ()
        path = path_to(draft, self.drafts)
        spans = [span for inner, around in path for span in self._spans(draft, inner, around)]
        return tuple(span for span in reversed(spans) if span.num_tokens)

    def _spans(
        self, draft: ModuleDraft, inner: ModuleDraft, around: ModuleDraft
    ) -> Iterator[ContextSpan]:
        """What a module around the one in question contributes, last part first."""
        primer = self.primers.get(inner.index)
        if draft.policy.encode == "primed" and primer is not None:
            room = self.placement.room_for_primer(around, inner)
            # Whole sentences: a module would take the rest of one for its own.
            yield ContextSpan(primer.index, primer.num_kept_within(room))
        if around.cached:
            num_tokens = min(around.num_kept_before(draft.start), around.num_reusable)
            yield ContextSpan(around.index, num_tokens)
