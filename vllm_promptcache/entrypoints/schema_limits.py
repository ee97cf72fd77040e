"""How many schemas clients may post, and how much memory they may take."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_promptcache.errors import ConflictError

_REMEDY = "delete schemas that are not used, or start the server with a larger"


@dataclass(frozen=True, slots=True)
class SchemaLimits:
    """Bounds on all schemas of an API server together; files of its folder count, and are loaded.

    Attributes:
        max_num: How many there may be.
        max_bytes: Memory that they may take once they are compiled.
    """

    max_num: int = 1000
    max_bytes: int = 2**30

    def check_number(self, num_schemas: int) -> None:
        """Checks that there may be so many.

        Raises:
            ConflictError: There may not.
        """
        if num_schemas > self.max_num:
            message = f"there are {num_schemas - 1} schemas, and there may be {self.max_num}"
            raise ConflictError(message, f"{_REMEDY} --prompt-schemas-max-count")

    def check_size(self, others: int, new: int, old: int) -> None:
        """Checks that a schema may be added, or take the place of one that is not smaller.

        Args:
            others: Bytes that all other schemas take.
            new: Bytes of the schema.
            old: Bytes of the one that it replaces.

        Raises:
            ConflictError: It may not.
        """
        if new > old and others + new > self.max_bytes:
            raise ConflictError(
                f"the schema takes {_size(new)} of memory, the others {_size(others)}, "
                f"and all may take {_size(self.max_bytes)}",
                f"{_REMEDY} --prompt-schemas-max-size",
            )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**10:.0f} KiB" if num_bytes < 2**20 else f"{num_bytes / 2**20:.1f} MiB"
