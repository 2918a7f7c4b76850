"""The response cache: repeated questions are answered without the model."""

from ollamalab.cache.digests import Digests, UpstreamDigests
from ollamalab.cache.entry import Answer
from ollamalab.cache.memory import MemoryStore
from ollamalab.cache.response_cache import ResponseCache
from ollamalab.cache.statistics import CacheStatistics
from ollamalab.cache.stores import Store, StoreStatistics

__all__ = [
    "Answer",
    "CacheStatistics",
    "Digests",
    "MemoryStore",
    "ResponseCache",
    "Store",
    "StoreStatistics",
    "UpstreamDigests",
]
