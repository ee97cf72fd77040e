"""The ground truth of the engine tests: prompt modules in plain Hugging Face transformers.

It is written against the format of `llm.explain(prompt).to_dict()` alone and imports nothing of the
product, so that a mistake in the product's understanding of a plan cannot hide in both.
"""

from tests.reference.kv import KV
from tests.reference.model import Reference, ReferenceOutput, shift_of

__all__ = ["KV", "Reference", "ReferenceOutput", "shift_of"]
