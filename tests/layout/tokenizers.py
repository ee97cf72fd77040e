"""Tokenizers of many kinds, trained here in no time or from files that a package ships."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import mistral_common
import sentencepiece
import tiktoken
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_mistral_common import MistralCommonBackend

DATA = Path(mistral_common.__file__).parent / "data"

CORPUS = (
    "The price is $45.00 (netto). A module of the prompt: net, to, no, not, note, noted!",
    "Pieces are tokenised one by one; they read as one text. <user> asks, <bot> answers.",
    "Is 1,234.5 % of 67 more than 89? #1 | 0 && 'tis \"so\", isn't it? Why?",
    "def f(x):\n    return x + 1\n\n\tpass  # twice  the  blanks",
    "äöü ß é ñ 中文 日本 🙂 ABCDEFGHIJKLMNOPQRSTUVWXYZ",
)
SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>", "<|end|>")


def hugging_face(backend: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | options
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def byte_level(
    *, add_prefix_space: bool = False, normalizer: Any = None
) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2, Llama 3 and Qwen have it."""
    bpe = Tokenizer(models.BPE())
    if normalizer is not None:
        bpe.normalizer = normalizer
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(bpe, trainers.BpeTrainer, initial_alphabet=alphabet, special_tokens=list(SPECIAL[1:]))
    return hugging_face(bpe, unk_token=None)


def llama(scheme: str, *, special: Iterable[AddedToken] = ()) -> PreTrainedTokenizerFast:
    """Mistral 7B's SentencePiece BPE with byte fallback, as Hugging Face's conversions have it.

    Args:
        scheme: `legacy` for a normaliser that puts the dummy prefix before each text between
            special tokens (Llama 2), else the `prepend_scheme` of `Metaspace`.
        special: Further special tokens.
    """
    backend = Tokenizer(_mistral_bpe())
    if scheme == "legacy":
        blanks = normalizers.Replace(" ", "▁")
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    backend.add_special_tokens(list(special))
    return hugging_face(backend)


@cache
def _mistral_bpe() -> models.BPE:
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((DATA / "tokenizer.model.v1").read_bytes())
    scores = {piece.piece: piece.score for piece in model.pieces}
    vocab = {piece: token_id for token_id, piece in enumerate(scores)}
    merges = [
        (left, right, piece)
        for piece in vocab
        for cut in range(1, len(piece))
        if (left := piece[:cut]) in vocab and (right := piece[cut:]) in vocab
    ]
    merges.sort(key=lambda merge: (-scores[merge[2]], vocab[merge[0]], vocab[merge[1]]))
    pairs = [(left, right) for left, right, _ in merges]
    return models.BPE(vocab, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def mistral(file: str) -> Any:
    """One of Mistral's own tokenizers, as vLLM hands it over: without most attributes."""
    return _Own(MistralCommonBackend(str(DATA / file), mode="test"))


class _Own:
    """Has only what all tokenizers of vLLM have."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.bos_token_id, self.eos_token_id = backend.bos_token_id, backend.eos_token_id

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Any:
        return self._backend(text=text, add_special_tokens=add_special_tokens)

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)


def unigram(normalizer: Any = None) -> PreTrainedTokenizerFast:
    """Unigram with `Metaspace` (XLM-R, XGLM)."""
    backend = Tokenizer(models.Unigram())
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    _train(backend, trainers.UnigramTrainer, special_tokens=list(SPECIAL), unk_token="<unk>")
    return hugging_face(backend)


def word_piece() -> PreTrainedTokenizerFast:
    """BERT's: `##` marks what goes on within a word, and blanks are no tokens."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    _train(backend, trainers.WordPieceTrainer, special_tokens=list(SPECIAL))
    return hugging_face(backend)


class SlowSentencePiece:
    """A tokenizer in Python on top of SentencePiece itself.

    Args:
        model_type: `unigram` or `bpe`.
        options: Of the trainer, among them what the model does to a text's ends.
    """

    bos_token_id, eos_token_id, unk_token_id = 1, 2, 0
    bos_token, eos_token = "<s>", "</s>"

    def __init__(self, model_type: str, **options: Any) -> None:
        model = BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in CORPUS * 9 for line in text.split("\n")),
            model_writer=model,
            model_type=model_type,
            vocab_size=350,
            hard_vocab_limit=False,
            minloglevel=2,
            **{"byte_fallback": True, "normalization_rule_name": "identity"} | options,
        )
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, Any]:
        return {"input_ids": [self._model.encode(t, add_bos=add_special_tokens) for t in text]}

    def decode(self, ids: list[int], *, skip_special_tokens: bool, **_: Any) -> str:
        return self._model.decode(ids)


class SlowTiktoken:
    """A tokenizer in Python on top of tiktoken (Qwen 1, Kimi)."""

    bos_token_id = eos_token_id = 256
    bos_token = eos_token = "<|end|>"
    _PATTERN = (
        r"""'[a-z]+|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"""
    )

    def __init__(self) -> None:
        ranks = {bytes([byte]): byte for byte in range(256)}
        pairs = (
            b"et",
            b"to",
            b"th",
            b" t",
            b"  ",
            b"\n\n",
            b"00",
            "中".encode()[:2],
            b"no",
            b"not",
        )
        ranks |= {pair: rank for rank, pair in enumerate(pairs, start=257)}
        special = {"<|end|>": 256}
        self._encoding = tiktoken.Encoding(
            "small", pat_str=self._PATTERN, mergeable_ranks=ranks, special_tokens=special
        )

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, Any]:
        return {"input_ids": self._encoding.encode_batch(text, allowed_special="all")}

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return self._encoding.decode(ids)


def _train(backend: Tokenizer, trainer: Callable[..., Any], **options: Any) -> None:
    backend.train_from_iterator(CORPUS * 9, trainer(vocab_size=500, show_progress=False, **options))


FAITHFUL: dict[str, Callable[[], Any]] = {
    "byte-level": byte_level,
    "byte-level-nfc": lambda: byte_level(normalizer=normalizers.NFC()),
    "byte-level-lower": lambda: byte_level(normalizer=normalizers.Lowercase()),
    "byte-level-prefix": lambda: byte_level(add_prefix_space=True),
    "llama-legacy": lambda: llama("legacy"),
    "llama-first": lambda: llama("first"),
    "llama-always": lambda: llama("always"),
    "llama-never": lambda: llama("never"),
    "mistral-v1": lambda: mistral("tokenizer.model.v1"),
    "mistral-v7": lambda: mistral("mistral_instruct_tokenizer_241114.model.v7"),
    "tekken": lambda: mistral("tekken_240911.json"),
    "tiktoken": SlowTiktoken,
    "unigram": unigram,
    "unigram-nfkc": lambda: unigram(normalizers.NFKC()),
    "sentencepiece-unigram": lambda: SlowSentencePiece("unigram", remove_extra_whitespaces=False),
    "sentencepiece-bpe": lambda: SlowSentencePiece("bpe", remove_extra_whitespaces=False),
    "sentencepiece-bare": lambda: SlowSentencePiece(
        "bpe", remove_extra_whitespaces=False, add_dummy_prefix=False
    ),
}
"""Tokenizers that can do a text part by part."""

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "word-piece": (word_piece, "begins a new word with every text"),
    "strip": (lambda: byte_level(normalizer=normalizers.Strip()), "adds or drops blanks"),
    "nmt-nfkc": (
        lambda: SlowSentencePiece("unigram", normalization_rule_name="nmt_nfkc"),
        "adds or drops blanks",
    ),
    "suffix": (
        lambda: SlowSentencePiece(
            "bpe", remove_extra_whitespaces=False, treat_whitespace_as_suffix=True
        ),
        "has other tokens for a text that is part of another one",
    ),
    "digits-only": (
        lambda: hugging_face(Tokenizer(models.WordLevel({"<unk>": 0, "1": 1}, unk_token="<unk>"))),
        "knows neither letters nor blanks",
    ),
    "raises": (
        lambda: hugging_face(Tokenizer(models.Unigram([("a", 0.0)]))),
        "does not take every text",
    ),
}
"""Others, and what they do."""
