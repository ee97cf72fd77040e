"""Which tokens of reused modules to compute again, so that answers are those of a plain prefill.

    python -m benchmarks.reuse_study --model FOLDER --data FILE.jsonl --output RESULTS.jsonl \
        --policies plain,isolated,anchored,head:16,block-query:15@anchored
    python -m benchmarks.reuse_study --output RESULTS.jsonl --report

Plain PyTorch, no engine: caches are put together by hand. A prompt is a root, modules (a row's
documents) and a tail with the question. Each module has its keys and values from an encode that did
not see the others. Repaired tokens are dropped from them and computed with the tail. Each new
token sees all cached ones, wherever these are, and the new ones up to itself; with the option
`causal` it sees what lies before it only, as in the engine. `reuse_policies` has the policies.

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
from benchmarks.reuse_model import Reader
from benchmarks.reuse_policies import Policy
from benchmarks.reuse_prompt import Prompt
from benchmarks.reuse_report import Report, Result, append_results, read_results
from vllm_promptcache.quality.evaluate.data import Row, read_data
from vllm_promptcache.quality.evaluate.metrics import score
from vllm_promptcache.quality.evaluate.prompts import TASKS

PLAIN = Policy("plain", "plain")
NUM_LAST_TOKENS = 3


class Study:
    """One row: caches of its modules by base, and a run of each policy.

    Args:
        reader: The model.
        row: The row of the data.
        caches: Caches by base that rows with the same documents share.
    """

    def __init__(self, reader: Reader, row: Row, caches: dict[str, torch.Tensor]) -> None:
        self.reader = reader
        self.row = row
        self.prompt = Prompt.write(row, reader.tokenizer)
        self.caches = caches
        self._scores: dict[tuple[str, str], torch.Tensor] = {}

    def cache(self, base: str) -> torch.Tensor:
        """The cache of root and modules, encoded on first use."""
        if base not in self.caches:
            self.caches[base] = self.reader.encode_modules(self.prompt, base)
        return self.caches[base]

    def scores(self, base: str, measure: str) -> torch.Tensor:
        """A measure for each position, on the cache of a base."""
        if (base, measure) not in self._scores:
            if measure == "deviation":
                self._scores[base, measure] = self._deviation(base)
            elif measure == "last":
                end = len(self.prompt.token_ids)
                last = range(end - NUM_LAST_TOKENS, end)
                self._scores[base, measure] = self._attention(base, last).sum(dim=0)
            else:
                by_layer = self._attention(base, self.prompt.question)
                self._scores[base, "query"] = by_layer.sum(dim=0)
                self._scores[base, "early-query"] = by_layer[: len(by_layer) // 2].sum(dim=0)
        return self._scores[base, measure]

    def _deviation(self, base: str) -> torch.Tensor:
        """Squared differences in the second layer, keys and values counting the same.

        A forward through two layers would give these; the plain cache has the same numbers.
        """
        difference = (self.cache("plain")[1].float() - self.cache(base)[1].float()) ** 2
        key, value = difference.sum(dim=(1, 3))
        return key / key.mean() + value / value.mean()

    def _attention(self, base: str, tokens: Iterable[int]) -> torch.Tensor:
        """Attention of some tokens over a base's cache, by layer, summed over heads."""
        prompt = self.prompt
        # The cache is encoded now if it was not yet, because encodes are not to be observed.
        num_layers = len(self.cache(base))
        rows = [token - prompt.num_reused for token in tokens]
        with self.reader.attention.observe(rows, num_layers, len(prompt.token_ids)) as total:
            self.read(Policy("query", base), [])
        return total

    def read(self, policy: Policy, repaired: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The first logits behind the tail, and the whole cache."""
        prompt, cache = self.prompt, self.cache(policy.base)
        dropped = set(repaired)
        kept = [i for i in range(prompt.num_reused) if i not in dropped]
        new = repaired + list(range(prompt.num_reused, len(prompt.token_ids)))
        keys, queries = torch.tensor(kept + new), torch.tensor(new)
        bias = visible(queries, keys, 0 if policy.is_causal else len(kept))
        bias[len(repaired) :] += module_bias(prompt, keys, policy.weight)
        token_ids = [prompt.token_ids[i] for i in new]
        hidden, cache = self.reader.forward(token_ids, new, cache[..., kept, :], bias)
        # Back in the order of positions, so that policies can be answered as one batch.
        return self.reader.logits(hidden[-1]), cache[..., keys.argsort(), :]

    def run(self, policies: Sequence[Policy]) -> list[Result]:
        """The results of the policies, the first of which is plain."""
        repaired = [self._repaired(policy) for policy in policies]
        reads = map(self.read, policies, repaired)
        logits, caches = map(torch.stack, zip(*reads, strict=True))
        answers = self._answers(policies, logits, caches)
        num_module_tokens = self.prompt.num_reused - self.prompt.num_root
        return [
            Result(
                row=self.row.id,
                policy=policy.name,
                score=score(self.row.metric, answer, self.row.answers).score,
                agreement=answer == answers[0],
                kl=divergence,
                recomputed=len(positions) / num_module_tokens,
                answer=answer,
            )
            for policy, positions, answer, divergence in zip(
                policies, repaired, answers, kl(logits), strict=True
            )
        ]

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
        return self.reader.generate(logits, caches, torch.stack(bias), max_tokens)


def kl(logits: torch.Tensor) -> list[float]:
    """How far the distribution of each row is from that of the first."""
    logs = logits.log_softmax(-1)
    return (logs[0].exp() * (logs[0] - logs)).sum(-1).tolist()


def read_rows(path: Path, limit: int, num_documents: int | None) -> list[Row]:
    """Rows chosen evenly over the file, in an order in which any first part is mixed, too."""
    rows = list(read_data(path, limit, num_documents).rows)
    Random(0).shuffle(rows)
    return rows


def run(arguments: argparse.Namespace) -> None:
    """Run what the results do not have yet."""
    policies = [Policy.parse(name) for name in arguments.policies.split(",")]
    done = {(result.row, result.policy) for result in read_results(arguments.output)}
    rows = [
        row
        for row in read_rows(arguments.data, arguments.limit, arguments.docs)
        if any((row.id, policy.name) not in done for policy in policies)
    ]
    # The last row with the same documents: caches are dropped behind it, for they are large.
    last = {row.docs: row.id for row in rows}
    caches: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}
    reader = Reader(arguments.model)
    for row in rows:
        missing = [policy for policy in policies if (row.id, policy.name) not in done]
        others = [policy for policy in missing if policy != PLAIN]
        with torch.inference_mode():
            study = Study(reader, row, caches.setdefault(row.docs, {}))
            results = study.run([PLAIN, *others])
        new = [result for result in results if (row.id, result.policy) not in done]
        append_results(arguments.output, new)
        if last[row.docs] == row.id:
            del caches[row.docs]


def main() -> None:
    """Run the study, or print what it found."""
    parser = argparse.ArgumentParser(description="Which tokens of reused modules to repair.")
    parser.add_argument("--output", type=Path, required=True, help="results, one a line")
    parser.add_argument("--report", action="store_true", help="print a table of the results")
    parser.add_argument("--model", help="folder of the model")
    parser.add_argument("--data", type=Path, help="file with the rows")
    parser.add_argument("--policies", help="names by commas; for a report: default all")
    parser.add_argument("--limit", type=int, default=60, help="rows, evenly over the file")
    parser.add_argument("--docs", type=int, help="cut rows to so many documents")
    arguments = parser.parse_args()
    if arguments.report:
        chosen = arguments.policies.split(",") if arguments.policies else None
        print(Report(read_results(arguments.output), chosen))
        return
    if not (arguments.model and arguments.data and arguments.policies):
        parser.error("a run needs --model, --data and --policies")
    run(arguments)


if __name__ == "__main__":
    main()
