"""Which text a primer has: its author's, that of other modules, or one that is made up."""

from __future__ import annotations

import pytest

from tests.layout.compiling import Compiler, by_path
from vllm_promptcache.layout import ModuleLayout, SchemaLayout, primer_form
from vllm_promptcache.layout.primer_tokens import sentences_of

COMPACT = 'encode="primed" layout="compact"'
LONG = " ".join(["word"] * 300)


class Schema:
    """A compiled schema with words instead of tokens."""

    def __init__(self, children: str, attributes: str = COMPACT) -> None:
        self.compiler = Compiler()
        self.layout: SchemaLayout = self.compiler.compile(children, attributes)

    def primer(self, path: str) -> str:
        """What a module reads of its primer."""
        spans = by_path(self.layout)[path].context
        num_modules = len(self.layout.modules)
        words = [
            self.compiler.words.text(self.layout.at(s.index).kept_token_ids[: s.num_tokens])
            for s in spans
            if s.index >= num_modules
        ]
        return " ".join(words)

    def module(self, path: str) -> ModuleLayout:
        return by_path(self.layout)[path]


def modules(*texts: str) -> str:
    return "".join(f"<module name='m{number}'>{text}</module>" for number, text in enumerate(texts))


def made_up(schema: Schema) -> str:
    words = schema.compiler.words
    return " ".join(words.text(words.ids(sentence)) for sentence in primer_form.made_up(None))


def test_a_primer_is_what_its_author_wrote() -> None:
    schema = Schema(f"<primer>One. Two words.</primer>{modules('a', 'b')}")
    (primer,) = schema.layout.primers
    assert schema.primer("m0") == schema.primer("m1") == "One . Two words ."
    assert schema.module("m0").start == primer.num_kept_tokens == 5


def test_less_room_is_filled_with_whole_sentences() -> None:
    text = "One. Two words. Three more words."
    schema = Schema(f"<primer>{text}</primer>{modules('1 2 3 4 5 6', 'b')}", 'encode="primed"')
    assert schema.primer("m1") == "One . Two words ."


def test_modules_that_nobody_primes_have_none() -> None:
    schema = Schema(f"<primer>One. Two.</primer>{modules('a', 'b')}", 'encode="anchored"')
    assert not schema.layout.primers


def test_a_primer_is_for_the_modules_beside_it_only() -> None:
    schema = Schema(
        "<primer>Outer.</primer><module name='a'>x<primer>Inner.</primer>"
        "<module name='b'>y</module></module>"
    )
    assert schema.primer("a") == "Outer ."
    assert schema.primer("a/b") == "Outer . Inner ."


def test_every_other_module_stands_in_for_those_between() -> None:
    schema = Schema('<primer from="modules"/>' + modules("a. ", "b. ", "c. ", "d. "))
    assert schema.primer("m0") == schema.primer("m2") == "b . d ."
    assert schema.primer("m1") == schema.primer("m3") == "a . c ."
    assert len(schema.layout.primers) == 2


def test_a_module_never_reads_itself() -> None:
    texts = [f"own{number}. " for number in range(9)]
    union = f"<union>{modules(*texts[:4])}</union>"
    others = "".join(f"<module name='n{n}'>{text}</module>" for n, text in enumerate(texts[4:]))
    for attributes in (COMPACT, 'encode="primed"'):
        schema = Schema(f'<primer from="modules"/>{union}{others}', attributes)
        for module in schema.layout.modules[1:]:
            assert schema.compiler.text(module) not in schema.primer(module.path)
            assert attributes != COMPACT or "own" in schema.primer(module.path)


def test_another_text_of_a_module_is_another_key_of_those_behind_it() -> None:
    texts = ["a. ", "b. ", "c. ", "d. "]
    before = Schema('<primer from="modules"/>' + modules(*texts))
    after = Schema('<primer from="modules"/>' + modules(*texts[:2], "new. ", *texts[3:]))
    changed = [m.path for m in before.layout.modules if m.key != after.module(m.path).key]
    assert changed == ["m1", "m2", "m3"]
    more = Schema('<primer from="modules"/>' + modules(*texts, *(["e. "] * 2)))
    assert len(before.layout.modules) < len(more.layout.modules)


def test_of_other_modules_there_are_so_many_tokens() -> None:
    texts = [f"{LONG}. " * 2, "b. ", f"{LONG}. "]
    schema = Schema('<primer from="modules"/>' + modules(*texts))
    assert schema.primer("m1").split() == [*["word"] * 300, "."]
    assert schema.primer("m0") == "b ."


def test_modules_without_others_have_the_made_up_text() -> None:
    schema = Schema('<primer from="modules"/>' + modules("a. "))
    assert schema.primer("m0") == made_up(schema)
    empty = "<module name='p'><param name='q' len='1'/></module>"
    schema = Schema('<primer from="modules"/>' + modules("a. ") + empty)
    assert schema.primer("m0") == made_up(schema)
    assert schema.primer("p") == "a ."


def test_roles_of_other_modules_are_left_out() -> None:
    role = "<user>Hello. </user>"
    schema = Schema(f'<system>s</system><primer from="modules"/>{modules(role, role)}')
    assert schema.primer("m0") == "Hello ."


def test_the_made_up_text_has_the_form_of_the_modules() -> None:
    schema = Schema(
        modules("Be brief.", "Document 1:\nSea\nIt is.\n\n", "Document 2:\nAir\nIt is.\n\n")
    )
    assert schema.primer("m0") == made_up(schema)
    assert schema.primer("m1").startswith(
        "Document 1 : Treaty of Vasterholm The Treaty of Vasterholm was"
    )
    assert schema.primer("m1") == schema.primer("m2")
    assert len(schema.layout.primers) == 2


def test_there_are_only_so_many_forms() -> None:
    parents = "".join(
        f"<module name='p{p}'>{modules(f'Kind{p:c} 1: x', f'Kind{p:c} 2: y')}</module>"
        for p in range(ord("a"), ord("a") + 12)
    )
    schema = Schema(parents)
    own = [schema.primer(f"p{p}/m0").count("Kind") > 0 for p in range(ord("a"), ord("a") + 12)]
    assert own == [True] * 8 + [False] * 4


def test_a_primer_that_is_too_long_is_refused() -> None:
    error = Compiler().refused(f"\n<primer>{LONG} {LONG}</primer>{modules('a', 'b')}", COMPACT)
    assert str(error).startswith("<schema>:2:1: the primer has 600 tokens, more than 512 tokens\n")
    assert str(error).endswith("\n^\nhint: shorten it")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two!  Three?", ["One.", " Two!", "  Three?"]),
        ("Title\nText.\n\nNext", ["Title\n", "Text.\n\n", "Next"]),
        ("1.5 of 3.", ["1.5 of 3."]),
        ("一。二！三", ["一。", "二！", "三"]),  # noqa: RUF001
        (" ", [" "]),
        ("", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert sentences_of(text) == sentences
    assert "".join(sentences) == text
