"""What an engine is asked."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from vllm_promptcache.layout.primer_text import ARTICLES

_NUM_PROMPTS = 8
_QUESTIONS = (
    "Which of them is about a place?",
    "What happened first?",
    "Name a person of the second text.",
    "How many years lie between the dates?",
)


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts of one schema.

    Attributes:
        name: What is tried.
        schema: Its schema, in PML.
        prompts: In PML.
        is_exact: Whether answers equal those of a plain prefill.
    """

    name: str
    schema: str
    prompts: tuple[str, ...]
    is_exact: bool = False


def make_groups() -> tuple[Group, ...]:
    """The same each time: modules in any order, alone and with text between them, and repair."""
    return (
        _group("exact", "encode='exact'", is_exact=True),
        _group("moved", ""),
        _group("between", "encode='isolated'", between=" And: "),
        _group("repaired", "repair='query:20'"),
    )


def _group(name: str, options: str, *, between: str = " ", is_exact: bool = False) -> Group:
    schema = f"selftest-{name}"
    modules = "".join(
        f"<module name='m{number}'>{article.title}\n{article.text}\n\n</module>"
        for number, article in enumerate(ARTICLES)
    )
    rng = Random(name)
    prompts = tuple(_prompt(schema, rng, between) for _ in range(_NUM_PROMPTS))
    text = f"<schema name='{schema}' {options}>Read the texts. {modules}</schema>"
    return Group(name, text, prompts, is_exact)


def _prompt(schema: str, rng: Random, between: str) -> str:
    numbers = rng.sample(range(len(ARTICLES)), rng.randint(1, min(4, len(ARTICLES))))
    imports = between.join(f"<m{number}/>" for number in numbers)
    return f"<prompt schema='{schema}'>{imports} {rng.choice(_QUESTIONS)}</prompt>"
