"""The tokenizer as layout and plan need it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property, partial
from typing import Any, Protocol

from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.layout.piecewise import Piecewise, PlacedText
from vllm_promptcache.layout.primer_form import made_up
from vllm_promptcache.layout.primer_tokens import MAX_PRIMER_LEN, PrimerTokens, sentences_of
from vllm_promptcache.layout.probes import find_piecewise
from vllm_promptcache.layout.roles import ChatRoles
from vllm_promptcache.layout.template_roles import TemplateRoles


class HFTokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    bos_token: str | None
    bos_token_id: int | None
    eos_token: str | None
    eos_token_id: int | None
    unk_token_id: int | None

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, Any]:
        """Returns `input_ids`, a list for each text."""

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> str:
        """Returns the text of some tokens."""

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

    The tokens of texts that stand one behind the other read as these texts do.
    Holds no state but what it derives once, so it is as thread-safe as `tokenizer` is.

    Args:
        tokenizer: A Hugging Face tokenizer, fast or slow, or one of vLLM's own.
        primer: Text of primers, in place of one that is made up.
    """

    def __init__(self, tokenizer: HFTokenizer, primer: str | None = None) -> None:
        self._tokenizer = tokenizer
        self.primer_text = primer
        self._roles: ChatRoles | None = None
        self._now: LayoutTokenizer | None = None
        self._is_chat = False
        self._generation_prompt: list[int] = []
        eos = getattr(tokenizer, "eos_token", None) or ""
        self.template = TemplateRoles(self._render, tokenizer, bos=self.bos_text, eos=eos)

    def with_roles(self, roles: ChatRoles, *, is_chat: bool = False) -> LayoutTokenizer:
        """The same tokenizer with parts of the template that stay as they are.

        Args:
            roles: What the template writes around messages.
            is_chat: Whether BOS is the template's affair alone, as in a chat; a text gets the one
                that the tokenizer adds as well.
        """
        # First, so that the copy has what this derives.
        (generation_prompt,) = self.encode([roles.generation_prompt])
        pinned = copy(self)
        pinned._roles, pinned._is_chat = roles, is_chat
        pinned._generation_prompt = generation_prompt
        return pinned

    def within_chat(self) -> LayoutTokenizer:
        """The same tokenizer for text that a chat template has written, BOS and all."""
        self.encode([" "])  # so that the copy has what this derives
        within = copy(self)
        within._is_chat = True
        return within

    def now(self) -> LayoutTokenizer:
        """The same tokenizer with the parts of the template as they are now.

        Raises:
            UnsupportedError: There is no chat template, or it cannot be taken apart.
        """
        roles, known = self.template.current(), self._now
        if known is None or known._roles is not roles:
            known = self._now = self.with_roles(roles)
        return known

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenises many texts that stand inside a document in one call.

        Returns:
            Token ids of each text, in the order of `texts`.

        Raises:
            UnsupportedError: The tokenizer cannot tokenise texts part by part.
        """
        return self.encode_placed([PlacedText(text) for text in texts])

    def encode_placed(self, texts: Sequence[PlacedText]) -> list[list[int]]:
        """Tokenises many texts, each where it stands, in one call. Raises as `encode`."""
        return self._piecewise.encode(texts) if texts else []

    def placed(self, text: str, before: str | None) -> PlacedText:
        """A text at its place.

        Args:
            text: The text.
            before: Text right before it: empty at the start of a document, None if not known.
        """
        # Most tokenizers do not care; then the same text is tokenised once.
        if before is None or not self._piecewise.anchors:
            return PlacedText(text)
        return PlacedText(text, self._special_end(before) if before else "")

    @property
    def opening(self) -> list[int]:
        """Tokens that begin a document whose first text is not known when it is tokenised."""
        return list(self._piecewise.opening)

    def text_of(self, token_ids: list[int]) -> str:
        """Text of a document's tokens, without BOS where the tokenizer puts it before any text."""
        num_added = len(self.start_ids) if token_ids[: len(self.start_ids)] == self.start_ids else 0
        return self._decode(token_ids[num_added:], skip_special_tokens=False)

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
        if self._unknown_id is not None:
            return self._unknown_id
        space = self.encode([" "])[0]
        if not space:
            raise UnsupportedError("the tokenizer has no token that can stand in for an argument")
        return space[0]

    @cached_property
    def primer(self) -> PrimerTokens:
        """The text of primers where a schema says no other."""
        if self.primer_text is not None:
            return PrimerTokens.of(self.encode(sentences_of(self.primer_text)))
        return PrimerTokens.of(self.encode(list(made_up(None)))).within(MAX_PRIMER_LEN)

    @cached_property
    def start_ids(self) -> list[int]:
        """Tokens that the tokenizer itself puts before a text: BOS, in some cases others, or none.

        Those that it puts behind a text are left out: a prompt goes on.
        """
        (text,) = self._encode(["a"], add_special_tokens=False)
        (whole,) = self._encode(["a"], add_special_tokens=True)
        starts = range(len(whole) - len(text) + 1)
        start = next((i for i in starts if whole[i : i + len(text)] == text), 0)
        return list(whole[:start])

    @property
    def own_start_ids(self) -> list[int]:
        """The same where a chat template may have seen to it."""
        return [] if self._is_chat else self.start_ids

    @property
    def chat_start_ids(self) -> list[int]:
        """The same for a text with chat roles, whose template may ask for BOS as well."""
        bos_id = self._tokenizer.bos_token_id
        if self.roles.starts_with_bos and bos_id is not None:
            return [bos_id]
        return self.own_start_ids

    @property
    def bos_text(self) -> str:
        """Text of the BOS token, empty if there is none."""
        return getattr(self._tokenizer, "bos_token", None) or ""

    @property
    def roles(self) -> ChatRoles:
        """What the model's chat template puts around messages: now, unless it has been set.

        Raises:
            UnsupportedError: There is no chat template, or it cannot be taken apart.
        """
        return self._roles or self.template.current()

    @property
    def generation_prompt(self) -> list[int]:
        """Tokens that ask for the assistant's next message."""
        return (self.now() if self._roles is None else self)._generation_prompt

    @cached_property
    def _piecewise(self) -> Piecewise:
        special = (self.bos_text, getattr(self._tokenizer, "eos_token", None))
        return find_piecewise(
            lambda texts: list(self._encode(texts, add_special_tokens=False)),
            self._decode,
            special=list(filter(None, special)),
            unknown_id=self._unknown_id,
        )

    @property
    def _unknown_id(self) -> int | None:
        """The unknown token, if it means nothing else."""
        unknown: int | None = getattr(self._tokenizer, "unk_token_id", None)
        others = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
        return None if unknown in others else unknown

    def _special_end(self, text: str) -> str | None:
        """The special token at the end of a text, with the white space behind it, if there is."""
        bare = text.rstrip()
        special = max(filter(bare.endswith, self._special_texts), key=len, default=None)
        return None if special is None else special + text[len(bare) :]

    @cached_property
    def _special_texts(self) -> frozenset[str]:
        known = getattr(self._tokenizer, "all_special_tokens", ())
        added: Mapping[str, int] = getattr(self._tokenizer, "get_added_vocab", dict)()
        return frozenset(map(str, (*known, *added)))

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> Any:
        return self._tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]

    def _decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        # With these, a tokenizer of vLLM's own writes tokens instead of text.
        decode: Callable[..., str] = partial(
            self._tokenizer.decode, skip_special_tokens=skip_special_tokens
        )
        try:
            # Tidying up would hide a blank before a full stop.
            return decode(token_ids, clean_up_tokenization_spaces=False)
        except TypeError:
            return decode(token_ids)

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
