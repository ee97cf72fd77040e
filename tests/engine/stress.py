"""Random operations on a starved engine, each finished output compared with the reference."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from vllm import RequestOutput

from tests.engine.agreement import difference, random_priorities
from tests.engine.explanations import as_promoted, as_repaired, without_modules
from tests.engine.harness import greedy, idle, noted_requests, scheduler_of
from tests.generators import CaseMaker, Schema, random_text
from tests.reference import Reference
from tests.reference.compare import Tally
from vllm_promptcache import LLM
from vllm_promptcache.compat.engine_core import call_utility
from vllm_promptcache.core.reports.introspection import PIN_UTILITY
from vllm_promptcache.core.request import ModularRequest
from vllm_promptcache.entrypoints.engine_request import planned_prompt
from vllm_promptcache.entrypoints.pinning import EnginePins, engine_pins
from vllm_promptcache.errors import ClientError
from vllm_promptcache.pml import Pin

NUM_SCHEMAS = 6
MAX_WORDS = 250
MAX_LIVE = 14
# Prompts that may come again; few, so that they come while their modules are being encoded.
NUM_SEEN = 6
NUM_LOGPROBS = 5
# More steps than any queue here can need: behind it requests are stuck.
MAX_STEPS_TO_DRAIN = 20_000
OPERATIONS = {
    "step": 50,
    "add": 34,
    "abort": 8,
    "schema": 5,
    "pin": 3,
    "reset": 2,
    "reset_running": 1,
    "calm": 1,
}
STATES = ("waiting", "encoding", "running")
KINDS = {"modular": 8, "again": 8, "plain": 4, "twin": 2, "no_reuse": 2}


@dataclass(frozen=True, slots=True)
class Live:
    """A request that was added and has not ended.

    Attributes:
        kind: One of `KINDS`.
        prompt: What it was made from.
        explanation: Its plan; None for a plain prompt.
        internal_id: The engine's own id.
        num_tokens: Tokens it is to generate.
    """

    kind: str
    prompt: Any
    explanation: dict[str, Any] | None
    internal_id: str
    num_tokens: int


@dataclass(slots=True)
class Stress:
    """Drives an engine from inside its process.

    Attributes:
        llm: An engine with few blocks.
        reference: The same model.
        seed: Of all choices.
        counts: Operations and events by name.
        tally: Finished outputs against the reference.
        log: The last operations, for the report of a failure.
    """

    llm: LLM
    reference: Reference
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    tally: Tally = field(default_factory=Tally)
    log: deque[str] = field(default_factory=lambda: deque(maxlen=40))
    _live: dict[str, Live] = field(default_factory=dict)
    _schemas: dict[str, Schema] = field(default_factory=dict)
    _rng: Random = field(init=False)
    _maker: CaseMaker = field(init=False)
    _requests: Mapping[str, ModularRequest] = field(init=False)
    _seen: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=NUM_SEEN))
    _seen_ids: deque[list[int]] = field(default_factory=lambda: deque(maxlen=NUM_SEEN))

    def __post_init__(self) -> None:
        self._rng = Random(self.seed)
        self._maker = CaseMaker(self.seed, self._explain, ClientError)
        self._requests = noted_requests(self.llm)

    def run(self, num_operations: int) -> None:
        """Does random operations, then lets all requests finish.

        Raises:
            AssertionError: The engine's books are wrong, or a request is stuck.
        """
        for index in range(NUM_SCHEMAS):
            self._replace_schema(f"schema-{index}")
        for _ in range(num_operations):
            (name,) = self._rng.choices(list(OPERATIONS), weights=list(OPERATIONS.values()))
            getattr(self, f"_{name}")()
            self.counts[name] += 1
            self._check()
        self._drain()

    def report(self) -> str:
        """One paragraph of counts."""
        scheduler = scheduler_of(self.llm)
        stats = scheduler.module_store.stats
        numbers = {
            "operations": sum(self.counts[name] for name in OPERATIONS),
            "added": sum(self.counts[kind] for kind in KINDS),
            "finished": self.tally.num_outputs,
            "aborted": sum(self.counts[f"aborted while {s}"] for s in STATES),
            "outgrown": self.counts["outgrown"],
            "preemptions": self._num_preemptions(),
            "encodes": scheduler.residency.encodes.num_started,
            "commits": stats.num_commits,
            "evictions": stats.num_evictions,
            "saves": stats.num_saves,
            "restores": stats.num_restores,
            "read from disk": stats.num_fetches,
            "prefetched": stats.num_prefetches,
            "relocated": stats.num_relocations,
            "promoted": stats.num_promotions,
            "served exactly": stats.num_promoted_requests,
            "behind links": stats.num_partly_promoted_requests,
            "variants read": self.counts["variants"],
            "computed cold": self.counts["cold"],
            "repaired by attention": self.counts["repaired"],
            "resets": self.counts["reset"] + self.counts["reset_running"],
            "schemas replaced": self.counts["schema"],
            "pins": self.counts["pinned"],
            "pins refused": self.counts["pin refused"],
            "refused prompts": self._maker.num_refused,
            "violations": len(self.tally.wrong) + self.counts["errors"],
        }
        details = {name: self.counts[name] for name in sorted(self.counts) if " while " in name}
        details |= {kind: self.counts[kind] for kind in KINDS}
        return f"{_listed(numbers)}\n({_listed(details)})\n{self.tally}"

    def _step(self) -> None:
        for output in self.llm.llm_engine.step():
            self._finished(output)

    def _add(self) -> None:
        if len(self._live) >= MAX_LIVE:
            return self._step()
        (kind,) = self._rng.choices(list(KINDS), weights=list(KINDS.values()))
        if (kind == "again" and not self._known()) or (kind == "twin" and not self._seen_ids):
            kind = "modular"
        prompt, explanation = self._make_prompt(kind)
        num_tokens = self._rng.choice((1, 2, 8, 24, 60, 120))
        (internal_id,) = self.llm.enqueue(
            prompt,
            greedy(NUM_LOGPROBS, max_tokens=num_tokens),
            priority=random_priorities(self.llm, self._rng, 1),
            use_tqdm=False,
        )
        external_id = internal_id.rsplit("-", 1)[0]
        self._live[external_id] = Live(kind, prompt, explanation, internal_id, num_tokens)
        self.counts[kind] += 1
        self.log.append(f"add {kind} {external_id}")

    def _make_prompt(self, kind: str) -> tuple[Any, dict[str, Any] | None]:
        """A prompt for `enqueue`, and its plan if it reads modules or has positions of its own."""
        rng = self._rng
        if kind == "plain":
            # Half of them share a beginning, to be found in vLLM's own prefix cache.
            begin = random_text(Random(0), 70) if rng.random() < 0.5 else ""
            return f"{begin} {random_text(rng, rng.randint(1, 60))}", None
        if kind == "twin":
            # The tokens of a prompt with modules, without modules: must not find their KV.
            return {"prompt_token_ids": rng.choice(self._seen_ids)}, None
        if kind == "again":
            pml = rng.choice(self._known())
            return pml, self._explain(pml)
        case = self._maker.prompt(rng.choice(list(self._schemas.values())))
        if kind == "no_reuse":
            plan = self.llm.front_end.plan(case.pml, reuse=False)
            return planned_prompt(case.pml, plan), without_modules(case.explanation)
        self._seen.append((case.explanation["schema"], case.pml))
        return case.pml, case.explanation

    def _known(self) -> list[str]:
        """Prompts that were used before and whose schema is still the same."""
        return [pml for schema, pml in self._seen if schema in self._schemas]

    def _explain(self, pml: str) -> dict[str, Any]:
        # Planned, not only explained: that also checks whether the blocks suffice.
        self.llm.front_end.plan(pml)
        explanation: dict[str, Any] = self.llm.explain(pml).to_dict()
        return explanation

    def _abort(self) -> None:
        if not self._live:
            return
        (wanted,) = self._rng.choices(STATES, weights=(1, 3, 1))
        ids = list(self._live)
        in_state = [i for i in ids if self._state(self._live[i].internal_id) == wanted]
        external_id = self._rng.choice(in_state or ids)
        live = self._live.pop(external_id)
        state = self._state(live.internal_id)
        self.counts[f"aborted while {state}"] += 1
        self.log.append(f"abort {external_id} while {state}")
        self.llm.llm_engine.abort_request([live.internal_id], internal=True)

    def _state(self, internal_id: str) -> str:
        scheduler = scheduler_of(self.llm)
        request = scheduler.requests[internal_id]
        if request in scheduler.running:
            return "running"
        encodes = scheduler.residency.requests.values()
        waited_for = any(internal_id in getattr(e, "waiters", ()) for e in encodes)
        return "encoding" if waited_for else "waiting"

    def _schema(self) -> None:
        name = f"schema-{self._rng.randrange(NUM_SCHEMAS)}"
        if name in self._schemas and len(self._schemas) > 1 and self._rng.random() < 0.5:
            self.llm.remove_schema(name)
            del self._schemas[name]
            self.log.append(f"remove {name}")
        else:
            self._replace_schema(name)
        self._seen = deque((pair for pair in self._seen if pair[0] != name), maxlen=NUM_SEEN)

    def _pin(self) -> None:
        """Pins some modules of a schema, resident or not."""
        rng, front_end = self._rng, self.llm.front_end
        name = rng.choice(list(self._schemas))
        pins = engine_pins(front_end.planner.schemas.get(name).layout, front_end.block_size, Pin())
        self._set_pins(name, rng.sample(pins, rng.randint(0, len(pins))))

    def _set_pins(self, name: str, pins: EnginePins) -> None:
        refusal = call_utility(self.llm.llm_engine.engine_core, PIN_UTILITY, name, pins)
        self.counts["pin refused" if refusal else "pinned"] += 1
        self.log.append(f"pin {len(pins)} modules of {name}: {refusal or 'done'}")

    def _replace_schema(self, name: str) -> None:
        self._schemas[name] = self._maker.schema(name, self.llm.add_schema, max_words=MAX_WORDS)
        self.log.append(f"add {name}")

    def _reset(self, running: bool = False) -> None:
        done = self.llm.llm_engine.reset_prefix_cache(reset_running_requests=running)
        self.log.append(f"reset {'with' if running else 'without'} running requests: {done}")
        self.counts["resets that succeeded"] += done

    def _reset_running(self) -> None:
        self._reset(running=True)

    def _calm(self) -> None:
        """Requests come one at a time, and the engine has time for what may come next."""
        self._finish_all()
        self._reset()
        for _ in range(3):
            self._add()
            self._finish_all()
            idle(self.llm)

    def _finished(self, output: RequestOutput) -> None:
        live = self._live.pop(output.request_id)
        expected = live.explanation
        if live.explanation is not None:
            modular = self._requests.get(live.internal_id)
            served = as_promoted(live.explanation, modular)
            self.counts["variants"] += sum(map(_is_variant, served["modules"]))
            self.counts["cold"] += 0 if modular is None else len(modular.account.cold)
            repaired = as_repaired(served, modular)
            self.counts["repaired"] += repaired is not served
            expected = repaired
            if served is live.explanation:
                live = replace(live, explanation=repaired)
        self.log.append(f"finished {live.kind} {output.request_id}")
        completion = output.outputs[0]
        num_tokens = len(completion.token_ids)
        if completion.finish_reason == "error" and self._has_outgrown_pool(live, num_tokens):
            self.counts["outgrown"] += 1
            return
        if completion.finish_reason != "length" or num_tokens != live.num_tokens:
            self.counts["errors"] += 1
            why = f"{completion.finish_reason}: {completion.stop_reason}"
            raise AssertionError(f"{why} after {num_tokens} tokens: {live}")
        found = difference(self.reference, output, expected)
        self.tally.add(f"{live.kind} {live.prompt}", found)
        if live.explanation is not None and live.explanation["modules"]:
            self._seen_ids.append(list(output.prompt_token_ids))

    def _has_outgrown_pool(self, live: Live, num_generated: int) -> bool:
        """Whether, preempted, it could not be admitted again with all that it has generated.

        While it ran it did not need the blocks that its modules' tails were copied from.
        """
        if live.explanation is None:
            return False
        config = self.llm.llm_engine.vllm_config.cache_config
        modules, size = live.explanation["modules"], config.block_size
        num_shared = sum(module["num_full_blocks"] for module in modules)
        # With blocks for placeholders, which the modules may not have: the engine decides.
        num_modules = sum(-(-len(m["token_ids"]) // size) for m in modules if any(m["reused"]))
        num_tokens = live.explanation["num_tokens"] + num_generated
        num_own = -(-num_tokens // size) - num_shared
        return num_modules + num_own > config.num_gpu_blocks - 1

    def _check(self) -> None:
        scheduler_of(self.llm).check_integrity()
        assert not self.tally.wrong, self.tally.wrong[-1]

    def _num_preemptions(self) -> int:
        metrics = self.llm.get_metrics()
        return sum(m.value for m in metrics if m.name == "vllm:num_preemptions")

    def _finish_all(self) -> None:
        for _ in range(MAX_STEPS_TO_DRAIN):
            if not self._live:
                return
            self._step()
            self._check()
        raise AssertionError(f"stuck: {list(self._live.values())}")

    def _drain(self) -> None:
        self._finish_all()
        scheduler = scheduler_of(self.llm)
        # One more step lets encodes go that nobody waits for any more.
        self._step()
        idle(self.llm)
        self._check()
        for name in self._schemas:
            self._set_pins(name, [])
        assert not scheduler.requests, "requests are left over"
        assert not scheduler.residency.requests, "requests with modules are left over"
        assert not scheduler.module_store.pinned_block_ids, "pins are left over"


def _is_variant(module: dict[str, Any]) -> bool:
    """Whether a module is read as it is where it stands first."""
    return any(module["reused"]) and bool(module["path"]) and module["policy"] == "exact"


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{value:.0f} {name}" for name, value in numbers.items())
