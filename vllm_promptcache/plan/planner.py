"""Schemas and plans of one front end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from threading import Lock
from typing import TypeAlias

from vllm_promptcache.errors import ClientError, NotFoundError, UnsupportedError
from vllm_promptcache.layout.compiler import compile_schema
from vllm_promptcache.layout.content import roles_in
from vllm_promptcache.layout.derived import DerivedCache
from vllm_promptcache.layout.keys import salted
from vllm_promptcache.layout.roles import ChatRoles
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.layout.size import salted_bytes
from vllm_promptcache.layout.tokenizer import HFTokenizer, LayoutTokenizer
from vllm_promptcache.plan.budgets import DEFAULT_BUDGETS, Budgets
from vllm_promptcache.plan.chat import Chat, TemplateChanged, turns
from vllm_promptcache.plan.lay_out import plan_prompt
from vllm_promptcache.plan.messages import prompt_in_messages, system_text, untrimmed
from vllm_promptcache.plan.names import quote_some
from vllm_promptcache.plan.new_tokens import NewText
from vllm_promptcache.plan.prompt_plan import PromptPlan, baseline
from vllm_promptcache.plan.variants import Compiled, Surroundings, Variants
from vllm_promptcache.plan.warm import warm_plans
from vllm_promptcache.pml import (
    PROMPT_LIMITS,
    Limits,
    Prompt,
    PromptNode,
    Schema,
    Source,
    did_you_mean,
    parse_prompt,
    pml_error,
    quote,
)
from vllm_promptcache.policies import DEFAULT_POLICY, Policy

Gate: TypeAlias = Callable[[SchemaLayout], SchemaLayout]
"""Returns a schema as it is, or exact if what it says must not be served."""

# Below vLLM's own loggers; `vllm_promptcache.log` would import vLLM.
_logger = logging.getLogger(f"vllm.{__name__}")


def _content(schema: Schema) -> Schema:
    # Trees are compared, since files that are read by `src` are no part of the text; where the text
    # was read from makes no difference.
    return replace(schema, source=Source("", schema.source.text))


class Planner:
    """Compiles schemas and plans prompts.

    May be used from many threads, as far as the tokenizer may: a plan takes a schema as it is when
    it starts, and goes on with that one when the schema is replaced or removed.

    Args:
        tokenizer: The model's tokenizer.
        max_model_len: Positions the model has.
        block_size: Tokens in a KV cache block.
        default_policy: Policy of schemas that do not say their own.
        gate: Is asked when a schema is compiled; None lets all pass.
        promotes: Whether the engine may promote combinations of modules.
        limits: What a prompt may ask of the parser.
        budgets: What a prompt may ask of the engine.
        on_remove: Is told the name of each schema that goes away.
    """

    def __init__(
        self,
        tokenizer: HFTokenizer,
        *,
        max_model_len: int,
        block_size: int,
        default_policy: Policy = DEFAULT_POLICY,
        gate: Gate | None = None,
        promotes: bool = False,
        limits: Limits = PROMPT_LIMITS,
        budgets: Budgets = DEFAULT_BUDGETS,
        on_remove: Callable[[str], None] | None = None,
    ) -> None:
        self.tokenizer = LayoutTokenizer(tokenizer)
        self.max_model_len = max_model_len
        self.block_size = block_size
        self._default_policy = default_policy
        self._gate = gate
        self._promotes = promotes
        self._limits = limits
        self._budgets = budgets
        self._on_remove = on_remove
        self._derived = DerivedCache()
        self._lock = Lock()
        # Replaced as a whole, never changed: readers need no lock.
        self._schemas: Mapping[str, Compiled] = {}
        self._variants = Variants(self.tokenizer, self._layout)

    @property
    def schemas(self) -> Mapping[str, SchemaLayout]:
        """The schemas by name, as they are now."""
        return {name: compiled.layout for name, compiled in self._schemas.items()}

    @property
    def names(self) -> Collection[str]:
        """Names of the schemas, as they are now."""
        return self._schemas.keys()

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the schemas take, without what is derived of them."""
        return sum(compiled.num_bytes for compiled in self._schemas.values())

    def find(self, name: str) -> Compiled | None:
        """A schema and its layout, None if there is none of that name."""
        return self._schemas.get(name)

    def serves(self, layout: SchemaLayout) -> bool:
        """Whether this is the schema of its name that is served now."""
        found = self.find(layout.name)
        return found is not None and found.layout is layout

    def layout(self, name: str) -> SchemaLayout:
        """The schema of a name.

        Raises:
            NotFoundError: There is none.
        """
        return self._get(name).layout

    def holds(self, schema: Schema) -> bool:
        """Whether this very schema has been added."""
        known = self._schemas.get(schema.name)
        return known is not None and _content(known.schema) == _content(schema)

    def compile(self, schema: Schema) -> Compiled:
        """Lays a schema out without adding it. Raises as `add_schema`."""
        tokenizer = self.tokenizer
        if next(roles_in(schema.children), None) is not None:
            tokenizer = tokenizer.with_roles(tokenizer.roles)
        layout = replace(self._layout(schema, tokenizer), derived=self._derived.open())
        return Compiled(schema, layout, tokenizer)

    def _layout(self, schema: Schema, tokenizer: LayoutTokenizer) -> SchemaLayout:
        layout = compile_schema(
            schema,
            tokenizer,
            default_policy=self._default_policy,
            max_model_len=self.max_model_len,
        )
        return layout if self._gate is None else self._gate(layout)

    def add_schema(self, schema: Schema) -> SchemaLayout:
        """Compiles a schema; one of the same name is replaced, the very same one is kept.

        Raises:
            PMLError: The schema cannot be laid out; the one of its name stays as it was.
            UnsupportedError: It uses roles, and the chat template cannot be taken apart.
        """
        known = self.find(schema.name)
        if known is not None and self.holds(schema):
            return known.layout
        return self.adopt(self.compile(schema))

    def adopt(self, compiled: Compiled) -> SchemaLayout:
        """Adds a schema that `compile` has laid out, and returns its layout."""
        schema, layout = compiled.schema, compiled.layout
        if layout.fallback is not None:
            _logger.warning("Schema %s is served exactly: %s", schema.name, layout.fallback)
        if layout.has_roles and (path := untrimmed(schema, compiled.tokenizer.roles)) is not None:
            _logger.warning(
                "Schema %s: the chat template trims messages, but not module %s, which ends one "
                "with white space",
                schema.name,
                path,
            )
        with self._lock:
            replaced = self._schemas.get(schema.name)
            self._schemas = {**self._schemas, schema.name: compiled}
        if replaced is not None:
            replaced.layout.derived.close()
        return layout

    def remove_schema(self, name: str) -> None:
        """Forgets a schema.

        Raises:
            ClientError: There is none of that name.
        """
        with self._lock:
            removed = self._get(name)
            self._schemas = {key: kept for key, kept in self._schemas.items() if key != name}
        removed.layout.derived.close()
        if self._on_remove is not None:
            self._on_remove(name)

    def warm_plans(self, name: str, *, salt: str | None = None) -> Iterator[PromptPlan]:
        """Plans that make the engine encode all modules of a schema ahead of its prompts.

        Each is made when it is asked for: there may be thousands.

        Raises:
            ClientError: There is no schema of that name, or it is private and there is no salt.
        """
        layout = self._layout_for(self._written_now(self._get(name)), salt)
        return warm_plans(layout, block_size=self.block_size)

    def plan(
        self,
        prompt: str | Prompt,
        *,
        reuse: bool = True,
        salt: str | None = None,
        chat: Chat | None = None,
    ) -> PromptPlan:
        """Plans a prompt.

        Args:
            prompt: The prompt in PML, or its tree.
            reuse: Whether modules are reused; if not, the plan is one plain prefill of the same
                tokens at the same positions.
            salt: The tenant's salt (`cache_salt` of a request), which a private schema needs.
            chat: The conversation that the prompt is in.

        Raises:
            PMLError: The prompt breaks a rule, or names a schema that is not there.
            PlanError: A chat cannot have it.
            UnsupportedError: It uses roles, and the chat template cannot be taken apart.
        """
        if isinstance(prompt, str):
            prompt = parse_prompt(prompt, limits=self._limits)
        compiled = self._named_by(prompt)
        if chat is None:
            plan = self._plan(prompt, self._written_now(compiled, prompt.children), salt, reuse)
        else:
            plan = self._plan_chat(prompt, compiled, salt, chat, reuse)
        return plan if reuse else baseline(plan)

    def _plan_chat(
        self, prompt: Prompt, compiled: Compiled, salt: str | None, chat: Chat, reuse: bool
    ) -> PromptPlan:
        roles = self.tokenizer.template.known(chat.key) or self._read_template(chat)
        # What the request has not changed may have changed by itself: the date, say.
        for _ in range(2):
            system = system_text(chat, compiled.schema, roles, bos=self.tokenizer.bos_text)
            variant = self._variants.of(compiled, Surroundings(roles, is_chat=True, system=system))
            arranged = prompt_in_messages(prompt, chat, variant.schema)
            try:
                return self._plan(arranged, variant, salt, reuse, chat)
            except TemplateChanged:
                roles = self._read_template(chat)
        raise UnsupportedError(
            "the model's chat template writes the messages of this conversation in another way "
            "than it writes plain ones, so their text cannot be known beforehand",
            "leave out what the template writes into messages, such as tools",
        )

    def _read_template(self, chat: Chat) -> ChatRoles:
        try:
            return self.tokenizer.template.read(chat.key, chat.render)
        except UnsupportedError as error:
            hint = "leave out what the request gives the template (tools, say), or use completions"
            raise UnsupportedError(error.message, hint) from error

    def _plan(
        self,
        prompt: Prompt,
        compiled: Compiled,
        salt: str | None,
        reuse: bool,
        chat: Chat | None = None,
    ) -> PromptPlan:
        layout, tokenizer = self._layout_of(prompt, compiled, salt), compiled.tokenizer

        def ending(text: NewText) -> list[int]:
            assert chat is not None
            return turns(prompt, text, chat, tokenizer, self.max_model_len)

        return plan_prompt(
            prompt,
            layout,
            tokenizer,
            max_model_len=self.max_model_len,
            block_size=self.block_size,
            ending=None if chat is None else ending,
            promotes=self._promotes and reuse,
            budgets=self._budgets,
        )

    def _written_now(self, compiled: Compiled, children: Sequence[PromptNode] = ()) -> Compiled:
        """A schema as the chat template writes it now, for a prompt with these children."""
        if not compiled.layout.has_roles and next(roles_in(children), None) is None:
            return compiled
        return self._variants.of(compiled, Surroundings(self.tokenizer.roles))

    def _named_by(self, prompt: Prompt) -> Compiled:
        try:
            return self._get(prompt.schema)
        except ClientError as error:
            raise pml_error(prompt.source, prompt.location, error.message, error.hint) from None

    def _get(self, name: str) -> Compiled:
        compiled = self._schemas.get(name)
        if compiled is None:
            raise NotFoundError(f"there is no schema {quote(name)}", self._hint(name))
        return compiled

    def _layout_for(self, compiled: Compiled, salt: str | None) -> SchemaLayout:
        if not compiled.layout.private:
            return compiled.layout
        if not salt:
            message = f"schema {quote(compiled.layout.name)} is private: a request must have a salt"
            raise ClientError(message, "set `cache_salt` to a secret of the tenant")
        # A digest, since a salt may be of any length and stays in memory.
        digest = sha256(salt.encode(errors="surrogatepass")).digest()
        layout = compiled.layout
        return layout.derived.get(digest, lambda: salted(layout, digest), salted_bytes)

    def _layout_of(self, prompt: Prompt, compiled: Compiled, salt: str | None) -> SchemaLayout:
        try:
            return self._layout_for(compiled, salt)
        except ClientError as error:
            raise pml_error(prompt.source, prompt.location, error.message, error.hint) from None

    def _hint(self, name: str) -> str:
        known = sorted(self._schemas)
        if not known:
            return "none has been added"
        return did_you_mean(name, known) or f"known are {quote_some(known)}"
