"""A tokenizer that can be read: one token a word or mark, white space is none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Tags such as <s> and <|user|> are one token, as special tokens are.
WORD = re.compile(r"<\|?/?\w+\|?>|\[/?INST\]|\w+|[^\w\s]")


class WordTokenizer:
    """Stands in for a Hugging Face tokenizer.

    Ids are handed out as words occur, so only their equality means anything.

    Args:
        chat_template: A Jinja template as in `tokenizer_config.json`.
        bos: Text of the BOS token.
        adds_bos: Whether the tokenizer itself puts BOS before a text.
        eos: Text of the EOS token.
        has_unk: Whether there is an unknown token; its text is `<unk>`.
    """

    def __init__(
        self,
        chat_template: str | None = None,
        *,
        bos: str | None = None,
        adds_bos: bool = False,
        eos: str | None = "</s>",
        has_unk: bool = True,
    ) -> None:
        self.words: list[str] = ["<unk>"]
        self.calls: list[list[str]] = []
        self.chat_template = chat_template
        self.bos_token, self.eos_token = bos, eos
        self.bos_token_id = None if bos is None else self.ids(bos)[0]
        self.eos_token_id = None if eos is None else self.ids(eos)[0]
        self.unk_token_id = 0 if has_unk else None
        self._adds_bos = adds_bos

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, Any]:
        self.calls.append(text)
        bos = [self.bos_token_id] if add_special_tokens and self._adds_bos else []
        return {"input_ids": [[*bos, *self.ids(one)] for one in text]}

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> str:
        """The words without white space, which no token stands for, cut or not."""
        assert skip_special_tokens
        return "".join(self.words[token_id] for token_id in token_ids)

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        chat_template: str | None = None,
    ) -> str:
        assert not tokenize
        template = self.chat_template if chat_template is None else chat_template
        if template is None:
            raise ValueError("tokenizer.chat_template is not set")
        return _compiled(template).render(
            messages=conversation,
            add_generation_prompt=add_generation_prompt,
            bos_token=self.bos_token,
            eos_token=self.eos_token,
        )

    def ids(self, text: str) -> list[int]:
        """Token ids of a text."""
        return [self._id(word) for word in WORD.findall(text)]

    def text(self, token_ids: Iterable[int]) -> str:
        """Words of some token ids, one space between them."""
        return " ".join(self.words[token_id] for token_id in token_ids)

    def _id(self, word: str) -> int:
        if word not in self.words:
            self.words.append(word)
        return self.words.index(word)


@cache
def _compiled(chat_template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise
    return environment.from_string(chat_template)


def _raise(message: str) -> None:
    raise ValueError(message)
