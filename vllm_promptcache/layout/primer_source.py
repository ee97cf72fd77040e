"""What primers are made of: their author's text, text of other modules, or text that is made up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_promptcache.layout.primer_form import Form, forms, made_up, own_texts
from vllm_promptcache.layout.primer_tokens import MAX_PRIMER_LEN, PrimerTokens, sentences_of
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.pml.ast import Module, Primer, Schema, SchemaNode, Source, modules_in_scope
from vllm_promptcache.pml.diagnostics import pml_error
from vllm_promptcache.policies import Policy

# Tokens of other modules: what the made-up text has, and more did not help (benchmarks/QUALITY.md).
_MAX_SIBLINGS_LEN = 440
# So many characters are tokenised for these at most.
_MAX_SIBLINGS_CHARS = 8 * _MAX_SIBLINGS_LEN
# Forms in which a schema may have the made-up text: each is tokenised and encoded by itself.
_MAX_FORMS = 8


def primer_texts(
    schema: Schema, tokenizer: LayoutTokenizer, policy: Policy
) -> Mapping[str, PrimerTokens]:
    """Chooses what stands in for other modules before each module of a schema.

    Args:
        schema: The schema.
        tokenizer: The model's tokenizer.
        policy: Policy of modules that do not say their own.

    Returns:
        Texts by paths of modules, for those that are primed or hold one that is. Where modules are
        in one other and have the same text, it is the same object.

    Raises:
        PMLError: A primer that the schema's author has written is too long.
    """
    writer = _Writer(schema.source, tokenizer, policy)
    writer.scope(schema.primer, schema.children, "")
    return writer.texts


@dataclass(frozen=True, slots=True)
class _Writer:
    """Walks a schema; `texts` is the outcome, by path, `forms` what was written so far."""

    source: Source
    tokenizer: LayoutTokenizer
    policy: Policy
    texts: dict[str, PrimerTokens] = field(default_factory=dict)
    forms: dict[Form, PrimerTokens] = field(default_factory=dict)

    def scope(self, primer: Primer | None, children: Sequence[SchemaNode], prefix: str) -> bool:
        """Sees to the modules in one other, or in the schema; returns whether any has a text."""
        modules = list(modules_in_scope(children))
        primed = [module for module in modules if self._has_use(module, prefix)]
        if primed:
            texts = self._texts(primer, modules)
            self.texts.update((prefix + module.name, texts[module.name]) for module in primed)
        return bool(primed)

    def _has_use(self, module: Module, prefix: str) -> bool:
        is_outer = self.scope(module.primer, module.children, f"{prefix}{module.name}/")
        return is_outer or self.policy.changed(module.encode, None).encode == "primed"

    def _texts(
        self, primer: Primer | None, modules: Sequence[Module]
    ) -> Mapping[str, PrimerTokens]:
        if primer is not None and primer.text is not None:
            return dict.fromkeys((module.name for module in modules), self._written(primer))
        made_up = self._made_up(modules)
        return made_up if primer is None else made_up | self._of_siblings(modules)

    def _written(self, primer: Primer) -> PrimerTokens:
        text = primer.text or ""
        if self.tokenizer.may_fit(len(text), MAX_PRIMER_LEN):
            tokens = self._tokens(sentences_of(text))
            if tokens.num_tokens <= MAX_PRIMER_LEN:
                return tokens
            size = f"{tokens.num_tokens} tokens"
        else:
            size = f"{len(text)} characters"
        message = f"the primer has {size}, more than {MAX_PRIMER_LEN} tokens"
        raise pml_error(self.source, primer.location, message, "shorten it")

    def _made_up(self, modules: Sequence[Module]) -> dict[str, PrimerTokens]:
        found = forms(modules)
        return {module.name: self._in_form(found.get(module.name)) for module in modules}

    def _in_form(self, form: Form | None) -> PrimerTokens:
        if form is None or self.tokenizer.primer_text is not None:
            return self.tokenizer.primer
        if form not in self.forms:
            if len(self.forms) == _MAX_FORMS:
                return self.tokenizer.primer
            self.forms[form] = self._tokens(list(made_up(form))).within(MAX_PRIMER_LEN)
        return self.forms[form]

    def _of_siblings(self, modules: Sequence[Module]) -> dict[str, PrimerTokens]:
        """Every other module has text of those between: never its own."""
        halves = modules[::2], modules[1::2]
        texts = [self._of_modules(half) for half in reversed(halves)]
        pairs = zip(halves, texts, strict=True)
        return {module.name: text for half, text in pairs if text.sentences for module in half}

    def _of_modules(self, modules: Iterable[Module]) -> PrimerTokens:
        sentences = list(_within(_sentences(modules), _MAX_SIBLINGS_CHARS))
        return self._tokens(sentences).within(_MAX_SIBLINGS_LEN)

    def _tokens(self, sentences: Sequence[str]) -> PrimerTokens:
        return PrimerTokens.of(self.tokenizer.encode(sentences))


def _sentences(modules: Iterable[Module]) -> Iterator[str]:
    for module in modules:
        for text in own_texts(module.children):
            yield from sentences_of(text)


def _within(texts: Iterable[str], num_chars: int) -> Iterator[str]:
    """The first texts that have no more than that many characters together."""
    for text in texts:
        num_chars -= len(text)
        if num_chars < 0:
            return
        yield text
