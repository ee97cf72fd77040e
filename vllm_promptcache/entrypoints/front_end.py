"""The front end's state: compiled schemas, and plans for prompts that fit the engine."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_promptcache.config import PromptModulesConfig
from vllm_promptcache.core.reports.schema_series import schema_series
from vllm_promptcache.entrypoints.plan_errors import count_plan_error
from vllm_promptcache.entrypoints.primer_file import tokenizer_with_primer
from vllm_promptcache.entrypoints.schema_files import read_schema
from vllm_promptcache.entrypoints.schema_folder import SchemaFolder
from vllm_promptcache.entrypoints.schema_info import SchemaInfo, info_bytes
from vllm_promptcache.errors import PlanError, PromptCacheError
from vllm_promptcache.layout import SchemaLayout
from vllm_promptcache.log import module_logger
from vllm_promptcache.plan import Explanation, Planner, PromptPlan
from vllm_promptcache.plan.budgets import Budgets
from vllm_promptcache.plan.chat import Chat
from vllm_promptcache.plan.compiled import SchemaCompiler
from vllm_promptcache.plan.prompt_plan import baseline
from vllm_promptcache.plan.schemas import Schemas
from vllm_promptcache.plan.written import WrittenText
from vllm_promptcache.pml import (
    PROMPT_LIMITS,
    Prompt,
    PromptKind,
    load_grammar,
    parse_prompt,
    parse_schema,
    prompt_kind,
)
from vllm_promptcache.quality.gate import PolicyGate
from vllm_promptcache.quality.load_profile import load_profile
from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.sequence.room import fits_surely, num_blocks_of_prompt

if TYPE_CHECKING:
    from vllm.config import VllmConfig


logger = module_logger(__name__)


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """Compiles schemas and plans prompts for one engine.

    Attributes:
        planner: Plans prompts, and holds the compiled schemas.
        vllm_config: The engine's configuration.
        folder: The schema folder, if there is one.
        reads_pml: Whether texts may be PML; see `PromptModulesConfig.prompts_from`.
        reads_marks: Whether marked parts of messages are modules.
    """

    planner: Planner
    vllm_config: VllmConfig
    folder: SchemaFolder | None = None
    reads_pml: bool = True
    reads_marks: bool = True

    @classmethod
    def create(cls, vllm_config: VllmConfig, tokenizer: Any) -> FrontEnd:
        """Makes the front end of an engine; loads the schemas of its schema folder.

        Raises:
            PMLError: A file of the schema folder is no valid schema.
            ClientError: The schema folder, the profile or the primer cannot be used.
        """
        config = PromptModulesConfig.of(vllm_config)
        profile = load_profile(vllm_config)
        compiler = SchemaCompiler(
            tokenizer_with_primer(tokenizer, config.primer),
            max_model_len=vllm_config.model_config.max_model_len,
            policy=config.policy if profile is None else profile.default,
            gate=None if profile is None else PolicyGate(profile),
        )
        planner = Planner(
            Schemas(compiler, on_remove=schema_series.forget),
            block_size=vllm_config.cache_config.block_size,
            promotes=config.promote_after > 0,
            budgets=Budgets.of_engine(vllm_config.scheduler_config.max_num_seqs),
        )
        # Now, so that the first malformed prompt need not.
        load_grammar()
        folder = None
        if config.schemas is not None:
            folder = SchemaFolder(Path(config.schemas), planner.schemas)
            folder.load()
        reads_pml = config.prompts_from == "any"
        front_end = cls(planner, vllm_config, folder, reads_pml, config.marks)
        schema_series.follow(front_end.names)
        front_end._announce()
        return front_end

    def _announce(self) -> None:
        modules = [module for schema in self.schemas.values() for module in schema.modules]
        logger.info(
            "Prompt modules are on: %d schemas with %d modules, which take %d KV cache blocks of "
            "%d tokens if all are resident. What is evicted is %s. The model runner is %s.",
            len(self.schemas),
            len(modules),
            sum(module.num_blocks for module in modules),
            self.block_size,
            _evicted(PromptModulesConfig.of(self.vllm_config)),
            "V2" if self.vllm_config.use_v2_model_runner else "V1",
        )

    def is_pml(self, text: str) -> bool:
        """Whether the text of a prompt or message is taken for PML. Takes microseconds."""
        return self.kind_of(text) is not None

    def kind_of(self, text: str) -> PromptKind | None:
        """What kind of PML the text of a message is taken for. Takes microseconds."""
        return prompt_kind(text) if self.reads_pml else None

    def add_schema(self, source: str | Path) -> SchemaInfo:
        """Compiles a schema; one of the same name is replaced.

        Args:
            source: PML text (it starts with `<`), or the path of a file. Only a file may use `src`.

        Raises:
            PMLError: The schema is not valid.
            ClientError: The file cannot be read.
        """
        if isinstance(source, str) and source.lstrip("\ufeff").lstrip().startswith("<"):
            schema = parse_schema(source)
        else:
            path = Path(source)
            schema = parse_schema(read_schema(path), name=str(path), base_dir=path.parent)
        return self.describe(self.planner.schemas.add(schema))

    def sync(self, name: str | None = None) -> None:
        """Takes over what other API servers have changed in the schema folder.

        Args:
            name: Only what concerns this schema, so that no other one is waited for.
        """
        if self.folder is not None:
            self.folder.sync(name)

    def find(self, name: str) -> SchemaLayout | None:
        """The schema of a name as it is now, None if there is none."""
        self.sync(name)
        found = self.planner.schemas.find(name)
        return None if found is None else found.layout

    def names(self) -> Collection[str]:
        """Names of all schemas, those included that other API servers have just added."""
        return self.planner.schemas.names if self.folder is None else self.folder.names()

    @property
    def schemas(self) -> dict[str, SchemaInfo]:
        """The schemas by name, as they are now."""
        layouts = self.planner.schemas.layouts
        return {name: self.describe(layout) for name, layout in layouts.items()}

    def describe(self, layout: SchemaLayout) -> SchemaInfo:
        """What users are told of a schema; summarized once."""
        summarize = partial(SchemaInfo.of, layout, self.block_size)
        return layout.derived.get("info", summarize, info_bytes)

    def explain(self, text: str, *, salt: str | None = None) -> Explanation:
        """Explains the plan of a PML prompt. Raises as `plan`."""
        return Explanation.of(self.plan(text, salt=salt))

    def plan(
        self,
        prompt: str | Prompt,
        *,
        reuse: bool = True,
        salt: str | None = None,
        chat: Chat | None = None,
    ) -> PromptPlan:
        """Plans a prompt in PML, or its tree; see `Planner.plan`.

        Raises:
            PMLError: The prompt is not valid, or does not fit its schema.
            PlanError: The engine's KV cache can never hold the prompt and its modules.
        """
        try:
            if self.folder is not None and self.folder.look():
                prompt = _catch_up(self.folder, prompt)
            plan = self.planner.plan(prompt, reuse=reuse, salt=salt, chat=chat)
            self._check_room(plan)
        except PromptCacheError as error:
            count_plan_error(error)
            raise
        return plan

    def plan_written(self, written: WrittenText, *, salt: str | None) -> PromptPlan:
        """Plans a text that a chat template has written, see `Planner.plan_written`.

        Raises:
            PMLError: It does not fit the model, or is over a budget.
            PlanError: The engine's KV cache can never hold it with its modules.
        """
        plan = self.planner.plan_written(written, salt=salt)
        self._check_room(plan)
        return plan

    def text_of(self, plan: PromptPlan) -> str:
        """The text of a prompt as the model reads it, with the texts of its modules."""
        return self.planner.schemas.compiler.tokenizer.text_of(plan.prompt_token_ids)

    def baseline(self, plan: PromptPlan) -> PromptPlan:
        """Plans the same prompt as one plain prefill.

        Raises:
            PlanError: The engine's KV cache can never hold it.
        """
        plain = baseline(plan)
        self._check_room(plain)
        return plain

    def _check_room(self, plan: PromptPlan) -> None:
        num_blocks, size = self.vllm_config.cache_config.num_gpu_blocks, plan.block_size
        # The number is not known before the engine has started.
        if num_blocks is None:
            return
        num_usable = num_blocks - 1  # one is vLLM's null block
        num_tokens = plan.num_tokens + 1
        sent = plan.request
        if fits_surely(sent, sent.spans, num_tokens, block_size=size, num_usable=num_usable):
            return
        table = BlockTable.of(plan.sequence, size)
        num_needed = num_blocks_of_prompt(plan.module_prompt, table, num_tokens)
        if num_needed > num_usable:
            is_for_encodes = num_needed > table.num_blocks(num_tokens)
            message = (
                f"the prompt with its modules needs {num_needed} KV cache blocks of {size} tokens"
                f"{' while these are encoded' if is_for_encodes else ''}, the cache has "
                f"{num_usable}"
            )
            logger.warning("A prompt of schema %r is refused: %s", plan.schema, message)
            raise PlanError(
                message,
                "import fewer modules, or start with a larger KV cache",
            )

    @property
    def block_size(self) -> int:
        """Tokens in a KV cache block."""
        block_size: int = self.vllm_config.cache_config.block_size
        return block_size


def _catch_up(folder: SchemaFolder, prompt: str | Prompt) -> Prompt:
    """Compiles what the folder has of the prompt's schema now."""
    if isinstance(prompt, str):
        prompt = parse_prompt(prompt, limits=PROMPT_LIMITS)
    if prompt.schema is not None:
        folder.sync(prompt.schema)
    return prompt


def _evicted(config: PromptModulesConfig) -> str:
    """What becomes of evicted modules."""
    places = [f"{config.host_memory:g} GiB of host memory"] if config.host_memory else []
    places += [f"{config.dir} ({config.dir_size:g} GiB)"] if config.dir else []
    return f"kept in {' and '.join(places)}" if places else "encoded again"
