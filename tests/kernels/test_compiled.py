"""Triton kernels are compiled for GPUs, down to their machine code; no GPU is there to run it."""

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

# Names of arguments and their types, `constexpr` where a value is given.
COPY = {
    "layers": "*i64",
    "first": "i32",
    "slots": "*i64",
    "elements": "*i64",
    "num_elements": "i32",
    "block_size": "i32",
}
ROTATE = {"cos": "*fp32", "sin": "*fp32", "num_heads": "i32", "head_size": "i32"}


def compiled(kernel, types, constants, capability):
    types = types | dict.fromkeys(constants, "constexpr")
    ordered = {name: types[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=ordered, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm


@pytest.fixture(autouse=True)
def compile_anew(monkeypatch):
    monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("bits", ["i8", "i16", "i32"])
@pytest.mark.parametrize("is_read", [True, False])
def test_copies_compile(capability, bits, is_read):
    from vllm_promptcache.kernels.copy_slots import _transfer

    for stride in ("i32", "i64"):
        types = COPY | {"scratch": f"*{bits}", "block_stride": stride}
        asm = compiled(_transfer, types, {"width": 512, "is_read": is_read}, capability)
        assert asm["cubin"]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("is_neox", [True, False])
def test_rotations_compile(capability, dtype, is_neox):
    from vllm_promptcache.kernels.rotate_keys import _rotate

    types = ROTATE | {"keys": f"*{dtype}", "num_pairs": "i32"}
    constants = {"width": 32, "is_neox": is_neox, "largest": None}
    assert compiled(_rotate, types, constants, capability)["cubin"]


# Older devices have none of these conversions; vLLM's own kernels need them, too.
@pytest.mark.parametrize("capability", [89, 90])
@pytest.mark.parametrize("is_neox", [True, False])
def test_rotations_of_8_bit_floats_compile(capability, is_neox):
    from vllm_promptcache.kernels.rotate_keys import _rotate

    types = ROTATE | {"keys": "*fp8e4nv", "num_pairs": "i32"}
    constants = {"width": 32, "is_neox": is_neox, "largest": 448.0}
    asm = compiled(_rotate, types, constants, capability)
    assert asm["cubin"]
    # To the nearest, where the interpreter does not always round so.
    assert "cvt.rn.satfinite.e4m3x2.f32" in asm["ptx"]
