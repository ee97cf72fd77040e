"""Chats with marks beside the same chats without: how many tokens differ at the edges of modules.

    python -m benchmarks.mark_tokens FILE.jsonl ... [--chats N]

Each line of a file has texts anywhere in it. Chats have some of them as marked
parts, a system message and a question. The text is the same; where a token would reach over the
edge of a module, two stand in its place.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.marks import MARK, RULES
from vllm_promptcache.entrypoints.marked_chat import MarkedChat
from vllm_promptcache.entrypoints.marks import MarkReader
from vllm_promptcache.layout import LayoutTokenizer
from vllm_promptcache.models import embedded_model
from vllm_promptcache.plan.compiled import SchemaCompiler
from vllm_promptcache.plan.planner import Planner
from vllm_promptcache.plan.schemas import Schemas
from vllm_promptcache.pml import prompt_kind
from vllm_promptcache.policies import DEFAULT_POLICY

MAX_MODEL_LEN = 2**20
NUM_IMPORTED = 5
OTHERS = {
    "Chinese": "港口的起重机每天早上吊起七只绿色的海龟。" * 20,
    "Arabic": "ترفع الرافعة في الميناء سبع سلاحف خضراء كل صباح. " * 20,
    "emoji": "🐢🏗️ The crane 🌊 lifts 7 turtles 👩🏽‍🚀 each day 🇫🇷. " * 20,
    "code": "def lift(turtles):\n    for turtle in turtles:\n        yield turtle + 1\n\n" * 20,
}


def texts_in(path: Path) -> list[str]:
    """All long texts of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [text for line in lines for text in _texts(json.loads(line)) if len(text) > 200]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def compare(tokenizer: Any, texts: list[str], num_chats: int) -> tuple[int, int, int, int]:
    """Documents, chats whose text differs, tokens in all, tokens more than without marks."""
    compiler = SchemaCompiler(LayoutTokenizer(tokenizer), MAX_MODEL_LEN, DEFAULT_POLICY)
    planner, rng = Planner(Schemas(compiler), block_size=32, promotes=False), Random(0)
    num_other_texts = num_tokens = num_more = 0
    for _ in range(num_chats):
        chosen = rng.sample(texts, min(NUM_IMPORTED, len(texts)))
        content = [{"type": "text", "text": text, **MARK} for text in chosen]
        content.append({"type": "text", "text": "What do they say?"})
        messages = [{"role": "system", "content": RULES}, {"role": "user", "content": content}]
        chat = MarkedChat.of(messages, MarkReader(prompt_kind, reads_marks=True))
        text = _render(tokenizer, chat.messages)
        plan = planner.plan_written(chat.written(text, _render(tokenizer, chat.probed)))
        plain = tokenizer.encode(text, add_special_tokens=False)
        num_other_texts += tokenizer.decode(plan.prompt_token_ids) != tokenizer.decode(plain)
        num_tokens += len(plain)
        num_more += len(plan.prompt_token_ids) - len(plain)
    return num_chats * len(chosen), num_other_texts, num_tokens, num_more


def _render(tokenizer: Any, messages: list[Any]) -> str:
    flat = [{**m, "content": _joined(m["content"])} for m in messages]
    return str(tokenizer.apply_chat_template(flat, tokenize=False, add_generation_prompt=True))


def _joined(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--model", help="folder of a tokenizer; default: the embedded model")
    parser.add_argument("--chats", type=int, default=40, help="of each file (default: 40)")
    args = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model or embedded_model())
    sources = {path.stem: texts_in(path) for path in args.files}
    sources |= {name: [text] for name, text in OTHERS.items()}
    table = Table("texts", "documents in chats", "other texts", "tokens", "more with marks")
    for name, texts in sources.items():
        numbers = compare(tokenizer, texts, args.chats)
        table.add_row(name, *(f"{number:,}" for number in numbers))
    Console().print(table)


if __name__ == "__main__":
    main()
