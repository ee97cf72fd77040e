"""What the source of vLLM says of one name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Definition:
    """A name as its source defines it.

    Attributes:
        module: Where its source is.
        node: Its source.
        owner: The class that it belongs to.
    """

    module: str
    node: ast.AST
    owner: ast.ClassDef | None = None

    @property
    def signature(self) -> tuple[str, ...]:
        """What its users have to know, in parts; empty where the source does not say.

        Of a function its decorators, arguments and result; of a class its bases and the fields that
        must be given; of a variable its type.
        """
        match self.node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return tuple(_of_function(self.node))
            case ast.ClassDef():
                return tuple(_of_class(self.node))
            case ast.AnnAssign():
                return (ast.unparse(self.node.annotation),)
        return ()

    @property
    def source(self) -> str:
        """All of it, comments apart."""
        return ast.unparse(self.node)


def _of_function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    if isinstance(node, ast.AsyncFunctionDef):
        yield "async"
    yield from (f"@{ast.unparse(decorator)}" for decorator in node.decorator_list)
    args = node.args
    positional = [*args.posonlyargs, *args.args]
    num_required = len(positional) - len(args.defaults)
    for arg, default in zip(positional, [*[None] * num_required, *args.defaults], strict=True):
        yield _argument(arg, default)
    if args.vararg or args.kwonlyargs:
        yield f"*{ast.unparse(args.vararg) if args.vararg else ''}"
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield _argument(arg, default)
    if args.kwarg:
        yield f"**{ast.unparse(args.kwarg)}"
    if node.returns:
        yield f"-> {ast.unparse(node.returns)}"


def _argument(arg: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(arg) + (f" = {ast.unparse(default)}" if default else "")


def _of_class(node: ast.ClassDef) -> Iterator[str]:
    yield from (f"base {ast.unparse(base)}" for base in node.bases)
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and part.value is None:
            yield ast.unparse(part)
