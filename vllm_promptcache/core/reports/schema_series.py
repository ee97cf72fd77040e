"""Which schemas have metrics of their own: those that are served, and not too many in all.

A series of a schema that has gone is taken out. Where several API servers share their metrics, in
files, series cannot be taken out; there they are left out of what is shown.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

from prometheus_client import multiprocess

from vllm_promptcache.compat.wrap import wrap
from vllm_promptcache.log import module_logger
from vllm_promptcache.sequence.codec import INLINE

OTHER = "(other)"
"""Stands for all schemas without series of their own; no schema can have this name."""

MAX_NUM_NAMES = 2_000
"""Schemas with series of their own; those in files count for as long as the process lives."""

PREFIX = "promptcache_"
LABEL = "schema"

logger = module_logger(__name__)


class SchemaSeries:
    """The series by schema of one process. May be used from many threads."""

    def __init__(self) -> None:
        self._served: Callable[[], Collection[str]] | None = None
        self._metrics: dict[str, Any] = {}
        self._names: set[str] = set()
        self._num_forgotten = 0
        self._lock = Lock()

    def follow(self, served: Callable[[], Collection[str]]) -> None:
        """Says which schemas are served; the front end that was made last does."""
        self._served = served
        if _is_in_files():
            wrap(multiprocess.MultiProcessCollector, "collect", self._shown)

    def own(self, metrics: Mapping[str, Any]) -> None:
        """Takes charge of metrics by schema, in place of others under the same keys."""
        self._metrics |= metrics

    @contextmanager
    def label(self, name: str) -> Iterator[str]:
        """Gives the value of the label for a schema, whose series stay while it is used.

        A request in flight may outlive its schema, and must not bring its series back.
        """
        is_used = False
        while not is_used:
            num_forgotten = self._num_forgotten
            # Not under the lock: it may forget schemas itself.
            is_served = self._served is None or name == INLINE or name in self._served()
            with self._lock:
                if num_forgotten == self._num_forgotten:
                    yield self._admit(name) if is_served else OTHER
                    is_used = True

    def _admit(self, name: str) -> str:
        if name not in self._names and len(self._names) >= MAX_NUM_NAMES:
            return OTHER
        self._names.add(name)
        return name

    def forget(self, name: str) -> None:
        """Takes out the series of a schema that is not served any more."""
        if _is_in_files():
            return
        with self._lock:
            self._num_forgotten += 1
            self._names.discard(name)
            for metric in self._metrics.values():
                # Ray's kind of metric keeps its series elsewhere.
                if hasattr(metric, "remove_by_labels"):
                    metric.remove_by_labels({LABEL: name})

    def _shown(self, original: Callable[..., Any], collector: Any) -> Iterator[Any]:
        """Wraps `MultiProcessCollector.collect`: leaves out the series of schemas that have gone.

        Symptom without it: they are shown for as long as the server runs. Cause: prometheus_client
        removes no series from its files. Can go when `remove_by_labels` does.
        """
        served = self._served() if self._served is not None else ()
        shown: set[str | None] = {None, OTHER, INLINE, *served}
        for metric in original(collector):
            if metric.name.startswith(PREFIX):
                metric.samples = [s for s in metric.samples if s.labels.get(LABEL) in shown]
            yield metric


def _is_in_files() -> bool:
    """Whether several processes share their metrics."""
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


schema_series = SchemaSeries()
"""Those of this process, as prometheus_client's registry is."""
