"""Strategies for valid trees. All nodes claim the same place."""

from collections.abc import Iterator
from itertools import count, groupby

from hypothesis import strategies as st

from vllm_promptcache.pml import (
    Argument,
    Import,
    Inline,
    Location,
    Module,
    Param,
    Pin,
    Primer,
    Prompt,
    PromptNode,
    Role,
    RoleName,
    Scaffold,
    Schema,
    SchemaNode,
    Source,
    Text,
    Union,
)
from vllm_promptcache.policies import Repair

PLACE = Location(1, 1)
SOURCE = Source("<test>", "")

NAMES = st.from_regex(r"n[A-Za-z0-9_.-]{0,5}", fullmatch=True)
CHARACTERS = st.sampled_from("ab <>&\"']\t\n\r") | st.characters(
    exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"
)
VALUES = st.text(CHARACTERS, max_size=8)
TEXTS = st.builds(Text, st.text(CHARACTERS, min_size=1, max_size=8), st.just(PLACE))
ROLES = st.sampled_from(["system", "user", "assistant"])
PINS = st.sampled_from([None, False, Pin(), Pin(90)])
PRIMERS = st.none() | st.builds(
    Primer, st.none() | st.text(CHARACTERS, max_size=8).map("n{}".format), st.just(PLACE)
)
POLICIES = st.sampled_from([None, "isolated", "anchored"])
SCHEMA_POLICIES = st.sampled_from([None, "isolated", "anchored", "exact"])
REPAIRS = st.sampled_from([None, Repair("none"), Repair("head", 16), Repair("query", 15)])
KLS = st.sampled_from([None, 0.0, 0.05, 2.5])


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    names = (f"n{number}" for number in count())
    children = _schema_nodes(draw, names, 3, in_module=False, in_role=False)
    modules = [child.name for child in children if isinstance(child, Module)]
    scaffolds = (Scaffold(tuple(modules), PLACE),) if len(modules) > 1 else ()
    layout = draw(st.sampled_from(["schema", "compact"]))
    private = draw(st.booleans())
    order = draw(st.sampled_from(["prompt", "any"]))
    options = (draw(SCHEMA_POLICIES), draw(REPAIRS), layout, order, private, draw(PINS))
    return Schema(draw(NAMES), children, *options, scaffolds, SOURCE, PLACE, draw(PRIMERS))


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    kinds = ("import", "role", "inline")
    children = (draw(TEXTS), *_prompt_nodes(draw, 3, role=None, kinds=kinds))
    options = (draw(st.booleans()), draw(REPAIRS), draw(KLS))
    return Prompt(draw(NAMES), *options, children, SOURCE, PLACE)


def _kinds(draw: st.DrawFn, kinds: tuple[str, ...]) -> list[str]:
    """Kinds of siblings; no two of a kind in a row, since adjacent texts would be one."""
    return [kind for kind, _ in groupby(draw(st.lists(st.sampled_from(kinds), max_size=4)))]


def _schema_nodes(
    draw: st.DrawFn, names: Iterator[str], depth: int, in_module: bool, in_role: bool
) -> tuple[SchemaNode, ...]:
    def module() -> Module:
        children = _schema_nodes(draw, names, depth - 1, in_module=True, in_role=in_role)
        options = (draw(POLICIES), draw(st.booleans()), draw(REPAIRS), draw(PINS))
        return Module(next(names), children, *options, PLACE, draw(PRIMERS))

    def node(kind: str) -> SchemaNode:
        match kind:
            case "text":
                return draw(TEXTS)
            case "param":
                placeholder = draw(st.none() | VALUES)
                return Param(next(names), draw(st.integers(1, 1_000_000)), placeholder, PLACE)
            case "module":
                return module()
            case "union":
                members = tuple(module() for _ in range(draw(st.integers(1, 2))))
                return Union(members, draw(st.sampled_from([None, members[-1].name])), PLACE)
            case _:
                children = _schema_nodes(draw, names, depth - 1, in_module, in_role=True)
                return Role(draw(ROLES), children, PLACE)

    nested = ("module", "union", *(() if in_role else ("role",)))
    kinds = ("text", *(("param",) if in_module else ()), *(nested if depth else ()))
    return tuple(map(node, _kinds(draw, kinds)))


def _prompt_nodes(
    draw: st.DrawFn, depth: int, role: RoleName | None, kinds: tuple[str, ...]
) -> tuple[PromptNode, ...]:
    def node(kind: str) -> PromptNode:
        inner_role = role or (draw(ROLES) if kind == "role" else None)
        nested = (*(("import",) if depth else ()), *(() if inner_role else ("role",)))
        allowed = ("text", "inline", *nested)
        match kind:
            case "text":
                return draw(TEXTS)
            case "import":
                given = draw(st.dictionaries(NAMES, VALUES, max_size=2))
                arguments = tuple(Argument(name, value, PLACE) for name, value in given.items())
                children = _prompt_nodes(draw, depth - 1, inner_role, allowed)
                return Import(draw(NAMES), arguments, children, PLACE)
            case "inline":
                name, text = draw(st.none() | NAMES), draw(TEXTS).text
                return Inline(text, role, name, draw(POLICIES), draw(REPAIRS), PLACE)
            case _:
                assert inner_role is not None, "a role is inside itself"
                children = _prompt_nodes(draw, depth - 1, inner_role, allowed)
                return Role(inner_role, children, PLACE)

    return tuple(map(node, _kinds(draw, kinds)))
