"""What answers the same questions: policies of reuse, and what they are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vllm_promptcache.errors import ClientError
from vllm_promptcache.policies import ENCODE_NAMES, NO_REPAIR, REPAIR_HINT, Policy, Repair

PLAIN = "plain"
# Attributes of a schema and of a prompt, by the first part of a name.
_SCHEMAS: dict[str, str] = {name: f' encode="{name}"' for name in ENCODE_NAMES if name != "exact"}
_PROMPTS = {"exact": ' encode="exact"'}
_BASES = (PLAIN, *_SCHEMAS, *_PROMPTS, "scaffold", "default")


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy, or `plain`, `scaffold` or `default`, by its name, such as `isolated+head:16`.

    Attributes:
        base: What stands before the plus.
        repair: What stands behind it; None if nothing does.
    """

    base: str
    repair: Repair | None = None

    @classmethod
    def of(cls, policy: Policy) -> Contender:
        """The contender with the name of a policy."""
        return cls(policy.encode, None if policy.repair == NO_REPAIR else policy.repair)

    @property
    def name(self) -> str:
        """The name it was given by."""
        return self.base if self.repair is None else f"{self.base}+{self.repair}"

    @property
    def reuse(self) -> bool:
        """Whether modules are reused at all."""
        return self.base != PLAIN

    @property
    def is_for_one_prompt(self) -> bool:
        """Whether modules are encoded for the text before them, and of no use behind another."""
        return self.base == "exact"

    @property
    def schema_name(self) -> str:
        """Name of its schema; those that differ in their prompts only share one."""
        return f"documents-{self.base if self.has_scaffold or self.schema_attributes else 'any'}"

    @property
    def schema_attributes(self) -> str:
        """Attributes of the schema, in PML."""
        return _SCHEMAS.get(self.base, "")

    @property
    def has_scaffold(self) -> bool:
        """Whether the schema has a scaffold of all documents."""
        return self.base == "scaffold"

    @property
    def prompt_attributes(self) -> str:
        """Attributes of the prompt, in PML; all but `default` say whether to repair."""
        repair = self.repair or (None if self.base == "default" else NO_REPAIR)
        return _PROMPTS.get(self.base, "") + (f' repair="{repair}"' if repair else "")


def with_plain(contenders: Iterable[Contender]) -> tuple[Contender, ...]:
    """Puts `plain` in front, whether it was named or not, and leaves out what comes twice."""
    return tuple(dict.fromkeys((Contender(PLAIN), *contenders)))


def read_contenders(names: str) -> tuple[Contender, ...]:
    """Reads names between commas; `plain` comes first, see `with_plain`.

    Raises:
        ClientError: A name is not that of a policy.
    """
    return with_plain(read_contender(name.strip()) for name in names.split(","))


def read_contender(name: str) -> Contender:
    """Reads one name; `read_contenders` tells what it raises."""
    base, plus, suffix = name.partition("+")
    if base not in _BASES:
        raise ClientError(f"unknown policy {name!r}; choose from {', '.join(_BASES)}")
    if plus and base == PLAIN:
        raise ClientError(f"policy {name!r}: a plain prefill leaves nothing to repair")
    repair = Repair.parse(suffix) if plus else None
    if plus and repair is None:
        raise ClientError(f"policy {name!r}: {suffix!r} is no way to repair", REPAIR_HINT)
    return Contender(base, repair)
