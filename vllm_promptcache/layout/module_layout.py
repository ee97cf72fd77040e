"""A module of a compiled schema: where it lies and what is needed to encode it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vllm_promptcache.pml.ast import Pin, RoleName
from vllm_promptcache.policies import Policy
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.sequence.spans import Relocation

ROOT = 0
"""Index of the module that holds a schema's anonymous text; every prompt imports it."""


@dataclass(frozen=True, slots=True)
class ParameterSlot:
    """The positions that an argument may take.

    Attributes:
        name: The parameter's name.
        start: Position of the argument's first token.
        length: How many tokens it may have at most.
    """

    name: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class ContextSpan:
    """Part of a module's encode context: the first `num_tokens` kept tokens of a module."""

    index: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class RoleMark:
    """Where a chat role begins or ends.

    Attributes:
        role: The role.
        opens: Whether it begins there.
        position: The first position of its opening wrapper, or one past the last one of its closing
            wrapper.
    """

    role: RoleName
    opens: bool
    position: int


@dataclass(frozen=True, slots=True, eq=False)
class ModuleLayout:
    """A prompt module with its place (paper, section 3.3).

    Equal to itself only: what is derived from a module is looked up by it, and comparing all of its
    tokens would take longer than to derive it. Modules with equal keys are interchangeable.

    Its *own tokens* are its direct text, the wrappers of its roles and its parameters'
    placeholders; the modules nested in it are holes in its positions.

    Attributes:
        index: Place in `SchemaLayout.modules`, which is document order.
        path: Names from the top of the schema, joined with `/`; empty for the root.
        parent: Index of the module it is nested in; None for the root.
        last_descendant: The modules nested in it, at any depth, are those from `index + 1` on to
            this index.
        union: Index into `SchemaLayout.unions` if it is a union's member.
        start: First position of its extent, nested modules included.
        end: One past the last position of its extent.
        head_end: One past the last position before the first module nested in it.
        num_reusable: Kept tokens, from the first one on, that are where its KV is or can be moved
            to: all of them; in a compact layout those before `head_end`; of a module that a prompt
            has pulled apart those that stayed together.
        policy: How it is encoded, and repaired in every prompt that does not say it.
        cached: Whether its KV is kept at all (`cache="false"`).
        pin: Whether it is to stay in the KV cache, and for how long.
        parameters: Its parameters by name.
        token_ids: Own tokens, `[num_tokens]`.
        position_runs: Position ids of `token_ids`.
        encoded_runs: Position ids that these had when it was encoded: others if it was moved.
        kept_runs: Indexes into `token_ids` of all but the placeholders.
        kept_token_ids: Those tokens, `[num_kept_tokens]`.
        kept_position_runs: Position ids of `kept_token_ids`.
        context: What it is encoded behind, in order: ancestors and primers.
        dependencies: Indexes of all modules that must be encoded before it, in order.
        role_marks: Where its own roles begin and end, in document order.
        key: SHA-256 (32 bytes) of all that its KV depends on, the model aside.
        packed: What it is encoded from, see `sequence.codec.Recipe`, without the tokens that a
            prompt has which imports it; empty unless `is_reusable`. Of a relocated module, that of
            its origin.
        relocation: Where its KV comes from if it is not where the schema puts it.
        chain: What it is a link of, `scaffold` or `exact`, see `plan.chain`; None of a module that
            is encoded by its own policy.
        first: Index of its variant for prompts in which it stands first, see `layout.first`; None
            if there it is the same.
    """

    index: int
    path: str
    parent: int | None
    last_descendant: int
    union: int | None
    start: int
    end: int
    head_end: int
    num_reusable: int
    policy: Policy
    cached: bool
    pin: Pin | None
    parameters: Mapping[str, ParameterSlot]
    token_ids: tuple[int, ...] = field(repr=False)
    position_runs: tuple[Run, ...] = field(repr=False)
    encoded_runs: tuple[Run, ...] = field(repr=False)
    kept_runs: tuple[Run, ...] = field(repr=False)
    kept_token_ids: tuple[int, ...] = field(repr=False)
    kept_position_runs: tuple[Run, ...] = field(repr=False)
    context: tuple[ContextSpan, ...]
    dependencies: tuple[int, ...]
    role_marks: tuple[RoleMark, ...]
    key: bytes
    packed: bytes = field(repr=False)
    relocation: Relocation | None = None
    chain: str | None = None
    first: int | None = None

    @property
    def name(self) -> str:
        """The last step of `path`, empty for the root."""
        return self.path.rpartition("/")[2]

    @property
    def num_kept_tokens(self) -> int:
        """Tokens whose KV the module holds once it is encoded."""
        return len(self.kept_token_ids)

    @property
    def is_reusable(self) -> bool:
        """Whether there is KV of it to reuse."""
        return self.cached and bool(self.kept_token_ids)


def ancestors(
    module: ModuleLayout, modules: Mapping[int, ModuleLayout] | Sequence[ModuleLayout]
) -> list[ModuleLayout]:
    """Modules that a module is nested in, root first; `modules` has them by index."""
    chain: list[ModuleLayout] = []
    while module.parent is not None:
        module = modules[module.parent]
        chain.append(module)
    return chain[::-1]
