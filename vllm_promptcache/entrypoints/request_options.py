"""What a request says beside its prompt: the tenant's salt, and prompts without markup.

vLLM's servers hand a renderer the prompt alone, so these travel in a context variable from the call
that has the request to the one that plans it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from xml.sax.saxutils import escape, quoteattr

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from vllm.entrypoints.serve.tokenize.protocol import (
    TokenizeChatRequest,
    TokenizeCompletionRequest,
)

from vllm_promptcache.errors import PlanError
from vllm_promptcache.pml import DEFAULT_LIMITS, check_repair

REQUEST_FIELD = "prompt_modules"

_NAME = r"[A-Za-z_][A-Za-z0-9_.\-]*"
_Name = Annotated[str, StringConstraints(pattern=rf"^{_NAME}$", max_length=256)]
# As deep as documents may nest.
_MAX_DEPTH = DEFAULT_LIMITS.max_depth
_PATTERN = rf"^{_NAME}(/{_NAME}){{0,{_MAX_DEPTH - 1}}}$"
_Path = Annotated[str, StringConstraints(pattern=_PATTERN, max_length=4096)]


class PromptModules(BaseModel):
    """The field `prompt_modules` of a request: a prompt without markup.

    Attributes:
        schema_name: The schema, called `schema` in JSON.
        imports: Paths of the modules to import, such as `trip-plan/miami`.
        arguments: Module path -> parameter -> value.
        encode: `exact` for answers as of a plain prefill, whatever the schema says.
        repair: Which tokens of modules are computed again, whatever the schema says.
        text: New text behind the modules, before that of the request's own prompt.
        detail: Whether the response tells what was reused.
    """

    model_config = ConfigDict(extra="forbid")

    schema_name: _Name | None = Field(default=None, alias="schema")
    imports: list[_Path] = Field(default_factory=list, max_length=4096)
    arguments: dict[_Path, dict[_Name, str]] = Field(default_factory=dict)
    encode: Literal["exact"] | None = None
    repair: Annotated[str, AfterValidator(check_repair)] | None = None
    text: str = ""
    detail: bool = False

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        others = (self.imports, self.arguments, self.text, self.encode, self.repair)
        if self.schema_name is None and any(others):
            raise ValueError("imports, arguments, text, encode and repair need a schema")
        return self

    @property
    def is_prompt(self) -> bool:
        """Whether it names a schema, and not just asks for details."""
        return self.schema_name is not None

    def to_pml(self, text: str, *, as_user: bool = False) -> str:
        """Returns the prompt as PML.

        Args:
            text: The request's own prompt, which stands behind everything else.
            as_user: Whether the new text is a user message.

        Raises:
            PlanError: An argument is for no import.
        """
        num_chars = len(self.text) + len(text)
        if num_chars > DEFAULT_LIMITS.max_document_bytes:
            raise PlanError(f"prompt_modules: {num_chars} characters of text are too many")
        tree: dict[str, Any] = {}
        for path in self.imports:
            node = tree
            for name in path.split("/"):
                node = node.setdefault(name, {})
        for path in self.arguments:
            if not _holds(tree, path):
                raise PlanError(f"prompt_modules: arguments for {path!r}, which is not imported")
        imports = "".join(self._element(name, (), children) for name, children in tree.items())
        new = escape(self.text + text)
        if as_user and new:
            new = f"<user>{new}</user>"
        policy = {"schema": self.schema_name, "encode": self.encode, "repair": self.repair}
        attributes = "".join(f' {key}="{value}"' for key, value in policy.items() if value)
        return f'<prompt{attributes} xml:space="preserve">{imports}{new}</prompt>'

    def _element(self, name: str, above: tuple[str, ...], children: dict[str, Any]) -> str:
        path = (*above, name)
        values = self.arguments.get("/".join(path), {})
        arguments = "".join(f" {key}={quoteattr(value)}" for key, value in values.items())
        inner = "".join(self._element(child, path, below) for child, below in children.items())
        return f"<{name}{arguments}>{inner}</{name}>"


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Fields of a request that planning depends on.

    Attributes:
        cache_salt: The tenant's salt.
        prompt_modules: A prompt without markup.
        is_tokenized: Whether its tokens are the answer, on a route that no API key guards.
    """

    cache_salt: str | None = None
    prompt_modules: PromptModules | None = None
    is_tokenized: bool = False

    @classmethod
    def of(cls, request: Any) -> RequestOptions:
        """Reads the options of a request body.

        Raises:
            PlanError: The field `prompt_modules` is malformed.
        """
        field = (getattr(request, "model_extra", None) or {}).get(REQUEST_FIELD)
        return cls(
            getattr(request, "cache_salt", None),
            None if field is None else _parse(field),
            is_tokenized=isinstance(request, TokenizeCompletionRequest | TokenizeChatRequest),
        )


_current: ContextVar[RequestOptions] = ContextVar("prompt_module_options")


def current_options() -> RequestOptions:
    """The options of the request that is being rendered."""
    return _current.get(RequestOptions())


@contextmanager
def applied(options: RequestOptions) -> Iterator[None]:
    """Makes `options` those of all requests that are rendered inside."""
    token = _current.set(options)
    try:
        yield
    finally:
        _current.reset(token)


async def preprocess(
    original: Callable[..., Any], renderer: Any, request: Any, *args: Any, **kwargs: Any
) -> Any:
    """Wraps the methods of vLLM's `OnlineRenderer` that see both request and prompt."""
    with applied(RequestOptions.of(request)):
        return await original(renderer, request, *args, **kwargs)


def _parse(field: Any) -> PromptModules:
    try:
        return PromptModules.model_validate(field)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, (REQUEST_FIELD, *problem["loc"])))
        raise PlanError(f"{place}: {problem['msg']}") from None


def _holds(tree: dict[str, Any], path: str) -> bool:
    node: dict[str, Any] | None = tree
    for name in path.split("/"):
        node = None if node is None else node.get(name)
    return node is not None
