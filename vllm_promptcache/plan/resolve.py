"""Finds the modules that a prompt imports and the new text between them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from vllm_promptcache.errors import PMLError
from vllm_promptcache.layout.content import Piece, items, roles_in
from vllm_promptcache.layout.schema_layout import (
    ROOT,
    ModuleLayout,
    ParameterSlot,
    SchemaLayout,
)
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.plan.budgets import DEFAULT_BUDGETS, Budgets
from vllm_promptcache.plan.order import in_document_order
from vllm_promptcache.pml.ast import Argument, FieldLocation, Import, Place, Prompt, PromptNode
from vllm_promptcache.pml.diagnostics import did_you_mean, pml_error, quote

_MAX_NUM_LISTED = 8


@dataclass(frozen=True, slots=True)
class TextGroup:
    """New text with no import in between.

    Attributes:
        scope: Module whose import holds the text; the root at the top of the prompt.
        after: The module imported before the text in the same element, if any.
        before: The module imported behind the text in the same element, if any.
        pieces: The text.
    """

    scope: ModuleLayout
    after: ModuleLayout | None
    before: ModuleLayout | None
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class GivenArgument:
    """An argument and the place it is for."""

    module: ModuleLayout
    slot: ParameterSlot
    argument: Argument

    def within(self, module: ModuleLayout) -> GivenArgument:
        """The same argument where the module is at another place."""
        return GivenArgument(module, module.parameters[self.slot.name], self.argument)


@dataclass(frozen=True, slots=True)
class ResolvedPrompt:
    """A prompt whose names have been looked up.

    Attributes:
        modules: Modules that are imported, also implicitly; the root first, each one behind its
            ancestors, otherwise in the order of the prompt.
        arguments: Arguments of all parameters of `modules`.
        inner: New text before the last import, in document order.
        trailing: New text behind it, in document order.
        has_roles: Whether the prompt or its schema uses chat roles.
    """

    modules: tuple[ModuleLayout, ...]
    arguments: tuple[GivenArgument, ...]
    inner: tuple[TextGroup, ...]
    trailing: tuple[TextGroup, ...]
    has_roles: bool

    def with_modules(self, modules: Iterable[ModuleLayout]) -> ResolvedPrompt:
        """The same prompt with its modules, and so their parameters, at other places."""
        placed = {module.index: module for module in modules}
        arguments = (given.within(placed[given.module.index]) for given in self.arguments)
        return replace(self, modules=tuple(placed.values()), arguments=tuple(arguments))


def resolve_prompt(
    prompt: Prompt,
    layout: SchemaLayout,
    tokenizer: LayoutTokenizer,
    budgets: Budgets = DEFAULT_BUDGETS,
) -> ResolvedPrompt:
    """Looks up all names of a prompt.

    An import names a module in the scope of the element around it, or, where there is none, the
    only module of that name nested in that scope. With a module its ancestors are imported. A
    union's default member is imported with the union's parent where the prompt names no member.

    Raises:
        PMLError: An import or an argument is unknown, ambiguous, given twice or missing, two
            members of a union are imported, or there are more imports or texts than may be.
    """
    num_roles = 0
    for role in roles_in(prompt.children):
        is_first = not layout.has_roles and num_roles == 0
        tokenizer.roles.check(role, prompt.source, is_first=is_first)
        num_roles += 1
    resolver = _Resolver(prompt, layout, tokenizer, budgets)
    children: Sequence[PromptNode] = prompt.children
    if layout.has_free_order:
        children = in_document_order(children, lambda e: resolver.find(e, layout.root).index)
    resolver.visit(children, layout.root)
    resolver.import_defaults()
    return ResolvedPrompt(
        modules=tuple(layout.modules[index] for index in resolver.places),
        arguments=tuple(resolver.arguments()),
        inner=tuple(resolver.groups[: resolver.num_inner]),
        trailing=tuple(resolver.groups[resolver.num_inner :]),
        has_roles=layout.has_roles or num_roles > 0,
    )


def quote_some(names: Sequence[str]) -> str:
    """Quotes names within a message; leaves some out where there are very many."""
    dots = ", ..." if len(names) > _MAX_NUM_LISTED else ""
    return ", ".join(map(quote, names[:_MAX_NUM_LISTED])) + dots


@dataclass(slots=True)
class _Resolver:
    """Walks a prompt in document order.

    Attributes:
        places: Where each module is imported first, by index, in order of import.
        elements: Imports that are spelled out, by index.
        members: The imported member of each union, by the union's index.
        last: The module that the last import so far names.
        groups: New text so far.
        num_inner: How many of `groups` stand before the last import so far.
    """

    prompt: Prompt
    layout: SchemaLayout
    tokenizer: LayoutTokenizer
    budgets: Budgets
    places: dict[int, Place] = field(default_factory=dict)
    elements: dict[int, Import] = field(default_factory=dict)
    members: dict[int, ModuleLayout] = field(default_factory=dict)
    last: ModuleLayout | None = None
    groups: list[TextGroup] = field(default_factory=list)
    num_inner: int = 0

    def __post_init__(self) -> None:
        self.places[ROOT] = self.prompt.location

    def visit(self, children: Iterable[PromptNode], scope: ModuleLayout) -> None:
        """Takes the content of the prompt or of an import of `scope`."""
        after: ModuleLayout | None = None
        pieces: list[Piece] = []
        for item in items(children, self.tokenizer):
            if isinstance(item, Piece):
                pieces.append(item)
            elif isinstance(item, Import):
                module = self.find(item, scope)
                self._group(TextGroup(scope, after, module, tuple(pieces)))
                self._import(item, module)
                self.visit(item.children, module)
                after, pieces = module, []
        self._group(TextGroup(scope, after, None, tuple(pieces)))

    def import_defaults(self) -> None:
        """Imports the default members of unions from which nothing was chosen."""
        # Unions come in document order, so one nested in a default member is still to come.
        for index, union in enumerate(self.layout.unions):
            is_open = index not in self.members and union.parent in self.places
            if union.default is not None and is_open:
                module = self.layout.modules[union.default]
                self._add(module, self.places[union.parent])

    def arguments(self) -> Iterator[GivenArgument]:
        """Pairs the parameters of all imported modules with their arguments."""
        for index, place in self.places.items():
            module, element = self.layout.modules[index], self.elements.get(index)
            given = {argument.name: argument for argument in element.arguments} if element else {}
            for slot in module.parameters.values():
                if slot.name not in given:
                    raise self._missing(module, slot, place)
                yield GivenArgument(module, slot, given[slot.name])

    def _group(self, group: TextGroup) -> None:
        if group.pieces:
            self.groups.append(group)

    def _import(self, element: Import, module: ModuleLayout) -> None:
        if (earlier := self.elements.get(module.index)) is not None:
            message = f"{quote(module.path)} is imported twice"
            raise self._error(
                element.location, message, f"the first import is at {earlier.location}"
            )
        if len(self.elements) == self.budgets.max_imports:
            message = f"more than {self.budgets.max_imports} imports"
            raise self._error(element.location, message, "import the modules around them")
        for argument in element.arguments:
            if argument.name not in module.parameters:
                raise self._unknown_argument(module, argument)
        self._check_order(module, element.location)
        self.elements[module.index] = element
        self.last = module
        for ancestor in self.layout.ancestors(module):
            self._add(ancestor, element.location)
        self._add(module, element.location)
        # An explicit import is where a missing argument belongs.
        self.places[module.index] = element.location
        self.num_inner = len(self.groups)
        if self.num_inner > self.budgets.max_texts:
            message = f"new text before more than {self.budgets.max_texts} imports"
            raise self._error(element.location, message, "put the text behind the imports")

    def _check_order(self, module: ModuleLayout, location: Place) -> None:
        """Refuses an order that a compact layout cannot keep: modules lie within their parents."""
        last, layout = self.last, self.layout
        if last is None or not layout.is_compact or layout.has_free_order:
            return
        for outer in (*layout.ancestors(module), module):
            is_left = not outer.index <= last.index <= outer.last_descendant
            if outer.index != ROOT and outer.index in self.places and is_left:
                message = f"{quote(last.path)} stands between {quote(outer.path)} and "
                message += f"{quote(module.path)}, which lies within it"
                hint = f"import what is nested in {quote(outer.path)} right behind it"
                raise self._error(location, message, hint)

    def _add(self, module: ModuleLayout, location: Place) -> None:
        if module.index in self.places:
            return
        if module.union is not None:
            member = self.members.setdefault(module.union, module)
            if member is not module:
                message = (
                    f"{quote(member.path)} and {quote(module.path)} are members of one union, "
                    "of which a prompt imports at most one"
                )
                raise self._error(location, message, "leave one of them out")
        self.places[module.index] = location

    def find(self, element: Import, scope: ModuleLayout) -> ModuleLayout:
        """The module that an import inside of `scope` names."""
        *around, name = element.name.split("/")
        for outer in around:
            scope = self._named(outer, element.location, scope)
        return self._named(name, element.location, scope)

    def _named(self, name: str, place: Place, scope: ModuleLayout) -> ModuleLayout:
        child = self.layout.children[scope.index].get(name)
        if child is not None:
            return self.layout.modules[child]
        # In document order, so those inside of the scope follow each other.
        named = self.layout.by_name.get(name, ())
        inside = named[
            bisect_right(named, scope.index) : bisect_right(named, scope.last_descendant)
        ]
        found = [self.layout.modules[index] for index in inside]
        if not found:
            raise self._unknown_module(name, place, scope)
        if len(found) > 1:
            paths = quote_some([module.path for module in found])
            message = f"{quote(name)} is ambiguous: {paths}"
            raise self._error(place, message, "spell out the modules around it")
        return found[0]

    def _unknown_module(self, name: str, place: Place, scope: ModuleLayout) -> PMLError:
        where = quote(scope.path) if scope.path else f"schema {quote(self.layout.name)}"
        message = f"there is no module {quote(name)} in {where}"
        names = dict.fromkeys(module.name for module in self.layout.descendants(scope))
        return self._error(place, message, did_you_mean(name, names))

    def _unknown_argument(self, module: ModuleLayout, argument: Argument) -> PMLError:
        message = f"{quote(module.path)} has no parameter {quote(argument.name)}"
        hint = did_you_mean(argument.name, module.parameters)
        return self._error(argument.location, message, hint)

    def _missing(self, module: ModuleLayout, slot: ParameterSlot, place: Place) -> PMLError:
        message = f"{quote(module.path)} needs an argument for its parameter {quote(slot.name)}"
        hint = f'write `<{module.name} {slot.name}="...">`'
        if isinstance(place, FieldLocation):
            hint = "give it in `prompt_modules.arguments`"
        if module.index not in self.elements:
            hint += f"; {quote(module.path)} is imported along with another module"
        return self._error(place, message, hint)

    def _error(self, location: Place, message: str, hint: str | None) -> PMLError:
        return pml_error(self.prompt.source, location, message, hint)
