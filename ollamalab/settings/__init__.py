"""Frozen settings, one file per part.

Building a settings object touches no disk, no hardware and no ``os.environ``; ``files`` is the one
door for YAML, and the functions named ``..._from_environment`` read the mapping they are given.
"""

from ollamalab.settings.batching import BatchSettings
from ollamalab.settings.cache import CacheSettings
from ollamalab.settings.cluster import ClusterSettings
from ollamalab.settings.gateway import GatewaySettings, UpstreamSettings
from ollamalab.settings.limits import ServerLimits
from ollamalab.settings.queueing import QueueSettings
from ollamalab.settings.server import KV_CACHE_TYPES, ServerSettings, server_settings_from_environment
from ollamalab.settings.warmup import WarmupSettings

__all__ = [
    "KV_CACHE_TYPES",
    "BatchSettings",
    "CacheSettings",
    "ClusterSettings",
    "GatewaySettings",
    "QueueSettings",
    "ServerLimits",
    "ServerSettings",
    "UpstreamSettings",
    "WarmupSettings",
    "server_settings_from_environment",
]
