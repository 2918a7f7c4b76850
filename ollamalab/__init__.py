"""ollamalab: which Ollama optimisations pay on your own host, by how much and how surely.

The names below are the public face; each is imported when it is first used, because some bring
libraries that only the ``lab`` extra installs.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ollamalab.batching import StreamBatcher
    from ollamalab.cache import ResponseCache
    from ollamalab.client import OllamaClient
    from ollamalab.cluster import Cluster
    from ollamalab.gpu import GpuSampler
    from ollamalab.lab import Lab
    from ollamalab.loadgen import LoadGenerator, LoadSettings
    from ollamalab.queueing import RequestQueue
    from ollamalab.settings import CacheSettings, ClusterSettings, QueueSettings, ServerSettings

__version__ = "0.1.0"

__all__ = [
    "BatchSettings",
    "CacheSettings",
    "Cluster",
    "ClusterSettings",
    "GpuSampler",
    "Lab",
    "LoadGenerator",
    "LoadSettings",
    "OllamaClient",
    "QueueSettings",
    "RequestQueue",
    "ResponseCache",
    "ServerSettings",
    "StreamBatcher",
    "__version__",
]

_HOME = {
    "BatchSettings": "ollamalab.settings",
    "CacheSettings": "ollamalab.settings",
    "Cluster": "ollamalab.cluster",
    "ClusterSettings": "ollamalab.settings",
    "GpuSampler": "ollamalab.gpu",
    "Lab": "ollamalab.lab",
    "LoadGenerator": "ollamalab.loadgen",
    "LoadSettings": "ollamalab.loadgen",
    "OllamaClient": "ollamalab.client",
    "QueueSettings": "ollamalab.settings",
    "RequestQueue": "ollamalab.queueing",
    "ResponseCache": "ollamalab.cache",
    "ServerSettings": "ollamalab.settings",
    "StreamBatcher": "ollamalab.batching",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """List the public names without importing them."""
    return sorted(__all__)
