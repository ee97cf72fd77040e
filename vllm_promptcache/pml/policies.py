"""Names of policies, such as `anchored+head:16`: how modules are encoded and repaired."""

from __future__ import annotations

from typing import get_args

from vllm_promptcache.pml.ast import NO_REPAIR, EncodePolicy, Repair, SchemaPolicy
from vllm_promptcache.pml.attributes import parse_repair

_ENCODES: tuple[EncodePolicy, ...] = get_args(EncodePolicy)


def policy_name(encode: str, repair: Repair) -> str:
    """The one name of a policy."""
    return encode if repair == NO_REPAIR else f"{encode}+{repair.kind}:{repair.amount}"


def parse_policy(name: str) -> tuple[SchemaPolicy, Repair] | None:
    """Reads a name such as `exact`, `isolated` or `anchored+head:16`; None if it is no policy."""
    if name == "exact":
        return "exact", NO_REPAIR
    base, plus, suffix = name.partition("+")
    repair = parse_repair(suffix) if plus else NO_REPAIR
    encode = next((encode for encode in _ENCODES if encode == base), None)
    return None if encode is None or repair is None else (encode, repair)
