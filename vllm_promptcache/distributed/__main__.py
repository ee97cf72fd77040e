"""`promptcache-serve`: a model from many replicas, on a Ray cluster that is there or a new one."""

from __future__ import annotations

import sys

from vllm_promptcache.distributed.app_options import AppOptions
from vllm_promptcache.distributed.extra import require_ray
from vllm_promptcache.errors import PromptCacheError


def main() -> None:
    """Serves until it is interrupted."""
    options = AppOptions.parse(sys.argv[1:])
    require_ray()
    from ray import serve
    from ray.serve.config import HTTPOptions

    from vllm_promptcache.compat.api_server import serve_arguments
    from vllm_promptcache.distributed.app import application

    try:
        address = serve_arguments(options.serve_options)
    except (PromptCacheError, ValueError) as error:
        sys.exit(f"error: {error}")
    # As `vllm serve` listens.
    serve.start(http_options=HTTPOptions(host=address.host or "0.0.0.0", port=address.port))
    serve.run(application(options), blocking=True)


if __name__ == "__main__":
    main()
