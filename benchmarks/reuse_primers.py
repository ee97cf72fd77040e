"""What modules of the reuse study are encoded behind: made-up text, or documents of other rows.

A primer stands between the root and a module while the module is encoded. Its own KV is dropped, so
no prompt reads it. Several primers give several KVs of one module, of which the mean is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from transformers import PreTrainedTokenizerBase

from benchmarks.reuse_policies import BARE, FORM, ORACLE, SIBLINGS
from benchmarks.reuse_prompt import NEUTRAL, tokenize, write_document
from benchmarks.reuse_texts import SETS
from vllm_promptcache.quality.evaluate.data import Row

NUM_SIBLINGS = 4
SIBLING_LEN = 110
"""Tokens that a sibling may have; with four of them a set is about as long as the made-up texts."""


@dataclass(frozen=True, slots=True)
class Primers:
    """Primers by name.

    Attributes:
        texts: The tokens of those that are alike for all modules.
        others: Documents of rows that are not studied, each row's in order, as tokens.
        neutral: A short text of prose, which stands in for the root as well.
    """

    texts: Mapping[str, list[int]]
    others: Sequence[list[list[int]]]
    neutral: list[int]

    @classmethod
    def write(
        cls, document: str, others: Sequence[Row], tokenizer: PreTrainedTokenizerBase
    ) -> Primers:
        """The primers for prompts with such documents.

        Args:
            document: What a document is called.
            others: Rows that are not studied.
            tokenizer: The model's.
        """

        def written(docs: Sequence[str]) -> list[list[int]]:
            return [
                tokenize(tokenizer, write_document(document, number, text))
                for number, text in enumerate(docs, start=1)
            ]

        texts = {}
        for number, articles in SETS.items():
            bare = "".join(f"{article.text}\n\n" for article in articles)
            texts[BARE + number] = tokenize(tokenizer, bare)
            texts[FORM + number] = joined(
                written([f"{article.title}\n{article.text}" for article in articles])
            )
        for index, name in enumerate(SIBLINGS):
            rows = others[index * NUM_SIBLINGS : (index + 1) * NUM_SIBLINGS]
            docs = written([row.docs[0] for row in rows])
            end = tokenize(tokenizer, "\n\n")
            texts[name] = joined(doc[:SIBLING_LEN] + end for doc in docs)
        neutral = tokenize(tokenizer, NEUTRAL)
        return cls(texts, [written(row.docs) for row in others], neutral)

    def behind(self, name: str, place: int) -> list[list[int]]:
        """The primers over which the mean is taken, each as tokens.

        Args:
            name: One of the texts, or `oracle:K`: what stands before this place in K other rows.
            place: The module's index in its prompt.
        """
        if not name.startswith(ORACLE):
            return [self.texts[name]]
        count = int(name.removeprefix(ORACLE))
        fitting = [docs for docs in self.others if len(docs) >= place]
        return [joined(docs[:place]) for docs in fitting[:count]]


def joined(pieces: Iterable[Sequence[int]]) -> list[int]:
    """The tokens of all pieces, one after the other."""
    return list(chain.from_iterable(pieces))
