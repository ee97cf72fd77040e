"""Prompts of the reuse study: a root, modules and a tail with the question."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from vllm_promptcache.quality.evaluate.data import Row
from vllm_promptcache.quality.evaluate.prompts import TASKS

ROOT = "<|im_start|>system\n{}\n\n"
TAIL_BEGIN, TAIL_END = "<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
STOP = "<|im_end|>"
NEUTRAL = (
    "Document 0:\nThis page was left here on purpose. It has nothing to do with the other pages, "
    "and nobody needs to read it.\n\n"
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens of a prompt; a token's position is its index.

    Attributes:
        token_ids: All tokens.
        modules: Positions of each module's tokens; the modules stand side by side.
        question: Positions of the question's tokens, which are in the tail.
    """

    token_ids: list[int]
    modules: list[range]
    question: list[int]

    @classmethod
    def write(cls, row: Row, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        """The prompt of a row, each piece of it tokenized on its own."""
        task = TASKS[row.metric]
        token_ids = tokenize(tokenizer, ROOT.format(task.instruction))
        modules = []
        for number, text in enumerate(row.docs, start=1):
            piece = tokenize(tokenizer, write_document(task.document, number, text))
            modules.append(range(len(token_ids), len(token_ids) + len(piece)))
            token_ids += piece
        tail, asked = write_tail(row.question or "Write the summary.", tokenizer)
        return cls(token_ids + tail, modules, [len(token_ids) + index for index in asked])

    @property
    def num_root(self) -> int:
        """Tokens before the first module."""
        return self.modules[0].start

    @property
    def num_reused(self) -> int:
        """Tokens before the tail."""
        return self.modules[-1].stop


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of one piece of a prompt."""
    return tokenizer(text, add_special_tokens=False).input_ids


def write_document(name: str, number: int, text: str) -> str:
    """A document as it stands in a prompt."""
    return f"{name} {number}:\n{text}\n\n"


def write_tail(question: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens of a tail, and which of them are the question's."""
    text = TAIL_BEGIN + question + TAIL_END
    tail = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    span = range(len(TAIL_BEGIN), len(TAIL_BEGIN) + len(question))
    asked = [index for index, (begin, _) in enumerate(tail.offset_mapping) if begin in span]
    return tail.input_ids, asked
