"""Finds the modules that a prompt imports and the new text between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from vllm_promptcache.errors import PMLError
from vllm_promptcache.layout.content import Piece, TextGroup, items, roles_in
from vllm_promptcache.layout.module_layout import ROOT, ModuleLayout, ParameterSlot
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.plan.budgets import DEFAULT_BUDGETS, Budgets
from vllm_promptcache.plan.names import Names
from vllm_promptcache.plan.resolved import GivenArgument, ResolvedPrompt
from vllm_promptcache.pml.ast import Argument, FieldLocation, Import, Place, Prompt, PromptNode
from vllm_promptcache.pml.diagnostics import did_you_mean, pml_error, quote


def resolve_prompt(
    prompt: Prompt,
    layout: SchemaLayout,
    tokenizer: LayoutTokenizer,
    budgets: Budgets = DEFAULT_BUDGETS,
    before: str | None = None,
) -> ResolvedPrompt:
    """Looks up all names of a prompt.

    An import names a module in the scope of the element around it, or, where there is none, the
    only module of that name nested in that scope. With a module its ancestors are imported. A
    union's default member is imported with the union's parent where the prompt names no member.

    Args:
        prompt: The prompt.
        layout: Its schema.
        tokenizer: What that was compiled with.
        budgets: What a prompt may ask for.
        before: Text right before the prompt's, see `PlacedText`; None if not known.

    Raises:
        PMLError: An import or an argument is unknown, ambiguous, given twice or missing, two
            members of a union are imported, or there are more imports or texts than may be.
    """
    num_roles = 0
    for role in roles_in(prompt.children):
        is_first = not layout.has_roles and num_roles == 0
        tokenizer.roles.check(role, prompt.source, is_first=is_first)
        num_roles += 1
    names = Names(layout, prompt.source)
    resolver = _Resolver(prompt, layout, names, tokenizer, budgets)
    children = layout.placement.in_order(
        prompt.children, lambda element: names.find(element, layout.root).index
    )
    resolver.visit(children, layout.root, before)
    resolver.import_defaults()
    return ResolvedPrompt(
        modules=tuple(layout.modules[index] for index in resolver.places),
        arguments=tuple(resolver.arguments()),
        inner=tuple(resolver.groups[: resolver.num_inner]),
        trailing=tuple(resolver.groups[resolver.num_inner :]),
        has_roles=layout.has_roles or num_roles > 0,
    )


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
        num_named: Imports that are spelled out, and modules that stand in the prompt, so far.
    """

    prompt: Prompt
    layout: SchemaLayout
    names: Names
    tokenizer: LayoutTokenizer
    budgets: Budgets
    places: dict[int, Place] = field(default_factory=dict)
    elements: dict[int, Import] = field(default_factory=dict)
    members: dict[int, ModuleLayout] = field(default_factory=dict)
    last: ModuleLayout | None = None
    groups: list[TextGroup] = field(default_factory=list)
    num_inner: int = 0
    num_named: int = 0

    def __post_init__(self) -> None:
        self.places[ROOT] = self.prompt.location

    def visit(
        self, children: Iterable[PromptNode], scope: ModuleLayout, before: str | None = None
    ) -> None:
        """Takes the content of the prompt or of an import of `scope`."""
        after: ModuleLayout | None = None
        pieces: list[Piece] = []
        for item in items(children, self.tokenizer, before):
            if isinstance(item, Piece):
                self.num_named += item.inline is not None
                self._check_number(item.location)
                pieces.append(item)
            elif isinstance(item, Import):
                module = self.names.find(item, scope)
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
        self.num_named += 1
        self._check_number(element.location)
        for argument in element.arguments:
            if argument.name not in module.parameters:
                raise self._unknown_argument(module, argument)
        path = [*self.layout.ancestors(module), module]
        self._check_order(path, element.location)
        self.elements[module.index] = element
        self.last = module
        for outer in path:
            self._add(outer, element.location)
        # An explicit import is where a missing argument belongs.
        self.places[module.index] = element.location
        self.num_inner = len(self.groups)
        if self.num_inner > self.budgets.max_texts:
            message = f"new text before more than {self.budgets.max_texts} imports"
            raise self._error(element.location, message, "put the text behind the imports")

    def _check_number(self, location: Place) -> None:
        if self.num_named > self.budgets.max_imports:
            message = f"more than {self.budgets.max_imports} imports and modules"
            raise self._error(location, message, "import the modules around them")

    def _check_order(self, path: Sequence[ModuleLayout], location: Place) -> None:
        """Refuses an order that the layout cannot keep: modules lie within their parents.

        Args:
            path: An import behind the modules around it.
            location: Where it stands.
        """
        if self.last is None:
            return
        known = (outer for outer in path if outer.index in self.places)
        if (outer := self.layout.placement.left(known, self.last)) is not None:
            message = f"{quote(self.last.path)} stands between {quote(outer.path)} and "
            message += f"{quote(path[-1].path)}, which lies within it"
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
