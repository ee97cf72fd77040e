"""The self-check: whether this vLLM has all that the hooks rely on."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Iterable
from operator import attrgetter
from pkgutil import resolve_name
from typing import Any

from vllm_promptcache.compat.names import RELIANCES, Reliance
from vllm_promptcache.errors import UnsupportedError


def check_names(reliances: Iterable[Reliance] = RELIANCES) -> None:
    """Checks names of modules and classes; those of instances as far as their class tells.

    Raises:
        UnsupportedError: Names are missing; all of them are listed, with vLLM's version.
    """
    missing = [
        f"{owner.replace(':', '.')}.{name}"
        for reliance in reliances
        for owner, names in reliance.names.items()
        for name in names.split()
        if not _exists(owner, name)
    ]
    _refuse(missing)


def check_object(found: Any, reliance: Reliance) -> None:
    """Checks the attributes of an object, once it is there.

    Raises:
        UnsupportedError: As `check_names`.
    """
    missing = [path for path in reliance.attributes.split() if not _has(found, path)]
    _refuse([f"{path} of the {reliance.owner}" for path in missing])


def _refuse(missing: list[str]) -> None:
    if missing:
        import vllm

        raise UnsupportedError(
            f"vLLM {vllm.__version__} lacks what prompt modules hook into: {', '.join(missing)}",
            "install vllm>=0.32,<0.34",
        )


def _has(found: Any, path: str) -> bool:
    try:
        attrgetter(path)(found)
    except AttributeError:
        return False
    return True


def _exists(owner: str, name: str) -> bool:
    try:
        found = resolve_name(owner)
    except (ImportError, AttributeError):
        return False
    return hasattr(found, name) or (isinstance(found, type) and name in _instance_names(found))


@functools.cache
def _instance_names(cls: type) -> set[str]:
    """Attributes of instances: those that are annotated, and those that `__init__` sets."""
    names: set[str] = set()
    for base in cls.__mro__[:-1]:
        names.update(inspect.get_annotations(base))
        if inspect.isfunction(init := vars(base).get("__init__")):
            code = dis.get_instructions(inspect.unwrap(init))
            names.update(str(step.argval) for step in code if step.opname == "STORE_ATTR")
    return names
