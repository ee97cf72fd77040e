"""Ray comes with an extra."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def require_ray() -> None:
    """Ends the program with one clear line where Ray is not installed."""
    if find_spec("ray") is None:
        sys.exit("error: this needs Ray\nhint: pip install 'vllm-promptcache[ray]'")
