"""What a request's body tells about where its modules may be; decides where it goes, not more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any
from urllib.parse import unquote

import msgspec

from vllm_promptcache.distributed.http import HttpRequest
from vllm_promptcache.entrypoints.marks import is_marked
from vllm_promptcache.pml import prompt_kind

SCHEMAS_PATH = "/v1/prompt_schemas"
# What a prompt imports beyond these changes little.
MAX_NUM_MODULES = 512

_SCHEMA = re.compile(r"""<prompt\s[^>]*?\bschema\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_TAG = re.compile(r"<([\w.-]+)")
_TEXT_FIELDS = ("prompt", "content", "text", "input")


@dataclass(frozen=True, slots=True)
class Hint:
    """The schema of a request, and the modules that it may import.

    Attributes:
        schema: The schema's name.
        modules: Names of modules, each once.
    """

    schema: str
    modules: tuple[str, ...] = ()

    @property
    def keys(self) -> list[bytes]:
        """Keys of the schema and of the modules, as replicas tell what they hold."""
        return [module_key(self.schema, name) for name in ("", *self.modules)]

    @staticmethod
    def of(request: HttpRequest) -> Hint | None:
        """The hint of a request; None if it seems to concern no schema. Never raises."""
        if request.path.startswith(f"{SCHEMAS_PATH}/"):
            return Hint(unquote(request.path.split("/")[3]))
        if request.method != "POST":
            return None
        try:
            body = msgspec.json.decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None  # the server says what is wrong with it
        if request.path == SCHEMAS_PATH:
            return _of_schema(body)
        prompts = (_of_prompt(text) for text in _texts(body) if prompt_kind(text) == "schema")
        return next(prompts, None) or _of_marks(body)


def module_key(schema: str, module: str) -> bytes:
    """Names a module of a schema in 8 bytes; the schema itself where `module` is empty."""
    return blake2b(f"{schema}\0{module}".encode(), digest_size=8).digest()


def _of_schema(body: Any) -> Hint | None:
    text = body.get("schema") if isinstance(body, dict) else None
    found = re.search(r"""<schema\s[^>]*?\bname\s*=\s*["']([^"']*)""", str(text))
    return Hint(found[1]) if found else None


def _of_prompt(text: str) -> Hint | None:
    if (found := _SCHEMA.search(text)) is None:
        return None
    names = dict.fromkeys(tag[1] for tag in _TAG.finditer(text, found.end()))
    return Hint(found[1] or found[2] or "", tuple(names)[:MAX_NUM_MODULES])


def _of_marks(body: Any) -> Hint | None:
    """Chats go where others went whose longest marked text is the same, as if it was a schema."""
    messages = body.get("messages", body.get("input")) if isinstance(body, dict) else None
    turns = messages if isinstance(messages, list) else ()
    contents = (turn.get("content") for turn in turns if isinstance(turn, dict))
    parts = (part for content in contents if isinstance(content, list) for part in content)
    texts = (part.get("text") for part in parts if is_marked(part))
    longest = max((text for text in texts if isinstance(text, str)), key=len, default="")
    digest = blake2b(longest.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return Hint(f"#{digest}") if longest else None


def _texts(value: Any) -> Iterator[str]:
    """The texts of a body in which a prompt may stand."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        fields: Iterable[Any] = (value.get(name) for name in (*_TEXT_FIELDS, "messages"))
        for inner in fields:
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
