"""Private names of vLLM are touched in files that `compat/names.py` lists with them, nowhere else.

A name that begins with an underscore is one's own if the file defines it: as a function, a class, a
variable, a field, or an attribute that `__init__` sets. All others are somebody else's. Kernels are
given tensors and numbers, nothing of vLLM.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.rooms import ROOT, modules
from vllm_promptcache.compat.names import RELIANCES

_PRIVATE = re.compile(r"_[A-Za-z]\w*")
# Of llvmlite; the mark of a hook.
OTHERS = {"compat/worker.py": {"_fntab"}, "compat/wrap.py": {"_is_prompt_module_hook"}}


def listed() -> dict[str, set[str]]:
    """By file, the private names that it may touch."""
    names = {file: set(others) for file, others in OTHERS.items()}
    for reliance in RELIANCES:
        text = " ".join(reliance.names.values())
        for file in reliance.files:
            names.setdefault(file, set()).update(filter(_PRIVATE.fullmatch, text.split()))
    return names


def foreign(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Private names of others in a file, with their lines."""
    own = set(_defined(tree)) - set(_declared(tree))
    for node in ast.walk(tree):
        for name in _named(node):
            # What is called of a base class is the base's, though it is overridden here.
            if _PRIVATE.fullmatch(name) and (name not in own or _is_of_base(node)):
                yield node.lineno, name


def _named(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.keyword):
        yield node.arg or ""
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value  # as in `getattr` and `wrap`
    elif isinstance(node, ast.ImportFrom | ast.Import):
        for alias in node.names:
            yield from alias.name.split(".")
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from node.module.split(".")


def _is_of_base(node: ast.AST) -> bool:
    value = node.value if isinstance(node, ast.Attribute) else None
    return isinstance(value, ast.Call) and getattr(value.func, "id", None) == "super"


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_function and node.name == "__init__":
            for part in ast.walk(node):
                if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
                    yield part.attr


def _declared(tree: ast.Module) -> Iterator[str]:
    """Attributes of base classes, which a class gives a type only; fields are not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not node.decorator_list:
            parts = (part for part in node.body if isinstance(part, ast.AnnAssign))
            yield from (ast.unparse(part.target) for part in parts if part.value is None)


def test_private_names_are_touched_where_they_are_listed_only() -> None:
    names = listed()
    faults = [
        f"vllm_promptcache/{module.path}:{line}: {name} is not listed in compat/names.py for it"
        for module in modules()
        if module.room != "kernels" and module.name != "vllm_promptcache.compat.names"
        for line, name in foreign(module.tree)
        if name not in names.get(str(module.path), ())
    ]
    assert faults == []


def test_files_that_are_listed_are_there() -> None:
    files = {file for reliance in RELIANCES for file in reliance.files}
    assert [file for file in sorted(files) if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize(
    "text",
    [
        "from vllm.v1.core import _secret",
        "import vllm._secret",
        "from vllm._secret import x",
        "request._secret",
        "class A(B):\n    def _secret(self):\n        super()._secret()",
        "class A(B):\n    _secret: int\n    def f(self):\n        self._secret, x = 1, 2",
        "getattr(request, '_secret')",
        "replace(batch, _secret=None)",
    ],
)
def test_a_private_name_of_others_is_found(text: str) -> None:
    assert {name for _, name in foreign(ast.parse(text))} == {"_secret"}


@pytest.mark.parametrize(
    "text",
    [
        "class A:\n    def __init__(self):\n        self._own = 1\ndef f(a):\n    return a._own",
        "@dataclass\nclass A:\n    _own: int\ndef f(a):\n    return a._own",
        "_own = 1\nprint(_own)",
        "class A:\n    def _own(self): ...\nA()._own()",
    ],
)
def test_a_private_name_of_ones_own_is_not(text: str) -> None:
    assert list(foreign(ast.parse(text))) == []
