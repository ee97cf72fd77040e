"""`vllm run-batch` with prompt modules: PML and plain lines in one file, bad ones among them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.engine.endpoints import BAD, PLAIN, PROMPT
from tests.engine.server import ENGINE_OPTIONS, MODEL_NAME, VLLM, environment
from tests.engine.test_server import SCHEMA

NUM_LINES = 200
# Every fortieth line is bad, each in another way.
BAD_PROMPTS = [
    BAD,
    '<prompt schema="travel">',
    '<prompt schema="none">x</prompt>',
    PROMPT.replace("a week", "a week or two, or rather three, as it comes"),
    '<prompt schema="travel"><plan duration="x"><maui/><miami/></plan></prompt>',
]


def line(number: int) -> dict[str, Any]:
    """One request of a batch file."""
    content = PROMPT.replace("surf", f"{number} best surf") if number % 2 else PLAIN
    if number % 40 == 0:
        content = BAD_PROMPTS[number // 40]
    body = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 4,
        "temperature": 0,
    }
    url = "/v1/chat/completions"
    return {"custom_id": str(number), "method": "POST", "url": url, "body": body}


def test_bad_lines_get_errors_of_their_own(shallow: Path, tmp_path: Path) -> None:
    (tmp_path / "travel.pml").write_text(SCHEMA)
    requests, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests.write_text("".join(json.dumps(line(n)) + "\n" for n in range(NUM_LINES)))
    options = ["--enable-prompt-modules", "--prompt-schemas", str(tmp_path)]
    options += ["-i", str(requests), "-o", str(answers), "--served-model-name", MODEL_NAME]
    done = subprocess.run(
        [*VLLM, "run-batch", "--model", str(shallow), *options, *ENGINE_OPTIONS],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {int(a["custom_id"]): a for a in map(json.loads, answers.read_text().splitlines())}
    assert sorted(found) == list(range(NUM_LINES))
    num_cached = 0
    for number, answer in found.items():
        status, body = answer["response"]["status_code"], answer["response"]["body"]
        if number % 40 == 0:
            assert status == 400
            assert "<prompt>:1:" in json.dumps(answer)
        else:
            assert status == 200
            assert body["choices"][0]["message"]["content"]
            details = body["usage"]["prompt_tokens_details"] or {}
            num_cached += number % 2 and details.get("cached_tokens", 0) > 0
    # The first ones wait for the encodes they started; all others find the modules.
    assert num_cached > 0.9 * NUM_LINES / 2
