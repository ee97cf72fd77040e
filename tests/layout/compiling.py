"""Short ways to compile a schema and to look at the outcome."""

from __future__ import annotations

import pytest

from tests.layout.templates import CHATML
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import USERS
from vllm_promptcache.errors import PMLError
from vllm_promptcache.layout import LayoutTokenizer, ModuleLayout, SchemaLayout, compile_schema
from vllm_promptcache.pml import parse_schema
from vllm_promptcache.sequence.runs import Run


class Compiler:
    """Compiles schemas with one tokenizer; modules are isolated unless a schema says more."""

    def __init__(self, tokenizer: WordTokenizer | None = None) -> None:
        self.words = tokenizer or WordTokenizer(CHATML)
        self.tokenizer = LayoutTokenizer(self.words)

    def compile(self, children: str, attributes: str = "", **options: object) -> SchemaLayout:
        """Compiles a schema named `s` with these children, for users without options."""
        options = {"max_model_len": None, "default_policy": USERS.policy} | options
        schema = parse_schema(f'<schema name="s" {attributes}>{children}</schema>')
        return compile_schema(schema, self.tokenizer, **options)  # type: ignore[arg-type]

    def refused(self, children: str, attributes: str = "", **options: object) -> PMLError:
        """Returns the error that compiling raises."""
        with pytest.raises(PMLError) as caught:
            self.compile(children, attributes, **options)
        return caught.value

    def placed(self, module: ModuleLayout) -> dict[int, str]:
        """Own words of a module by position."""
        words = (self.words.words[token_id] for token_id in module.token_ids)
        return dict(zip(positions(module.position_runs), words, strict=True))

    def text(self, module: ModuleLayout) -> str:
        """Own words of a module."""
        return self.words.text(module.token_ids)


def by_path(layout: SchemaLayout) -> dict[str, ModuleLayout]:
    return {module.path: module for module in layout.modules}


def positions(runs: tuple[Run, ...]) -> list[int]:
    return [position for run in runs for position in range(run.start, run.end)]
