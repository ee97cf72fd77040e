"""Serve's router of requests to replicas, by what they hold."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from vllm_promptcache.distributed.app_options import MARGIN
from vllm_promptcache.distributed.hint import Hint
from vllm_promptcache.ranking import Replicas, Summary


class ModuleAffinityRouter(RequestRouter):
    """Sends a request to the replica that holds its modules, unless that is too busy.

    The first argument of a request is its `Hint`, or None. Replicas tell what they hold in their
    `record_routing_stats`; see `ranking.Replicas` for what becomes of that.
    """

    def initialize_state(self, margin: float = MARGIN) -> None:
        """Begins without knowing any replica.

        Args:
            margin: See `promptcache-serve --help`.
        """
        self.known = Replicas(margin)
        self.reported: dict[ReplicaID, Any] = {}

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Takes note of who is there and what each holds."""
        there = {replica.replica_id: replica.routing_stats for replica in replicas}
        for gone in self.reported.keys() - there.keys():
            self.known.remove(gone.unique_id)
            del self.reported[gone]
        for replica_id, stats in there.items():
            if stats != self.reported.get(replica_id):
                self.known.report(replica_id.unique_id, Summary(**stats), time.monotonic())
            self.reported[replica_id] = stats
        super().update_replicas(replicas)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Ranks the replicas, best first; Serve takes the first one that has room."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        loads = [self._load(replica.replica_id) for replica in candidate_replicas]
        if (hint := _hint(pending_request)) is None:
            order: Iterable[int] = sorted(range(len(loads)), key=loads.__getitem__)
        else:
            names = tuple(replica.replica_id.unique_id for replica in candidate_replicas)
            order = self.known.rank(hint.schema, dict.fromkeys(hint.keys, 1), names, loads)
        return [[candidate_replicas[index]] for index in order]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """Expects the request's modules where it has gone."""
        if hint := _hint(pending_request):
            self.known.expect(replica_id.unique_id, hint.keys, time.monotonic())

    def _load(self, replica_id: ReplicaID) -> int:
        """Requests at a replica: what it said last, and what this router has sent it since."""
        return self.replica_queue_len_cache.get(replica_id) or 0


def _hint(request: PendingRequest | None) -> Hint | None:
    hint = request.args[0] if request is not None and request.args else None
    return hint if isinstance(hint, Hint) else None
