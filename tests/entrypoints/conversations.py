"""Conversations with PML beside the same ones in plain messages, through one chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from vllm.renderers.params import ChatParams

from tests.plan.planning import make_planner
from vllm_promptcache.entrypoints.chat import PMLChat, RenderedChat
from vllm_promptcache.plan import PromptPlan
from vllm_promptcache.pml import parse_schema

BOS, EOS = "<s>", "</s>"


class CharTokenizer:
    """One token a character, so that the text of tokens is theirs joined."""

    bos_token, eos_token, unk_token_id = BOS, EOS, None
    bos_token_id, eos_token_id = 0x110000, 0x110001

    def __init__(self, template: str) -> None:
        self.environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self.environment.globals["raise_exception"] = _raise
        self.environment.globals["strftime_now"] = lambda form: self.now.strftime(form)
        self.chat_template = template
        self.now = datetime(2026, 1, 31, 23, 59)

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, Any]:
        return {"input_ids": [list(map(ord, one)) for one in text]}

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        *,
        tokenize: bool = False,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> str:
        template = self.environment.from_string(chat_template or self.chat_template)
        return template.render(messages=conversation, bos_token=BOS, eos_token=EOS, **kwargs)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return self.text(token_ids)

    def text(self, token_ids: Sequence[int]) -> str:
        """Text of tokens."""
        return "".join(BOS if i == self.bos_token_id else chr(i) for i in token_ids)


@dataclass
class Conversations:
    """Renders and plans conversations for one schema.

    Attributes:
        template: The chat template.
        schema: Children of the schema, which is named `s`.
        kwargs: What requests give the template.
    """

    template: str
    schema: str
    attributes: str = ""
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokenizer = CharTokenizer(self.template)
        self.planner = make_planner(self.tokenizer, max_model_len=8192, block_size=16)
        self.planner.schemas.add(
            parse_schema(f'<schema name="s" {self.attributes}>{self.schema}</schema>')
        )

    def render(self, messages: Sequence[Any], params: ChatParams) -> tuple[list[Any], Any]:
        """Stands in for vLLM's renderer: parts of text are joined with newlines."""
        parsed = [{**message, "content": _joined(message["content"])} for message in messages]
        kwargs = {"tools": None, **params.chat_template_kwargs}
        kwargs.pop("continue_final_message", None)
        return parsed, {"prompt": self.tokenizer.apply_chat_template(parsed, **kwargs)}

    def plain(self, *messages: tuple[str, str]) -> str:
        """Text of a conversation in plain messages."""
        conversation = [{"role": role, "content": content} for role, content in messages]
        return self.render(conversation, self._params)[1]["prompt"]

    def plan(self, *messages: dict[str, Any], reuse: bool = True) -> PromptPlan:
        """Plan of a conversation with PML."""
        chat = PMLChat.find(messages)
        assert chat is not None
        conversation, _ = self.render(chat.messages, self._params)
        rendered = RenderedChat(chat, conversation, self._params, self.render)
        return self.planner.plan(chat.document, chat=rendered, reuse=reuse)

    def modular(self, *messages: dict[str, Any]) -> str:
        """Text of the tokens of a conversation with PML."""
        return self.text(self.plan(*messages, reuse=False))

    def text(self, plan: PromptPlan) -> str:
        """Text of a plan without modules, whose tokens are in the order of their positions."""
        starts = [tokens.start for tokens in plan.new]
        assert starts == sorted(starts)
        return self.tokenizer.text([i for tokens in plan.new for i in tokens.token_ids])

    @property
    def _params(self) -> ChatParams:
        return ChatParams(chat_template_kwargs={"add_generation_prompt": True, **self.kwargs})


def user(content: Any) -> dict[str, Any]:
    """A user message."""
    return {"role": "user", "content": content}


def _joined(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content)


def _raise(message: str) -> None:
    raise ValueError(message)
