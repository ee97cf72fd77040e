"""An engine of few requests and prompts that take many rows of attention."""

from pathlib import Path
from random import Random
from typing import Any

from tests.environment import prepare_environment

prepare_environment()

from tests.engine.agreement import (  # noqa: E402  (vLLM reads its environment when imported)
    difference,
)
from tests.engine.harness import (  # noqa: E402
    greedy,
    running_engine,
    scheduler_of,
)
from tests.generators import random_text  # noqa: E402
from tests.reference import Reference  # noqa: E402
from vllm_promptcache.steps.step import find_step  # noqa: E402

MAX_NUM_SEQS = 4
NUM_MODULES = 12


def noted_rows(llm: Any) -> list[int]:
    """Returns a list that gets the rows of attention of each step."""
    scheduler, counts = scheduler_of(llm), list[int]()
    schedule = scheduler.schedule

    def noting(*args: Any) -> Any:
        output = schedule(*args)
        step = find_step(output.kv_connector_metadata)
        split = dict(step.rows) if step else {}
        others = output.num_scheduled_tokens.keys() - split.keys()
        counts.append(len(others) + sum(len(found.rows) for found in split.values()))
        return output

    scheduler.schedule = noting
    return counts


def test_no_step_has_more_rows_than_requests_may_run(smollm2: Path) -> None:
    """Attention backends make their buffers for that many; more end some engines."""
    rng = Random(0)
    texts = [random_text(rng, 40) for _ in range(NUM_MODULES)]
    modules = "".join(
        f'<module name="m{i}">{text} <param name="p" len="4"/> {text}</module>'
        for i, text in enumerate(texts)
    )

    def prompt(num_imports: int, between: str = "") -> str:
        named = rng.sample(range(NUM_MODULES), num_imports)
        imports = "".join(f'<m{i} p="{random_text(rng, 2)}"/>{between}' for i in named)
        return f'<prompt schema="s">{imports} What is it?</prompt>'

    prompts = [prompt(12), prompt(1), prompt(3), prompt(9, " and then "), prompt(12), prompt(2)]
    options = {"block_size": 32, "kv_cache_memory_bytes": 640 << 20}
    with running_engine(smollm2, max_num_seqs=MAX_NUM_SEQS, **options) as llm:
        llm.add_schema(f'<schema name="s" encode="isolated">{modules}</schema>')
        explanations = [llm.explain(text).to_dict() for text in prompts]
        rows = noted_rows(llm)
        plain = [random_text(rng, 50) for _ in range(4)]
        outputs = llm.generate([*prompts, *plain], greedy(8), use_tqdm=False)
        scheduler_of(llm).check_integrity()
        assert 1 < max(rows) <= MAX_NUM_SEQS
    reference = Reference(smollm2)
    for output, explanation in zip(outputs, explanations, strict=False):
        assert difference(reference, output, explanation).is_within(2e-4)
