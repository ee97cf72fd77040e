"""The tokenizer as layout and plan need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.layout.chat_template import derive_roles
from vllm_promptcache.layout.primer_text import PRIMER
from vllm_promptcache.layout.roles import ChatRoles

# Most tokenizers need fewer tokens for a primer, but one that knows hardly any words may not.
MAX_PRIMER_LEN = 512


class HFTokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    bos_token: str | None
    bos_token_id: int | None
    eos_token: str | None
    eos_token_id: int | None
    unk_token_id: int | None

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, Any]:
        """Returns `input_ids`, a list for each text."""

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> Any:
        """Returns the conversation as text where `tokenize` is false."""


class LayoutTokenizer:
    """Turns texts into tokens, each text on its own and without special tokens.

    Holds no state but what it derives once, so it is as thread-safe as `tokenizer` is.

    Args:
        tokenizer: A Hugging Face tokenizer, fast or slow.
    """

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenises many texts in one call.

        Returns:
            Token ids of each text, in the order of `texts`.
        """
        if not texts:
            return []
        encoded: list[list[int]] = self._encode(texts, add_special_tokens=False)
        return encoded

    def may_fit(self, num_chars: int, num_tokens: int) -> bool:
        """Whether a text of that length may have so few tokens; counting them takes long."""
        longest = getattr(self._tokenizer, "max_chars_per_token", None)
        return longest is None or num_chars <= num_tokens * longest

    @cached_property
    def placeholder_id(self) -> int:
        """Token that stands in for an argument while its module is encoded (paper, section 3.3).

        The unknown token. A tokenizer without one of its own (SmolLM2 takes its end of text for
        it, behind which a module would be encoded as if a new document began) gives its token of a
        space.

        Raises:
            UnsupportedError: The tokenizer has neither.
        """
        unknown, others = self._tokenizer.unk_token_id, self._tokenizer
        if unknown is not None and unknown not in (others.bos_token_id, others.eos_token_id):
            return unknown
        space = self.encode([" "])[0]
        if not space:
            raise UnsupportedError("the tokenizer has no token that can stand in for an argument")
        return space[0]

    @cached_property
    def primer(self) -> list[list[int]]:
        """Tokens of each sentence of the primer, as far as there are not too many."""
        sentences = self.encode(PRIMER)
        ends = accumulate(map(len, sentences))
        return [s for s, end in zip(sentences, ends, strict=True) if end <= MAX_PRIMER_LEN]

    @cached_property
    def bos_id(self) -> int | None:
        """Token that the tokenizer itself puts before a text, None where it puts none."""
        bos = self._tokenizer.bos_token_id
        first = self._encode(["a"], add_special_tokens=True)[0][:1]
        return bos if bos is not None and first == [bos] else None

    @cached_property
    def chat_bos_id(self) -> int | None:
        """The same for a text with chat roles, whose template may ask for the token as well."""
        return self._tokenizer.bos_token_id if self.roles.starts_with_bos else self.bos_id

    @property
    def bos_text(self) -> str:
        """Text of the BOS token, empty if there is none."""
        return self._tokenizer.bos_token or ""

    @cached_property
    def roles(self) -> ChatRoles:
        """What the model's chat template puts around messages.

        Raises:
            UnsupportedError: There is no chat template, or it cannot be taken apart.
        """
        eos = self._tokenizer.eos_token or ""
        return derive_roles(self._render, bos=self.bos_text, eos=eos)

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> Any:
        return self._tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
