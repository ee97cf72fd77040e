"""Options of prompt modules, as they travel in vLLM's `additional_config["prompt_modules"]`."""

# No `from __future__ import annotations` here: vLLM makes command line options of the field types.
import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.dataclasses import dataclass

from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.policies import (
    DEFAULT_POLICY,
    NO_REPAIR,
    EncodeName,
    Policy,
    Repair,
    check_repair,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig

CONFIG_KEY = "prompt_modules"
# Not an option: options are hashed, logged and shown in the list of processes.
ADMIN_KEY_VARIABLE = "VLLM_PROMPT_SCHEMAS_ADMIN_KEY"


def admin_key() -> str:
    """What clients must know to change schemas; empty for nothing."""
    return os.environ.get(ADMIN_KEY_VARIABLE, "")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PromptModulesConfig:
    """Options of prompt modules."""

    schemas: str | None = None
    """Folder whose `*.pml` and `*.xml` files are compiled as schemas at start. Schemas that are
    posted to the server are kept there, and shared with its other API servers."""

    schemas_read_only: bool = False
    """Refuse to add, replace or remove schemas over HTTP."""

    encode: EncodeName = DEFAULT_POLICY.encode
    """What a module may attend to while it is encoded, where its schema does not say: nothing but
    itself (`isolated`, as in the paper), also the text of its ancestors that lies before it
    (`anchored`), besides that a made-up text in place of other modules (`primed`), or all that the
    prompt has before it (`exact`: answers equal those of a plain prefill, and only prompts that
    begin with the same modules share them)."""

    repair: str = str(DEFAULT_POLICY.repair)
    """Which tokens of reused modules each prompt computes again, where neither it nor its schema
    says: none; a share of them in percent, those that its end attends to most (`query:15`, after a
    first pass that finds out); or the first tokens of each module (`head:16`). That is nearer to a
    plain prefill, and takes its share of the time of one. Modules that were encoded behind all that
    lies before them are left as they are."""

    profile: str | None = None
    """File that `python -m vllm_promptcache.quality.calibrate` has written. It says `encode` and
    `repair`; schemas whose policy has not passed there are served as `exact`."""

    primer: str | None = None
    """File with the text that primed modules are encoded behind, where their schema has no
    `<primer>`: at most 512 tokens, in place of a text that is made up."""

    max_schemas: int = Field(default=1000, ge=1)
    """How many schemas there may be before a server refuses to add one over HTTP."""

    max_schemas_size: float = Field(default=1, gt=0)
    """GiB of memory that all schemas may take in an API server, once they are compiled (about 50
    bytes for a token), before it refuses to add one over HTTP."""

    max_pinned_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the KV cache's blocks that pinned modules may take together."""

    eviction: Literal["value", "lru"] = "value"
    """Which modules leave the KV cache first when it is full: those used least for what they cost
    (`value`), or least recently (`lru`)."""

    host_memory: float = Field(default=0, ge=0)
    """GiB of host memory, of each worker, for modules that leave the KV cache. They come back by a
    copy instead of an encode."""

    dir: str | None = None
    """Folder in which encoded modules are kept, so that a restart need not encode them again.
    Several servers may share it. Of several workers each keeps its shard, on its own machine."""

    dir_size: float = Field(default=20, gt=0)
    """GiB that the files in this folder may take, about; those not used longest are deleted."""

    promote_after: int = Field(default=2, ge=0)
    """After so many prompts with the same modules, encode these behind each other, a little in each
    step that has no other prompt; from then on such prompts equal a plain prefill. 0 is for
    never."""

    max_promoted_share: float = Field(default=0.25, ge=0, le=1)
    """Share of the KV cache's blocks that modules of this kind may take together."""

    cold: Literal["encode", "plain"] = "encode"
    """What a prompt does with modules that are neither in the KV cache nor below it: it waits until
    they are encoded, for others to read as well (`encode`), or computes them itself, as a plain
    prefill does (`plain`)."""

    encode_after: int = Field(default=2, ge=2)
    """Where `cold` is `plain`: how many prompts must ask for a module before it is encoded, the
    last one included. An idle engine encodes it before, if it takes no other module's place."""

    prefetch: bool = False
    """When a prompt imports a module, bring others of its schema back from host memory or disk too,
    as far as there are blocks that hold nothing."""

    shadow: float = Field(default=0, ge=0, le=1)
    """Share of PML prompts that a server also runs as a plain prefill, in the background, to tell
    in its metrics how far reuse moves the first token. Clients may then ask for 100
    log-probabilities of a token."""

    prompts_from: Literal["any", "field"] = "any"
    """Where prompts may use modules: in any text of a prompt or message that is PML, and in the
    field `prompt_modules` of requests (`any`); or in that field only (`field`), so that PML which
    end users type is text like any other."""

    marks: bool = True
    """Take parts of chat messages that are marked, as with `cache_control`, for modules: each is
    known by its text, and read wherever a prompt has it."""

    verify: bool = False
    """Fingerprint each module's KV when it is encoded and compare it whenever a request maps it.
    For debugging: it reads all the KV that requests reuse."""

    _check_repair = field_validator("repair")(check_repair)

    @field_validator("profile")
    @classmethod
    def _check_profile(cls, profile: str | None, info: ValidationInfo) -> str | None:
        defaults = {"encode": cls.encode, "repair": cls.repair}
        if profile is not None and any(info.data.get(k, v) != v for k, v in defaults.items()):
            raise ValueError("a profile says `encode` and `repair`, so leave these out")
        return profile

    @property
    def policy(self) -> Policy:
        """`encode` and `repair`."""
        return Policy(self.encode, Repair.parse(self.repair) or NO_REPAIR)

    @classmethod
    def parse(cls, options: Any) -> Self:
        """Reads the value of `additional_config["prompt_modules"]`.

        Raises:
            UnsupportedError: An option is unknown or has a wrong value.
        """
        try:
            return TypeAdapter(cls).validate_python(options)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or CONFIG_KEY
            names = ", ".join(field.name for field in fields(cls))
            raise UnsupportedError(
                f"prompt_modules option {where!r}: {problem['msg']}", f"options are: {names}"
            ) from None

    @classmethod
    def find(cls, vllm_config: "VllmConfig") -> Self | None:
        """Returns the options of an engine, or None if prompt modules are off."""
        options = (vllm_config.additional_config or {}).get(CONFIG_KEY)
        return None if options is None else cls.parse(options)

    @classmethod
    def of(cls, vllm_config: "VllmConfig") -> Self:
        """Returns the options of an engine that has prompt modules on."""
        config = cls.find(vllm_config)
        if config is None:
            raise UnsupportedError("prompt modules are off", "add --enable-prompt-modules")
        return config
