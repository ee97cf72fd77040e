"""Asks the engine: every policy answers a row before the next row comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm import RequestOutput
from vllm.exceptions import VLLMClientError

from vllm_promptcache import LLM, SamplingParams
from vllm_promptcache.entrypoints.request_options import PromptModules, RequestOptions, applied
from vllm_promptcache.errors import ClientError, PlanError
from vllm_promptcache.plan import Explanation
from vllm_promptcache.quality.evaluate.answers import Answer, AnswerLog, Refusal
from vllm_promptcache.quality.evaluate.contenders import PLAIN, Contender
from vllm_promptcache.quality.evaluate.data import DataSet, Row
from vllm_promptcache.quality.evaluate.prompts import TASKS, Writer
from vllm_promptcache.quality.first_token import NUM_TOKENS, FirstToken

_DETAIL = RequestOptions(prompt_modules=PromptModules(detail=True))


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs rows that the log does not have yet.

    Attributes:
        llm: The engine.
        writer: Writes schemas and prompts.
        log: Gets the answers.
        max_tokens: Tokens of an answer; None for what the metric's task has.
    """

    llm: LLM
    writer: Writer
    log: AnswerLog
    max_tokens: int | None
    _schemas: dict[str, str] = field(default_factory=dict)

    def run(
        self, data: DataSet, contenders: Sequence[Contender], advance: Callable[[], None]
    ) -> None:
        """Runs a data set; `contenders` begins with the plain one.

        Args:
            data: The rows.
            contenders: What answers them.
            advance: Called after each row and contender.
        """
        names = [contender.name for contender in contenders]
        for before, row in zip((None, *data.rows), data.rows, strict=False):
            is_new = before is None or row.docs != before.docs
            for contender in contenders:
                done = self.log.get(data.name, row.id, contender.name)
                # A row that one of them cannot run is of no use for comparing the others.
                if done is None and self.log.refusal(data.name, row.id, names) is None:
                    self.log.append(self._answer(data.name, row, contender, is_new))
                advance()

    def _answer(self, data: str, row: Row, contender: Contender, is_new: bool) -> Answer | Refusal:
        try:
            return self._run(data, row, contender, is_new)
        except (ClientError, VLLMClientError) as error:
            reason = str(error.args[0] if error.args else error)
            return Refusal(data, row.id, contender.name, reason)

    def _run(self, data: str, row: Row, contender: Contender, is_new: bool) -> Answer:
        pml, max_tokens = self._prepare(row, contender)
        explained = self._explain(pml, max_tokens)
        modules = self._encode(pml) if contender.reuse else []
        plain = self.log.get(data, row.id, PLAIN)
        first_token = plain.first_token if isinstance(plain, Answer) else None
        output, first_token_s = self._ask(pml, contender, max_tokens, first_token)
        logprobs = _first_logprobs(output)
        reference = first_token or FirstToken.of(logprobs)
        num_reused = sum(module["tokens"] for module in modules)
        num_module_tokens, num_recomputed = count_tokens(explained, num_reused, contender, is_new)
        return Answer(
            data=data,
            row=row.id,
            policy=contender.name,
            text=output.outputs[0].text.strip(),
            divergence=reference.divergence(logprobs),
            first_token_s=first_token_s,
            num_module_tokens=num_module_tokens,
            num_recomputed_tokens=num_recomputed,
            num_encoded_tokens=sum(m["tokens"] for m in modules if m["status"] == "encoded"),
            first_token=None if contender.reuse else reference,
        )

    def _prepare(self, row: Row, contender: Contender) -> tuple[str, int]:
        """Adds the schema in place of that for other documents; returns prompt and `max_tokens`."""
        schema = self.writer.schema(row, contender)
        if self._schemas.get(contender.schema_name) != schema:
            self._schemas.pop(contender.schema_name, None)
            self.llm.add_schema(schema)
            self._schemas[contender.schema_name] = schema
        return self.writer.prompt(row, contender), self.max_tokens or TASKS[row.metric].max_tokens

    def _explain(self, pml: str, max_tokens: int) -> Explanation:
        """Plans a prompt; a `PlanError` says that it leaves no room for its answer."""
        explained = self.llm.explain(pml)
        max_model_len = self.llm.model_config.max_model_len
        if explained.next_position + max_tokens > max_model_len:
            raise PlanError(
                f"{explained.next_position} positions and {max_tokens} tokens of answer are more "
                f"than the model's {max_model_len}"
            )
        return explained

    def _encode(self, pml: str) -> list[dict[str, Any]]:
        """Makes all modules resident; returns what the prompt reads of each."""
        with applied(_DETAIL):
            output = self._generate(pml, SamplingParams(max_tokens=1), reuse=True)
        modules: list[dict[str, Any]] = (output.kv_transfer_params or {}).get("prompt_modules", [])
        return modules

    def _ask(
        self, pml: str, contender: Contender, max_tokens: int, first_token: FirstToken | None
    ) -> tuple[RequestOutput, float]:
        """Runs a prompt whose modules are resident; returns its time to the first token as well."""
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        if first_token is None:
            params.logprobs = NUM_TOKENS
        else:
            params.logprob_token_ids = list(first_token.token_ids)
        start = time.time()
        output = self._generate(pml, params, reuse=contender.reuse)
        metrics: Any = output.metrics
        # It arrives when it has been planned.
        return output, metrics.arrival_time - start + metrics.first_token_latency

    def _generate(self, pml: str, params: SamplingParams, *, reuse: bool) -> RequestOutput:
        # A policy must not find what another one has left of the same text.
        params.skip_reading_prefix_cache = True
        return self.llm.generate(pml, params, reuse=reuse, use_tqdm=False)[0]


def _first_logprobs(output: RequestOutput) -> dict[int, float]:
    steps: Any = output.outputs[0].logprobs
    return {token_id: logprob.logprob for token_id, logprob in steps[0].items()}


def count_tokens(
    explained: Explanation, num_reused: int, contender: Contender, is_new: bool
) -> tuple[int, int]:
    """Tokens of modules, and how many of them are computed again.

    Args:
        explained: The prompt.
        num_reused: Tokens of modules that the engine says it read.
        contender: What ran it.
        is_new: Whether the row before has other documents.
    """
    repeated = sum(len(part.token_ids) for part in explained.new if part.kind == "repeated")
    num_tokens = repeated + sum(sum(module.reused) for module in explained.modules)
    # No other combination can use the states of `exact`, so making them is recomputing.
    if not contender.reuse or (contender.is_for_one_prompt and is_new):
        return num_tokens, num_tokens
    return num_tokens, num_tokens - num_reused
