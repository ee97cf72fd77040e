"""A row in PML: each document a module, the question a message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from vllm_promptcache.quality.evaluate.contenders import Contender
from vllm_promptcache.quality.evaluate.data import Metric, Row


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked for.

    Attributes:
        instruction: Stands before the documents.
        document: What a document is called.
        max_tokens: Tokens that an answer may have, unless the user says otherwise.
    """

    instruction: str
    document: str = "Document"
    max_tokens: int = 32


_ANSWER = Task(
    "Answer the question from the documents below, in as few words as possible, without a sentence "
    "around them."
)
# Rows with this metric ask where a text comes from; answers are such as "Paragraph 3".
_FIND = Task(
    "One of the paragraphs below is summarized at the end. Answer with the name of that paragraph, "
    "such as Paragraph 1, and nothing else.",
    document="Paragraph",
)
_SUMMARY = Task("Summarize the documents below in one paragraph.", max_tokens=256)
TASKS: dict[Metric, Task] = {
    "f1": _ANSWER,
    "subspan_em/f1": _ANSWER,
    "accuracy": _FIND,
    "rougeL": _SUMMARY,
}
_PRESERVE = ' xml:space="preserve"'


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes schemas and prompts.

    Attributes:
        has_roles: Whether the model has a chat template; else all is plain text.
    """

    has_roles: bool

    def schema(self, row: Row, contender: Contender) -> str:
        """The schema with the row's documents."""
        task = TASKS[row.metric]
        modules = "".join(
            f'<module name="d{index}">{task.document} {index + 1}:\n{escape(doc)}\n\n</module>'
            for index, doc in enumerate(row.docs)
        )
        text = self._message("system", f"{task.instruction}\n\n{modules}")
        names = " ".join(f"d{index}" for index in range(len(row.docs)))
        scaffold = f'<scaffold modules="{names}"/>' if contender.has_scaffold else ""
        return (
            f'<schema name="{contender.schema_name}"{contender.schema_attributes}{self._space}>'
            f"{text}{scaffold}</schema>"
        )

    def prompt(self, row: Row, contender: Contender, order: Sequence[int] | None = None) -> str:
        """The prompt that imports all of them, in an order if one is given, and asks."""
        indexes = range(len(row.docs)) if order is None else order
        imports = "".join(f"<d{index}/>" for index in indexes)
        question = escape(row.question.strip()) or "Write the summary."
        if not self.has_roles:
            question = f"{question}\nAnswer:"
        return (
            f'<prompt schema="{contender.schema_name}"{contender.prompt_attributes}{self._space}>'
            f"{imports}{self._message('user', question)}</prompt>"
        )

    @property
    def _space(self) -> str:
        return "" if self.has_roles else _PRESERVE

    def _message(self, role: str, text: str) -> str:
        return f"<{role}{_PRESERVE}>{text}</{role}>" if self.has_roles else text
