"""The form of documents: how the modules of a schema begin and end, as far as they do so alike.

A primer does its work better in the form of the modules behind it, with their heading and a title
(benchmarks/QUALITY.md). All that it takes from a module is a heading that is the module's own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_promptcache.layout.primer_text import ARTICLES
from vllm_promptcache.layout.primer_tokens import sentences_of
from vllm_promptcache.pml.ast import Module, Role, SchemaNode, Text

# Characters of a text that are looked at, at either end.
_NUM_LOOKED_AT = 200

_WORDS = r"(?:[^\W\d_]{1,20}+[ =\"'#(\[-]{0,3}+){0,3}+"
_NUMBER = r"(?P<number>\d{1,6}+(?:\.\d{1,6}+){0,3}+)"
# "Document 3:\n", "[3] ", "3. ", "**Part 3**\n", '<doc id="3">'
_NUMBERED = re.compile(
    rf"(?P<before>\s*+[^\w\s]{{0,4}}+ ?{_WORDS}){_NUMBER}"
    r"(?P<after>[:.)\]}*|-]{1,4}+\s++|[\"']?>\s*+|\s*?\n\s*+)"
)
# "## ", "Title: ": said by one word, these are headings only where a title follows.
_LABEL = re.compile(r"\s*+(?:#{1,6} |[^\W\d_]{1,20}+:[ \n]\s*+)")
_TITLE = re.compile(r"[^\n]{0,79}[^\n.!?;,](?P<break>\n{1,2})(?=\S)")
_END = re.compile(r"(?:</[\w-]{1,40}+>)?\s*\Z")
_TITLE_END, _ARTICLE_END = "\n", "\n\n"


@dataclass(frozen=True, slots=True)
class Form:
    """How documents begin and end.

    Attributes:
        heading: Their heading; its number, if it has one, is 0.
        title_end: What stands between a document's title and its text.
        end: What stands behind its text.
    """

    heading: str
    title_end: str
    end: str

    def start(self, number: int, title: str) -> str:
        """What a document has before its text."""
        return self.heading.replace("0", str(number), 1) + title + self.title_end


def made_up(form: Form | None) -> Iterator[str]:
    """Sentences of the made-up text, in the form of documents if they have one."""
    for number, article in enumerate(ARTICLES, start=1):
        first, *others = sentences_of(article.text)
        # A heading alone would be one for the module that comes next.
        yield first if form is None else form.start(number, article.title) + first
        yield from others[:-1]
        yield others[-1] + (_ARTICLE_END if form is None else form.end)


@dataclass(frozen=True, slots=True)
class _Ends:
    """What is seen of one module: its heading, the number in it, and what follows."""

    heading: str
    number: str | None
    title_end: str | None
    end: str


def forms(modules: Sequence[Module]) -> Mapping[str, Form]:
    """The form of those of some modules that begin alike, by their names.

    At least two of them have one heading, with different numbers if it has one. Of several headings
    the one of most modules counts.
    """
    ends = {module.name: found for module in modules if (found := _ends(module)) is not None}
    headings = Counter(found.heading for found in ends.values())
    if not headings:
        return {}
    heading, _ = headings.most_common(1)[0]
    alike = {name: found for name, found in ends.items() if found.heading == heading}
    form = _form(list(alike.values()))
    return {} if form is None else dict.fromkeys(alike, form)


def own_texts(children: Sequence[SchemaNode]) -> Iterator[str]:
    """The texts of the module with these children, without wrappers of roles."""
    for child in children:
        match child:
            case Text():
                yield child.text
            case Role():
                yield from own_texts(child.children)


def _form(alike: Sequence[_Ends]) -> Form | None:
    numbers = {found.number for found in alike}
    breaks = {found.title_end for found in alike}
    has_titles = None not in breaks
    if len(alike) < 2 or (len(numbers) < 2 if None not in numbers else not has_titles):
        return None
    # Documents without a title are none the worse for one.
    title_end = breaks.pop() if len(breaks) == 1 else None
    ends = {found.end for found in alike}
    end = ends.pop() if len(ends) == 1 else _ARTICLE_END
    return Form(alike[0].heading, title_end or _TITLE_END, end)


def _ends(module: Module) -> _Ends | None:
    texts = list(own_texts(module.children))
    if not texts:
        return None
    start = texts[0][:_NUM_LOOKED_AT]
    numbered = _NUMBERED.match(start)
    found = numbered or _LABEL.match(start)
    if found is None:
        return None
    title = _TITLE.match(start, found.end())
    end = _END.search(texts[-1][-_NUM_LOOKED_AT:])
    assert end is not None, "the end may be empty"
    return _Ends(
        heading=f"{numbered['before']}0{numbered['after']}" if numbered else found[0],
        number=numbered["number"] if numbered else None,
        title_end=title["break"] if title else None,
        end=end[0],
    )
