"""Schemas and plans of one front end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from types import MappingProxyType

from vllm_promptcache.errors import ClientError
from vllm_promptcache.layout.compiler import compile_schema
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.plan.plan_prompt import plan_prompt
from vllm_promptcache.plan.prompt_plan import PromptPlan, baseline
from vllm_promptcache.pml.ast import EncodePolicy, Prompt, Schema
from vllm_promptcache.pml.diagnostics import did_you_mean, pml_error, quote
from vllm_promptcache.pml.document import DEFAULT_LIMITS, Limits
from vllm_promptcache.pml.parser import parse_prompt


@dataclass(slots=True)
class Planner:
    """Compiles schemas and plans prompts.

    May be used from many threads, as far as the tokenizer may: a plan takes a schema as it is when
    it starts, and goes on with that one when the schema is replaced or removed.

    Attributes:
        tokenizer: The model's tokenizer.
        max_model_len: Positions the model has.
        block_size: Tokens in a KV cache block.
        default_encode: Policy of schemas that do not say their own.
        salt: Salt for private schemas; without one they are refused.
        limits: What a prompt may ask of the parser.
    """

    tokenizer: LayoutTokenizer
    max_model_len: int
    block_size: int
    default_encode: EncodePolicy = "isolated"
    salt: bytes = b""
    limits: Limits = DEFAULT_LIMITS
    _sources: dict[str, Schema] = field(default_factory=dict, init=False, repr=False)
    # Replaced as a whole, never changed: readers need no lock.
    _layouts: Mapping[str, SchemaLayout] = field(default_factory=dict, init=False, repr=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)

    @property
    def schemas(self) -> Mapping[str, SchemaLayout]:
        """The schemas by name, as they are now."""
        return MappingProxyType(self._layouts)

    def add_schema(self, schema: Schema) -> SchemaLayout:
        """Compiles a schema; one of the same name is replaced, the very same one is kept.

        Raises:
            PMLError: The schema cannot be laid out; the one of its name stays as it was.
            UnsupportedError: It uses roles, and the chat template cannot be taken apart.
        """
        with self._lock:
            # Files that a schema reads by `src` are part of the tree, not of its text.
            if self._sources.get(schema.name) == schema:
                return self._layouts[schema.name]
            layout = compile_schema(
                schema,
                self.tokenizer,
                default_encode=self.default_encode,
                max_model_len=self.max_model_len,
                salt=self.salt,
            )
            self._layouts = {**self._layouts, schema.name: layout}
            self._sources[schema.name] = schema
            return layout

    def remove_schema(self, name: str) -> None:
        """Forgets a schema.

        Raises:
            ClientError: There is none of that name.
        """
        with self._lock:
            if name not in self._layouts:
                message = f"there is no schema {quote(name)}"
                raise ClientError(message, did_you_mean(name, self._layouts))
            del self._sources[name]
            self._layouts = {key: kept for key, kept in self._layouts.items() if key != name}

    def plan(self, pml_text: str, *, reuse: bool = True) -> PromptPlan:
        """Parses and plans a prompt.

        Args:
            pml_text: The prompt in PML.
            reuse: Whether modules are reused; if not, the plan is one plain prefill of the same
                tokens at the same positions.

        Raises:
            PMLError: The prompt breaks a rule, or names a schema that is not there.
            UnsupportedError: It uses roles, and the chat template cannot be taken apart.
        """
        prompt = parse_prompt(pml_text, limits=self.limits)
        layout = self._layout_of(prompt)
        plan = plan_prompt(
            prompt,
            layout,
            self.tokenizer,
            max_model_len=self.max_model_len,
            block_size=self.block_size,
        )
        return plan if reuse else baseline(plan, layout)

    def _layout_of(self, prompt: Prompt) -> SchemaLayout:
        layouts = self._layouts
        if prompt.schema in layouts:
            return layouts[prompt.schema]
        known = ", ".join(sorted(map(quote, layouts)))
        listing = f"known are {known}" if known else "no schema has been added"
        hint = did_you_mean(prompt.schema, layouts) or listing
        message = f"there is no schema {quote(prompt.schema)}"
        raise pml_error(prompt.source, prompt.location, message, hint)
