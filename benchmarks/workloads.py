"""Prompts for benchmarks: text of common words, about a token each with any tokenizer."""

from __future__ import annotations

import random
from dataclasses import dataclass

_TEXT = """
time year people way day man thing woman life child world school state family student group
country problem hand part place case week company system program question work number night
point home water room mother area money story fact month lot right study book eye job word
business issue side kind head house service friend father power hour game line end member law
car city name team minute idea body back parent face level office door health person art war
history party result change morning reason research girl guy moment air teacher force
"""
_WORDS = _TEXT.split()


def words(rng: random.Random, num_words: int) -> str:
    """A text of that many words."""
    return " ".join(rng.choices(_WORDS, k=num_words))


@dataclass(frozen=True, slots=True)
class Documents:
    """A schema of documents, each a module, inside a user message.

    Attributes:
        texts: The documents.
    """

    texts: tuple[str, ...]

    @classmethod
    def random(cls, rng: random.Random, num_documents: int, num_words: int) -> Documents:
        """Documents of common words."""
        return cls(tuple(words(rng, num_words) for _ in range(num_documents)))

    @property
    def schema(self) -> str:
        """The schema in PML."""
        return self._schema("")

    @property
    def compact_schema(self) -> str:
        """The same with modules that move: only those of a prompt take positions."""
        return self._schema(' layout="compact"')

    def _schema(self, attributes: str) -> str:
        modules = "".join(
            f'<module name="doc{i}">{text}.</module>' for i, text in enumerate(self.texts)
        )
        return f'<schema name="documents"{attributes}><user>{modules}</user></schema>'

    def prompt(self, order: list[int], question: str, *, repair: str = "none") -> str:
        """A prompt in PML that imports the documents in `order`."""
        imports = "".join(f"<doc{i}/>" for i in order)
        text = f"{imports}<user>{question}</user>"
        return f'<prompt schema="documents" repair="{repair}">{text}</prompt>'

    def plain(self, order: list[int], question: str) -> str:
        """About the same prompt without markup."""
        return " ".join(self.texts[i] + "." for i in order) + " " + question
