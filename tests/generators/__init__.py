"""Random schemas and prompts; the same seed gives the same ones."""

from tests.generators.cases import Case, CaseMaker
from tests.generators.chats import random_chat
from tests.generators.prompts import random_prompt
from tests.generators.schemas import FIXED_SCHEMAS, Schema, random_schema
from tests.generators.words import WORDS, random_text

__all__ = [
    "FIXED_SCHEMAS",
    "WORDS",
    "Case",
    "CaseMaker",
    "Schema",
    "random_chat",
    "random_prompt",
    "random_schema",
    "random_text",
]
