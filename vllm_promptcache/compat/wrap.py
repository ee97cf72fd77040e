"""How a name of vLLM is replaced: once, by something that is given the original."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replaces `owner.name` by `wrapper(original, ...)`, once however often it is called.

    Args:
        owner: A module, class or object.
        name: A function, method, static method or class method of it.
        wrapper: Called with the original and its arguments (`self` and `cls` included).
    """
    found = inspect.getattr_static(owner, name, None)
    kind = type(found) if isinstance(found, staticmethod | classmethod) else None
    original = found.__func__ if kind else getattr(owner, name)
    if getattr(original, "_is_prompt_module_hook", False):
        return

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    # What an object has of its own needs no `self`; some are called for each request in each step.
    hook: Any = method if inspect.isclass(owner) else functools.partial(wrapper, original)
    hook._is_prompt_module_hook = True
    setattr(owner, name, kind(hook) if kind else hook)
