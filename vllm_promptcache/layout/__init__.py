"""Layout: a schema compiled for a tokenizer, with the positions and keys of its modules."""

from vllm_promptcache.layout.compiler import compile_schema
from vllm_promptcache.layout.module_layout import (
    ROOT,
    ContextSpan,
    ModuleLayout,
    ParameterSlot,
    RoleMark,
)
from vllm_promptcache.layout.roles import ChatRoles, RoleWrapper
from vllm_promptcache.layout.schema_layout import SchemaLayout, UnionLayout
from vllm_promptcache.layout.size import layout_bytes
from vllm_promptcache.layout.tokenizer import HFTokenizer, LayoutTokenizer

__all__ = [
    "ROOT",
    "ChatRoles",
    "ContextSpan",
    "HFTokenizer",
    "LayoutTokenizer",
    "ModuleLayout",
    "ParameterSlot",
    "RoleMark",
    "RoleWrapper",
    "SchemaLayout",
    "UnionLayout",
    "compile_schema",
    "layout_bytes",
]
