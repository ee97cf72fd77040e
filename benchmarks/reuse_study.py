"""Which tokens of reused modules to compute again, so that answers are those of a plain prefill.

    python -m benchmarks.reuse_study --model FOLDER --data FILE.jsonl --output RESULTS.jsonl \
        --policies plain,isolated,anchored,head:16,block-query:15@anchored
    python -m benchmarks.reuse_study --output RESULTS.jsonl --report

Plain PyTorch, no engine: caches are put together by hand. A prompt is a root, modules (a row's
documents) and a tail with the question. Each module has its keys and values from an encode that did
not see the others. Repaired tokens are dropped from them and computed with the tail. As in the
engine, the new tokens come after the cached ones: each sees all cached tokens, wherever these are,
and the new ones up to itself. `reuse_policies` has the policies.

A line is appended to the results for each row and policy; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from benchmarks.reuse_policies import Policy

ANSWER = (
    "Answer the question from the documents below, in as few words as possible, "
    "without a sentence around them."
)
SUMMARIZE = "Summarize the documents below in one paragraph."
ROOT = "<|im_start|>system\n{}\n\n"
TAIL_BEGIN, TAIL_END = "<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
NEUTRAL = (
    "Document 0:\nThis page was left here on purpose. It has nothing to do with the other pages, "
    "and nobody needs to read it.\n\n"
)
STOP = "<|im_end|>"
MAX_NEW_TOKENS = 24
NUM_SINK_TOKENS = 4
NUM_RESAMPLES = 2000
Row = dict[str, Any]


@dataclass
class Prompt:
    """The tokens of a prompt; a token's position is its index."""

    tokens: list[int]
    modules: list[range]
    question: list[int]

    @property
    def num_root(self) -> int:
        """Tokens before the first module."""
        return self.modules[0].start

    @property
    def num_reused(self) -> int:
        """Tokens before the tail."""
        return self.modules[-1].stop


class Reader:
    """A model with its tokenizer, and caches as tensors of [layer, key or value, head, token, dim].

    One tensor, because choosing tokens of a cache is then indexing its fourth dimension.
    """

    def __init__(self, folder: str, dtype: torch.dtype = torch.bfloat16) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model = model.eval()
        self.model.set_attn_implementation("grouped")
        self.neutral = self.tokens(NEUTRAL)

    def tokens(self, text: str) -> list[int]:
        """The tokens of one piece of a prompt."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def prompt(self, row: Row) -> Prompt:
        """The prompt of a row, each piece of it tokenized on its own."""
        is_summary = row["metric"] == "rougeL"
        tokens = self.tokens(ROOT.format(SUMMARIZE if is_summary else ANSWER))
        modules = []
        for number, text in enumerate(row["docs"], start=1):
            piece = self.tokens(f"Document {number}:\n{text}\n\n")
            modules.append(range(len(tokens), len(tokens) + len(piece)))
            tokens += piece
        question = row["question"] or "Write the summary."
        tail = self.tokenizer(
            TAIL_BEGIN + question + TAIL_END, add_special_tokens=False, return_offsets_mapping=True
        )
        span = range(len(TAIL_BEGIN), len(TAIL_BEGIN) + len(question))
        asked = [i for i, (begin, _) in enumerate(tail.offset_mapping) if begin in span]
        return Prompt(tokens + tail.input_ids, modules, [len(tokens) + i for i in asked])

    def forward(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        past: torch.Tensor,
        bias: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden states, and the cache with the new tokens at its end.

        Args:
            tokens: The new tokens.
            positions: Their positions.
            past: The cache, may be empty.
            bias: What is added to the logits of attention, [new tokens, all tokens].
        """
        cache = to_cache(past[None])
        output = self.model.model(
            input_ids=torch.tensor([tokens]),
            position_ids=torch.tensor([positions]),
            past_key_values=cache,
            attention_mask=bias[None, None].to(self.model.dtype),
        )
        layers = [torch.cat((layer.keys, layer.values)) for layer in cache.layers]
        return output.last_hidden_state[0], torch.stack(layers)

    def encode(
        self,
        prompt: Prompt,
        module: range,
        prefix: Sequence[int] = (),
        positions: Sequence[int] = (),
    ) -> torch.Tensor:
        """The cache of a module that sees a prefix at these positions, without the prefix's own."""
        tokens = [*prefix, *prompt.tokens[module.start : module.stop]]
        order = torch.arange(len(tokens))
        bias = visible(order, order)
        _, cache = self.forward(tokens, [*positions, *module], self.empty(), bias)
        return cache[..., len(prefix) :, :]

    def encode_modules(self, prompt: Prompt, base: str) -> torch.Tensor:
        """The cache of root and modules in the order of the prompt."""
        if base == "plain":
            return self.encode(prompt, range(prompt.num_reused))
        num_seen = {"isolated": 0, "anchored": prompt.num_root, "sink": NUM_SINK_TOKENS}.get(base)
        caches = [self.encode(prompt, range(prompt.num_root))]
        for module in prompt.modules:
            if num_seen is None:
                # Only distances count for the rotation: the first one's may begin below zero.
                prefix, end = self.neutral, module.start
            else:
                prefix, end = prompt.tokens[:num_seen], num_seen
            positions = range(end - len(prefix), end)
            caches.append(self.encode(prompt, module, prefix, positions))
        return torch.cat(caches, dim=-2)

    def empty(self) -> torch.Tensor:
        """A cache without tokens."""
        config = self.model.config
        dim = config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, 2, config.num_key_value_heads, 0, dim)
        return torch.empty(shape, dtype=self.model.dtype)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits of the next token in full precision."""
        return self.model.lm_head(hidden).float()

    def generate(self, first: torch.Tensor, past: torch.Tensor, weights: torch.Tensor) -> list[str]:
        """Greedy answers for a batch of caches of the same length, by their first logits."""
        cache, length = to_cache(past), past.shape[-2]
        stop = self.tokenizer.convert_tokens_to_ids(STOP)
        answers = [first.argmax(-1)]
        while len(answers) < MAX_NEW_TOKENS:
            if bool((torch.stack(answers) == stop).any(0).all()):
                break
            new = torch.zeros(len(past), len(answers))
            hidden = self.model.model(
                input_ids=answers[-1][:, None],
                position_ids=torch.full((len(past), 1), length + len(answers) - 1),
                past_key_values=cache,
                attention_mask=torch.cat((weights, new), -1)[:, None, None].to(self.model.dtype),
            ).last_hidden_state
            answers.append(self.logits(hidden[:, -1]).argmax(-1))
        texts = self.tokenizer.batch_decode(torch.stack(answers, dim=1))
        return [text.partition(STOP)[0].strip() for text in texts]


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
        self.prompt = reader.prompt(row)
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
            else:
                by_layer = self._attention(base)
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

    def _attention(self, base: str) -> torch.Tensor:
        """Attention of the question's tokens over a base's cache, by layer, summed over heads."""
        prompt = self.prompt
        self.cache(base)  # Encoded now if it was not yet, because encodes are not to be observed.
        num_layers = self.reader.model.config.num_hidden_layers
        GROUPED.observed = total = torch.zeros(num_layers, len(prompt.tokens))
        GROUPED.rows = [token - prompt.num_reused for token in prompt.question]
        self.read(Policy("query", base), [])
        GROUPED.observed = None
        return total

    def read(self, policy: Policy, repaired: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The first logits behind the tail, and the whole cache."""
        prompt, cache = self.prompt, self.cache(policy.base)
        dropped = set(repaired)
        kept = [i for i in range(prompt.num_reused) if i not in dropped]
        new = repaired + list(range(prompt.num_reused, len(prompt.tokens)))
        keys, queries = torch.tensor(kept + new), torch.tensor(new)
        bias = visible(queries, keys, 0 if policy.is_causal else len(kept))
        bias[len(repaired) :] += module_bias(prompt, keys, policy.weight)
        tokens = [prompt.tokens[i] for i in new]
        hidden, cache = self.reader.forward(tokens, new, cache[..., kept, :], bias)
        # Back in the order of positions, so that policies can be answered as one batch.
        return self.reader.logits(hidden[-1]), cache[..., keys.argsort(), :]

    def run(self, policies: Sequence[Policy]) -> Iterator[Row]:
        """The results of the policies, the first of which is plain."""
        positions = torch.arange(len(self.prompt.tokens))
        logits, caches, repaired = [], [], []
        for policy in policies:
            scores = partial(self.scores, policy.base)
            repaired.append(policy.repaired(self.prompt.modules, scores, self.row["id"]))
            first, cache = self.read(policy, repaired[-1])
            logits.append(first)
            caches.append(cache)
        weights = [module_bias(self.prompt, positions, policy.weight) for policy in policies]
        first = torch.stack(logits)
        answers = self.reader.generate(first, torch.stack(caches), torch.stack(weights))
        divergence = kl(first)
        num_module_tokens = self.prompt.num_reused - self.prompt.num_root
        for index, policy in enumerate(policies):
            yield {
                "row": self.row["id"],
                "policy": policy.name,
                "score": max(f1(answers[index], answer) for answer in self.row["answers"]),
                "agreement": answers[index] == answers[0],
                "kl": divergence[index],
                "recomputed": len(repaired[index]) / num_module_tokens,
                "answer": answers[index],
            }


class GroupedAttention:
    """Attention in which the heads that share a key are rows of one product.

    The library's function copies each key once for each of its heads, in each step and for all of
    a batch's caches. This one also sums up attention where the study asks for it.
    """

    def __init__(self) -> None:
        self.observed: torch.Tensor | None = None
        self.rows: list[int] = []

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        batch, num_heads, num_tokens, dim = query.shape
        num_groups = num_heads // key.shape[1]
        rows = query.reshape(batch, key.shape[1], num_groups * num_tokens, dim)
        bias = attention_mask.repeat(1, 1, num_groups, 1)
        if self.observed is not None:
            logits = (rows @ key.transpose(2, 3)).float() * scaling + bias
            shares = logits.softmax(-1).unflatten(2, (num_groups, num_tokens))
            self.observed[module.layer_idx] += shares[..., self.rows, :].sum(dim=(0, 1, 2, 3))
        output = torch.nn.functional.scaled_dot_product_attention(
            rows, key, value, attn_mask=bias, scale=scaling
        )
        return output.reshape(batch, num_heads, num_tokens, dim).transpose(1, 2), None


GROUPED = GroupedAttention()
AttentionInterface.register("grouped", GROUPED)


def to_cache(past: torch.Tensor) -> DynamicCache:
    """A cache of the library from a batch of tensors."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(past.permute(1, 2, 0, 3, 4, 5)):
        cache.update(keys, values, layer)
    return cache


def visible(queries: torch.Tensor, keys: torch.Tensor, num_open: int = 0) -> torch.Tensor:
    """Zero where a key is not behind the query or among the first `num_open`, else -inf."""
    hidden = keys[None] > queries[:, None]
    hidden[:, :num_open] = False
    return torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))


def module_bias(prompt: Prompt, positions: torch.Tensor, weight: float) -> torch.Tensor:
    """The bias by which tokens of modules have `weight` times their attention."""
    is_module = (positions >= prompt.num_root) & (positions < prompt.num_reused)
    return is_module * float(np.log(weight))


def kl(logits: torch.Tensor) -> list[float]:
    """How far the distribution of each row is from that of the first."""
    logs = logits.log_softmax(-1)
    return (logs[0].exp() * (logs[0] - logs)).sum(-1).tolist()


def f1(answer: str, expected: str) -> float:
    """Overlap of words, normalized as for SQuAD."""
    words, reference = normalized(answer), normalized(expected)
    common = (Counter(words) & Counter(reference)).total()
    if not words or not reference:
        return float(words == reference)
    return 2 * common / (len(words) + len(reference))


def normalized(text: str) -> list[str]:
    """Words without case, punctuation and articles."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def load_rows(path: str, limit: int, num_docs: int) -> list[Row]:
    """Rows chosen evenly over the file, in an order in which any first part is mixed, too."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    count = min(limit, len(rows))
    chosen = [rows[i * len(rows) // count] for i in range(count)]
    Random(0).shuffle(chosen)
    return [cut(row, num_docs) for row in chosen]


def cut(row: Row, num_docs: int) -> Row:
    """The row with that many documents, the gold one about where it was in proportion."""
    if not num_docs or len(row["docs"]) <= num_docs:
        return row
    gold = row["gold_index"]
    first = gold - gold * num_docs // len(row["docs"])
    return row | {"docs": row["docs"][first : first + num_docs], "gold_index": gold - first}


def read_results(path: Path) -> list[Row]:
    """The results so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def interval(values: np.ndarray) -> str:
    """The mean with its 95 % interval by bootstrap; the same resamples for any policy."""
    samples = np.random.default_rng(0).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    low, high = np.percentile(values[samples].mean(axis=1), [2.5, 97.5])
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


class Report:
    """A table of the results, a line for each policy, over the rows that all of them have.

    Args:
        results: The results, those of "plain" among them.
        policies: The names of the policies, default is all in the order of the results.
    """

    def __init__(self, results: Sequence[Row], policies: Sequence[str] | None = None) -> None:
        names = policies or list(dict.fromkeys(result["policy"] for result in results))
        self.by_policy: dict[str, dict[str, Row]] = {name: {} for name in ["plain", *names]}
        for result in results:
            if result["policy"] in self.by_policy:
                self.by_policy[result["policy"]][result["row"]] = result

    @cached_property
    def rows(self) -> list[str]:
        """The rows that all policies have."""
        return sorted(set.intersection(*(set(rows) for rows in self.by_policy.values())))

    def values(self, policy: str, field: str) -> np.ndarray:
        """One field of a policy's results."""
        return np.array([self.by_policy[policy][row][field] for row in self.rows], dtype=float)

    def __str__(self) -> str:
        if not self.rows:
            return "No row has results of all these policies."
        lines = [
            f"{len(self.rows)} rows; means with 95 % intervals.\n",
            "| policy | recomputed | score | difference to plain | agreement | KL | median KL |",
            "|---|---|---|---|---|---|---|",
        ]
        plain = self.values("plain", "score")
        for policy in self.by_policy:
            score, divergence = self.values(policy, "score"), self.values(policy, "kl")
            cells = [
                policy.replace("|", r"\|"),
                f"{self.values(policy, 'recomputed').mean():.1%}",
                interval(score),
                interval(score - plain),
                f"{self.values(policy, 'agreement').mean():.0%}",
                interval(divergence),
                f"{np.median(divergence):.3f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def run(arguments: argparse.Namespace) -> None:
    """Run what the results do not have yet."""
    policies = [Policy.parse(name) for name in arguments.policies.split(",")]
    done = {(result["row"], result["policy"]) for result in read_results(arguments.output)}
    reader = Reader(arguments.model)
    caches: dict[str, dict[str, torch.Tensor]] = {}
    for row in load_rows(arguments.data, arguments.limit, arguments.docs):
        missing = [policy for policy in policies if (row["id"], policy.name) not in done]
        if not missing:
            continue
        group = row.get("doc_group")
        shared = caches.setdefault(group, {}) if group else {}
        others = [policy for policy in missing if policy.name != "plain"]
        with torch.inference_mode():
            results = list(Study(reader, row, shared).run([Policy("plain", "plain"), *others]))
        with arguments.output.open("a") as file:
            for result in results:
                if (row["id"], result["policy"]) not in done:
                    file.write(json.dumps(result) + "\n")


def main() -> None:
    """Run the study, or print what it found."""
    parser = argparse.ArgumentParser(description="Which tokens of reused modules to repair.")
    parser.add_argument("--output", type=Path, required=True, help="results, one a line")
    parser.add_argument("--report", action="store_true", help="print a table of the results")
    parser.add_argument("--model", help="folder of the model")
    parser.add_argument("--data", help="file with the rows")
    parser.add_argument("--policies", help="names by commas; for a report: default all")
    parser.add_argument("--limit", type=int, default=60, help="rows, evenly over the file")
    parser.add_argument("--docs", type=int, default=0, help="cut rows to so many documents")
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
