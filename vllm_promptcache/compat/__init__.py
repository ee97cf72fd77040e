"""The hooks into vLLM 0.32 and 0.33, by what they hook into, and their self-check.

Everything that is not public API of vLLM is named in `names.py`, with the files that rely on it: a
file here, or one that overrides or reads what is listed there. Each hook says what it is for and
under which condition it can go. All are idempotent, and none does anything for an engine that has
prompt modules off. `python -m vllm_promptcache.compat` compares the source of another vLLM with the
one that is installed.
"""
