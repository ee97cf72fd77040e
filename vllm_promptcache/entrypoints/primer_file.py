"""The file that a server's primers are made of, in place of the made-up text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_promptcache.errors import ClientError
from vllm_promptcache.layout.primer_tokens import MAX_PRIMER_LEN
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.pml.files import FileReader, FileRefusedError

_MAX_BYTES = 2**16


def tokenizer_with_primer(tokenizer: Any, path: str | None) -> LayoutTokenizer:
    """A model's tokenizer as layouts need it.

    Args:
        tokenizer: The model's tokenizer.
        path: The file; None for the made-up text.

    Raises:
        ClientError: The file cannot be read, is empty, or has more tokens than a primer may have.
    """
    if path is None:
        return LayoutTokenizer(tokenizer)
    file = Path(path).resolve()
    try:
        text = FileReader(file.parent, _MAX_BYTES).read(file.name)
        if not text.strip():
            raise FileRefusedError("is empty")
        reader = LayoutTokenizer(tokenizer, primer=text)
        if (num_tokens := reader.primer.num_tokens) > MAX_PRIMER_LEN:
            raise FileRefusedError(f"has {num_tokens} tokens, more than {MAX_PRIMER_LEN}")
    except FileRefusedError as error:
        raise ClientError(f"the primer {path!r} {error}") from None
    return reader
