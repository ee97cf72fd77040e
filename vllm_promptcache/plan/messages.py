"""Schemas and prompts as a chat has them: all text stands in messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from vllm_promptcache.errors import PlanError, UnsupportedError
from vllm_promptcache.layout.content import has_imports, roles_in
from vllm_promptcache.layout.roles import ChatRoles
from vllm_promptcache.plan.chat import Chat
from vllm_promptcache.pml.ast import (
    Inline,
    Module,
    Param,
    Prompt,
    PromptNode,
    Role,
    RoleName,
    Schema,
    SchemaNode,
    Text,
    Union,
)
from vllm_promptcache.pml.diagnostics import pml_error, quote


@dataclass(frozen=True, slots=True)
class SystemText:
    """System text of a conversation before that of a schema.

    Attributes:
        messages: Messages before the schema's own.
        start: Text that the schema's first message begins with, which is a system message.
    """

    messages: tuple[str, ...] = ()
    start: str = ""

    def __bool__(self) -> bool:
        return bool(self.messages or self.start)


def is_bare(node: SchemaNode) -> bool:
    """Whether a node of a schema holds nothing that stands in a message."""
    match node:
        case Role():
            return False
        case Module():
            return next(roles_in(node.children), None) is None
        case Union():
            return all(map(is_bare, node.members))
        case Text() | Param():
            return True


def schema_in_messages(schema: Schema) -> Schema:
    """A schema as a chat has it: what stands in no role begins the user's message.

    Returns:
        The schema itself if all of it stands in roles.

    Raises:
        PlanError: There are roles behind such content.
    """
    children = schema.children
    first = next((i for i, node in enumerate(children) if is_bare(node)), len(children))
    bare = children[first:]
    if not bare:
        return schema
    if not all(map(is_bare, bare)):
        raise PlanError(
            f"schema {quote(schema.name)} has text before or between its messages, which a chat "
            "cannot have",
            "put it into `<user>`, or let it stand behind all roles",
        )
    message: Role[Any] = Role("user", bare, bare[0].location, closes=False)
    return replace(schema, children=(*children[:first], message))


def prompt_in_messages(prompt: Prompt, chat: Chat, schema: Schema) -> Prompt:
    """A prompt as a chat has it: what stands in no role is the user's.

    Args:
        prompt: The document.
        chat: Says what else stands in its message.
        schema: Its schema, as a chat has it.

    Raises:
        PMLError: An import stands behind the message that the schema begins.
    """
    children = _joined(chat.before, prompt.children, chat.behind, prompt)
    if is_open(schema):
        children = _closed(prompt, children)
    num_imports = max((i + 1 for i, node in enumerate(children) if has_imports(node)), default=0)
    rest = _as_user(children[num_imports:])
    return replace(prompt, children=(*children[:num_imports], *rest))


def system_text(chat: Chat, schema: Schema, roles: ChatRoles, *, bos: str) -> SystemText:
    """Finds out how a template writes a conversation's system messages before a schema's own.

    Raises:
        UnsupportedError: It has no system message, or only one and does not join them.
    """
    texts = tuple(chat.system)
    if not texts:
        return SystemText()
    if "system" in roles.missing:
        raise UnsupportedError(
            "the model's chat template has no system message that could stand before a PML "
            f"prompt: {roles.missing['system']}",
            "put the text into the prompt",
        )
    has_own = _own_system(schema) is not None
    if len(texts) + has_own == 1 or not roles.system_first_only:
        return SystemText(texts)
    # The template, or the server, writes all of them into one.
    names: list[RoleName] = ["system"] * (len(texts) + has_own)
    before, *glue, last, behind = chat.gaps([*names, "user"])
    if roles.behind(["system", "user"], [before, last, behind], bos=bos) is None:
        raise UnsupportedError(
            "the model's chat template writes a system message before another one in a way of its "
            "own",
            "leave out the system message, or the schema's `<system>`",
        )
    if roles.strips("system"):
        texts = tuple(text.strip() for text in texts)
    joined = "".join(text + gap for text, gap in zip(texts, [*glue, ""], strict=False))
    return SystemText(start=joined) if has_own else SystemText((joined,))


def with_system(schema: Schema, system: SystemText, *, strips: bool) -> Schema:
    """A schema with system text before its own.

    Args:
        schema: The schema.
        system: The text.
        strips: Whether the template strips white space from the schema's own system message.
    """
    children = list(schema.children)
    own = _own_system(schema)
    if system.start and own is not None:
        nodes = list(own.children)
        if strips and nodes and isinstance(nodes[0], Text):
            nodes[0] = replace(nodes[0], text=nodes[0].text.lstrip())
        children[0] = replace(own, children=(Text(system.start, own.location), *nodes))
    messages: list[Role[SchemaNode]] = [
        Role("system", (Text(text, schema.location),), schema.location) for text in system.messages
    ]
    return replace(schema, children=(*messages, *children)) if system else schema


def _own_system(schema: Schema) -> Role[SchemaNode] | None:
    """The system message that a schema begins with."""
    first = schema.children[0] if schema.children else None
    return first if isinstance(first, Role) and first.role == "system" else None


def _joined(
    before: str, children: Sequence[PromptNode], behind: str, prompt: Prompt
) -> list[PromptNode]:
    """Children of a prompt with text around them; text beside text is one."""
    nodes = list(children)
    if before and nodes and isinstance(nodes[0], Text):
        nodes[0] = replace(nodes[0], text=before + nodes[0].text)
    elif before:
        nodes.insert(0, Text(before, prompt.location))
    if behind and nodes and isinstance(nodes[-1], Text):
        nodes[-1] = replace(nodes[-1], text=nodes[-1].text + behind)
    elif behind:
        nodes.append(Text(behind, prompt.location))
    return nodes


def _closed(prompt: Prompt, children: Sequence[PromptNode]) -> list[PromptNode]:
    """Children of a prompt that end the user's message where their first role does or begins."""
    num_bare = next((i for i, n in enumerate(children) if isinstance(n, Role)), len(children))
    bare, rest = list(children[:num_bare]), list(children[num_bare:])
    first = rest[0] if rest else None
    if isinstance(first, Role) and first.role == "user":
        closing = replace(first, opens=False)
        del rest[0]
    else:
        text: list[PromptNode] = []
        while bare and isinstance(bare[-1], Text | Inline):
            text.insert(0, bare.pop())
        closing = Role("user", tuple(text), prompt.location, opens=False)
    for node in filter(has_imports, rest):
        message = "an import stands behind the user's message that the schema's modules are in"
        raise pml_error(prompt.source, node.location, message, "put it before the first role")
    return [*bare, closing, *rest]


def _as_user(children: Iterable[PromptNode]) -> list[PromptNode]:
    """Nodes without imports, with text that stands in no role in user messages."""
    nodes: list[PromptNode] = []
    for is_text, group in groupby(children, lambda node: isinstance(node, Text | Inline)):
        found = tuple(group)
        nodes += [Role("user", found, found[-1].location)] if is_text else found
    return nodes


def untrimmed(schema: Schema, roles: ChatRoles) -> str | None:
    """Name of a module at an end of a message whose white space a template would drop there."""
    trimmed = [role.children for role in roles_in(schema.children) if roles.strips(role.role)]
    padded = (
        *(m.name for c in trimmed for m in _modules(c[:1]) if m.text != m.text.lstrip()),
        *(m.name for c in trimmed for m in _modules(c[-1:]) if m.text != m.text.rstrip()),
    )
    return next(iter(padded), None)


@dataclass(frozen=True, slots=True)
class _Edge:
    """A module at an end of a message, and its own text."""

    name: str
    text: str


def _modules(nodes: Iterable[SchemaNode]) -> Iterator[_Edge]:
    for node in nodes:
        for module in node.members if isinstance(node, Union) else (node,):
            if isinstance(module, Module):
                texts = (child.text for child in module.children if isinstance(child, Text))
                yield _Edge(module.name, "".join(texts))


def is_open(schema: Schema) -> bool:
    """Whether a schema begins a message that its prompts end."""
    return any(isinstance(node, Role) and not node.closes for node in schema.children)
