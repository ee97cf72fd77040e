"""What needs Ray is left out where it is not installed."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("ray") else ["test_router.py", "test_scaling.py", "test_serve.py"]
