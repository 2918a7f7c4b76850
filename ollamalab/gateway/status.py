"""What the gateway is doing and what it has saved: the ``/lab/status`` page. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ollamalab import __version__
from ollamalab.batching import BatchTally
from ollamalab.cache import CacheStatistics
from ollamalab.cluster import ClusterStatistics, MemberStatistics
from ollamalab.gateway.traffic import Traffic
from ollamalab.queueing import QueueStatistics
from ollamalab.warmup import WarmupStatistics

JSON_TYPE = "application/json; charset=utf-8"


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Everything that the gateway's parts count, at one moment.

    Attributes:
        uptime_s: Since it began to answer.
        open_connections: Of clients.
        active_requests: Being answered.
        cluster: Who answers.
        upstream_connections: Kept to upstreams, idle ones included, by address.
        cache: None without a cache.
        queue: Who waits.
        warmup: What keeping models in memory has saved and cost; None if none are kept.
        batch: How lines are grouped, as ``--batch`` writes it.
        batched: What went through the batchers.
        traffic: What was answered.
    """

    uptime_s: float
    open_connections: int
    active_requests: int
    cluster: ClusterStatistics
    upstream_connections: Mapping[str, int]
    cache: CacheStatistics | None
    queue: QueueStatistics
    warmup: WarmupStatistics | None
    batch: str
    batched: BatchTally
    traffic: Traffic


def status_page(snapshot: Snapshot) -> tuple[str, bytes]:
    """Return content type and body of ``/lab/status``."""
    return JSON_TYPE, msgspec.json.format(msgspec.json.encode(status_of(snapshot)), indent=2) + b"\n"


def status_of(snapshot: Snapshot) -> dict[str, Any]:
    """Return the page as JSON values; seconds, bytes and shares of 1, null for what is not known."""
    return {
        "version": __version__,
        "uptime_s": round(snapshot.uptime_s, 3),
        "open_connections": snapshot.open_connections,
        "active_requests": snapshot.active_requests,
        "requests": _requests(snapshot.traffic),
        "upstreams": [
            _upstream(member, snapshot.upstream_connections) for member in snapshot.cluster.members
        ],
        "route": snapshot.cluster.route,
        "failovers": snapshot.cluster.failovers,
        "retries_denied": snapshot.cluster.retries_denied,
        "disagreements": snapshot.cluster.disagreements,
        "cache": None if snapshot.cache is None else _cache(snapshot.cache),
        "queue": msgspec.to_builtins(snapshot.queue),
        "warmup": None if snapshot.warmup is None else msgspec.to_builtins(snapshot.warmup),
        "batch": _batch(snapshot.batch, snapshot.batched),
    }


def _requests(traffic: Traffic) -> dict[str, Any]:
    statuses: dict[str, int] = {}
    endings: dict[str, int] = {}
    for (_path, status, ending), count in traffic.requests.items():
        statuses[status] = statuses.get(status, 0) + count
        endings[ending] = endings.get(ending, 0) + count
    return {"total": traffic.requests.total(), "by_status": statuses, "by_ending": endings}


def _upstream(member: MemberStatistics, connections: Mapping[str, int]) -> dict[str, Any]:
    return {**msgspec.to_builtins(member), "open_connections": connections.get(member.url, 0)}


def _cache(cache: CacheStatistics) -> dict[str, Any]:
    """Return the counts with two shares of the lookups: fresh hits, and all that cost no upstream call."""
    spared = cache.hits + cache.coalesced + cache.stale
    return {
        **msgspec.to_builtins(cache),
        "hit_ratio": _ratio(cache.hits, cache.lookups),
        "spared_ratio": _ratio(spared, cache.lookups),
    }


def _batch(mode: str, tally: BatchTally) -> dict[str, Any]:
    return {
        "mode": mode,
        **msgspec.to_builtins(tally),
        "lines_per_frame": _ratio(tally.lines, tally.frames),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
