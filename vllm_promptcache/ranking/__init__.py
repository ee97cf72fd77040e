"""Which replica, or data-parallel rank, serves a request that reads modules."""

from vllm_promptcache.ranking.replicas import Replicas
from vllm_promptcache.ranking.summary import Summary

__all__ = ["Replicas", "Summary"]
