"""The adapter works with Hugging Face's own tokenizers."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.layout.templates import CHATML, LLAMA3
from tests.layout.word_tokenizer import WordTokenizer
from vllm_promptcache.layout import LayoutTokenizer

SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}


def hf_tokenizer(template: str, *, adds_bos: bool, unk: str | None) -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = SPECIAL | {byte: number for number, byte in enumerate(alphabet, start=len(SPECIAL))}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token=unk,
        chat_template=template,
    )


@pytest.mark.parametrize("adds_bos", [False, True])
def test_texts_are_encoded_each_on_its_own(adds_bos: bool) -> None:
    tokenizer = LayoutTokenizer(hf_tokenizer(CHATML, adds_bos=adds_bos, unk="<unk>"))
    assert tokenizer.encode([]) == []
    trip, empty, a = tokenizer.encode(["a trip", "", "a"])
    assert (len(trip), empty, trip[0]) == (6, [], *a)
    assert tokenizer.start_ids == ([1] if adds_bos else [])
    assert tokenizer.placeholder_id == 0


def test_space_stands_in_for_the_unknown_token() -> None:
    tokenizer = LayoutTokenizer(hf_tokenizer(CHATML, adds_bos=False, unk=None))
    assert tokenizer.placeholder_id == tokenizer.encode([" "])[0][0]


def test_space_stands_in_where_the_unknown_token_means_something_else() -> None:
    tokenizer = LayoutTokenizer(hf_tokenizer(CHATML, adds_bos=False, unk="</s>"))
    assert tokenizer.placeholder_id == tokenizer.encode([" "])[0][0]


def test_roles_of_a_chat_template() -> None:
    tokenizer = LayoutTokenizer(hf_tokenizer(LLAMA3, adds_bos=True, unk="<unk>"))
    assert tokenizer.roles.starts_with_bos
    assert tokenizer.roles.generation_prompt == "<|start|>assistant<|end|>\n\n"
    assert tokenizer.chat_start_ids == [1]


def test_the_text_of_a_document_has_no_bos_of_the_tokenizers() -> None:
    class Decoding(WordTokenizer):
        def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> str:
            assert not skip_special_tokens
            return self.text(token_ids)

    for adds_bos, text in ((True, "a <s> b"), (False, "<s> a <s> b")):
        tokenizer = Decoding(bos="<s>", adds_bos=adds_bos)
        assert LayoutTokenizer(tokenizer).text_of(tokenizer.ids("<s> a <s> b")) == text


def test_all_tokens_before_a_text_stand_at_the_start_and_none_behind_it() -> None:
    """GLM puts two tokens there, BERT one that is not BOS."""
    plain = hf_tokenizer(CHATML, adds_bos=False, unk=None)
    plain.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> <unk> $A <s>", special_tokens=[("</s>", 2), ("<unk>", 0), ("<s>", 1)]
    )
    assert LayoutTokenizer(plain).start_ids == [2, 0]
