"""The ``/metrics`` page: what the parts count anyway, read when Prometheus asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from ollamalab import __version__
from ollamalab.cache import CacheStatistics
from ollamalab.cluster import MemberState
from ollamalab.gateway.status import Snapshot
from ollamalab.gateway.traffic import BUCKETS_S, Histogram
from ollamalab.queueing import QueueStatistics
from ollamalab.warmup import Totals

_BOUNDS = (*(f"{bound:g}" for bound in BUCKETS_S), "+Inf")

#: Numbers by the values of their labels: tuples of str, as many as there are labels.
_Samples = Mapping[Any, float | None]


class Exposition:
    """Renders the page.

    Args:
        take: Gives a snapshot.
    """

    def __init__(self, take: Callable[[], Snapshot]) -> None:
        self._take = take
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def page(self) -> tuple[str, bytes]:
        """Return content type and body."""
        return CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Give every metric; what a part cannot tell has no sample."""
        snapshot = self._take()
        yield _gauge("build_info", "Version of the gateway; always 1.", {(__version__,): 1}, ["version"])
        yield _gauge("uptime_seconds", "Since the gateway began to answer.", {(): snapshot.uptime_s})
        yield _gauge("client_connections", "Open connections of clients.", {(): snapshot.open_connections})
        yield _gauge("active_requests", "Requests being answered.", {(): snapshot.active_requests})
        yield from _traffic(snapshot)
        yield from _cluster(snapshot)
        yield from _queue(snapshot.queue)
        if snapshot.cache is not None:
            yield from _cache(snapshot.cache)
        if snapshot.warmup is not None:
            yield from _warmup(snapshot.warmup.totals)
        tally = snapshot.batched
        yield _counter("batch_lines", "Lines of streams that went through a batcher.", {(): tally.lines})
        yield _counter("batch_frames", "Writes that they left in.", {(): tally.frames})
        yield _counter("batch_bytes", "Bytes of them.", {(): tally.bytes})


def _traffic(snapshot: Snapshot) -> Iterator[Metric]:
    traffic = snapshot.traffic
    yield _counter(
        "requests",
        "Requests answered, by endpoint, HTTP status and how the answer ended.",
        traffic.requests,
        ["path", "status", "ending"],
    )
    yield _counter("response_bytes", "Bytes of answers' bodies.", {(): traffic.body_bytes})
    yield _histograms(
        "first_byte_seconds", "From an inference request's arrival to the first byte.", traffic.first_byte
    )
    yield _histograms("e2e_seconds", "From an inference request's arrival to its end.", traffic.e2e)
    queue_wait = HistogramMetricFamily("ollamalab_queue_wait_seconds", "Waited in the gateway's queue.")
    queue_wait.add_metric([], _buckets(traffic.queue_wait), traffic.queue_wait.sum_s)
    yield queue_wait


def _cluster(snapshot: Snapshot) -> Iterator[Metric]:
    cluster, connections = snapshot.cluster, snapshot.upstream_connections
    members = [member for member in cluster.members if member.state is not MemberState.LEAVING]
    label = ["upstream"]
    yield _counter("failovers", "Requests sent once more, to another upstream.", {(): cluster.failovers})
    yield _counter(
        "retries_denied", "Requests that were not, since too many were.", {(): cluster.retries_denied}
    )
    yield _gauge(
        "upstream_up",
        "Whether it answers.",
        {(member.name,): member.state is not MemberState.DOWN for member in members},
        label,
    )
    yield _counter(
        "upstream_requests",
        "Requests sent to it.",
        {(member.name,): member.requests for member in members},
        label,
    )
    yield _counter(
        "upstream_moved",
        "Requests sent to it first, and then to another.",
        {(member.name,): member.moved for member in members},
        label,
    )
    yield _counter(
        "upstream_failures",
        "Requests that it gave no good answer to, by what went wrong.",
        {(member.name, kind): count for member in members for kind, count in member.failures.items()},
        [*label, "kind"],
    )
    yield _gauge(
        "upstream_in_flight",
        "Requests that it is answering.",
        {(member.name,): member.in_flight for member in members},
        label,
    )
    yield _gauge(
        "upstream_connections",
        "Open connections to it.",
        {(member.name,): connections.get(member.url, 0) for member in members},
        label,
    )
    yield _gauge(
        "replica_tokens_per_second",
        "Of one answer lately, by upstream and model, the reading of its prompt included.",
        {
            (member.name, model): replica.tokens_per_s
            for member in members
            for model, replica in member.models.items()
        },
        [*label, "model"],
    )


def _queue(queue: QueueStatistics) -> Iterator[Metric]:
    outcomes = ("completed", "failed", "rejected", "timed_out", "cancelled")
    yield _counter(
        "queue_requests",
        "Requests that are over, by how they left the queue or their place.",
        {(outcome,): getattr(queue, outcome) for outcome in outcomes},
        ["outcome"],
    )
    yield _gauge("queue_waiting", "Requests that wait.", {(): queue.waiting})
    yield _gauge("queue_active", "Requests that hold a place at an upstream.", {(): queue.active})
    yield _gauge("queue_peak_waiting", "Most requests that waited at once.", {(): queue.peak_waiting})
    yield _gauge("queue_peak_active", "Most places in use at once.", {(): queue.peak_active})
    yield _gauge(
        "queue_places",
        "Places of a lane, set or learnt.",
        {(lane,): places for lane, places in queue.limits.items()},
        ["lane"],
    )


def _cache(cache: CacheStatistics) -> Iterator[Metric]:
    results = {
        ("hit",): cache.hits,
        ("miss",): cache.misses,
        ("coalesced",): cache.coalesced,
        ("stale",): cache.stale,
        ("bypass",): cache.bypassed,
    }
    yield _counter("cache_requests", "Requests, by what the cache did.", results, ["result"])
    yield _counter("cache_stored", "Answers handed to the store.", {(): cache.stored})
    yield _counter("cache_evicted", "Answers removed to make room.", {(): cache.evicted})
    yield _counter("cache_expired", "Answers removed because their time was over.", {(): cache.expired})
    yield _counter("cache_store_errors", "Calls that the store's backend failed.", {(): cache.errors})
    yield _counter(
        "cache_saved_seconds", "Upstream time that hits would have taken.", {(): cache.upstream_s_saved}
    )
    yield _gauge("cache_entries", "Answers in the store.", {(): cache.entries})
    yield _gauge("cache_size_bytes", "Size of the answers in the store.", {(): cache.bytes})
    yield _gauge("cache_flights", "Upstream calls running for the cache.", {(): cache.flights})


def _warmup(totals: Totals) -> Iterator[Metric]:
    yield _counter("warmup_preloads", "Models loaded before they were asked for.", {(): totals.preloads})
    yield _counter("warmup_renewals", "Stays in memory prolonged.", {(): totals.renewals})
    yield _counter("warmup_failures", "Loads and renewals that failed.", {(): totals.failures})
    yield _counter(
        "warmup_cold_starts",
        "Requests that would have waited for a load: avoided, or suffered.",
        {("avoided",): totals.avoided, ("suffered",): totals.suffered},
        ["outcome"],
    )
    yield _counter(
        "warmup_load_seconds",
        "Seconds of those loads, where they are known.",
        {("avoided",): totals.saved_s, ("suffered",): totals.suffered_s},
        ["outcome"],
    )
    holds = {"avoided": totals.avoided, "wasted": totals.wasted, "undecided": totals.undecided}
    yield _counter(
        "warmup_holds",
        "Times that a model was in memory only because of the gateway, by what came of it.",
        {(ending,): count for ending, count in holds.items()},
        ["ending"],
    )
    # No counters: an unload that is seen late takes back what was counted meanwhile.
    yield _gauge(
        "warmup_held_seconds", "How long that was in all, those of now included.", {(): totals.held_s}
    )
    yield _gauge("warmup_wasted_seconds", "Of these, those of no use.", {(): totals.wasted_s})


def _counter(name: str, text: str, samples: _Samples, labels: list[str] | None = None) -> Metric:
    return _filled(CounterMetricFamily(f"ollamalab_{name}", text, labels=labels or []), samples)


def _gauge(name: str, text: str, samples: _Samples, labels: list[str] | None = None) -> Metric:
    return _filled(GaugeMetricFamily(f"ollamalab_{name}", text, labels=labels or []), samples)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, samples: _Samples) -> Metric:
    for values, number in samples.items():
        if number is not None:
            family.add_metric(list(values), number)
    return family


def _histograms(name: str, text: str, histograms: Mapping[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(f"ollamalab_{name}", text, labels=["cache"])
    for cache, histogram in histograms.items():
        family.add_metric([cache], _buckets(histogram), histogram.sum_s)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    return list(zip(_BOUNDS, accumulate(histogram.counts), strict=True))
