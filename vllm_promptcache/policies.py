"""Policies: how modules are encoded, and what of them each prompt computes again.

A policy is written `primed+query:15`: how to encode, then how to repair, which may be left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

EncodeName: TypeAlias = Literal["isolated", "anchored", "primed", "exact"]
RepairKind: TypeAlias = Literal["none", "head", "query"]

ENCODE_NAMES: tuple[EncodeName, ...] = get_args(EncodeName)

REPAIR_HINT = "write `none`, `head:N` with a number of tokens, or `query:N` with percent of them"

_REPAIR = re.compile(r"(head|query):([1-9][0-9]{0,5})")
_KINDS: dict[str, RepairKind] = {kind: kind for kind in get_args(RepairKind)}
_ENCODES: dict[str, EncodeName] = {name: name for name in ENCODE_NAMES}


@dataclass(frozen=True, slots=True)
class Repair:
    """Which tokens of a reused module are computed again.

    `amount` is a number of tokens at the module's `head`, or a share in percent: of the tokens that
    the prompt's end attends to most (`query`).
    """

    kind: RepairKind
    amount: int = 0

    @classmethod
    def parse(cls, text: str) -> Repair | None:
        """Reads `none`, `head:16` or `query:15`; None if it is no repair."""
        if text == "none":
            return NO_REPAIR
        match = _REPAIR.fullmatch(text)
        if match is None:
            return None
        kind, amount = _KINDS[match[1]], int(match[2])
        return None if kind == "query" and amount > 100 else cls(kind, amount)

    def __str__(self) -> str:
        return self.kind if self.kind == "none" else f"{self.kind}:{self.amount}"


NO_REPAIR = Repair("none")


@dataclass(frozen=True, slots=True)
class Policy:
    """How modules are reused.

    Attributes:
        encode: What a module may attend to while it is encoded: nothing but itself (`isolated`),
            also the text that every prompt with it has before it (`anchored`), besides that a
            made-up text in place of other modules (`primed`), or all that the prompt has before it
            (`exact`, which a module cannot have by itself).
        repair: Which of its tokens each prompt computes again.
    """

    encode: EncodeName
    repair: Repair = NO_REPAIR

    @classmethod
    def parse(cls, name: str) -> Policy | None:
        """Reads a name such as `exact`, `isolated` or `primed+query:15`; None if it is none."""
        base, plus, suffix = name.partition("+")
        encode, repair = _ENCODES.get(base), Repair.parse(suffix) if plus else NO_REPAIR
        # Behind all that is before it, there is nothing to repair.
        if encode is None or repair is None or (plus and encode == "exact"):
            return None
        return cls(encode, repair)

    def __str__(self) -> str:
        return self.encode if self.repair == NO_REPAIR else f"{self.encode}+{self.repair}"

    def changed(self, encode: EncodeName | None, repair: Repair | None) -> Policy:
        """The policy of what says these itself, None where this one holds."""
        return Policy(encode or self.encode, repair or self.repair)


DEFAULT_POLICY = Policy("primed")
"""What holds where neither user nor schema says anything: nothing of a module is computed again."""

EXACT = Policy("exact")


def check_repair(text: str) -> str:
    """Returns a repair as it is.

    Raises:
        ValueError: It is none; pydantic makes that an error about the field.
    """
    if Repair.parse(text) is None:
        raise ValueError(REPAIR_HINT)
    return text
