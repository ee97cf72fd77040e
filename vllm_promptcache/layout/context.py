"""What a module is encoded behind (1-architecture: "Encode context")."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_promptcache.layout.drafts import ModuleDraft
from vllm_promptcache.layout.schema_layout import ContextSpan


@dataclass(frozen=True, slots=True)
class Contexts:
    """Derives the encode contexts of the modules of a schema.

    Attributes:
        drafts: All modules, placed.
        primers: Primers by the index of the module that they are in.
        is_compact: Whether the text of a module behind the first one nested in it may be anywhere.
    """

    drafts: Sequence[ModuleDraft]
    primers: Mapping[int, ModuleDraft]
    is_compact: bool

    def of(self, draft: ModuleDraft) -> tuple[ContextSpan, ...]:
        """The context of a module or primer, outermost first.

        If it is `anchored`, what every prompt with it has before it. If it is `primed`, also a
        primer wherever a prompt may have other modules: as much of it as there are positions.
        """
        if draft.policy == "isolated":
            return ()
        spans = reversed(
            [span for inner in self._path(draft) for span in self._spans(draft, inner)]
        )
        return tuple(span for span in spans if span.num_tokens)

    def _path(self, draft: ModuleDraft) -> Iterator[ModuleDraft]:
        """The module, and all that it is nested in but the root."""
        while draft.parent is not None:
            yield draft
            draft = self.drafts[draft.parent]

    def _spans(self, draft: ModuleDraft, inner: ModuleDraft) -> Iterator[ContextSpan]:
        """What the module around `inner` contributes, last part first."""
        assert inner.parent is not None
        around = self.drafts[inner.parent]
        primer = self.primers.get(around.index)
        if draft.policy == "primed" and primer is not None:
            yield ContextSpan(primer.index, min(len(primer.kept_ids), self._room(around, inner)))
        if around.cached:
            num_tokens = min(around.num_kept_before(draft.start), around.num_reusable)
            yield ContextSpan(around.index, num_tokens)

    def _room(self, around: ModuleDraft, inner: ModuleDraft) -> int:
        """Positions between a module's head and what is next: its own text, or one nested in it."""
        texts = [] if self.is_compact else [run.start for run in around.runs if run.num_tokens]
        return min([inner.start, *(s for s in texts if s >= around.head)]) - around.head
