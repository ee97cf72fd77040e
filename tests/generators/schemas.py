"""Schemas by hand and at random, as XML trees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from tests.generators.words import WORDS, random_text

ROLES = ("system", "user", "assistant")
POLICIES = ("isolated", "anchored", "primed")
# Of a random schema; leaves room for new text in a context of 2048 tokens.
MAX_WORDS = 900
MAX_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema's text and its tree.

    Attributes:
        pml: What `add_schema` takes.
        root: The tree of `pml`.
    """

    pml: str
    root: Element

    @property
    def name(self) -> str:
        """The name under which prompts refer to the schema."""
        return self.root.attrib["name"]

    @property
    def has_roles(self) -> bool:
        """Whether the schema uses chat roles."""
        return any(element.tag in ROLES for element in self.root.iter())

    @staticmethod
    def parse(pml: str) -> Schema:
        """Returns the schema that `pml` says."""
        return Schema(pml, ElementTree.fromstring(pml))


def choices_in(element: Element) -> Iterator[list[Element]]:
    """Modules that may be imported below `element`; those of one list exclude each other."""
    for child in element:
        if child.tag == "module":
            yield [child]
        elif child.tag == "union":
            yield list(child)
        elif child.tag in ROLES:
            yield from choices_in(child)


def params_of(module: Element) -> Iterator[Element]:
    """A module's own parameters, without those of nested modules."""
    for child in module:
        if child.tag == "param":
            yield child
        elif child.tag in ROLES:
            yield from params_of(child)


def random_schema(rng: Random, name: str, *, max_words: int = MAX_WORDS) -> Schema:
    """Returns a random schema of about `max_words` words at most."""
    root = Element("schema", name=name)
    if rng.random() < 0.3:
        root.set("layout", "compact")
    if rng.random() < 0.6:
        root.set("encode", rng.choice((*POLICIES, "exact") if rng.random() < 0.3 else POLICIES))
    if rng.random() < 0.2:
        root.set("repair", random_repair(rng))
    _Filler(rng, max_words).fill(root, depth=0)
    paths = list(_cached_paths(rng, root))
    if len(paths) > 1 and rng.random() < 0.5:
        num_members = min(len(paths), rng.randint(2, 3))
        SubElement(root, "scaffold", modules=" ".join(rng.sample(paths, k=num_members)))
    return Schema(ElementTree.tostring(root, encoding="unicode"), root)


def random_repair(rng: Random) -> str:
    """Returns a random value for the attribute `repair`, all of which the planner carries out."""
    tokens = rng.choice((1, 8, 31, 32, 33, 100))
    return rng.choice(("none", f"head:{tokens}"))


def _cached_paths(rng: Random, element: Element, above: str = "") -> Iterator[str]:
    """Paths of the cached modules below `element`, of those that exclude each other only one."""
    for choice in choices_in(element):
        module = rng.choice(choice)
        path = f"{above}{module.attrib['name']}"
        if module.get("cache") != "false":
            yield path
        yield from _cached_paths(rng, module, f"{path}/")


class _Filler:
    """Puts random content into an element until the words are used up."""

    def __init__(self, rng: Random, max_words: int) -> None:
        self._rng = rng
        self._names = rng.sample(WORDS, k=len(WORDS))
        self._num_words_left = max_words

    def fill(self, parent: Element, depth: int, in_role: bool = False) -> None:
        """Appends text, modules, unions, parameters and roles to `parent`."""
        kinds = {"text": 5}
        if depth < MAX_DEPTH:
            kinds |= {"module": 4, "union": 1}
        if depth:
            kinds["param"] = 2
        if not in_role:
            kinds["role"] = 1
        at_least = 3 if depth == 0 and not in_role else 1
        num_items = self._rng.randint(at_least, at_least + 2)
        for kind in self._rng.choices(list(kinds), weights=list(kinds.values()), k=num_items):
            self._append(kind, parent, depth, in_role)
        if parent.text is None and len(parent) == 0:
            self._append("text", parent, depth, in_role)

    def _append(self, kind: str, parent: Element, depth: int, in_role: bool) -> None:
        match kind:
            case "text":
                append_text(parent, f" {self._text()} ")
            case "module":
                self._module(parent, depth, in_role)
            case "union":
                union = SubElement(parent, "union")
                for _ in range(self._rng.randint(2, 3)):
                    self._module(union, depth, in_role)
            case "param":
                self._param(parent)
            case "role":
                role = SubElement(parent, self._rng.choice(ROLES))
                self.fill(role, depth, in_role=True)

    def _text(self) -> str:
        longest = self._rng.choice((1, 4, 20, 40, 80, 150))
        num_words = min(self._rng.randint(1, longest), max(self._num_words_left, 1))
        self._num_words_left -= num_words
        return random_text(self._rng, num_words)

    def _module(self, parent: Element, depth: int, in_role: bool) -> None:
        module = SubElement(parent, "module", name=self._names.pop())
        if self._rng.random() < 0.2:
            module.set("encode", self._rng.choice(POLICIES))
        if self._rng.random() < 0.1:
            module.set("cache", "false")
        self.fill(module, depth + 1, in_role)

    def _param(self, parent: Element) -> None:
        length = self._rng.choice((1, 2, 4, 8, 16))
        param = SubElement(parent, "param", name=self._names.pop(), len=str(length))
        if self._rng.random() < 0.5:
            param.set("placeholder", random_text(self._rng, self._rng.randint(1, length)))


def append_text(parent: Element, text: str) -> None:
    """Appends `text` behind the last child of `parent`."""
    if len(parent):
        parent[-1].tail = (parent[-1].tail or "") + text
    else:
        parent.text = (parent.text or "") + text


FIXED_SCHEMAS = tuple(
    Schema.parse(pml)
    for pml in (
        # Nesting three deep, text between modules, a module at the end.
        """<schema name="library">Here is all that the library knows.
          <module name="fiction">Novels stand on the first floor.
            <module name="sea">Stories of the sea and of ships that were lost in a storm.
              <module name="whales">One of them is about a white whale and a captain who follows
                it over three oceans until nothing else is left of him.</module>
              They are old and often read.</module>
            <module name="space">Stories of stars.</module></module>
          Between the shelves there are chairs.
          <module name="rules">Be quiet. Do not eat or drink. Bring every book back after two weeks,
            or pay a small sum for each day it is late.</module></schema>""",
        # A union with members of different lengths, parameters with and without placeholder.
        """<schema name="trips"><system>You plan trips.</system>
          <user><module name="plan">Plan a trip of <param name="duration" len="8"/> for
            <param name="people" len="4" placeholder="two people"/>.
            <union><module name="mountains">They like to walk in the mountains, to sleep in a hut
                and to see the sun come up over the snow while it is still cold.</module>
              <module name="coast">They like the beach.</module>
              <module name="city">They like museums, music and good food, and they do not mind
                a crowd.</module></union></module>
            <module name="budget">They can spend <param name="sum" len="3"/>.</module></user>
          </schema>""",
        # A whole conversation with roles inside modules.
        """<schema name="lesson" encode="anchored">
          <module name="tutor"><system>You teach <param name="subject" len="4"/> to children. Use
            short words.</system></module>
          <module name="example"><user>What is a river?</user>
            <assistant>Water that flows down to the sea, all day and all night.</assistant></module>
          <module name="second-example"><user>What is a hill?</user>
            <assistant>A small mountain.</assistant></module></schema>""",
        # Anchored and isolated modules in one schema, one name in two places.
        """<schema name="records" encode="anchored">Records of a farm, one for each season.
          <module name="spring">In spring the fields were wet and the work began late.
            <module name="notes" encode="isolated">Two horses were bought.</module></module>
          <module name="summer" encode="isolated">In summer there was no rain for a month, and the
            river was so low that one could walk through it.</module>
          <module name="autumn">In autumn the harvest was better than anyone had thought.
            <module name="notes">Wheat was sold for <param name="price" len="5"/> a ton, more than
              in the year before.</module></module></schema>""",
        # Modules of one token, a module without text of its own, one that is never cached.
        """<schema name="scraps"><module name="one">Yes</module><module name="two.md">No</module>
          <module name="box"><module name="inner">A box holds a smaller one.</module></module>
          <module name="fresh" cache="false">This part is read anew each time, with
            <param name="count" len="2"/> of it.</module>
          <module name="blank"><param name="all" len="6"/></module></schema>""",
        # Long documents behind a question's frame: modules of several blocks.
        """<schema name="documents"><system>Answer from the documents.</system><user>"""
        + "".join(
            f"<module name='document-{number}'>{random_text(Random(number), 40 * number)}</module>"
            for number in (1, 2, 3, 4)
        )
        + """The question follows.</user></schema>""",
        # Modules that are relocated: documents, one in parts, one with a parameter, a choice.
        """<schema name="shelf" layout="compact"><user>Books from a shelf follow."""
        + "".join(
            f"<module name='book-{number}'>{random_text(Random(number), 30 * number)}</module>"
            for number in (1, 2, 3, 4, 5)
        )
        + """<module name="series">A series.<module name="first">Its first part is about a river
            and those who live beside it.</module><module name="second">Its second part is about
            the sea.</module>It has an end too.</module>
          <union><module name="loan">Lent to <param name="who" len="4"/> in the summer.</module>
            <module name="lost">Lost in a train.</module></union>Which one?</user></schema>""",
        # Primers of all kinds: other modules, their author's text, a made-up text in a form.
        """<schema name="archive" layout="compact"><primer from="modules"/>Letters of two years."""
        + "".join(
            f"<module name='letter-{number}'>{random_text(Random(number), 20 * number)}.</module>"
            for number in (1, 2, 3, 4)
        )
        + """<module name="replies">What was written back.
          <primer>A reply of which nothing is known. It was short.</primer>
          <module name="first">It came late and said no.</module>
          <module name="second">It never came.</module></module>
          <module name="notes">Notes."""
        + "".join(
            f"<module name='note-{number}'>Note {number}:\n{random_text(Random(number), 9)}"
            "</module>"
            for number in (1, 2, 3)
        )
        + "</module></schema>",
        # The same where every module has its place.
        """<schema name="ledger"><primer from="modules"/>"""
        + "".join(
            f"<module name='page-{number}'>{random_text(Random(number), 30)}. "
            f"{random_text(Random(-number), 10)}.</module>"
            for number in (1, 2, 3, 4)
        )
        + "</schema>",
    )
)
