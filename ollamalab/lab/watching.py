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
        watched_s: How long it was watched, from the end of each ping to the next one.
        loaded_s: For how long of it the server listed the model.
        pings: Requests that were sent.
        cold_pings: Those that found the model unloaded; the first always does.
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

    Intervals begin when a ping has been answered, as keep-alives do: the load of a large model can take
    longer than an interval.

    Args:
        subject: The model; unloaded first.
        every_s: From the end of a ping to the next; > 0.
        pings: How many, at least 1; the watch ends one interval after the last.
        keep_alive_s: Sent with each ping.
    """
    await subject.unload()
    watched_s, loaded_s, cold = 0.0, 0.0, 0
    for _ in range(pings):
        cold += not await subject.is_loaded()
        await subject.client.preload(subject.model, keep_alive=keep_alive_s)
        start_s = before_s = time.perf_counter()
        while before_s < start_s + every_s:
            await asyncio.sleep(_POLL_S)
            is_loaded = await subject.is_loaded()
            now_s = time.perf_counter()
            loaded_s += (now_s - before_s) * is_loaded
            before_s = now_s
        watched_s += before_s - start_s
    return Residency(watched_s=watched_s, loaded_s=loaded_s, pings=pings, cold_pings=cold)


async def default_keep_alive_s(subject: Subject) -> float:
    """Return how long the server keeps the model after a request that does not say, in seconds.

    Read from ``expires_at`` of ``/api/ps``, after an unload: an earlier request's own value would stick.
    The server's clock and ours have to agree. 0 if the model is gone at once.
    """
    await subject.unload()
    await subject.client.preload(subject.model)
    entry = await subject.listing()
    if entry is None:
        return 0.0
    return (datetime.fromisoformat(entry["expires_at"]) - datetime.now(UTC)).total_seconds()
