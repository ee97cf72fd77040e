"""A prompt as a list of parts, in place of markup: texts, and modules that are in no schema."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from vllm_promptcache.plan.written import Part
from vllm_promptcache.pml import FieldLocation, Inline, Text
from vllm_promptcache.policies import Repair, check_repair


class TextPart(BaseModel):
    """Text that is computed."""

    model_config = ConfigDict(extra="forbid")

    text: str


class ModulePart(BaseModel):
    """Text that prompts share, wherever they have it.

    Attributes:
        module: The text.
        name: What reports call it.
        encode: What it may attend to while it is encoded.
        repair: Which of its tokens each prompt computes again.
    """

    model_config = ConfigDict(extra="forbid")

    module: Annotated[str, StringConstraints(min_length=1)]
    name: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    encode: Literal["isolated", "anchored", "primed"] | None = None
    repair: Annotated[str, AfterValidator(check_repair)] | None = None


PromptPart: TypeAlias = TextPart | ModulePart
Parts = Annotated[list[PromptPart], Field(max_length=4096)]


def part_texts(parts: Sequence[PromptPart]) -> Iterator[str]:
    """The texts of parts, in order."""
    return (part.text if isinstance(part, TextPart) else part.module for part in parts)


def nodes_of(parts: Sequence[PromptPart], field: str) -> Iterator[Part]:
    """The parts as a prompt has them; texts that follow each other are one.

    Args:
        parts: The parts.
        field: Where they stand in the request.
    """
    numbered = ((part, FieldLocation(f"{field}[{i}]")) for i, part in enumerate(parts))
    for is_text, group in groupby(numbered, lambda pair: isinstance(pair[0], TextPart)):
        pairs = list(group)
        if not is_text:
            yield from (_inline(part, place) for part, place in pairs)
        elif text := "".join(part_texts([part for part, _ in pairs])):
            yield Text(text, pairs[0][1])


def _inline(part: PromptPart, place: FieldLocation) -> Inline:
    assert isinstance(part, ModulePart), "texts are grouped apart"
    repair = None if part.repair is None else Repair.parse(part.repair)
    return Inline(part.module, None, part.name, part.encode, repair, place)
