"""Plans: a prompt against its schema's layout.

Nothing is imported here: the engine needs `sequence` and `codec` without parser and tokenizer, and
`vllm_promptcache.layout` packs its modules with them. Front ends import `planner`.
"""
