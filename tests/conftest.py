"""Settings that all tests share."""

from __future__ import annotations

import logging
from pathlib import Path

from tests.environment import prepare_environment

prepare_environment()

import pytest  # noqa: E402  (a plugin of pytest may import what reads the environment)

# Without this, thousands of empty lines stand in the report of a failed engine test.
logging.getLogger("torch.__trace").addFilter(lambda record: False)

ENGINE_TESTS = Path(__file__).parent / "engine"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Runs engine tests last, and slow ones and those of Ray only where `-m` asks."""
    items.sort(key=_is_engine_test)
    for item in filter(_is_engine_test, items):
        item.add_marker(pytest.mark.engine)
    for mark in ("slow", "ray"):
        if mark not in config.option.markexpr:
            skip = pytest.mark.skip(reason=f"{mark}: run with `make test-{mark}`")
            for item in items:
                if item.get_closest_marker(mark):
                    item.add_marker(skip)


def _is_engine_test(item: pytest.Item) -> bool:
    return item.path.is_relative_to(ENGINE_TESTS)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The embedded demo model's folder."""
    from vllm_promptcache.models import embedded_model

    return Path(embedded_model())


@pytest.fixture(scope="session")
def shallow(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with its first layers only; see `tests/shallow.py`."""
    from tests.shallow import save_shallow

    return save_shallow(smollm2, tmp_path_factory.mktemp("shallow"))
