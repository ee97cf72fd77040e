"""Real engines in this process, and their outputs against the reference."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from vllm import RequestOutput
from vllm.model_executor.models import registry

from tests.generators import FIXED_SCHEMAS, Case, CaseMaker, Schema, random_text
from tests.reference import Reference, shift_of
from tests.reference.compare import TOLERANCE, Difference, Tally
from vllm_promptcache import LLM, SamplingParams
from vllm_promptcache.core.request import ModularRequest
from vllm_promptcache.entrypoints.request_options import PromptModules, RequestOptions, applied
from vllm_promptcache.errors import ClientError
from vllm_promptcache.quality.evaluate.engine import shut_down

MAX_TOKENS = 16
_TOKENS = ("token_ids", "position_ids")
MAX_MODEL_LEN = 2048
# PML prompts that are sent at once, together with two plain ones. They are of few schemas, so that
# some of them share modules.
BATCH_SIZE = 8
SCHEMAS_A_BATCH = 3
SCHEMA_SEED = 0
DETAIL = RequestOptions(prompt_modules=PromptModules(detail=True))
MODULES_ALONE = {"repair": "none", "promote_after": 0}
ENGINE_ARGS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": MAX_MODEL_LEN,
    "max_num_seqs": 16,
    "max_logprobs": -1,
    "disable_log_stats": False,
}

# vLLM looks at each new class of models in a process of its own, lest CUDA starts in this one; that
# process imports vLLM anew, which takes seconds.
registry._run_in_subprocess = lambda look: look()


@contextmanager
def running_engine(model: Path, **engine_args: Any) -> Iterator[LLM]:
    """Starts an engine with `ENGINE_ARGS` and `engine_args`, and takes all of it down again.

    Modules are neither repaired nor promoted unless `engine_args` say so.
    """
    modules = MODULES_ALONE | engine_args.pop("prompt_modules", {})
    # vLLM collects garbage five times while it starts, most of the time that takes; what is there
    # now is none. It thaws everything when it ends.
    gc.freeze()
    llm = LLM(str(model), **(ENGINE_ARGS | engine_args | {"prompt_modules": modules}))
    try:
        yield llm
    finally:
        shut_down(llm)


def scheduler_of(llm: LLM) -> Any:
    """The engine's scheduler, a `PromptModuleMixin`."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def idle(llm: LLM) -> None:
    """Lets an engine without requests do what it has put off."""
    while scheduler_of(llm).has_requests():
        llm.llm_engine.step()


@contextmanager
def counted_tokens(llm: LLM) -> Iterator[list[int]]:
    """Yields a list that gets the number of tokens the engine computes in each step."""
    scheduler, counts = scheduler_of(llm), []
    schedule = scheduler.schedule

    def counting_schedule(*args: Any) -> Any:
        output = schedule(*args)
        counts.append(output.total_num_scheduled_tokens)
        return output

    scheduler.schedule = counting_schedule
    try:
        yield counts
    finally:
        del scheduler.schedule


def noted_requests(llm: LLM) -> dict[str, ModularRequest]:
    """Returns a dict that gets the scheduler's state of each request, by the engine's id."""
    residency, requests = scheduler_of(llm).residency, dict[str, ModularRequest]()
    add = residency.add

    def noting(request: Any) -> None:
        add(request)
        if (modular := residency.get(request)) is not None:
            requests[request.request_id] = modular

    residency.add = noting
    return requests


def as_repaired(explanation: dict[str, Any], modular: ModularRequest | None) -> dict[str, Any]:
    """The plan of a prompt as the engine has repaired it; as it is if that was not asked for."""
    if modular is None or modular.account.span_numbers is None:
        return explanation
    read = [number for number, m in enumerate(explanation["modules"]) if any(m["reused"])]
    # Links come first; what they hold is never repaired.
    numbers = [number - modular.account.num_links for number in modular.account.span_numbers]
    whole = Counter[int]()
    for part in modular.table.shared:
        whole[numbers[part.span]] += part.kept.num_tokens // modular.table.block_size
    spans = dict(zip(numbers, modular.sequence.spans, strict=True))
    modules, new = list(explanation["modules"]), list(explanation["new"])
    for number, index in enumerate(read):
        module, span = modules[index], spans.get(number)
        runs = span.runs if span else ()
        kept = [i for i, is_kept in enumerate(module["kept"]) if is_kept]
        still = {kept[i] for run in runs for i in range(run.start, run.end)}
        left_out = [i for i, is_read in enumerate(module["reused"]) if is_read and i not in still]
        new.append({name: [module[name][i] for i in left_out] for name in _TOKENS})
        modules[index] = module | {
            "reused": [i in still for i in range(len(module["reused"]))],
            "num_full_blocks": whole[number],
        }
    return _with(explanation, modules, new)


def as_promoted(explanation: dict[str, Any], modular: ModularRequest | None) -> dict[str, Any]:
    """The plan of a prompt as if it computed what it reads of promoted modules."""
    num_links = modular.account.num_links if modular else 0
    if not num_links:
        return explanation
    if modular.account.is_promoted:
        return without_modules(explanation)
    end = modular.prompt.plan.links[num_links - 1].positions[-1].end
    return computing(explanation, lambda module, position: position < end)


def computing(
    explanation: dict[str, Any], which: Callable[[dict[str, Any], int], bool]
) -> dict[str, Any]:
    """The plan of a prompt where some tokens of modules are computed.

    Args:
        explanation: The plan.
        which: Chooses tokens by their module and their position.
    """
    modules, new = [], list(explanation["new"])
    for module in explanation["modules"]:
        places = zip(module["position_ids"], module["reused"], strict=True)
        is_new = [is_read and which(module, position) for position, is_read in places]
        moved = [i for i, is_moved in enumerate(is_new) if is_moved]
        new.append({name: [module[name][i] for i in moved] for name in _TOKENS})
        pairs = zip(module["reused"], is_new, strict=True)
        modules.append(module | {"reused": [read and not moved for read, moved in pairs]})
    return _with(explanation, modules, new)


def _with(
    explanation: dict[str, Any], modules: list[dict[str, Any]], new: list[dict[str, Any]]
) -> dict[str, Any]:
    num_cached = sum(sum(module["reused"]) for module in modules)
    counts = {
        "num_cached_tokens": num_cached,
        "num_new_tokens": explanation["num_tokens"] - num_cached,
    }
    return explanation | {"modules": modules, "new": new} | counts


def random_priorities(llm: LLM, rng: Random, number: int) -> list[int] | None:
    """Priorities of so many prompts; None if the engine knows none."""
    if llm.llm_engine.vllm_config.scheduler_config.policy != "priority":
        return None
    return rng.choices(range(-1, 3), k=number)


def greedy(num_logprobs: int, max_tokens: int = MAX_TOKENS, **others: Any) -> SamplingParams:
    """Greedy sampling of exactly `max_tokens` tokens; -1 stands for all log-probabilities."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=max_tokens,
        logprobs=num_logprobs,
        ignore_eos=True,
        detokenize=False,
        **others,
    )


def difference(
    reference: Reference, output: RequestOutput, explanation: dict[str, Any] | None
) -> Difference:
    """Compares an output with the reference.

    Args:
        explanation: The prompt's plan; None for a plain prompt.
    """
    token_ids = list(output.outputs[0].token_ids)
    if explanation is None:
        prompt_ids = output.prompt_token_ids
        scored = reference.score_plain(prompt_ids, range(len(prompt_ids)), token_ids)
    else:
        scored = reference.score(explanation, token_ids)
    logprobs = [
        {token_id: logprob.logprob for token_id, logprob in step.items()}
        for step in output.outputs[0].logprobs
    ]
    return Difference.between(scored, token_ids, logprobs)


def without_modules(explanation: dict[str, Any]) -> dict[str, Any]:
    """The plan of the same prompt where nothing is reused: all of its tokens are new."""
    kept = [
        {
            "token_ids": [t for t, k in zip(m["token_ids"], m["reused"], strict=True) if k],
            "position_ids": [p for p, k in zip(m["position_ids"], m["reused"], strict=True) if k],
        }
        for m in explanation["modules"]
    ]
    return explanation | {"modules": [], "new": [*explanation["new"], *kept]}


def check_explanation(explanation: dict[str, Any], block_size: int) -> None:
    """Checks that the numbers of a plan fit each other."""
    num_cached = [sum(module["reused"]) for module in explanation["modules"]]
    num_new = sum(len(part["token_ids"]) for part in explanation["new"])
    assert explanation["num_cached_tokens"] == sum(num_cached)
    assert explanation["num_new_tokens"] == num_new
    assert explanation["num_tokens"] == sum(num_cached) + num_new
    for module, num_kept in zip(explanation["modules"], num_cached, strict=True):
        num_whole = module["num_full_blocks"] * block_size
        assert num_whole + module["num_tail_tokens"] == num_kept, module["path"]


def modules_only(params: SamplingParams) -> SamplingParams:
    """The same without reuse of what earlier prompts have behind their modules."""
    params.skip_reading_prefix_cache = True
    return params


def check_counts(output: RequestOutput, explanation: dict[str, Any]) -> None:
    """Checks what the engine says it computed against the plan.

    Args:
        output: Of a prompt that was sent with `DETAIL` and `modules_only`.
        explanation: The prompt's plan.
    """
    modules = output.kv_transfer_params["prompt_modules"] if output.kv_transfer_params else []
    num_encoded = sum(m["tokens"] for m in modules if m["status"] == "encoded")
    assert output.num_cached_tokens + num_encoded == explanation["num_cached_tokens"]
    num_prefilled = len(output.prompt_token_ids) - output.num_cached_tokens - num_encoded
    assert num_prefilled == explanation["num_new_tokens"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Random prompts through an engine and through the reference.

    Attributes:
        llm: The engine.
        reference: The same model.
        num_logprobs: Log-probabilities compared at each step, -1 for all.
        tolerance: What counts as rounding, in nats.
    """

    llm: LLM
    reference: Reference
    num_logprobs: int
    tolerance: float = TOLERANCE

    def run(self, num_prompts: int, *, seed: int, num_random_schemas: int) -> tuple[Tally, Tally]:
        """Compares `num_prompts` prompts over all fixed and some random schemas.

        Returns:
            The differences of PML prompts, and those of plain prompts that ran beside them.
        """
        schemas = self.add_schemas(num_random_schemas)
        maker = CaseMaker(seed, self.explain, ClientError, attended=0.2)
        modular, plain = Tally(self.tolerance), Tally(self.tolerance)
        rng = Random(seed)
        in_turn = cycle(schemas)
        for start in range(0, num_prompts, BATCH_SIZE):
            few = list(islice(in_turn, SCHEMAS_A_BATCH))
            num_cases = min(BATCH_SIZE, num_prompts - start)
            cases = [maker.prompt(rng.choice(few)) for _ in range(num_cases)]
            self._run_batch(cases, rng, modular, plain)
        print(f"{len(schemas)} schemas, {maker.num_refused} prompts refused and made anew")
        return modular, plain

    def explain(self, pml: str) -> dict[str, Any]:
        """The plan of a prompt, once its numbers are checked."""
        explanation: dict[str, Any] = self.llm.explain(pml).to_dict()
        check_explanation(explanation, self.block_size)
        return explanation

    def _as_moved(self, explanation: dict[str, Any]) -> dict[str, Any]:
        """What an engine that cannot rotate keys does: what moves is encoded there, alone."""
        if scheduler_of(self.llm).residency.tiers.can_relocate:
            return explanation
        modules = [
            module | {"encoded_position_ids": module["position_ids"], "context": []}
            if shift_of(module)
            else module
            for module in explanation["modules"]
        ]
        return explanation | {"modules": modules}

    @property
    def block_size(self) -> int:
        """Tokens in a KV cache block of the engine."""
        size: int = self.llm.llm_engine.vllm_config.cache_config.block_size
        return size

    def add_schemas(self, num_random: int) -> list[Schema]:
        """Adds all fixed schemas and random ones, each time the same, and returns them."""
        maker = CaseMaker(SCHEMA_SEED, self.explain, ClientError)
        for schema in FIXED_SCHEMAS:
            self.llm.add_schema(schema.pml)
        made = [maker.schema(f"random-{n}", self.llm.add_schema) for n in range(num_random)]
        return [*FIXED_SCHEMAS, *made]

    def _run_batch(self, cases: list[Case], rng: Random, modular: Tally, plain: Tally) -> None:
        prompts: list[tuple[str, dict[str, Any] | None]]
        prompts = [(case.pml, case.explanation) for case in cases]
        prompts += [(random_text(rng, rng.randint(2, 120)), None) for _ in range(2)]
        rng.shuffle(prompts)
        texts = [prompt for prompt, _ in prompts]
        # Half of the batches also reuse what earlier prompts have behind their modules.
        has_private_reuse = rng.random() < 0.5
        params = greedy(self.num_logprobs)
        noted = noted_requests(self.llm)
        with applied(DETAIL):
            outputs = self.llm.generate(
                texts,
                params if has_private_reuse else modules_only(params),
                priority=random_priorities(self.llm, rng, len(texts)),
                use_tqdm=False,
            )
        requests = {request_id.rsplit("-", 1)[0]: noted[request_id] for request_id in noted}
        for (prompt, explanation), output in zip(prompts, outputs, strict=True):
            if explanation is not None:
                explanation = self._as_moved(explanation)
                explanation = as_repaired(explanation, requests.get(output.request_id))
            found = difference(self.reference, output, explanation)
            (plain if explanation is None else modular).add(prompt, found)
            if explanation is not None and not has_private_reuse:
                check_counts(output, explanation)
