"""What of a module to repair, known before any request: what generic questions attend to.

Each module is asked alone, behind what it was encoded behind. The row's own question has no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.reuse_model import Reader
from benchmarks.reuse_prompt import write_tail

QUESTIONS = (
    "Summarise the document above.",
    "Who, what, when, where?",
    "Which names, dates and numbers does the document give?",
)
LAST = (-3, -2, -1)
"""The tokens of a tail whose attention counts, as many as of a prompt."""


def prepared_attention(
    reader: Reader, prefix: Sequence[int], module: Sequence[int]
) -> torch.Tensor:
    """Attention of generic questions to each token of a module, summed over layers and heads.

    Args:
        reader: The model.
        prefix: What the module is encoded behind.
        module: Its tokens.
    """
    past = reader.encode_prefix(prefix)
    past = torch.cat((past, reader.encode(module, past)), dim=-2)
    num_past = past.shape[-2]
    total = torch.zeros(num_past)
    for question in QUESTIONS:
        tail, _ = write_tail(question, reader.tokenizer)
        with reader.attention.observe(LAST, len(past), num_past + len(tail)) as by_layer:
            reader.encode(tail, past)
        total += by_layer[:, :num_past].sum(dim=0)
    return total[len(prefix) :]
