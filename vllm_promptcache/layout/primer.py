"""A text that stands in for the modules a prompt may have before a module (2-pml: `primed`).

A module that is encoded right behind a schema's first text comes out as the first document of a
prompt, and a prompt of five such first documents is read badly. Behind some other text it comes out
much as it would behind other modules, whatever these say (benchmarks/QUALITY.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_promptcache.layout.drafts import ModuleDraft
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.pml.ast import NO_REPAIR

PRIMER_NAME = "(primer)"
"""Last step of a primer's path. No module can have that name."""


def draft_primers(
    drafts: Sequence[ModuleDraft], tokenizer: LayoutTokenizer
) -> Mapping[int, ModuleDraft]:
    """Drafts the primers of a schema: one behind the head of each module that has use for one.

    Args:
        drafts: All modules, placed.
        tokenizer: The model's tokenizer.

    Returns:
        Primers by the index of the module that they are in. Their own indexes follow those of the
        modules.
    """
    primers: dict[int, ModuleDraft] = {}
    for draft in drafts:
        inside = drafts[draft.index + 1 : draft.last_descendant + 1]
        if any(d.policy == "primed" and d.start > draft.head for d in inside):
            index = len(drafts) + len(primers)
            primers[draft.index] = _primer(draft, index, tokenizer.primer_ids)
    return primers


def _primer(parent: ModuleDraft, index: int, token_ids: Sequence[int]) -> ModuleDraft:
    primer = ModuleDraft(
        index=index,
        path=parent.path_of(PRIMER_NAME),
        parent=parent.index,
        union=None,
        start=parent.head,
        policy="primed",
        cached=True,
        repair=NO_REPAIR,
        num_reusable=len(token_ids),
        last_descendant=index,
    )
    primer.add_text(token_ids, primer.start)
    primer.end = primer.start + len(token_ids)
    return primer
