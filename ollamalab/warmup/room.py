"""Whether another model fits beside those in memory, as far as has been seen. Pure.

Ollama tells neither how many models it may hold nor how much memory it has left. But what it once held
together it can hold again, so that is the bound: a load by us never tries for more, since it might
throw out a model in use.
"""

from __future__ import annotations

from collections.abc import Sequence

from ollamalab.protocol.loaded import LoadedModel


class Room:
    """What one upstream has been seen to hold at once."""

    def __init__(self) -> None:
        self._models = 0
        self._bytes = 0
        self._sizes: dict[str, int] = {}

    def note(self, listed: Sequence[LoadedModel], *, is_full: bool) -> None:
        """Take note of what is in memory now.

        Args:
            listed: Of ``/api/ps``.
            is_full: Whether another model has just made way for one of these: then no more fits.
        """
        held_bytes = sum(model.memory_bytes for model in listed)
        self._sizes.update((model.key, model.memory_bytes) for model in listed)
        if is_full:
            self._models, self._bytes = len(listed), held_bytes
        else:
            self._models = max(self._models, len(listed))
            self._bytes = max(self._bytes, held_bytes)

    def fits(self, key: str, listed: Sequence[LoadedModel]) -> bool:
        """Return whether a model can most likely be loaded without another having to go."""
        if not listed:
            return True
        size_bytes = self._sizes.get(key)
        if size_bytes is None or len(listed) >= self._models:
            return False
        return sum(model.memory_bytes for model in listed) + size_bytes <= self._bytes
