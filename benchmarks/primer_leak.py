"""Whether answers name what only modules say that the prompt does not import.

Each schema has three documents that its prompt imports and three that it does not. Two of the
latter say something false about what is asked; the imported ones say what is true of it, or, in
every other schema, nothing. Answers that name the false thing are counted for

    plain      a prefill of the same prompt without modules: what is guessed
    primed     modules behind the made-up text
    modules    modules behind the other three: `<primer from="modules"/>`
    imported   a prefill of a prompt that imports all six: what a leak can come to at most

    python -m benchmarks.primer_leak --model M [--schemas 40] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.engines import inspected_engine
from vllm_promptcache.models import MODELS, embedded_model
from vllm_promptcache.quality.evaluate.metrics import subspan_match

INSTRUCTION = "Answer the question from the documents below, with one name only."
OTHERS = '<primer from="modules"/>'
MAX_TOKENS = 12
IMPORTED, ALL = (0, 2, 4), range(6)
# Which schema is asked, what is imported, and whether modules are reused.
WAYS: dict[str, tuple[str, Sequence[int], bool]] = {
    "plain": ("primed", IMPORTED, False),
    "primed": ("primed", IMPORTED, True),
    "modules": ("modules", IMPORTED, True),
    "imported": ("primed", ALL, False),
}

_STARTS = ("Bar", "Cal", "Dor", "Fen", "Gar", "Hol", "Kel", "Mar", "Nor", "Pel", "Ros", "Tam")
_ENDS = ("bury", "den", "field", "ford", "gate", "ley", "mere", "ston", "wick", "worth")
_FIRST_NAMES = ("Ada", "Bruno", "Clara", "Emil", "Greta", "Hugo", "Ines", "Jonas", "Lena", "Otto")
# What is asked about a thing, and the two ways in which documents answer.
_TOPICS = (
    ("museum", "Who built the museum of {}?", "{1} built the museum of {0}.", "It is {1}'s work."),
    ("school", "Who leads the school of {}?", "{1} leads the school of {0}.", "Its head is {1}."),
    ("garden", "Who owns the garden of {}?", "{1} owns the garden of {0}.", "It belongs to {1}."),
    ("choir", "Who founded the choir of {}?", "{1} founded the choir of {0}.", "It is {1}'s idea."),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A schema's documents, and what is asked.

    Attributes:
        documents: All six, with their headings.
        question: The question.
        true: What the imported documents answer, None if they say nothing.
        false: What the others say.
    """

    documents: tuple[str, ...]
    question: str
    true: str | None
    false: str

    def schema(self, name: str, primer: str) -> str:
        """The schema with this primer."""
        modules = "".join(f'<module name="d{n}">{d}</module>' for n, d in enumerate(self.documents))
        return (
            f'<schema name="{name}" layout="compact" encode="primed">{primer}'
            f'<system xml:space="preserve">{INSTRUCTION}\n\n{modules}</system></schema>'
        )

    def prompt(self, name: str, numbers: Sequence[int]) -> str:
        """The prompt that imports these documents."""
        imports = "".join(f"<d{number}/>" for number in numbers)
        return f'<prompt schema="{name}">{imports}<user>{self.question}</user></prompt>'


def make_cases(num_cases: int) -> list[Case]:
    """Makes things up, each time the same."""
    rng = Random(0)
    return [_case(rng, is_told=number % 2 == 0) for number in range(num_cases)]


def _case(rng: Random, *, is_told: bool) -> Case:
    kind, question, says, also = rng.choice(_TOPICS)
    place, *elsewhere = rng.sample([start + end for start in _STARTS for end in _ENDS], 4)
    true, false, *others = (
        f"{first} {last}"
        for first, last in zip(
            rng.sample(_FIRST_NAMES, 5), rng.sample([s + "er" for s in _STARTS], 5), strict=True
        )
    )
    year = rng.randint(1850, 2010)
    about = f"The {kind} of {place} opened in {year} and has many visitors."
    texts = (
        f"{about} {says.format(place, true)}" if is_told else about,
        f"The {kind} of {place} is well known. {says.format(place, false)}",
        f"The {kind} of {elsewhere[0]} is small. {says.format(elsewhere[0], others[0])}",
        f"Many know the {kind} of {place}. {also.format(place, false)}",
        f"The {kind} of {elsewhere[1]} is new. {says.format(elsewhere[1], others[1])}",
        f"The {kind} of {elsewhere[2]} is old. {says.format(elsewhere[2], others[2])}",
    )
    documents = tuple(f"Document {n}:\n{text}\n\n" for n, text in enumerate(texts, start=1))
    return Case(documents, question.format(place), true if is_told else None, false)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Answers of one way to serve the prompts.

    Attributes:
        answers: All of them.
        num_false: How many name the false thing.
        num_true: How many name the true one, of those that are told it.
    """

    answers: tuple[str, ...]
    num_false: int
    num_true: int


def run(model: str, cases: Sequence[Case]) -> dict[str, Outcome]:
    """Serves the prompts in all ways, those of one way together."""
    llm = inspected_engine(model, kv_cache_memory_bytes=1 << 30, max_model_len=2048)
    for number, case in enumerate(cases):
        llm.add_schema(case.schema(f"primed-{number}", ""))
        llm.add_schema(case.schema(f"modules-{number}", OTHERS))
    outcomes = {}
    for way, (schema, imported, reuse) in WAYS.items():
        prompts = [case.prompt(f"{schema}-{n}", imported) for n, case in enumerate(cases)]
        outcomes[way] = _outcome(cases, _answers(llm, prompts, reuse=reuse))
        print(f"{way}: {outcomes[way].num_false} false", file=sys.stderr)
    return outcomes


def _answers(llm: Any, prompts: list[str], *, reuse: bool) -> tuple[str, ...]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    outputs = llm.generate(prompts, params, reuse=reuse, use_tqdm=False)
    return tuple(output.outputs[0].text for output in outputs)


def _outcome(cases: Sequence[Case], answers: tuple[str, ...]) -> Outcome:
    pairs = list(zip(cases, answers, strict=True))
    return Outcome(
        answers,
        sum(_names(answer, case.false) for case, answer in pairs),
        sum(_names(answer, case.true) for case, answer in pairs if case.true),
    )


def _names(answer: str, name: str) -> bool:
    """Whether an answer has one of the two words of a name."""
    return any(subspan_match(answer, [word]) > 0 for word in name.split())


def table(outcomes: dict[str, Outcome], cases: Sequence[Case]) -> Table:
    """One line for each way."""
    num_told = sum(case.true is not None for case in cases)
    report = Table("", f"false, of {len(cases)}", f"true, of {num_told}", "as plain")
    plain = outcomes["plain"].answers
    for name, outcome in outcomes.items():
        same = sum(a == b for a, b in zip(outcome.answers, plain, strict=True))
        report.add_row(name, *map(str, (outcome.num_false, outcome.num_true, same)))
    return report


def main() -> None:
    """Reads the arguments, serves the prompts, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="a folder, or an embedded model's name")
    parser.add_argument("--schemas", type=int, default=40)
    parser.add_argument("--json", type=Path, help="file for all answers")
    args = parser.parse_args()
    cases = make_cases(args.schemas)
    model = str(embedded_model(args.model)) if args.model in MODELS else args.model
    outcomes = run(model, cases)
    Console().print(table(outcomes, cases))
    if args.json:
        report = {name: asdict(outcome) for name, outcome in outcomes.items()}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
