"""Random prompts for a schema."""

from __future__ import annotations

from collections import Counter
from random import Random
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from tests.generators.schemas import Schema, append_text, choices_in, params_of, random_repair
from tests.generators.words import WORDS, random_text

# Texts of modules that are in no schema.
NUM_INLINE = 12


def random_prompt(rng: Random, schema: Schema) -> str:
    """Returns a prompt in PML that imports a random part of `schema`.

    Names, arguments and unions are right; whether all of it fits the model is for the planner to
    say.
    """
    prompt = Element("prompt", schema=schema.name)
    if rng.random() < 0.15:
        prompt.set("encode", "exact")
    if rng.random() < 0.3:
        prompt.set("repair", random_repair(rng))
    names = Counter(module.attrib["name"] for module in schema.root.iter("module"))
    ambiguous = {name for name, count in names.items() if count > 1}
    for element in _imports(rng, schema.root):
        _maybe_text(rng, prompt, likelihood=0.15)
        _maybe_inline(rng, prompt, likelihood=0.1)
        prompt.append(_maybe_unspelled(rng, element, ambiguous))
    _append_ending(rng, prompt, roles=schema.has_roles)
    return ElementTree.tostring(prompt, encoding="unicode")


def _imports(rng: Random, parent: Element) -> list[Element]:
    """Imports of a random subset of what lies below `parent`, in random order."""
    likelihood = rng.choice((0.4, 0.7, 0.95))
    chosen = [rng.choice(choice) for choice in choices_in(parent) if rng.random() < likelihood]
    rng.shuffle(chosen)
    return [_import(rng, module) for module in chosen]


def _import(rng: Random, module: Element) -> Element:
    element = Element(module.attrib["name"])
    for param in params_of(module):
        element.set(param.attrib["name"], _argument(rng, int(param.attrib["len"])))
    for nested in _imports(rng, module):
        _maybe_text(rng, element, likelihood=0.05)
        element.append(nested)
    return element


def _argument(rng: Random, length: int) -> str:
    """Words for a parameter of `length` tokens: of full length, shorter, or none."""
    num_words = rng.choice((length, length, rng.randint(1, length), rng.randint(0, 1)))
    argument = "".join(f" {rng.choice(WORDS)}" for _ in range(num_words))
    # Without a space before it a word may be several tokens.
    return argument.strip() if num_words + 5 <= length else argument


def _maybe_unspelled(rng: Random, element: Element, ambiguous: set[str]) -> Element:
    """Returns the only import inside `element` instead of it, where that says the same."""
    says_nothing_else = len(element) == 1 and not element.attrib and element.text is None
    if says_nothing_else and element[0].tag not in ambiguous and rng.random() < 0.4:
        return _maybe_unspelled(rng, element[0], ambiguous)
    return element


def _maybe_text(rng: Random, parent: Element, likelihood: float) -> None:
    if rng.random() < likelihood:
        append_text(parent, f" {random_text(rng, rng.randint(1, 5))} ")


def _maybe_inline(rng: Random, parent: Element, likelihood: float) -> None:
    """Adds a module that is in no schema; other prompts may have the same one."""
    if rng.random() < likelihood:
        number = rng.randrange(NUM_INLINE)
        module = ElementTree.SubElement(parent, "module")
        module.text = random_text(Random(number), 3 * number + 1)
        if rng.random() < 0.2:
            module.set("name", f"inline{number}")


def _append_ending(rng: Random, prompt: Element, *, roles: bool) -> None:
    """Appends new text, a chat message, or (where something is imported) nothing."""
    kind = rng.choice(("text", "text", "role" if roles else "text", "nothing"))
    if kind == "role":
        for role in rng.choice((("user",), ("user", "assistant", "user"))):
            message = ElementTree.SubElement(prompt, role)
            _maybe_inline(rng, message, likelihood=0.1)
            append_text(message, random_text(rng, rng.randint(1, 15)))
    elif kind == "text" or len(prompt) == 0:
        append_text(prompt, f" {random_text(rng, rng.randint(1, 30))}")
