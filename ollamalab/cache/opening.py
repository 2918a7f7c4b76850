"""Opens the store that a setting names."""

from __future__ import annotations

from ollamalab.cache.memory import MemoryStore
from ollamalab.cache.stores import Store
from ollamalab.errors import SettingsError
from ollamalab.settings import CacheSettings


def open_store(where: str, settings: CacheSettings) -> Store | None:
    """Return the store that ``off`` or ``memory`` names; None for ``off``.

    Raises:
        SettingsError: Another text.
    """
    if where == "off":
        return None
    if where != "memory":
        raise SettingsError(f"cache must be off or memory, got {where!r}")
    return MemoryStore(max_entries=settings.max_entries, max_bytes=settings.max_bytes)
