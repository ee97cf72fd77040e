"""What modules to encode behind, and what of them to compute again, to answer as a plain prefill.

    python -m benchmarks.reuse_study --model FOLDER --data FILE.jsonl --output RESULTS.jsonl \
        --policies plain,isolated,anchored,head:16,block-query:15@anchored
    python -m benchmarks.reuse_study --model FOLDER --data FILE.jsonl --output RESULTS.jsonl \
        --policies plain,bare1,form2,form1|form2 --first
    python -m benchmarks.reuse_study --output RESULTS.jsonl --report --against bare1

Plain PyTorch, no engine: caches are put together by hand. A prompt is a root, modules (a row's
documents) and a tail with the question. Each module has its keys and values from an encode that did
not see the others, but perhaps a primer. Repaired tokens are dropped from them and computed with
the tail. Each new token sees all cached ones, wherever these are, and the new ones up to itself;
with the option `causal` it sees what lies before it only, as in the engine. `reuse_policies` has
the policies.

A line is appended to the results for each row and policy; what is there already is not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from random import Random

import torch

from benchmarks.reuse_attention import module_bias, visible
from benchmarks.reuse_caches import Caches
from benchmarks.reuse_model import Reader
from benchmarks.reuse_policies import Base, Policy
from benchmarks.reuse_primers import Primers
from benchmarks.reuse_prompt import Prompt
from benchmarks.reuse_report import Report, Result, append_results, read_results
from vllm_promptcache.quality.evaluate.data import Row, choose, read_data
from vllm_promptcache.quality.evaluate.metrics import score
from vllm_promptcache.quality.evaluate.prompts import TASKS

PLAIN = Policy.parse("plain")
NUM_LAST_TOKENS = 3
NUM_FIRST_TOKENS = 8
"""Tokens of plain's answer at which distributions are compared."""


class Study:
    """One row: caches of its modules by base, and a run of each policy.

    Args:
        reader: The model.
        row: The row of the data.
        prompt: Its prompt.
        caches: Those of the prompt's modules.
    """

    def __init__(self, reader: Reader, row: Row, prompt: Prompt, caches: Caches) -> None:
        self.reader = reader
        self.row = row
        self.prompt = prompt
        self.caches = caches
        self.cache = caches.cache
        self._scores: dict[tuple[Base, str], torch.Tensor] = {}

    def scores(self, base: Base, measure: str) -> torch.Tensor:
        """A measure for each position, on the cache of a base."""
        if (base, measure) not in self._scores:
            if measure == "deviation":
                self._scores[base, measure] = self._deviation(base)
            elif measure == "prepared":
                self._scores[base, measure] = self.caches.prepared(base)
            elif measure == "last":
                end = len(self.prompt.token_ids)
                last = range(end - NUM_LAST_TOKENS, end)
                self._scores[base, measure] = self._attention(base, last).sum(dim=0)
            else:
                by_layer = self._attention(base, self.prompt.question)
                self._scores[base, "query"] = by_layer.sum(dim=0)
                self._scores[base, "early-query"] = by_layer[: len(by_layer) // 2].sum(dim=0)
        return self._scores[base, measure]

    def _deviation(self, base: Base) -> torch.Tensor:
        """Squared differences in the second layer, keys and values counting the same.

        A forward through two layers would give these; the plain cache has the same numbers.
        """
        difference = (self.cache(PLAIN.base)[1].float() - self.cache(base)[1].float()) ** 2
        key, value = difference.sum(dim=(1, 3))
        return key / key.mean() + value / value.mean()

    def _attention(self, base: Base, tokens: Iterable[int]) -> torch.Tensor:
        """Attention of some tokens over a base's cache, by layer, summed over heads."""
        prompt = self.prompt
        # The cache is encoded now if it was not yet, because encodes are not to be observed.
        num_layers = len(self.cache(base))
        rows = [token - prompt.num_reused for token in tokens]
        with self.reader.attention.observe(rows, num_layers, len(prompt.token_ids)) as total:
            self.read(Policy("query", base), [])
        return total

    def read(
        self, policy: Policy, repaired: list[int], answer: Sequence[int] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits behind the tail and each given token of an answer, and the prompt's cache."""
        prompt, cache = self.prompt, self.cache(policy.base)
        end = len(prompt.token_ids)
        dropped = set(repaired)
        kept = [i for i in range(prompt.num_reused) if i not in dropped]
        new = repaired + list(range(prompt.num_reused, end + len(answer)))
        keys, queries = torch.tensor(kept + new), torch.tensor(new)
        bias = visible(queries, keys, 0 if policy.is_causal else len(kept))
        bias[len(repaired) :] += module_bias(prompt, keys, policy.weight)
        token_ids = [*prompt.token_ids, *answer]
        new_ids = [token_ids[i] for i in new]
        hidden, cache = self.reader.forward(new_ids, new, cache[..., kept, :], bias)
        # Back in the order of positions, so that policies can be answered as one batch.
        cache = cache[..., keys.argsort()[:end], :]
        return self.reader.logits(hidden[-1 - len(answer) :]), cache

    def run(self, policies: Sequence[Policy], is_answered: bool) -> list[Result]:
        """The results of the policies, the first of which is plain."""
        first = self._first_tokens()
        repaired = [self._repaired(policy) for policy in policies]
        reads = [
            self.read(policy, positions, first[:-1])
            for policy, positions in zip(policies, repaired, strict=True)
        ]
        logits, caches = map(torch.stack, zip(*reads, strict=True))
        divergences = kl(logits)
        is_same = (logits.argmax(-1) == logits[0].argmax(-1)).all(-1).tolist()
        answers = self._answers(policies, logits[:, 0], caches) if is_answered else None
        num_module_tokens = self.prompt.num_reused - self.prompt.num_root
        return [
            Result(
                row=self.row.id,
                policy=policy.name,
                score=answers and score(self.row.metric, answers[i], self.row.answers).score,
                agreement=answers and answers[i] == answers[0],
                kl=float(divergences[i, 0]),
                kl8=float(divergences[i].mean()),
                same8=is_same[i],
                recomputed=len(repaired[i]) / num_module_tokens,
                answer=answers and answers[i],
            )
            for i, policy in enumerate(policies)
        ]

    def _first_tokens(self) -> list[int]:
        """The first tokens that plain answers, up to its stop."""
        logits, cache = self.read(PLAIN, [])
        bias = torch.zeros(1, len(self.prompt.token_ids))
        tokens = self.reader.generate(logits, cache[None], bias, NUM_FIRST_TOKENS)
        return tokens[0].tolist()

    def _repaired(self, policy: Policy) -> list[int]:
        """The positions that a policy computes again."""
        scores = partial(self.scores, policy.base)
        return policy.repaired(self.prompt.modules, scores, self.row.id)

    def _answers(
        self, policies: Sequence[Policy], logits: torch.Tensor, caches: torch.Tensor
    ) -> list[str]:
        """The answers from the first logits and caches of the policies."""
        positions = torch.arange(len(self.prompt.token_ids))
        bias = [module_bias(self.prompt, positions, policy.weight) for policy in policies]
        max_tokens = TASKS[self.row.metric].max_tokens
        tokens = self.reader.generate(logits, caches, torch.stack(bias), max_tokens)
        return self.reader.texts(tokens)


def kl(logits: torch.Tensor) -> torch.Tensor:
    """How far distributions are from those of the first policy, [policy, token]."""
    logs = logits.log_softmax(-1)
    return (logs[0].exp() * (logs[0] - logs)).sum(-1)


def split(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what they are for, by fifths; rows with the same documents stay together.

    Policies are chosen on those to "tune" and reported on those to "report", three fifths; "others"
    are where siblings come from.
    """
    places: dict[tuple[str, ...], int] = {}
    parts: dict[str, list[Row]] = {"others": [], "tune": [], "report": []}
    for row in rows:
        fifth = places.setdefault(row.docs, len(places)) % 5
        parts[("others", "tune", "report")[min(fifth, 2)]].append(row)
    return parts


def read_rows(arguments: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """The rows of a run, in an order in which any first part is mixed; others, one a document."""
    parts = split(read_data(arguments.data, None, arguments.docs).rows)
    rows = list(choose(parts[arguments.part], arguments.limit))
    Random(0).shuffle(rows)
    return rows, list({row.docs: row for row in parts["others"]}.values())


def run(arguments: argparse.Namespace) -> None:
    """Run what the results do not have yet."""
    policies = [Policy.parse(name) for name in arguments.policies.split(",")]
    done = {(result.row, result.policy) for result in read_results(arguments.output)}
    chosen, others = read_rows(arguments)
    rows = [row for row in chosen if any((row.id, policy.name) not in done for policy in policies)]
    # The last row with the same documents: caches are dropped behind it, for they are large.
    last = {row.docs: row.id for row in rows}
    caches: dict[tuple[str, ...], Caches] = {}
    reader = Reader(arguments.model)
    primers = Primers.write(TASKS[chosen[0].metric].document, others, reader.tokenizer)
    for row in rows:
        missing = [policy for policy in policies if (row.id, policy.name) not in done]
        behind_plain = [policy for policy in missing if policy != PLAIN]
        prompt = Prompt.write(row, reader.tokenizer)
        with torch.inference_mode():
            shared = caches.setdefault(row.docs, Caches(reader, prompt, primers))
            study = Study(reader, row, prompt, shared)
            results = study.run([PLAIN, *behind_plain], not arguments.first)
        new = [result for result in results if (row.id, result.policy) not in done]
        append_results(arguments.output, new)
        if last[row.docs] == row.id:
            del caches[row.docs]


def main() -> None:
    """Run the study, or print what it found."""
    parser = argparse.ArgumentParser(description="What of modules to reuse, and what to repair.")
    parser.add_argument("--output", type=Path, required=True, help="results, one a line")
    parser.add_argument("--report", action="store_true", help="print a table of the results")
    parser.add_argument("--against", help="for a report: policy to tell differences of KL to")
    parser.add_argument("--model", help="folder of the model")
    parser.add_argument("--data", type=Path, help="file with the rows")
    parser.add_argument("--policies", help="names by commas; for a report: default all")
    parser.add_argument("--part", choices=("tune", "report"), default="report", help="which rows")
    parser.add_argument("--limit", type=int, default=60, help="rows, evenly over the part")
    parser.add_argument("--docs", type=int, help="cut rows to so many documents")
    parser.add_argument("--first", action="store_true", help="compare first tokens, answer nothing")
    arguments = parser.parse_args()
    if arguments.report:
        names = arguments.policies.split(",") if arguments.policies else None
        print(Report(read_results(arguments.output), names, arguments.against))
        return
    if not (arguments.model and arguments.data and arguments.policies):
        parser.error("a run needs --model, --data and --policies")
    run(arguments)


if __name__ == "__main__":
    main()
