"""What is found in the source of a vLLM that is not imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.trees import write
from vllm_promptcache.compat.source import Source

TREE = {
    "__init__": "from .pool import Pool\n",
    "_version": "__version__ = version = '0.99.1'\n",
    "base": """
from typing import TYPE_CHECKING
class Base:
    annotated: int
    def __init__(self, config: "Config", other=None):
        self.config = config
        if config:
            self.first, (self.second, _) = 1, (2, 3)
    @property
    def told(self) -> "Config | None": ...
    def make(self) -> Config:
        self.late = Config()
class Config:
    size: int = 3
""",
    "pool": """
from vllm.base import Base as Ground
try:
    import fast
except ImportError:
    fast = None
class Pool(Ground, metaclass=type):
    def __init__(self, *args):
        super().__init__(*args)
        self.made = self.make()
        self.pools: list[Pool] = []
        self.last = Pool()
    async def get(self, a, b: int = 1, *, c=None, **more) -> int: ...
POOL = Pool()
def make_pool() -> Pool: ...
pools = make_pool()
""",
    "v1/__init__": "from ..pool import Pool as Again, make_pool\n",
    "v1/deep": "from . import Again\nfrom vllm import nothing\n",
}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return write(tmp_path, TREE)


@pytest.mark.parametrize(
    ("owner", "path"),
    [
        ("vllm.pool", "make_pool"),
        ("vllm.pool", "fast"),
        ("vllm", "Pool"),  # from where it is imported
        ("vllm.v1.deep", "Again"),  # through two modules
        ("vllm.pool:Pool", "get"),
        ("vllm.pool:POOL", "get"),  # an object stands for its class
        ("vllm.v1.deep:Again", "made"),
        ("vllm.pool:Pool", "pools"),
        ("vllm.pool:Pool", "annotated"),  # of the base
        ("vllm.pool:Pool", "second"),  # assigned in the base's `__init__`
        ("vllm.pool:Pool", "late.size"),  # in another method of it
        ("vllm.pool:Pool", "config.size"),  # what the base's argument is
        ("vllm.pool:Pool", "told.size"),
        ("vllm.pool:Pool", "made.size"),  # what a method gives
        ("vllm.pool:Pool", "last.last.made"),
        ("vllm.pool:pools", "last"),  # what a function gives
    ],
)
def test_what_is_there_is_found(source: Source, owner: str, path: str) -> None:
    assert source.find(owner, path) is not None


@pytest.mark.parametrize(
    ("owner", "path"),
    [
        ("vllm.pool", "get"),
        ("vllm.no_module", "Pool"),
        ("vllm.v1.deep", "nothing"),
        ("vllm.pool:NoClass", "get"),
        ("vllm.pool:make_pool", "no_attribute"),
        ("vllm.pool:Pool", "third"),
        ("vllm.pool:Pool", "config.no_size"),
        ("vllm.pool:Pool", "annotated.size"),
        ("vllm.pool:Pool", "pools.last.no_attribute"),
    ],
)
def test_what_is_not_is_not(source: Source, owner: str, path: str) -> None:
    assert source.find(owner, path) is None


@pytest.mark.parametrize(
    ("owner", "path", "signature"),
    [
        (
            "vllm.pool:Pool",
            "get",
            ("async", "self", "a", "b: int = 1", "*", "c = None", "**more", "-> int"),
        ),
        ("vllm.pool:Pool", "told", ("@property", "self", "-> 'Config | None'")),
        ("vllm.pool", "Pool", ("base Ground",)),
        ("vllm.base", "Base", ("annotated: int",)),
        ("vllm.base", "Config", ()),  # its field may be left out
        ("vllm.base:Config", "size", ("int",)),
        ("vllm.pool:Pool", "made", ()),
    ],
)
def test_signatures(source: Source, owner: str, path: str, signature: tuple[str, ...]) -> None:
    found = source.find(owner, path)
    assert found is not None
    assert found.signature == signature


def test_a_version_is_read_and_not_run(source: Source, tmp_path: Path) -> None:
    assert source.version == "0.99.1"
    assert Source(tmp_path / "none").version == str(tmp_path / "none")
