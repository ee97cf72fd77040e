"""What a request says beside its prompt: the tenant's salt, and prompts without markup.

vLLM's servers hand a renderer the prompt alone, so these travel in a context variable from the call
that has the request to the one that plans it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Annotated, Any, Literal, Self

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

from vllm_promptcache.entrypoints.anthropic_marks import TEXTS_FIELD, MarkedTexts
from vllm_promptcache.entrypoints.prompt_parts import Parts, TextPart, nodes_of, part_texts
from vllm_promptcache.errors import FieldError, PlanError
from vllm_promptcache.pml import (
    DEFAULT_LIMITS,
    Argument,
    FieldLocation,
    Import,
    Prompt,
    PromptNode,
    Role,
    Source,
    Text,
    code_point,
    quote,
    size_bytes,
)
from vllm_promptcache.policies import Repair, check_repair

REQUEST_FIELD = "prompt_modules"

# What a request may ask for that goes without modules only.
_WITHOUT_MODULES = (
    "use_beam_search",
    "prompt_logprobs",
    "truncate_prompt_tokens",
    "add_special_tokens",
)

# Half a character, which JSON can say but no tokenizer can read.
_SURROGATE = re.compile("[\ud800-\udfff]")
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
        parts: The prompt as texts and modules of no schema.
        imports: Paths of the modules to import, such as `trip-plan/miami`, in their order.
        arguments: Module path -> parameter -> value.
        encode: `exact` for answers as of a plain prefill, whatever the schema says.
        repair: Which tokens of modules are computed again, whatever the schema says.
        max_kl: Policies are used only if their mean KL, in the engine's profile, is at most so many
            nats; the prompt is `exact` otherwise.
        text: New text behind the modules, before that of the request's own prompt.
        detail: Whether the response tells what was reused.
        marks: Whether marked parts of messages are modules.
        as_text: Whether PML in texts is text like any other.
    """

    model_config = ConfigDict(extra="forbid")

    schema_name: _Name | None = Field(default=None, alias="schema")
    parts: Parts = Field(default_factory=list)
    imports: list[_Path] = Field(default_factory=list, max_length=4096)
    arguments: dict[_Path, dict[_Name, str]] = Field(default_factory=dict)
    encode: Literal["exact"] | None = None
    repair: Annotated[str, AfterValidator(check_repair)] | None = None
    max_kl: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    text: str = ""
    detail: bool = False
    marks: bool = True
    as_text: bool = False

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if self.parts and (self.schema_name is not None or self.imports or self.arguments):
            raise ValueError("parts go without a schema, imports and arguments")
        others = (self.imports, self.arguments, self.text, self.encode, self.repair)
        if not self.is_prompt and (any(others) or self.max_kl is not None):
            raise ValueError(
                "imports, arguments, text, encode, repair and max_kl need a schema or parts"
            )
        return self

    @property
    def is_prompt(self) -> bool:
        """Whether it is a prompt, and not only says something about one."""
        return self.schema_name is not None or bool(self.parts)

    def to_prompt(self, text: str, *, as_user: bool = False) -> Prompt:
        """Returns the prompt's tree; every character of its text is as it was sent.

        Args:
            text: The request's own prompt, which stands behind everything else.
            as_user: Whether the new text is a user message.

        Raises:
            FieldError: It is too large, or an argument is for no import.
        """
        self._check(text)
        assert self.is_prompt, "others do not ask for a prompt"
        place = FieldLocation(REQUEST_FIELD)
        parts = nodes_of([*self.parts, TextPart(text=self.text + text)], f"{REQUEST_FIELD}.parts")
        new = parts if self.parts else _new_text(self.text + text, as_user=as_user)
        children = (*self._imports(), *new)
        return Prompt(
            schema=self.schema_name,
            is_exact=self.encode == "exact",
            repair=None if self.repair is None else Repair.parse(self.repair),
            max_kl=self.max_kl,
            children=children,
            source=Source(REQUEST_FIELD, ""),
            location=place,
        )

    def _check(self, text: str) -> None:
        """Checks what tokenizers and the rest of the front end are not made for."""
        given = (text for item in self.arguments.values() for pair in item.items() for text in pair)
        own = part_texts(self.parts)
        texts = (text, self.text, *own, *self.imports, *self.arguments, *given)
        num_bytes, limit = sum(map(size_bytes, texts)), DEFAULT_LIMITS.max_document_bytes
        if num_bytes > limit:
            message = f"the prompt has {num_bytes} bytes, more than {limit}"
            raise FieldError(message, REQUEST_FIELD)
        for half in filter(None, map(_SURROGATE.search, texts)):
            raise FieldError(f"character {code_point(half[0])} is not allowed", REQUEST_FIELD)

    def _imports(self) -> Iterator[Import]:
        """An import for each path, behind those of modules around it that have arguments."""
        waiting = set(self.arguments).difference(self.imports)
        for number, path in enumerate(self.imports):
            place = FieldLocation(f"{REQUEST_FIELD}.imports[{number}]")
            around = accumulate(path.split("/"), "{}/{}".format) if waiting else ()
            for outer in sorted(waiting.intersection(around)):
                yield Import(outer, self._given(outer), (), place)
                waiting.remove(outer)
            yield Import(path, self._given(path), (), place)
        for path in waiting:
            message, hint = f"{quote(path)} is not imported", "add it to the imports"
            raise FieldError(message, _argument_field(path), hint)

    def _given(self, path: str) -> tuple[Argument, ...]:
        field, given = _argument_field(path), self.arguments.get(path, {})
        return tuple(
            Argument(name, value, FieldLocation(f"{field}[{json.dumps(name)}]"))
            for name, value in given.items()
        )


def _new_text(text: str, *, as_user: bool) -> tuple[PromptNode, ...]:
    if not text:
        return ()
    place = FieldLocation(f"{REQUEST_FIELD}.text")
    node = Text(text, place)
    return (Role("user", (node,), place) if as_user else node,)


def _argument_field(path: str) -> str:
    return f"{REQUEST_FIELD}.arguments[{json.dumps(path)}]"


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Fields of a request that planning depends on.

    Attributes:
        cache_salt: The tenant's salt.
        prompt_modules: The field of that name.
        is_tokenized: Whether its tokens are the answer, on a route that no API key guards.
        has_echo: Whether the answer of a completion begins with the prompt.
        has_beams: Whether it asks for beam search, which takes tokens and leaves plans behind.
        marked_texts: Texts that are marked wherever they stand.
        has_marks: Whether marked parts of messages may be modules: it does not forbid it, and asks
            for nothing that goes without modules only.
        form: The prompt without markup, if the request brings one.
        has_detail: Whether the response tells what was reused.
        reads_pml: Whether its texts may be PML.
    """

    cache_salt: str | None = None
    prompt_modules: PromptModules | None = None
    is_tokenized: bool = False
    has_echo: bool = False
    has_beams: bool = False
    has_marks: bool = True
    marked_texts: tuple[str, ...] = ()
    form: PromptModules | None = field(init=False)
    has_detail: bool = field(init=False)
    reads_pml: bool = field(init=False)

    def __post_init__(self) -> None:
        modules = self.prompt_modules
        has_form = modules is not None and modules.is_prompt
        object.__setattr__(self, "form", modules if has_form else None)
        object.__setattr__(self, "has_detail", modules is not None and modules.detail)
        object.__setattr__(self, "reads_pml", modules is None or not modules.as_text)

    def check(self) -> None:
        """Refuses a PML prompt in requests that it does not go with.

        Raises:
            PlanError: The request is for beams; or for tokens, on a route whose clients need not be
                allowed to send prompts: these are the schema's text.
        """
        if self.has_beams:
            raise PlanError("beam search cannot be combined with a PML prompt")
        if self.is_tokenized:
            raise PlanError(
                "a PML prompt cannot be tokenized here", "use /v1/prompt_schemas/NAME/explain"
            )

    @classmethod
    def of(cls, request: Any) -> RequestOptions:
        """Reads the options of a request body.

        Raises:
            FieldError: The field `prompt_modules` is malformed.
        """
        extra = getattr(request, "model_extra", None) or {}
        field, texts = extra.get(REQUEST_FIELD), extra.get(TEXTS_FIELD)
        modules = None if field is None else _parse(field)
        is_tokenized = isinstance(request, TokenizeCompletionRequest | TokenizeChatRequest)
        asked = (getattr(request, name, None) for name in _WITHOUT_MODULES)
        is_plain = is_tokenized or any(value is not None and value is not False for value in asked)
        return cls(
            getattr(request, "cache_salt", None),
            modules,
            is_tokenized=is_tokenized,
            has_echo=bool(getattr(request, "echo", False)),
            has_beams=bool(getattr(request, "use_beam_search", False)),
            has_marks=not is_plain and (modules is None or modules.marks),
            marked_texts=texts if isinstance(texts, MarkedTexts) else (),
        )


_current: ContextVar[RequestOptions] = ContextVar("prompt_module_options")
# Every plain prompt asks for it.
_NOTHING = RequestOptions()


def current_options() -> RequestOptions:
    """The options of the request that is being rendered."""
    return _current.get(_NOTHING)


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
        raise FieldError(problem["msg"], _place(problem["loc"])) from None


def _place(path: Iterable[int | str]) -> str:
    """Path of a field within `prompt_modules`, as pydantic gives it, for a message."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join((REQUEST_FIELD, *steps))
