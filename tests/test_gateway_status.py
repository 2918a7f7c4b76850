"""``/lab/status`` and ``/metrics`` say what the parts counted, in one voice."""

from __future__ import annotations

import json
import logging
from dataclasses import fields, replace

import pytest
from msgspec.structs import replace as altered
from prometheus_client.parser import text_string_to_metric_families

from ollamalab.batching import BatchTally
from ollamalab.cache import CacheStatistics
from ollamalab.cluster import ClusterStatistics, MemberState, MemberStatistics, ReplicaStatistics
from ollamalab.cluster.breaker import BreakerState
from ollamalab.gateway.exposition import Exposition
from ollamalab.gateway.served import Ending, Served
from ollamalab.gateway.status import Snapshot, status_of, status_page
from ollamalab.gateway.traffic import BUCKETS_S, Traffic, log_line
from ollamalab.metrics import summarise
from ollamalab.queueing import ClientStatistics, QueueStatistics
from ollamalab.warmup import Totals, WarmupStatistics

SERVED = Served(
    method="POST",
    path="/api/chat",
    status=200,
    ending=Ending.WHOLE,
    error=None,
    client="alice",
    model="smollm2:135m",
    is_stream=True,
    cache="miss",
    queue_s=0.25,
    first_byte_s=0.5,
    e2e_s=2.0,
    body_bytes=1000,
)
CACHE = CacheStatistics(
    lookups=10,
    hits=4,
    misses=3,
    coalesced=2,
    stale=1,
    bypassed=7,
    stored=3,
    upstream_s_saved=12.5,
    flights=0,
    entries=3,
    bytes=4096,
    evicted=1,
    expired=None,
    errors=0,
)
QUEUE = QueueStatistics(
    total=12,
    completed=6,
    failed=1,
    rejected=1,
    timed_out=1,
    cancelled=1,
    waiting=1,
    active=1,
    peak_waiting=5,
    peak_active=4,
    wait=summarise([0.1, 0.2, 0.3]),
    clients={"alice": ClientStatistics(requests=9, served=8, wait_mean_s=0.2, wait_max_s=0.3, tokens=800.0)},
    limits={"smollm2:135m": 4},
)


def snapshot(traffic: Traffic | None = None, cache: CacheStatistics | None = CACHE) -> Snapshot:
    replica = ReplicaStatistics(
        is_resident=True,
        in_flight=1,
        places=4,
        tokens_per_s=50.0,
        load_s=None,
        breaker=BreakerState.CLOSED,
    )
    member = MemberStatistics(
        name="gpu2",
        url="http://gpu2:11434",
        state=MemberState.UP,
        weight=1,
        requests=20,
        in_flight=1,
        moved=3,
        failures={"timeout": 1, "unavailable": 0, "broken": 0, "status": 2},
        probes=30,
        failed_probes=0,
        models={"smollm2:135m": replica},
    )
    cluster = ClusterStatistics(
        route="round-robin", failovers=3, retries_denied=0, disagreements={}, members=(member,)
    )
    return Snapshot(
        uptime_s=60.0,
        open_connections=3,
        active_requests=2,
        cluster=cluster,
        upstream_connections={"http://gpu2:11434": 4},
        cache=cache,
        queue=QUEUE,
        warmup=None,
        batch="adaptive",
        batched=BatchTally(lines=100, frames=20, bytes=5000),
        traffic=traffic or Traffic(),
    )


def busy() -> Traffic:
    traffic = Traffic()
    for served in (
        SERVED,
        altered(SERVED, cache="hit", first_byte_s=0.0004, e2e_s=0.0006, queue_s=None),
        altered(SERVED, status=503, first_byte_s=0.001),
        altered(SERVED, status=None, ending=Ending.CLIENT_GONE, first_byte_s=None),
    ):
        traffic.observe(served)
    return traffic


def samples(page: Snapshot) -> dict[str, float]:
    """Return the page as Prometheus reads it: name and labels to number."""
    content_type, body = Exposition(lambda: page).page()
    assert content_type.startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(body.decode()):
        assert family.documentation, family.name
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


class TestStatus:
    def test_it_shows_what_pays(self) -> None:
        status = status_of(snapshot(busy()))
        assert status["cache"]["hit_ratio"] == 0.4
        assert status["cache"]["spared_ratio"] == 0.7
        assert status["cache"]["upstream_s_saved"] == 12.5
        assert status["queue"]["clients"]["alice"]["wait_max_s"] == 0.3
        assert status["queue"]["limits"] == {"smollm2:135m": 4}
        assert status["batch"] == {
            "mode": "adaptive",
            "lines": 100,
            "frames": 20,
            "bytes": 5000,
            "lines_per_frame": 5.0,
        }
        assert status["failovers"] == 3

    def test_requests_are_counted_once_by_status_and_by_ending(self) -> None:
        requests = status_of(snapshot(busy()))["requests"]
        assert requests == {
            "total": 4,
            "by_status": {"200": 2, "503": 1, "none": 1},
            "by_ending": {"whole": 3, "client_gone": 1},
        }

    def test_an_upstream_says_how_it_does(self) -> None:
        (upstream,) = status_of(snapshot())["upstreams"]
        assert (upstream["name"], upstream["requests"], upstream["open_connections"]) == ("gpu2", 20, 4)
        assert upstream["failures"]["status"] == 2

    def test_what_is_not_known_is_null_and_never_zero(self) -> None:
        assert status_of(snapshot(cache=None))["cache"] is None
        idle = replace(CACHE, lookups=0, hits=0)
        status = status_of(replace(snapshot(cache=idle), batched=BatchTally()))
        assert status["cache"]["hit_ratio"] is None
        assert status["cache"]["expired"] is None
        assert status["batch"]["lines_per_frame"] is None
        assert status["queue"]["wait"]["p99"] is None

    def test_the_page_is_json(self) -> None:
        content_type, body = status_page(snapshot(busy()))
        assert content_type.startswith("application/json")
        assert json.loads(body) == status_of(snapshot(busy()))


class TestMetrics:
    def test_counts_carry_their_labels(self) -> None:
        found = samples(snapshot(busy()))
        assert found["ollamalab_requests_total{ending=whole,path=/api/chat,status=200}"] == 2
        assert found["ollamalab_requests_total{ending=client_gone,path=/api/chat,status=none}"] == 1
        assert found["ollamalab_cache_requests_total{result=hit}"] == 4
        assert found["ollamalab_cache_saved_seconds_total{}"] == 12.5
        assert found["ollamalab_queue_requests_total{outcome=rejected}"] == 1
        assert found["ollamalab_queue_places{lane=smollm2:135m}"] == 4
        assert found["ollamalab_upstream_failures_total{kind=timeout,upstream=gpu2}"] == 1
        assert found["ollamalab_batch_frames_total{}"] == 20

    def test_histograms_are_cumulative_and_end_with_everything(self) -> None:
        found = samples(snapshot(busy()))
        name = "ollamalab_first_byte_seconds"
        assert found[f"{name}_bucket{{cache=miss,le=0.25}}"] == 0
        assert found[f"{name}_bucket{{cache=miss,le=0.5}}"] == 1
        assert found[f"{name}_bucket{{cache=miss,le=+Inf}}"] == 1
        assert found[f"{name}_bucket{{cache=hit,le=0.001}}"] == 1
        assert found["ollamalab_e2e_seconds_count{cache=miss}"] == 2
        assert found["ollamalab_e2e_seconds_sum{cache=miss}"] == 4.0
        assert found["ollamalab_queue_wait_seconds_count{}"] == 3

    def test_refusals_do_not_hide_how_long_answers_take(self) -> None:
        """They are counted, and so is what they waited."""
        traffic = Traffic()
        traffic.observe(altered(SERVED, status=503, first_byte_s=0.001, e2e_s=0.001))
        found = samples(snapshot(traffic))
        assert not [name for name in found if name.startswith(("ollamalab_first_byte", "ollamalab_e2e"))]
        assert found["ollamalab_queue_wait_seconds_count{}"] == 1

    def test_what_a_part_cannot_tell_has_no_sample(self) -> None:
        found = samples(snapshot(busy()))
        assert "ollamalab_cache_expired_total{}" not in found
        assert not [name for name in samples(snapshot(cache=None)) if name.startswith("ollamalab_cache")]

    def test_the_ledger_of_warm_models_is_there_whole_and_only_if_it_is_kept(self) -> None:
        values = {field.name: number + 1 for number, field in enumerate(fields(Totals))}
        warm = replace(snapshot(), warmup=WarmupStatistics(totals=Totals(**values), models=()))
        found = {name: value for name, value in samples(warm).items() if "_warmup_" in name}
        assert found == {
            "ollamalab_warmup_preloads_total{}": values["preloads"],
            "ollamalab_warmup_renewals_total{}": values["renewals"],
            "ollamalab_warmup_failures_total{}": values["failures"],
            "ollamalab_warmup_cold_starts_total{outcome=avoided}": values["avoided"],
            "ollamalab_warmup_cold_starts_total{outcome=suffered}": values["suffered"],
            "ollamalab_warmup_load_seconds_total{outcome=avoided}": values["saved_s"],
            "ollamalab_warmup_load_seconds_total{outcome=suffered}": values["suffered_s"],
            "ollamalab_warmup_holds_total{ending=avoided}": values["avoided"],
            "ollamalab_warmup_holds_total{ending=wasted}": values["wasted"],
            "ollamalab_warmup_holds_total{ending=undecided}": values["undecided"],
            "ollamalab_warmup_held_seconds{}": values["held_s"],
            "ollamalab_warmup_wasted_seconds{}": values["wasted_s"],
        }
        assert set(found.values()) == set(values.values())
        assert not [name for name in samples(snapshot()) if "_warmup_" in name]

    def test_each_scrape_is_taken_anew(self) -> None:
        traffic = Traffic()
        exposition = Exposition(lambda: snapshot(traffic))
        assert b'status="200"' not in exposition.page()[1]
        traffic.observe(SERVED)
        assert b'status="200"' in exposition.page()[1]

    def test_buckets_ascend_to_the_load_of_a_large_model(self) -> None:
        assert list(BUCKETS_S) == sorted(set(BUCKETS_S))
        assert BUCKETS_S[-1] == 300


class TestLog:
    def test_a_line_has_keys_and_values(self) -> None:
        assert log_line(SERVED) == (
            "event=request method=POST path=/api/chat status=200 ending=whole model=smollm2:135m "
            "client=alice stream=true cache=miss queue_ms=250.0 first_byte_ms=500.0 e2e_ms=2000.0 bytes=1000"
        )

    def test_what_clients_choose_cannot_forge_a_line_or_a_field(self) -> None:
        line = log_line(altered(SERVED, model="m\nevent=request", client="a status=200", error="x" * 999))
        assert "\n" not in line
        assert 'model="m\\nevent=request"' in line
        assert 'client="a status=200"' in line
        assert len(line) < 600

    @pytest.mark.parametrize(
        ("is_wanted", "cache", "lines"), [(True, "miss", 1), (True, None, 0), (False, "miss", 0)]
    )
    def test_inference_is_logged_where_it_is_wanted(
        self, is_wanted: bool, cache: str | None, lines: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, logger="ollamalab.gateway.traffic"):
            Traffic(logs_requests=is_wanted).observe(altered(SERVED, cache=cache))
        assert len(caplog.records) == lines
