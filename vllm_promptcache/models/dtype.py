"""The type of numbers to run an embedded model with, and why."""

DEFAULT = "auto"


def fast_dtype() -> str:
    """The `dtype` for vLLM that is fast on this machine for weights in bfloat16.

    "auto", which is bfloat16 for all embedded models; "float32" on an x86 CPU that would emulate
    bfloat16. It depends on the CPU's instructions alone, not on a measured time. For other models
    nothing is chosen: the log says what is slow there.
    """
    # torch and vLLM take seconds to import, and other users of this package need neither.
    from vllm_promptcache.cpu_types import is_emulated

    return "float32" if is_emulated("bfloat16") else DEFAULT


def dtype_reason(dtype: str) -> str:
    """Says in a few words what `fast_dtype` has chosen and why."""
    from vllm_promptcache.cpu_types import instruction_set

    if dtype == DEFAULT:
        return "bfloat16, the type of the model's weights"
    return f"{dtype}, as this CPU ({instruction_set()}) would only emulate bfloat16"
