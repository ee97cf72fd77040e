"""A text that stands in for the modules a prompt may have before a module: policy `primed`.

A module that is encoded right behind a schema's first text comes out as the first document of a
prompt, and a prompt of five such first documents is read badly. Behind some other text it comes out
much as it would behind other modules, whatever these say (benchmarks/QUALITY.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from vllm_promptcache.layout.drafts import ModuleDraft
from vllm_promptcache.layout.placement import Placement
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.policies import Policy

PRIMER_NAME = "(primer)"
"""Last step of a primer's path. No module can have that name."""


def draft_primers(
    drafts: Sequence[ModuleDraft], tokenizer: LayoutTokenizer, placement: Placement
) -> Mapping[int, ModuleDraft]:
    """Drafts the primers of a schema: one behind the head of each module that has use for one.

    Args:
        drafts: All modules, placed.
        tokenizer: The model's tokenizer.
        placement: How they were placed.

    Returns:
        Primers by the index of the module that they are in, with as many sentences as any module
        has room for. Their own indexes follow those of the modules.
    """
    rooms: dict[int, int] = {}
    for draft in drafts:
        for inner, around in path_to(draft, drafts) if draft.policy.encode == "primed" else ():
            room = placement.room_for_primer(around, inner)
            rooms[around.index] = max(room, rooms.get(around.index, 0))
    parents = [drafts[index] for index, room in sorted(rooms.items()) if room]
    return {
        parent.index: _primer(parent, index, tokenizer.primer, rooms[parent.index])
        for index, parent in enumerate(parents, start=len(drafts))
    }


def path_to(
    draft: ModuleDraft, drafts: Sequence[ModuleDraft]
) -> Iterator[tuple[ModuleDraft, ModuleDraft]]:
    """A module and the one around it, then that one and the one around it, up to the root."""
    while draft.parent is not None:
        around = drafts[draft.parent]
        yield draft, around
        draft = around


def _primer(
    parent: ModuleDraft, index: int, sentences: Iterable[Sequence[int]], room: int
) -> ModuleDraft:
    primer = ModuleDraft(
        index=index,
        path=parent.path_of(PRIMER_NAME),
        parent=parent.index,
        union=None,
        start=parent.head,
        policy=Policy("primed"),
        cached=True,
        end=parent.head,
        last_descendant=index,
    )
    for token_ids in sentences:
        if len(primer.kept_ids) + len(token_ids) > room:
            break
        primer.add_text(token_ids, primer.end)
        primer.end += len(token_ids)
    primer.num_reusable = len(primer.kept_ids)
    return primer
