"""What the schema routes do, without HTTP: the writing side of a front end's schemas."""

from __future__ import annotations

from dataclasses import dataclass, fields
from threading import Lock
from typing import Any

from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.entrypoints.schema_limits import SchemaLimits
from vllm_promptcache.errors import ClientError, ConflictError
from vllm_promptcache.layout import SchemaLayout
from vllm_promptcache.plan.compiled import Compiled
from vllm_promptcache.pml import Schema, parse_schema, quote


@dataclass(frozen=True, slots=True)
class Change:
    """What a write did.

    Attributes:
        layout: The schema as it is now.
        is_new: Whether there was none of its name.
        num_changed_tokens: Tokens of modules that no module of the old version can stand in for;
            only these are encoded again.
        num_kept_tokens: Tokens of modules that it has in common with the old version.
    """

    layout: SchemaLayout
    is_new: bool
    num_changed_tokens: int
    num_kept_tokens: int


class SchemaService:
    """Adds, replaces and removes schemas of a running server. May be used from many threads.

    Args:
        front_end: Holds the schemas.
        num_servers: API servers that answer for one engine; each has a front end of its own.
        limits: What all schemas together may be.
    """

    def __init__(
        self,
        front_end: FrontEnd,
        num_servers: int = 1,
        limits: SchemaLimits = SchemaLimits(),  # noqa: B008 (frozen)
    ) -> None:
        self._front_end = front_end
        self._schemas = front_end.planner.schemas
        self._num_servers = num_servers
        self._limits = limits
        self._lock = Lock()

    def layout(self, name: str) -> SchemaLayout:
        """The schema as it is now.

        Raises:
            NotFoundError: There is none.
        """
        self._front_end.sync(name)
        return self._schemas.get(name).layout

    def layouts(self) -> list[SchemaLayout]:
        """All schemas as they are now, in the order of their names."""
        self._front_end.sync()
        return [layout for _, layout in sorted(self._schemas.layouts.items())]

    def describe(self, layout: SchemaLayout) -> dict[str, Any]:
        """A schema as clients see it; its `modules` are `ModuleInfo`s."""
        info = self._front_end.describe(layout)
        shown = {field.name: getattr(info, field.name) for field in fields(info)}
        return {"object": "prompt_schema", **shown, "private": layout.private}

    def add(self, text: str) -> Change:
        """Adds a schema; the very same one may be added again.

        Raises:
            PMLError: It is not valid.
            ConflictError: There is another one of its name, or too many or too large ones.
        """
        schema = parse_schema(text)
        with self._lock:
            self._front_end.sync()
            known = self._schemas.find(schema.name)
            change = self._write(schema, text, known, may_replace=False)
        return change

    def replace(self, name: str, text: str) -> Change:
        """Adds a schema or replaces the one of its name; requests in flight keep the old one.

        Raises:
            PMLError: It is not valid.
            ClientError: It has another name.
            ConflictError: There are too many or too large ones.
        """
        schema = parse_schema(text)
        if schema.name != name:
            message = (
                f"the document is schema {quote(schema.name)}, the address names {quote(name)}"
            )
            raise ClientError(message, "make the two the same")
        with self._lock:
            self._front_end.sync()
            known = self._schemas.find(name)
            return self._write(schema, text, known, may_replace=True)

    def remove(self, name: str) -> None:
        """Removes a schema; requests in flight are not touched.

        Raises:
            NotFoundError: There is none.
        """
        with self._lock:
            self.layout(name)
            self._check_shared()
            if (folder := self._front_end.folder) is not None:
                folder.remove(name)
            else:
                self._schemas.remove(name)

    def _write(
        self, schema: Schema, text: str, known: Compiled | None, *, may_replace: bool
    ) -> Change:
        self._check_shared()
        folder, schemas = self._front_end.folder, self._schemas
        old = None if known is None else known.layout
        if folder is not None:
            folder.check(schema.name)
        if known is not None and schemas.holds(schema):
            return _change(old, known.layout)
        if known is not None and not may_replace:
            message = f"there is another schema {quote(schema.name)}"
            raise ConflictError(message, "replace it with PUT, or choose another name")
        self._limits.check_number(len(schemas.names) + (known is None))
        compiled = schemas.compile(schema)
        replaced = 0 if known is None else known.num_bytes
        self._limits.check_size(schemas.num_bytes - replaced, compiled.num_bytes, replaced)
        if folder is not None:
            folder.store(compiled, text)
        else:
            schemas.adopt(compiled)
        return _change(old, compiled.layout)

    def _check_shared(self) -> None:
        if self._num_servers > 1 and self._front_end.folder is None:
            raise ConflictError(
                f"{self._num_servers} API servers share schemas in a folder, and there is none",
                "start with --prompt-schemas DIR",
            )


def _change(old: SchemaLayout | None, new: SchemaLayout) -> Change:
    known = {module.key for module in old.modules} if old is not None else set()
    changed = kept = 0
    for module in filter(lambda module: module.is_reusable, new.modules):
        if module.key in known:
            kept += module.num_kept_tokens
        else:
            changed += module.num_kept_tokens
    return Change(new, old is None, changed, kept)
