"""`promptcache-batch`: asks the rows of a file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from vllm_promptcache.distributed.extra import require_ray
from vllm_promptcache.errors import PromptCacheError


def main() -> None:
    """Runs a job on the application that runs in the cluster of this machine."""
    parser = argparse.ArgumentParser(
        prog="promptcache-batch",
        description="Asks the rows of a file of the application that promptcache-serve has "
        "started. A job that was killed goes on where it was.",
    )
    parser.add_argument("rows", type=Path, help="rows of OpenAI's batch API: .jsonl or .parquet")
    parser.add_argument("answers", type=Path, help="gets the answers: .jsonl or .parquet")
    parser.add_argument(
        "--concurrency",
        type=int,
        default=32,
        metavar="N",
        help="rows that are asked at a time (default: 32)",
    )
    parser.add_argument("--app", default="default", help="Serve application (default: default)")
    parser.add_argument(
        "--api-key",
        default=os.environ.get("OPENAI_API_KEY", ""),
        metavar="KEY",
        help="of the server (default: the environment variable OPENAI_API_KEY)",
    )
    args = parser.parse_args()
    require_ray()
    from vllm_promptcache.distributed.batch import BatchJob

    _join(args.app)
    job = BatchJob(args.rows, args.answers, args.app, args.api_key, args.concurrency)
    try:
        counts = job.run()
    except PromptCacheError as error:
        sys.exit(f"error: {error}")
    print(", ".join(f"{number} {what}" for what, number in counts.items()))


def _join(app: str) -> None:
    """Joins the cluster in which an application runs; ends the command where there is none.

    Ray Data would join only what `ray start` has started, and else start a cluster of its own.
    """
    import ray
    from ray import serve
    from ray.serve.exceptions import RayServeException

    hint = "hint: start it with promptcache-serve; RAY_ADDRESS names a cluster elsewhere"
    try:
        ray.init(address="auto", log_to_driver=False)
        serve.get_app_handle(app)
    except ConnectionError:
        sys.exit(f"error: no Ray cluster runs on this machine\n{hint}")
    except RayServeException:
        sys.exit(f"error: the Ray cluster has no application {app!r}\n{hint}")
    # Ray Data would wait for one without a word.
    if ray.available_resources().get("CPU", 0) < 1:
        sys.exit(
            "error: the job needs a CPU to read rows with, and replicas have all of the cluster's\n"
            "hint: start promptcache-serve with fewer --replica-cpus, or add a node"
        )


if __name__ == "__main__":
    main()
