"""What a load did: throughput, rates, success, goodput and concurrency over many records.

Warm-up records are left out of every figure. Latencies are those of *completed* requests (outcome
``ok``); failures have their own rows, and the success ratio stands beside every latency. The *run*
lasts from the first send to the last end of the measured requests.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ollamalab.errors import SettingsError
from ollamalab.metrics.summary import (
    PERCENTILES,
    Share,
    Summary,
    design_effect,
    summarise,
    wilson_share,
)
from ollamalab.metrics.timing import output_tokens, planned_ttft_s, response_s, token_gaps_s, tpot_s
from ollamalab.records import Outcome, RequestRecord

#: Above this share of chunks that shared a read, gaps between tokens say nothing.
MAX_SHARED_READ_RATIO = 0.05


def measured(records: Iterable[RequestRecord]) -> list[RequestRecord]:
    """Return the records that count: all but the warm-up."""
    return [record for record in records if not record.warmup]


def completed(records: Iterable[RequestRecord]) -> list[RequestRecord]:
    """Return the measured records that ended well."""
    return [record for record in measured(records) if record.outcome is Outcome.OK]


def summarise_requests(
    records: Iterable[RequestRecord],
    metric: Callable[[RequestRecord], float | None],
    *,
    inflation: Mapping[float, float] | None = None,
) -> Summary:
    """Return the summary of one metric over the completed requests.

    Args:
        records: Of one run or one arm.
        metric: One value per request, such as ``ttft_s``; None is left out.
        inflation: See ``summarise``; for an open loop ``md1_inflation`` of its load.
    """
    return summarise(map(metric, completed(records)), inflation=inflation)


def shared_read_ratio(records: Iterable[RequestRecord]) -> float | None:
    """Return the share of content chunks that came in the same read as an earlier one."""
    done = completed(records)
    chunks = sum(len(record.token_times_s) for record in done)
    return sum(record.shared_reads for record in done) / chunks if chunks else None


def summarise_gaps(records: Iterable[RequestRecord]) -> Summary:
    """Return the summary of inter-token latency: the gaps of all completed requests, pooled.

    n counts gaps, but gaps of one request go together: each percentile needs its least n after
    division by the design effect between requests. Where more than 5 % of the chunks shared a read,
    the gaps are the client's, not the server's: the summary is empty (n = 0).
    """
    done = completed(records)
    shared = shared_read_ratio(done)
    if shared is None or shared > MAX_SHARED_READ_RATIO:
        return summarise(())
    groups = [token_gaps_s(record) for record in done]
    inflation = {share: design_effect(groups, share) for share in PERCENTILES}
    return summarise((gap for group in groups for gap in group), inflation=inflation)


def outcome_counts(records: Iterable[RequestRecord]) -> dict[Outcome, int]:
    """Return how many measured requests ended in each outcome; those that did not occur are 0."""
    counts = Counter(record.outcome for record in measured(records))
    return {outcome: counts[outcome] for outcome in Outcome}


def success_share(records: Iterable[RequestRecord], *, planned: int | None = None) -> Share:
    """Return completed requests as a share of the *planned* ones, with its Wilson interval.

    Args:
        records: Of one run or one arm.
        planned: How many the plan had, without warm-up; None if every planned one left a record.
    """
    counted = measured(records)
    return wilson_share(len(completed(counted)), len(counted) if planned is None else planned)


def run_window_s(records: Iterable[RequestRecord]) -> tuple[float, float] | None:
    """Return first send and last end of the measured requests; None if nothing was sent or ended."""
    counted = measured(records)
    sent = [record.sent_s for record in counted if record.sent_s is not None]
    ended = [record.end_s for record in counted if record.end_s is not None]
    return (min(sent), max(ended)) if sent and ended else None


def run_s(records: Iterable[RequestRecord]) -> float | None:
    """Return how long the run took: first send to last end, in seconds."""
    window = run_window_s(records)
    return window[1] - window[0] if window else None


def output_tokens_per_s(records: Iterable[RequestRecord]) -> float | None:
    """Return output tokens of completed requests / run seconds; failed requests' tokens do not count."""
    counted = measured(records)
    return _per_run_second(sum(map(output_tokens, completed(counted))), counted)


def completed_rps(records: Iterable[RequestRecord]) -> float | None:
    """Return completed requests / run seconds."""
    counted = measured(records)
    return _per_run_second(len(completed(counted)), counted)


def _per_run_second(amount: int, counted: Sequence[RequestRecord]) -> float | None:
    seconds = run_s(counted)
    return amount / seconds if seconds else None


def achieved_rps(records: Iterable[RequestRecord]) -> float | None:
    """Return the rate at which requests were really sent: (n - 1) / (last send - first send)."""
    sent = [record.sent_s for record in measured(records) if record.sent_s is not None]
    span_s = max(sent) - min(sent) if sent else 0.0
    return (len(sent) - 1) / span_s if span_s > 0 else None


@dataclass(frozen=True, kw_only=True)
class Slo:
    """Limits that a good request keeps, in seconds; those that are None do not count.

    Times count from the planned send, so that a request which waited in the client is not good.
    """

    ttft_s: float | None = None  #: planned send to first token
    tpot_s: float | None = None  #: per token after the first
    response_s: float | None = None  #: planned send to final line

    def __post_init__(self) -> None:
        limits = {"ttft_s": self.ttft_s, "tpot_s": self.tpot_s, "response_s": self.response_s}
        if all(limit is None for limit in limits.values()):
            raise SettingsError("an SLO needs at least one of ttft_s, tpot_s and response_s")
        for name, limit in limits.items():
            if limit is not None and not limit > 0:
                raise SettingsError(f"SLO {name} must be > 0 seconds, got {limit!r}")

    def is_met(self, record: RequestRecord) -> bool:
        """Whether the request completed within every limit; a value that is missing is not within."""
        checks = (
            (self.ttft_s, planned_ttft_s),
            (self.tpot_s, tpot_s),
            (self.response_s, response_s),
        )
        for limit, metric in checks:
            if limit is None:
                continue
            value = metric(record)
            if value is None or value > limit:
                return False
        return record.outcome is Outcome.OK


@dataclass(frozen=True, kw_only=True, slots=True)
class Goodput:
    """Requests that met an SLO: per second of the run, and as a share of the planned ones.

    The rate alone could be raised by dropping late requests; the share tells.
    """

    rps: float | None
    share: Share


def goodput(records: Iterable[RequestRecord], slo: Slo, *, planned: int | None = None) -> Goodput:
    """Return how many requests met the SLO, per second and of those planned.

    Args:
        records: Of one run or one arm.
        slo: The limits.
        planned: How many the plan had, without warm-up; None if every planned one left a record.
    """
    counted = measured(records)
    good = sum(map(slo.is_met, counted))
    share = wilson_share(good, len(counted) if planned is None else planned)
    return Goodput(rps=_per_run_second(good, counted), share=share)


def decoding_shares(records: Iterable[RequestRecord]) -> tuple[float, ...]:
    """Return for which share of the run 0, 1, 2 ... requests were decoding at once.

    A request decodes between its first and its last token. Requests of the warm-up that reach into
    the run count too, as an exception: they do occupy the server.

    Returns:
        Shares of time that add up to 1, index = number of requests; empty without a run.
    """
    everything = list(records)
    window = run_window_s(everything)
    if window is None or window[0] >= window[1]:
        return ()
    start_s, end_s = window
    steps: list[tuple[float, int]] = []
    for record in everything:
        if record.first_token_s is not None and record.last_token_s is not None:
            first_s, last_s = max(start_s, record.first_token_s), min(end_s, record.last_token_s)
            if first_s < last_s:
                steps += [(first_s, 1), (last_s, -1)]
    lasted_s: defaultdict[int, float] = defaultdict(float)
    running, since_s = 0, start_s
    # An end sorts before a start at the same moment: taking turns is not overlapping.
    for at_s, change in sorted(steps):
        lasted_s[running] += at_s - since_s
        running, since_s = running + change, at_s
    lasted_s[running] += end_s - since_s
    most = max(count for count, seconds in lasted_s.items() if seconds > 0)
    return tuple(lasted_s[count] / (end_s - start_s) for count in range(most + 1))
