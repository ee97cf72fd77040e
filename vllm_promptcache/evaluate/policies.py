"""Policies: how the modules of a prompt are encoded and repaired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from vllm_promptcache.errors import ClientError
from vllm_promptcache.pml import REPAIR_HINT, EncodePolicy, parse_repair

PLAIN = "plain"
# Attributes of a schema and of a prompt, by the first part of a policy's name.
_SCHEMAS = {name: f' encode="{name}"' for name in get_args(EncodePolicy)}
_PROMPTS = {"exact": ' encode="exact"'}
_BASES = (PLAIN, *_SCHEMAS, *_PROMPTS, "scaffold", "default")


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy by its name, such as `isolated+head:16`.

    Attributes:
        base: What stands before the plus.
        repair: What stands behind it: value of the prompt's attribute `repair`; empty for none.
    """

    base: str
    repair: str = ""

    @property
    def name(self) -> str:
        """The name it was given by."""
        return f"{self.base}+{self.repair}" if self.repair else self.base

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
        """Name of its schema; policies that differ in their prompts only share one."""
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
        repair = self.repair or ("none" if self.base != "default" else "")
        return _PROMPTS.get(self.base, "") + (f' repair="{repair}"' if repair else "")


def read_policies(names: str) -> tuple[Policy, ...]:
    """Reads names between commas; `plain` comes first, whether it was named or not.

    Raises:
        ClientError: A name is not that of a policy.
    """
    policies = [read_policy(name.strip()) for name in names.split(",")]
    return tuple(dict.fromkeys((Policy(PLAIN), *policies)))


def read_policy(name: str) -> Policy:
    """Reads one name; `read_policies` tells what it raises."""
    base, plus, repair = name.partition("+")
    if base not in _BASES:
        raise ClientError(f"unknown policy {name!r}; choose from {', '.join(_BASES)}")
    if plus and base == PLAIN:
        raise ClientError(f"policy {name!r}: a plain prefill leaves nothing to repair")
    if plus and parse_repair(repair) is None:
        raise ClientError(f"policy {name!r}: {repair!r} is no way to repair", REPAIR_HINT)
    return Policy(base, repair)
