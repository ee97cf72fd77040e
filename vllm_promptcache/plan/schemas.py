"""The schemas of one front end, by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from threading import Lock

from vllm_promptcache.errors import NotFoundError
from vllm_promptcache.layout.derived import DerivedCache
from vllm_promptcache.layout.inline import schema_without_modules
from vllm_promptcache.layout.keys import salted
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.plan.compiled import Compiled, SchemaCompiler
from vllm_promptcache.plan.inline import InlineModules
from vllm_promptcache.plan.messages import untrimmed
from vllm_promptcache.plan.names import quote_some
from vllm_promptcache.pml import Schema, Source, did_you_mean, quote

# Below vLLM's own loggers; `vllm_promptcache.log` would import vLLM.
_logger = logging.getLogger(f"vllm.{__name__}")


class Schemas:
    """Compiled schemas by name.

    May be used from many threads, as far as the tokenizer may: who has taken a schema goes on with
    it when it is replaced or removed.

    Args:
        compiler: Lays schemas out.
        on_remove: Is told the name of each schema that goes away.
    """

    def __init__(
        self, compiler: SchemaCompiler, on_remove: Callable[[str], None] | None = None
    ) -> None:
        self.compiler = compiler
        self._on_remove = on_remove
        self._derived = DerivedCache()
        self._nameless = self._derived.open()
        self._lock = Lock()
        # Replaced as a whole, never changed: readers need no lock.
        self._compiled: Mapping[str, Compiled] = {}

    @cached_property
    def inline(self) -> InlineModules:
        """Modules that stand in prompts."""
        derived = self._nameless.part()

        def lay_out(schema: Schema, tokenizer: LayoutTokenizer) -> SchemaLayout:
            return self.compiler.lay_out(schema, tokenizer, derived).layout

        return InlineModules(self.compiler.tokenizer, lay_out, derived)

    def nameless(self, beginning: str, tenant: bytes, *, is_chat: bool = False) -> Compiled:
        """The schema of prompts that name none: it has no modules.

        Args:
            beginning: Its text.
            tenant: Whose prompts they are; empty for all who say none.
            is_chat: Whether a chat template has written that.
        """
        digest = sha256(beginning.encode(errors="surrogatepass")).digest()
        derived, tokenizer = self._nameless, self.compiler.tokenizer

        def make() -> Compiled:
            schema = schema_without_modules(beginning, private=bool(tenant))
            known = tokenizer.within_chat() if is_chat else tokenizer
            made = self.compiler.lay_out(schema, known, derived.part())
            return replace(made, layout=salted(made.layout, tenant)) if tenant else made

        key = ("beginning", digest, tenant, is_chat)
        return derived.get(key, make, lambda made: made.num_bytes)

    @property
    def layouts(self) -> Mapping[str, SchemaLayout]:
        """The layouts of all schemas, as they are now."""
        return {name: compiled.layout for name, compiled in self._compiled.items()}

    @property
    def names(self) -> Collection[str]:
        """Names of the schemas, as they are now."""
        return self._compiled.keys()

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the schemas take, without what is derived of them."""
        return sum(compiled.num_bytes for compiled in self._compiled.values())

    def find(self, name: str) -> Compiled | None:
        """The schema of a name, None if there is none."""
        return self._compiled.get(name)

    def get(self, name: str) -> Compiled:
        """The schema of a name.

        Raises:
            NotFoundError: There is none.
        """
        compiled = self._compiled.get(name)
        if compiled is None:
            raise NotFoundError(f"there is no schema {quote(name)}", self._hint(name))
        return compiled

    def serves(self, layout: SchemaLayout) -> bool:
        """Whether this is the schema of its name that is served now."""
        found = self.find(layout.name)
        return found is not None and found.layout is layout

    def holds(self, schema: Schema) -> bool:
        """Whether this very schema has been added."""
        known = self.find(schema.name)
        return known is not None and _content(known.schema) == _content(schema)

    def compile(self, schema: Schema) -> Compiled:
        """Lays a schema out without adding it. Raises as `SchemaCompiler.compile`."""
        return self.compiler.compile(schema, self._derived.open())

    def add(self, schema: Schema) -> SchemaLayout:
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
        _warn(compiled)
        name, layout = compiled.schema.name, compiled.layout
        with self._lock:
            replaced = self._compiled.get(name)
            self._compiled = {**self._compiled, name: compiled}
        if replaced is not None:
            replaced.layout.derived.close()
        return layout

    def remove(self, name: str) -> None:
        """Forgets a schema. Requests in flight are not touched: they carry their plans.

        Raises:
            NotFoundError: There is none of that name.
        """
        with self._lock:
            removed = self.get(name)
            self._compiled = {key: kept for key, kept in self._compiled.items() if key != name}
        removed.layout.derived.close()
        if self._on_remove is not None:
            self._on_remove(name)

    def _hint(self, name: str) -> str:
        known = sorted(self._compiled)
        if not known:
            return "none has been added"
        return did_you_mean(name, known) or f"known are {quote_some(known)}"


def _content(schema: Schema) -> Schema:
    # Trees are compared, since files that are read by `src` are no part of the text; where the text
    # was read from makes no difference.
    return replace(schema, source=Source("", schema.source.text))


def _warn(compiled: Compiled) -> None:
    """Logs what its author may not expect of a schema."""
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
