"""Prompts that are hard to plan, for schemas of 2,000 modules."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from tests.engine.attack_cases import ANSWERED_OR_REFUSED, NUM_TOKENS, ROUTE, Attack

NUM_MODULES = 2_000
GROUP = "planning"
LAYOUTS = {
    "fixed": "",
    "compact": ' layout="compact"',
    "free-order": ' layout="compact" order="any"',
}


def large_schemas(max_model_len: int) -> dict[str, str]:
    """A schema in each layout, by name.

    Args:
        max_model_len: Positions of the model. Where they are too few for all modules of a fixed
            layout, many modules have no text.
    """
    modules = "".join(_module(i, _step(max_model_len)) for i in range(NUM_MODULES))
    return {
        name: f'<schema name="{name}"{attributes}>{modules}</schema>'
        for name, attributes in LAYOUTS.items()
    }


def _step(max_model_len: int) -> int:
    """One module in so many has text."""
    return -(-4 * NUM_MODULES // max_model_len)


def _takes_argument(number: int, step: int) -> bool:
    """Every other one of those with text does."""
    return number % (2 * step) == step


def _module(number: int, step: int) -> str:
    text = "" if number % step else "word"
    param = '<param name="p" len="1"/>' if _takes_argument(number, step) else ""
    return f'<module name="m{number}">{text}{param}</module>'


def planning_attacks(model: str, max_model_len: int) -> Iterator[Attack]:
    """All of them: in PML to be explained, which takes a plan alone, or to be refused at once."""
    for layout in LAYOUTS:
        for name, inner in documents(max_model_len):
            prompt = f'<prompt schema="{layout}"{inner}</prompt>'
            body = {"prompt": prompt}
            yield _attack(f"{layout}: {name}", f"{ROUTE}/{layout}/explain", body)
        for name, form in _forms():
            modules = {"prompt_modules": form | {"schema": layout}}
            body = {"model": model, "prompt": "Hi.", "max_tokens": NUM_TOKENS} | modules
            yield _attack(f"{layout}: {name}", "/v1/completions", body)
    yield from _without_schema(model, max_model_len)


def _without_schema(model: str, max_model_len: int) -> Iterator[Attack]:
    """Modules that stand in prompts and messages."""
    number = max_model_len // 3
    inline = "".join(f"<module>w{i}</module>" for i in range(number))
    parts = [{"type": "text", "text": f"w{i}", "module": i % 2} for i in range(number)]
    numbers = {f"{number} modules": inline, "20,000 modules": "<module>w</module>" * 20_000}
    for name, inner in numbers.items():
        yield _completion(f"inline: {name}", model, prompt=f"<prompt>{inner} x</prompt>")
    huge = f"<prompt><module>{'x ' * 200_000}</module></prompt>"
    yield _completion("inline: 400 KB", model, prompt=huge)
    form = {"parts": [{"module": f"w{i}"} for i in range(4_096)]}
    yield _completion("form: 4,096 parts", model, prompt="Hi.", prompt_modules=form)
    for name, content in (("each other", parts), ("20,000", parts[1:2] * 20_000)):
        body = {"model": model, "messages": [{"role": "user", "content": content}]}
        body |= {"max_tokens": NUM_TOKENS}
        yield _attack(f"marks: {name} part", "/v1/chat/completions", body)


def _completion(name: str, model: str, **body: Any) -> Attack:
    return _attack(name, "/v1/completions", {"model": model, "max_tokens": NUM_TOKENS} | body)


def _attack(name: str, target: str, body: dict[str, Any]) -> Attack:
    return Attack(GROUP, name, target, body, expected=ANSWERED_OR_REFUSED)


def documents(max_model_len: int) -> Iterator[tuple[str, str]]:
    """What follows the name of the schema in a prompt, at most 320 KB."""
    given = " p='x'"
    rng, step = Random(0), _step(max_model_len)
    takes_argument = [_takes_argument(i, step) for i in range(NUM_MODULES)]
    in_order = list(range(NUM_MODULES))
    shuffled = rng.sample(in_order, NUM_MODULES)

    def imports(numbers: list[int], between: str = "", inside: str = "") -> str:
        return "".join(
            f"<m{i}{given * takes_argument[i]}>{inside}</m{i}>{between}" for i in numbers
        )

    plain = [i for i in shuffled if not takes_argument[i]]
    taking = [i for i in shuffled if takes_argument[i]]
    yield "500 unknown imports", ">" + "".join(f"<u{i}/>" for i in range(500))
    yield "20,000 unknown imports", ">" + "<u/>" * 20_000
    yield "40,000 comments", ">" + "a<!--x-->" * 40_000
    yield "300 imports, shuffled", f">{imports(plain[:300])} x"
    yield "800 imports with an argument", f">{imports(taking[:800])} x"
    yield "2,000 imports, shuffled", f">{imports(shuffled)} x"
    yield "text between 1,000 imports", f">{imports(in_order[:1_000], 't')}"
    yield "text between 2,000 imports", f">{imports(in_order, 't')}"
    yield "text between 2,000, backwards", f">{imports(in_order[::-1], 't')}"
    yield "text between 2,000, shuffled", f">{imports(shuffled, 't')}"
    yield "text inside of 2,000 imports", f">{imports(shuffled, '', 't')}"
    yield "repair of 2,000 imports", f' repair="head:1">{imports(shuffled)} x'
    yield "2,000 imports, exact", f' encode="exact">{imports(shuffled)} x'
    yield "one import 20,000 times", ">" + "<m0/>" * 20_000
    yield "7,000 roles", ">" + "<user>x</user>" * 7_000
    yield "7,600 CDATA sections", ">" + "<![CDATA[x]]>" * 7_600
    yield "8,500 attributes", "><m0 " + "".join(f'a{i}="x" ' for i in range(8_500)) + "/>"
    yield "a word of 100 KB", "><m0/>" + "x" * 100_000
    yield "argument of 100 KB", f'><m{step} p="{"x " * 50_000}"/>'
    yield "references of 100 KB", "><m0/>" + "&#120;" * 17_000
    yield "text of 100 KB before an import", ">" + "x " * 50_000 + "<m0/>"


def _forms() -> Iterator[tuple[str, dict[str, Any]]]:
    """Values of the field `prompt_modules`, without a schema."""
    names = [f"m{i}" for i in range(NUM_MODULES)]
    yield "form: 4,096 unknown imports", {"imports": [f"u{i}" for i in range(4_096)]}
    yield "form: 4,000 imports, each twice", {"imports": [*names, *names]}
    deep = "/".join(["m0"] * 60)
    yield "form: 4,096 deep imports", {"imports": [f"{deep}/u{i}" for i in range(4_096)]}
    arguments = {name: {"q": "x"} for name in names}
    yield "form: 2,000 wrong arguments", {"imports": names, "arguments": arguments}
