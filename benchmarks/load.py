"""Many streaming clients at once: time to the first token, with every answer checked.

Against a server that has prompt modules on, then against one that has them off:

    python -m benchmarks.load http://127.0.0.1:8000 MODEL --api-key KEY
    python -m benchmarks.load http://127.0.0.1:8000 MODEL --api-key KEY --plain

Each prompt has some of a schema's documents in any order, as retrieval gives them, and a question.
One in ten is cold: it belongs to a tenant who has never been seen. Without modules the same texts
are sent in the same order; vLLM's prefix cache is on in both cases.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random
from uuid import uuid4

import httpx
import numpy as np
from openai import AsyncOpenAI

from benchmarks.workloads import words

NUM_DOCUMENTS = 12
NUM_IMPORTED = 3
NUM_WORDS = 120
NUM_QUESTIONS = 4
NUM_PROMPTS = 40
MAX_TOKENS = 8
COLD_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Workload:
    """The same prompts for both servers.

    Attributes:
        plain: Whether prompts are sent as text.
        documents: Texts of the modules.
        prompts: Pairs of imported documents and a question.
    """

    plain: bool
    documents: list[str]
    prompts: list[tuple[list[int], str]]

    @classmethod
    def make(cls, *, plain: bool) -> Workload:
        """Makes the prompts; always the same ones."""
        rng = Random(0)
        documents = [words(rng, NUM_WORDS) for _ in range(NUM_DOCUMENTS)]
        questions = [words(rng, 9) for _ in range(NUM_QUESTIONS)]
        prompts = [
            (rng.sample(range(NUM_DOCUMENTS), NUM_IMPORTED), rng.choice(questions))
            for _ in range(NUM_PROMPTS)
        ]
        return cls(plain, documents, prompts)

    def schema(self, name: str, attributes: str = "") -> str:
        """A schema with one module for each document."""
        modules = "".join(f'<module name="d{i}">{t}</module>' for i, t in enumerate(self.documents))
        return f'<schema name="{name}"{attributes}>{modules}</schema>'

    def text(self, number: int, schema: str = "shared") -> str:
        """Prompt `number`."""
        documents, question = self.prompts[number]
        if self.plain:
            return " ".join([*(self.documents[i] for i in documents), question])
        imports = "".join(f"<d{i}/>" for i in documents)
        return f'<prompt schema="{schema}">{imports} {question}</prompt>'


@dataclass(slots=True)
class Client:
    """Sends prompts and checks the answers.

    Attributes:
        openai: Where to.
        model: The model's name there.
        workload: What to send.
        expected: The answer to each prompt, from a run of one at a time.
        warm: Seconds to the first token of warm requests.
        cold: The same of cold ones.
        num_wrong: Answers that were not as expected.
    """

    openai: AsyncOpenAI
    model: str
    workload: Workload
    expected: dict[int, str] = field(default_factory=dict)
    warm: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    num_wrong: int = 0

    async def learn(self) -> None:
        """Asks each prompt once, alone."""
        for number in range(NUM_PROMPTS):
            self.expected[number] = "".join([text async for text in self._ask(number)])

    async def run(self, seed: int, seconds: float) -> None:
        """Asks one prompt after the other for a while."""
        rng, end = Random(seed), time.monotonic() + seconds
        while time.monotonic() < end:
            number, is_cold = rng.randrange(NUM_PROMPTS), rng.random() < COLD_SHARE
            start, first, answer = time.perf_counter(), 0.0, ""
            async for text in self._ask(number, is_cold=is_cold):
                first = first or time.perf_counter() - start
                answer += text
            (self.cold if is_cold else self.warm).append(first)
            self.num_wrong += answer != self.expected[number]

    async def _ask(self, number: int, *, is_cold: bool = False) -> AsyncIterator[str]:
        text = self.workload.text(number, "tenants" if is_cold else "shared")
        stream = await self.openai.completions.create(
            model=self.model,
            prompt=text,
            max_tokens=MAX_TOKENS,
            temperature=0,
            stream=True,
            extra_body={"cache_salt": uuid4().hex} if is_cold else {},
        )
        async for chunk in stream:
            yield chunk.choices[0].text


def post_schemas(url: str, key: str, workload: Workload) -> None:
    """Adds the schema that all share, warm, and its private twin."""
    headers = {"Authorization": f"Bearer {key}"}
    for name, attributes, warm in (("shared", "", True), ("tenants", ' private="true"', False)):
        body = {"schema": workload.schema(name, attributes), "warm": warm}
        address = f"{url}/v1/prompt_schemas/{name}"
        httpx.put(address, json=body, headers=headers, timeout=600).raise_for_status()


def describe(name: str, seconds: list[float]) -> str:
    """Median and 95th percentile in milliseconds."""
    p50, p95 = np.percentile(np.array(seconds or [np.nan]) * 1000, [50, 95])
    return f"{name}: {len(seconds)} requests, first token p50 {p50:.0f} ms, p95 {p95:.0f} ms"


async def run(args: argparse.Namespace) -> None:
    """Runs the clients and prints what they saw."""
    workload = Workload.make(plain=args.plain)
    if not args.plain:
        post_schemas(args.url, args.api_key, workload)
    openai = AsyncOpenAI(base_url=f"{args.url}/v1", api_key=args.api_key, timeout=600)
    client = Client(openai, args.model, workload)
    await client.learn()
    await asyncio.gather(*(client.run(seed, args.seconds) for seed in range(args.clients)))
    print(describe("warm", client.warm))
    print(describe("cold", client.cold))
    print(f"wrong answers: {client.num_wrong}")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--plain", action="store_true", help="the server has no prompt modules")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
