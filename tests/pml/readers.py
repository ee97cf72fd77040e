"""Reads documents by the reader and by the grammar, and compares."""

from __future__ import annotations

from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml import Limits, Source
from vllm_promptcache.pml.elements import Element
from vllm_promptcache.pml.markup import read_by_grammar
from vllm_promptcache.pml.reader import read_well_formed


def agreed(source: Source, limits: Limits) -> Element | None:
    """What the reader makes of a document, once the grammar has made the same of it."""
    read = read_well_formed(source, limits)
    try:
        expected = read_by_grammar(source, limits)
    except PMLError:
        expected = None
    # As text, since that shows the order of attributes too.
    assert repr(read) == repr(expected), source.text
    return read
