"""Errors of ours as clients of the OpenAI API expect them."""

from __future__ import annotations

from fastapi import Response
from fastapi.responses import JSONResponse

from vllm_promptcache.errors import (
    ClientError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    PromptCacheError,
    TooLargeError,
    UnauthorizedError,
)

_STATUS = {
    UnauthorizedError: 401,
    ForbiddenError: 403,
    NotFoundError: 404,
    ConflictError: 409,
    TooLargeError: 413,
    ClientError: 400,
    PromptCacheError: 500,
}


def error_response(error: PromptCacheError, status: int | None = None) -> Response:
    """The answer to a request that failed.

    Args:
        error: Why it did.
        status: The HTTP status; None for that of the error's kind.
    """
    code = status or next(status for kind, status in _STATUS.items() if isinstance(error, kind))
    body = {"message": str(error), "type": type(error).__name__, "param": None, "code": code}
    return JSONResponse({"error": body}, code)
