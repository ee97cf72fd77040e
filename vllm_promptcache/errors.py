"""All exceptions of the package, one tree with a client and a server branch.

`ClientError` is the fault of whoever sent the request (HTTP 4xx), `ServerError` is ours (HTTP 5xx).
Every error says what is wrong and, where it can, a hint how to mend it. All can be pickled, since
the engine runs in other processes than the API server.
"""

from typing import Any

FAILED = "the request cannot be served: "
"""Begins the reason of a request that the engine has ended for a fault of its own."""


class PromptCacheError(Exception):
    """Base of all errors this package raises on purpose.

    Args:
        message: What is wrong, in one line.
        hint: How to mend it, in one line.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class ClientError(PromptCacheError, ValueError):
    """The request is at fault; sending it again unchanged fails again."""


class ServerError(PromptCacheError, RuntimeError):
    """The server is at fault; the request may be right."""


class PMLError(ClientError):
    """A schema or prompt that breaks the rules of PML, with the place where it does.

    Args:
        message: What is wrong, in one line.
        source_name: File path, or a name such as `<prompt>`.
        line: 1-based line.
        column: 1-based column, in characters.
        source_line: The line at fault; only the part around the caret where the line is very long.
        caret: 0-based index of the fault in `source_line`.
        hint: How to mend it, in one line.
    """

    def __init__(
        self,
        message: str,
        source_name: str,
        line: int,
        column: int,
        source_line: str,
        caret: int,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.source_name = source_name
        self.line = line
        self.column = column
        self.source_line = source_line
        self.caret = caret

    def __str__(self) -> str:
        # A tab in the margin keeps the caret below its character at any tab width.
        margin = "".join("\t" if char == "\t" else " " for char in self.source_line[: self.caret])
        place = f"{self.source_name}:{self.line}:{self.column}"
        return f"{place}: {self.message}\n{self.source_line}\n{margin}^" + (
            f"\nhint: {self.hint}" if self.hint is not None else ""
        )

    def __reduce__(self) -> tuple[Any, ...]:
        where = (self.source_name, self.line, self.column, self.source_line, self.caret)
        return type(self), (self.message, *where, self.hint)


class FieldError(PMLError):
    """A prompt without markup that breaks the rules of PML, with the field of the request.

    Args:
        message: What is wrong, in one line.
        field: Path of the field, such as `prompt_modules.imports[2]`.
        hint: How to mend it, in one line.
    """

    def __init__(self, message: str, field: str, hint: str | None = None) -> None:
        super().__init__(message, field, 1, 1, "", 0, hint)

    def __str__(self) -> str:
        what = f"{self.source_name}: {self.message}"
        return what if self.hint is None else f"{what}\nhint: {self.hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.source_name, self.hint)


class UnauthorizedError(ClientError):
    """A request without the key it needs (HTTP 401)."""


class ForbiddenError(ClientError):
    """A request that the server is set not to do (HTTP 403)."""


class NotFoundError(ClientError):
    """Something that is not there (HTTP 404)."""


class ConflictError(ClientError):
    """A request that contradicts what is there already (HTTP 409)."""


class TooLargeError(ClientError):
    """A request that is larger than the server takes (HTTP 413)."""


class PlanError(ClientError):
    """A prompt that cannot be laid out: no positions left, options that exclude each other."""


class UnsupportedError(ClientError):
    """A feature of PML or of the request that this model or server does not support."""


class ModelError(ServerError):
    """A model that cannot be loaded or does not behave as the engine needs."""
