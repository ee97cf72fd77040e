"""Which types of numbers the CPU has instructions for, and which its kernels emulate.

On an x86 CPU without the instructions, a matrix product in bfloat16 or float16 takes 3 to 40 times
as long as one in float32, since each number is converted on the way.
"""

from __future__ import annotations

import torch

# Type -> CPU flags (as in /proc/cpuinfo) of which one is enough; float32 every CPU has.
_INSTRUCTIONS = {
    "bfloat16": ("avx512_bf16", "amx_bf16"),
    "float16": ("avx512_fp16", "amx_fp16"),
}


def is_emulated(dtype: str) -> bool:
    """Whether vLLM runs on an x86 CPU that has no instructions for `dtype`.

    Args:
        dtype: Name of a torch type, such as `bfloat16`. "auto" is none.
    """
    # It reads the environment when it is imported.
    from vllm.platforms import current_platform

    flags = torch.cpu.get_capabilities()
    is_x86 = flags["architecture"] in ("x86", "x86_64")
    if dtype not in _INSTRUCTIONS or not is_x86 or not current_platform.is_cpu():
        return False
    return not any(flags.get(name, False) for name in _INSTRUCTIONS[dtype])


def instruction_set() -> str:
    """The widest vectors of this CPU that torch uses, such as `AVX2`."""
    return torch.backends.cpu.get_cpu_capability()


def emulation_notice(dtype: str) -> str | None:
    """One line for the log where `dtype` is emulated, else None."""
    if not is_emulated(dtype):
        return None
    names = " nor ".join(_INSTRUCTIONS[dtype])
    return (
        f"This CPU ({instruction_set()}) has no instructions for {dtype} (neither {names}) and "
        "emulates it: --dtype float32 is several times faster here and takes twice the memory"
    )
