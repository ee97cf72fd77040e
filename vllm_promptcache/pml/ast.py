"""The tree that parsing yields: plain, frozen data, the contract with layout and plan."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeAlias, TypeVar, get_args

from vllm_promptcache.policies import EncodeName, Repair

LayoutName: TypeAlias = Literal["schema", "compact"]
OrderName: TypeAlias = Literal["prompt", "any"]
RoleName: TypeAlias = Literal["system", "user", "assistant"]

RESERVED_NAMES = frozenset(get_args(RoleName)) | frozenset(
    ("prompt", "schema", "module", "union", "param", "parameter", "scaffold", "primer")
)
"""Elements of PML; a module may not have such a name, since an import is an element of its name."""

_Node = TypeVar("_Node")


@dataclass(frozen=True, slots=True)
class Source:
    """A document as it was read: without byte order mark, each line end one `\\n`.

    Attributes:
        name: File path, or `<schema>` or `<prompt>`.
        text: The whole document.
    """

    name: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a source; line and column are 1-based, columns count characters."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class FieldLocation:
    """A place in a prompt without markup, such as `prompt_modules.imports[2]`."""

    field: str

    def __str__(self) -> str:
        return self.field


Place: TypeAlias = Location | FieldLocation


@dataclass(frozen=True, slots=True)
class Text:
    """A text node with white space rule and entities applied; it is never empty.

    Its location is its first character that is not collapsed white space.
    """

    text: str
    location: Place


@dataclass(frozen=True, slots=True)
class Param:
    """A gap of `length` tokens that a prompt fills with an argument."""

    name: str
    length: int
    placeholder: str | None
    location: Location


@dataclass(frozen=True, slots=True)
class Pin:
    """A wish that modules stay in the KV cache: for `ttl_s` seconds, None for no end."""

    ttl_s: int | None = None


@dataclass(frozen=True, slots=True)
class Primer:
    """What modules are encoded behind in place of others; `text` is None for text of the others."""

    text: str | None
    location: Location


@dataclass(frozen=True, slots=True)
class Module:
    """A named piece of prompt.

    `cached` is false for `cache="false"`; `pin` is False for `pin="false"` and None where the
    schema's holds, as `repair` is. `primer` is for the modules nested in it, None if it says none.
    """

    name: str
    children: "tuple[SchemaNode, ...]"
    encode: EncodeName | None
    cached: bool
    repair: Repair | None
    pin: Pin | Literal[False] | None
    location: Location
    primer: Primer | None = None


@dataclass(frozen=True, slots=True)
class Union:
    """Modules of which a prompt imports at most one; `default` is a member's name."""

    members: tuple[Module, ...]
    default: str | None
    location: Location


@dataclass(frozen=True, slots=True)
class Role(Generic[_Node]):
    """A chat message; its children are schema nodes in a schema, prompt nodes in a prompt.

    In a chat a schema may begin a message that the prompt ends: then one has a role that does not
    close, the other one a role that does not open.
    """

    role: RoleName
    children: tuple[_Node, ...]
    location: Place
    opens: bool = True
    closes: bool = True


@dataclass(frozen=True, slots=True)
class Scaffold:
    """Paths of modules that are encoded together and used together; at least two."""

    paths: tuple[str, ...]
    location: Location


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema document; `encode`, `repair` and `pin` are those of modules that say none.

    `primer` is for the modules that are nested in no other one, None if it says none.
    """

    name: str
    children: "tuple[SchemaNode, ...]"
    encode: EncodeName | None
    repair: Repair | None
    layout: LayoutName
    order: OrderName
    private: bool
    pin: Pin | Literal[False] | None
    scaffolds: tuple[Scaffold, ...]
    source: Source
    location: Location
    primer: Primer | None = None


@dataclass(frozen=True, slots=True)
class Argument:
    """A parameter's value: entities are decoded, everything else is verbatim."""

    name: str
    value: str
    location: Place


@dataclass(frozen=True, slots=True)
class Import:
    """A use of the module `name`; the children are new text and imports of nested modules.

    In a prompt without markup the name may be the module's path.
    """

    name: str
    arguments: tuple[Argument, ...]
    children: "tuple[PromptNode, ...]"
    location: Place


@dataclass(frozen=True, slots=True)
class Inline:
    """A module that stands in a prompt, known by its text.

    Attributes:
        text: The text; it is never empty.
        role: The message that it stands in; None outside of all.
        name: What reports call it; None if they number it.
        encode: As for `Module`.
        repair: As for `Module`.
        location: Where it stands.
    """

    text: str
    role: RoleName | None
    name: str | None
    encode: EncodeName | None
    repair: Repair | None
    location: Place


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt for the schema of that name; the source of one without markup has no text.

    `schema` is None if all its modules are inline.
    `is_exact` is for `encode="exact"`; `repair` is None where the modules' own holds; `max_kl` is
    the mean KL, in nats, of the worst policy that may be used, None for any.
    """

    schema: str | None
    is_exact: bool
    repair: Repair | None
    max_kl: float | None
    children: "tuple[PromptNode, ...]"
    source: Source
    location: Place


SchemaNode: TypeAlias = Text | Param | Module | Union | Role["SchemaNode"]
PromptNode: TypeAlias = Text | Inline | Import | Role["PromptNode"]


def modules_in_scope(children: Iterable[SchemaNode]) -> Iterator[Module]:
    """Modules that a path may name next: roles and unions add no step to a path."""
    for child in children:
        match child:
            case Module():
                yield child
            case Union():
                yield from child.members
            case Role():
                yield from modules_in_scope(child.children)


def own_params(children: Iterable[SchemaNode]) -> Iterator[Param]:
    """Parameters of the module with these children, without those of nested modules."""
    for child in children:
        match child:
            case Param():
                yield child
            case Role():
                yield from own_params(child.children)
