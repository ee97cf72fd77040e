"""Random conversations with marked parts, in OpenAI's form."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.generators.words import random_text

# Texts of modules, which conversations share.
NUM_DOCUMENTS = 12
_MARKS: tuple[dict[str, Any], ...] = (
    {"cache_control": {"type": "ephemeral"}},
    {"prompt_cache_breakpoint": {}},
    {"module": True},
)
_ENDS = ("", "", " ", "\n", "  \n")


def random_chat(rng: Random, roles: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Returns up to five turns; the user has the last one. Some texts have blanks at their ends.

    Args:
        rng: Where it comes from.
        roles: What a user's turn may be instead, such as `tool`.
    """
    turns = [("user", "assistant") for _ in range(rng.randint(0, 4))]
    names = [name for turn in turns for name in turn] + ["user"]
    names = ["system", *names] if rng.random() < 0.5 else names
    return [{"role": _role(rng, name, roles), "content": _content(rng)} for name in names]


def _role(rng: Random, name: str, others: tuple[str, ...]) -> str:
    is_other = name == "user" and others and rng.random() < 0.2
    return rng.choice(others) if is_other else name


def _content(rng: Random) -> Any:
    if rng.random() < 0.3:
        return _text(rng)
    return [_document(rng) if rng.random() < 0.6 else _part(rng) for _ in range(rng.randint(1, 4))]


def _document(rng: Random) -> dict[str, Any]:
    number = rng.randrange(NUM_DOCUMENTS)
    text = random_text(Random(number), 9 * number + 1)
    return {"type": "text", "text": text + rng.choice(_ENDS), **rng.choice(_MARKS)}


def _part(rng: Random) -> dict[str, Any]:
    return {"type": "text", "text": _text(rng)}


def _text(rng: Random) -> str:
    return rng.choice(_ENDS) + random_text(rng, rng.randint(1, 12)) + rng.choice(_ENDS)
