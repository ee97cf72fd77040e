"""One engine that answers all prompts, in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vllm_promptcache.selftest.answers import Answer
from vllm_promptcache.selftest.prompts import Group, make_groups

if TYPE_CHECKING:
    from vllm import RequestOutput

    from vllm_promptcache import LLM

_NUM_TOKENS = 4


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine is started.

    Attributes:
        model: As for `vllm.LLM`.
        dtype: As for `vllm.LLM`.
        is_eager: Whether it runs without compiled code and CUDA graphs.
        kv_cache_bytes: Size of the KV cache; None for vLLM's own choice.
    """

    model: str
    dtype: str
    is_eager: bool
    kv_cache_bytes: int | None


@dataclass(frozen=True, slots=True)
class GroupAnswers:
    """What was answered to a group of prompts.

    Attributes:
        name: The group's.
        cold: With modules that are encoded for them, all at once.
        warm: With the same modules again, one by one.
        plain: As one prefill without modules, all at once.
        plain_again: The same, one by one: what differs is rounding.
    """

    name: str
    cold: Sequence[Answer]
    warm: Sequence[Answer]
    plain: Sequence[Answer]
    plain_again: Sequence[Answer]


@dataclass(frozen=True, slots=True)
class EngineReport:
    """An engine and its answers.

    Attributes:
        facts: What it runs on, by name.
        groups: What it answered.
    """

    facts: dict[str, str]
    groups: Sequence[GroupAnswers]

    @classmethod
    def from_json(cls, text: str) -> EngineReport:
        """Reads what `to_json` has written."""
        data = json.loads(text)
        return cls(data["facts"], [GroupAnswers(**group) for group in data["groups"]])

    def to_json(self) -> str:
        """One line of text."""
        return json.dumps(asdict(self))


def run_engine(options: EngineOptions) -> EngineReport:
    """Starts an engine, asks it everything and takes it down.

    Raises:
        Exception: Whatever vLLM raises if it does not start.
    """
    from vllm_promptcache import LLM
    from vllm_promptcache.quality.evaluate.engine import shut_down

    llm = LLM(
        options.model,
        dtype=options.dtype,
        enforce_eager=options.is_eager,
        kv_cache_memory_bytes=options.kv_cache_bytes,
        max_model_len=2048,
        prompt_modules={"promote_after": 0, "verify": True},
    )
    try:
        return EngineReport(_facts(llm), [_ask(llm, group) for group in make_groups()])
    finally:
        shut_down(llm)


def _ask(llm: LLM, group: Group) -> GroupAnswers:
    llm.add_schema(group.schema)

    def together(*, reuse: bool) -> list[Answer]:
        return _answers(llm, group.prompts, reuse=reuse)

    def one_by_one(*, reuse: bool) -> list[Answer]:
        return [_answers(llm, [prompt], reuse=reuse)[0] for prompt in group.prompts]

    return GroupAnswers(
        group.name,
        together(reuse=True),
        one_by_one(reuse=True),
        together(reuse=False),
        one_by_one(reuse=False),
    )


def _answers(llm: LLM, prompts: Sequence[str], *, reuse: bool) -> list[Answer]:
    from vllm_promptcache import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=_NUM_TOKENS, logprobs=0, ignore_eos=True)
    # What earlier ones have left behind their modules is not to be found.
    params.skip_reading_prefix_cache = True
    return list(map(_answer, llm.generate(prompts, params, reuse=reuse, use_tqdm=False)))


def _answer(output: RequestOutput) -> Answer:
    (completion,) = output.outputs
    assert completion.logprobs is not None, "they were asked for"
    pairs = zip(completion.token_ids, completion.logprobs, strict=True)
    return tuple((token, logprobs[token].logprob) for token, logprobs in pairs)


def _facts(llm: LLM) -> dict[str, str]:
    import torch
    import vllm

    config: Any = llm.llm_engine.vllm_config
    is_cuda = torch.cuda.is_available()
    return {
        "vLLM": vllm.__version__,
        "device": torch.cuda.get_device_name() if is_cuda else "CPU",
        "model runner": "V2" if config.use_v2_model_runner else "V1",
        "scheduling": "async" if config.scheduler_config.async_scheduling else "sync",
        "CUDA graphs": config.compilation_config.cudagraph_mode.name,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "block size": str(config.cache_config.block_size),
    }


def main(text: str) -> None:
    """Runs the engine of some options in JSON, and prints its report as the last line."""
    print(run_engine(EngineOptions(**json.loads(text))).to_json())


if __name__ == "__main__":
    main(sys.argv[1])
