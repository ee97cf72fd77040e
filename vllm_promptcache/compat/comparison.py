"""What changes for the hooks between two versions of vLLM, by their sources."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vllm_promptcache.compat.answers import ANSWERS
from vllm_promptcache.compat.definition import Definition
from vllm_promptcache.compat.names import RELIANCES, Reliance
from vllm_promptcache.compat.source import Source


@dataclass(frozen=True, slots=True)
class Change:
    """A name in two versions; None where it is missing.

    Attributes:
        name: Its full name.
        old: In the version that is known.
        new: In the version that is looked at.
    """

    name: str
    old: Definition | None
    new: Definition | None

    @property
    def is_same(self) -> bool:
        """Whether its users see no difference."""
        found = self.old is not None and self.new is not None
        return found and signature_of(self.old) == signature_of(self.new)

    @property
    def has_other_source(self) -> bool:
        """Whether the code behind it differs."""
        return self.old is None or self.new is None or self.old.source != self.new.source

    @property
    def answer(self) -> str | None:
        """How our code takes both; None if nothing says so."""
        parts, answer = ANSWERS.get(self.name, ((), None))
        return answer if parts == tuple(self._parts()) and self.new else None

    def _parts(self) -> Iterator[str]:
        """What the new signature lacks, and what it has more."""
        old, new = signature_of(self.old), signature_of(self.new)
        yield from (f"-{part}" for part in old if part not in new)
        yield from (f"+{part}" for part in new if part not in old)


def signature_of(found: Definition | None) -> tuple[str, ...]:
    """What users of a name have to know, in parts; empty if it is missing."""
    return found.signature if found else ()


def compare(
    new: Source, old: Source, reliances: Iterable[Reliance] = RELIANCES
) -> tuple[Change, ...]:
    """Looks for all that the hooks rely on in both sources."""
    wanted = dict.fromkeys(pair for reliance in reliances for pair in reliance.wanted())
    return tuple(
        Change(f"{owner.replace(':', '.')}.{path}", old.find(owner, path), new.find(owner, path))
        for owner, path in wanted
    )
