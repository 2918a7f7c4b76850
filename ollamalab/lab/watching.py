"""Watching what a server keeps in memory: the facts behind claims about keep-alive and eviction."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from ollamalab.lab.subject import Subject

_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Residency:
    """Whether a model was loaded, over a stretch of time.

    Attributes:
        watched_s: How long it was watched.
        loaded_s: For how long of it the server listed the model.
        pings: Requests that were sent meanwhile.
        cold_pings: Those that found the model unloaded.
    """

    watched_s: float
    loaded_s: float
    pings: int
    cold_pings: int

    @property
    def loaded_ratio(self) -> float:
        """Share of the time in which the model was loaded."""
        return self.loaded_s / self.watched_s


async def watch_pings(subject: Subject, *, every_s: float, pings: int, keep_alive_s: float) -> Residency:
    """Ping a model at intervals and watch whether it stays loaded in between.

    Args:
        subject: The model; unloaded first.
        every_s: Between two pings.
        pings: How many; the watch ends one interval after the last.
        keep_alive_s: Sent with each ping.
    """
    await subject.unload()
    start_s = before_s = time.perf_counter()
    loaded_s, sent, cold = 0.0, 0, 0
    was_loaded = False
    while (now_s := time.perf_counter()) < start_s + pings * every_s:
        loaded_s += (now_s - before_s) * was_loaded
        before_s = now_s
        was_loaded = await subject.is_loaded()
        if sent < pings and now_s >= start_s + sent * every_s:
            cold += not was_loaded
            sent += 1
            await subject.client.preload(subject.model, keep_alive=keep_alive_s)
        else:
            await asyncio.sleep(_POLL_S)
    return Residency(watched_s=before_s - start_s, loaded_s=loaded_s, pings=sent, cold_pings=cold)


async def default_keep_alive_s(subject: Subject) -> float:
    """Return how long the server keeps the model after a request that does not say, in seconds.

    Read from ``expires_at`` of ``/api/ps``, after an unload: an earlier request's own value would stick.
    """
    await subject.unload()
    await subject.client.preload(subject.model)
    loaded = await subject.loaded()
    expires = datetime.fromisoformat(next(iter(loaded.values()))["expires_at"])
    return (expires - datetime.now(UTC)).total_seconds()
