"""Chats whose documents are marked, as retrieval finds them: servers with and without modules.

    python -m benchmarks.marks MODEL http://127.0.0.1:8000 http://127.0.0.1:8001

Each chat has a system message, some documents by Zipf's law in any order, each a part with
`cache_control`, and a question, sent by OpenAI's own client. There is no schema, and nothing is
resident at first. The servers get the same chats in turn, one at a time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
from openai import OpenAI
from rich.console import Console
from rich.table import Table

from benchmarks.workloads import words

MARK = {"cache_control": {"type": "ephemeral"}}
RULES = "Answer with what the documents say, and with nothing else."


@dataclass(slots=True)
class Server:
    """What a server answered so far.

    Attributes:
        client: Asks it.
        seconds: To the first token of each chat.
        num_tokens: Of all prompts.
        num_cached: Of these, read from the cache.
    """

    client: OpenAI
    seconds: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_cached: int = 0

    def ask(self, model: str, messages: list[Any]) -> None:
        """Sends a chat."""
        start, first = time.perf_counter(), 0.0
        stream = self.client.chat.completions.create(
            model=model,
            messages=messages,
            max_tokens=1,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        for chunk in stream:
            first = first or time.perf_counter() - start
            if chunk.usage is not None:
                details = chunk.usage.prompt_tokens_details
                self.num_tokens += chunk.usage.prompt_tokens
                self.num_cached += (details.cached_tokens or 0) if details else 0
        self.seconds.append(first)


def chats(number: int, num_documents: int, num_imported: int, num_words: int) -> Iterator[Any]:
    """The chats; always the same ones."""
    rng = Random(0)
    documents = [f"{words(rng, num_words)}." for _ in range(num_documents)]
    weights = [1 / (rank + 1) for rank in range(num_documents)]
    for _ in range(number):
        chosen: dict[int, None] = {}
        while len(chosen) < num_imported:
            chosen[rng.choices(range(num_documents), weights)[0]] = None
        parts = [{"type": "text", "text": documents[i], **MARK} for i in chosen]
        parts.append({"type": "text", "text": words(rng, 11)})
        yield [{"role": "system", "content": RULES}, {"role": "user", "content": parts}]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="its name at the servers")
    parser.add_argument("urls", nargs="+", metavar="URL", help="of each server")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--documents", type=int, default=40, help="in all (default: 40)")
    parser.add_argument("--imported", type=int, default=5, help="in a chat (default: 5)")
    parser.add_argument("--words", type=int, default=120, help="of a document (default: 120)")
    args = parser.parse_args()
    servers = [Server(OpenAI(base_url=f"{url}/v1", api_key="none")) for url in args.urls]
    for messages in chats(args.requests, args.documents, args.imported, args.words):
        for server in servers:
            server.ask(args.model, messages)
    table = Table("server", "cached", "first token p50", "p95", "first half p50", "second half p50")
    for url, server in zip(args.urls, servers, strict=True):
        half = len(server.seconds) // 2
        halves = (np.median(part) for part in (server.seconds[:half], server.seconds[half:]))
        p50, p95 = np.percentile(server.seconds, [50, 95])
        cached = f"{server.num_cached / server.num_tokens:.1%}"
        table.add_row(url, cached, *(f"{seconds:.2f} s" for seconds in (p50, p95, *halves)))
    Console().print(table)


if __name__ == "__main__":
    main()
