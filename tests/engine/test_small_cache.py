"""A KV cache with room for the modules of a prompt, but not for any of them twice."""

from pathlib import Path
from random import Random

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

# One is vLLM's null block: 25 for the modules, 4 for their tails and what is new.
NUM_BLOCKS = 30
NUM_DOCUMENTS = 5
NUM_WORDS = 120


def test_without_room_for_copies_modules_move_themselves(shallow: Path) -> None:
    rng = Random(0)
    documents = [random_text(rng, NUM_WORDS) for _ in range(NUM_DOCUMENTS)]
    modules = "".join(f'<module name="d{i}">{text}</module>' for i, text in enumerate(documents))
    schema = f'<schema name="s" layout="compact" encode="isolated">{modules}</schema>'
    imports = "".join(f"<d{i}/>" for i in rng.sample(range(NUM_DOCUMENTS), NUM_DOCUMENTS))
    with running_engine(
        shallow,
        block_size=32,
        num_gpu_blocks_override=NUM_BLOCKS,
        max_model_len=900,
        kv_cache_memory_bytes=64 << 20,
    ) as llm:
        llm.add_schema(schema)
        prompt = f'<prompt schema="s">{imports} What?</prompt>'
        explanation = llm.explain(prompt).to_dict()
        sizes = [len(module["token_ids"]) for module in explanation["modules"] if module["path"]]
        assert all(128 < size < 160 for size in sizes), sizes
        (output,) = llm.generate(prompt, greedy(20), use_tqdm=False)
        assert scheduler_of(llm).residency.store.stats.num_relocations == NUM_DOCUMENTS - 1
        assert difference(Reference(shallow), output, explanation).is_within(2e-4)
        scheduler_of(llm).check_integrity()
