"""A text that stands in for the modules a prompt may have before a module: policy `primed`.

A module that is encoded right behind a schema's first text comes out as the first document of a
prompt, and a prompt of five such first documents is read badly. Behind some other text it comes out
much as it would behind other modules, whatever these say (benchmarks/QUALITY.md). Which text that
is, `layout.primer_source` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_promptcache.layout.drafts import ModuleDraft
from vllm_promptcache.layout.placement import Placement
from vllm_promptcache.layout.primer_tokens import PrimerTokens
from vllm_promptcache.policies import Policy

PRIMER_NAME = "(primer)"
"""Last step of a primer's path. No module can have that name."""


@dataclass(frozen=True, slots=True)
class Primers:
    """The primers of a schema.

    Attributes:
        drafts: All of them. Their own indexes follow those of the modules.
        before: The one that stands in for modules before a module, by the index of that module.
    """

    drafts: Sequence[ModuleDraft]
    before: Mapping[int, ModuleDraft]


def draft_primers(
    drafts: Sequence[ModuleDraft], texts: Mapping[str, PrimerTokens], placement: Placement
) -> Primers:
    """Drafts the primers of a schema: behind the head of each module around one that is primed.

    Args:
        drafts: All modules, placed.
        texts: What stands in for others before each module, by path.
        placement: How they were placed.

    Returns:
        One primer for each text in each module, with as many sentences as any module nested there
        has room for.
    """
    rooms: dict[tuple[int, PrimerTokens], int] = {}
    users: dict[int, tuple[int, PrimerTokens]] = {}
    for draft in drafts:
        for inner, around in path_to(draft, drafts) if draft.policy.encode == "primed" else ():
            users[inner.index] = place = around.index, texts[inner.path]
            room = placement.room_for_primer(around, inner)
            rooms[place] = max(room, rooms.get(place, 0))
    places = sorted((place for place, room in rooms.items() if room), key=lambda place: place[0])
    primers = {
        place: _primer(drafts[place[0]], index, place[1], rooms[place])
        for index, place in enumerate(places, start=len(drafts))
    }
    before = {index: primers[place] for index, place in users.items() if place in primers}
    return Primers(list(primers.values()), before)


def path_to(
    draft: ModuleDraft, drafts: Sequence[ModuleDraft]
) -> Iterator[tuple[ModuleDraft, ModuleDraft]]:
    """A module and the one around it, then that one and the one around it, up to the root."""
    while draft.parent is not None:
        around = drafts[draft.parent]
        yield draft, around
        draft = around


def _primer(parent: ModuleDraft, index: int, text: PrimerTokens, room: int) -> ModuleDraft:
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
    for token_ids in text.sentences:
        if len(primer.kept_ids) + len(token_ids) > room:
            break
        primer.add_text(token_ids, primer.end)
        primer.end += len(token_ids)
    primer.num_reusable = len(primer.kept_ids)
    return primer
