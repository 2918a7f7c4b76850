"""Energy of a stretch of time from the GPUs' own counters; per token and per request.

The counter of a GPU is renewed every 20 to 100 ms, so that each end of a window is uncertain by what it
draws in that time. A window therefore has to last 200 times as long as the counter stands still, and at
least 10 s; shorter ones have no energy, and a reason. Power that was sampled is never added up: on
some chips the driver averages over a quarter of the time only (arXiv 2312.02741).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from ollamalab.metrics.load import completed, measured, run_window_s
from ollamalab.metrics.timing import output_tokens
from ollamalab.records import RequestRecord, Sample

LEAST_WINDOW_S = 10.0  #: of a load
LEAST_IDLE_S = 30.0  #: of idling, before and after a load
REFRESHES = 200  #: of the counter that a window lasts at least: at most 1 % of uncertainty

_LEAST_MOVES = 3

CounterReading = tuple[float, float]
"""When a counter was read, in seconds, and its joules."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    """What was drawn in a window.

    Attributes:
        energy_j: Joules; None if the counter cannot carry it.
        window_s: How long the window is.
        refresh_s: For how long the counter was seen to stand still; None if that could not be seen.
        reason: Why there is none; None if there is.
    """

    energy_j: float | None
    window_s: float
    refresh_s: float | None
    reason: str | None

    @property
    def mean_w(self) -> float | None:
        """Mean power over the window; None without energy."""
        return None if self.energy_j is None else self.energy_j / self.window_s


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadEnergy:
    """What a load of requests drew; of all GPUs that were sampled.

    Attributes:
        total: From the first send to the last end.
        per_token_j: Total / output tokens of completed requests.
        above_idle_per_token_j: The same without what the GPUs draw when idle; None if that is not known.
        per_request_j: Total / completed requests; None if more than one was ever in flight, since a request
            in a batch has no energy of its own.
        tokens: Output tokens of completed requests.
        failed_tokens: Of the others: their energy is in the total.
        reasons: Why values are None, one line each.
    """

    total: Energy
    per_token_j: float | None
    above_idle_per_token_j: float | None
    per_request_j: float | None
    tokens: int
    failed_tokens: int
    reasons: tuple[str, ...]


def counter_refresh_s(readings: Sequence[CounterReading]) -> float | None:
    """Return the median time between readings at which a counter had moved; None under 3 moves.

    It is at least the sampling interval: what is renewed more often than it is read looks so.
    """
    moved = [readings[0][0]] if readings else []
    moved += [after[0] for before, after in pairwise(readings) if after[1] != before[1]]
    gaps = [after - before for before, after in pairwise(moved)]
    return median(gaps) if len(gaps) >= _LEAST_MOVES else None


def window_energy(
    readings: Sequence[CounterReading],
    start_s: float,
    end_s: float,
    *,
    least_s: float = LEAST_WINDOW_S,
) -> Energy:
    """Return the energy that one GPU drew between two moments.

    Counter at the end − counter at the start, each interpolated between the readings round it.

    Args:
        readings: In order of time, from before the start to after the end.
        start_s: On the clock of the readings.
        end_s: Likewise.
        least_s: Shortest window, whatever the counter's refresh.
    """
    window_s = end_s - start_s
    refresh_s = counter_refresh_s(readings)

    def without(reason: str) -> Energy:
        return Energy(energy_j=None, window_s=window_s, refresh_s=refresh_s, reason=reason)

    if not readings or readings[0][0] > start_s or readings[-1][0] < end_s:
        return without("the energy counter was not read over the whole window")
    if any(after[1] < before[1] for before, after in pairwise(readings)):
        return without("the energy counter fell: was the driver loaded again?")
    if refresh_s is None:
        return without("the energy counter hardly moved")
    (start_j, start_gap_s), (end_j, end_gap_s) = _at(readings, start_s), _at(readings, end_s)
    needed_s = max(least_s, REFRESHES * max(refresh_s, start_gap_s, end_gap_s))
    if window_s < needed_s:
        return without(
            f"{window_s:.1f} s are too short: an energy counter that moves every {refresh_s * 1e3:.0f} ms "
            f"needs {needed_s:.0f} s"
        )
    return Energy(energy_j=end_j - start_j, window_s=window_s, refresh_s=refresh_s, reason=None)


def _at(readings: Sequence[CounterReading], moment_s: float) -> tuple[float, float]:
    """Return the joules at a moment, and the time between the readings round it."""
    for (before_s, before_j), (after_s, after_j) in pairwise(readings):
        if after_s >= moment_s:
            gap_s = after_s - before_s
            share = (moment_s - before_s) / gap_s if gap_s else 0.0
            return before_j + share * (after_j - before_j), gap_s
    return readings[-1][1], 0.0


def gpus_energy(
    samples: Iterable[Sample], start_s: float, end_s: float, *, least_s: float = LEAST_WINDOW_S
) -> Energy:
    """Return the energy of all GPUs that were sampled; None if one of them cannot tell, with its reason.

    Args:
        samples: ``energy_j`` of sources "gpu0", "gpu1" ...; MIG instances have no counter of their own.
        start_s: On the clock of the samples.
        end_s: Likewise.
        least_s: Shortest window.
    """
    counters: dict[str, list[CounterReading]] = {}
    for sample in samples:
        joules = sample.values.get("energy_j")
        if sample.source.startswith("gpu") and joules is not None:
            counters.setdefault(sample.source, []).append((sample.at_s, joules))
    parts = {
        source: window_energy(sorted(readings), start_s, end_s, least_s=least_s)
        for source, readings in sorted(counters.items())
    }
    refreshes = [part.refresh_s for part in parts.values() if part.refresh_s is not None]
    drawn_j = [part.energy_j for part in parts.values() if part.energy_j is not None]
    reason = next((f"{source}: {part.reason}" for source, part in parts.items() if part.reason), None)
    if not parts:
        reason = "no GPU with an energy counter was sampled"
    return Energy(
        energy_j=None if reason else sum(drawn_j),
        window_s=end_s - start_s,
        refresh_s=max(refreshes, default=None),
        reason=reason,
    )


def idle_power_w(samples: Iterable[Sample], start_s: float, end_s: float) -> tuple[float | None, str | None]:
    """Return the mean power of all GPUs over at least 30 s of idling; None with the reason."""
    idle = gpus_energy(samples, start_s, end_s, least_s=LEAST_IDLE_S)
    return idle.mean_w, idle.reason


def load_energy(
    samples: Iterable[Sample], records: Iterable[RequestRecord], *, idle_w: float | None = None
) -> LoadEnergy:
    """Return what a load drew, per token and per request.

    Args:
        samples: Of the GPUs, from before the first send to after the last end.
        records: Of the load; warm-up is left out, and belongs outside the window.
        idle_w: What the GPUs draw together when idle (``idle_power_w``); None if that is not known.
    """
    counted = measured(records)
    done = completed(counted)
    window = run_window_s(counted)
    total = (
        gpus_energy(samples, *window)
        if window
        else Energy(energy_j=None, window_s=0.0, refresh_s=None, reason="no request was sent")
    )
    tokens = sum(map(output_tokens, done))
    joules = total.energy_j
    at_once = most_in_flight(counted)
    above_j = None if joules is None or idle_w is None else joules - idle_w * total.window_s
    reasons = [total.reason] if total.reason else []
    if at_once > 1:
        reasons.append(f"no energy of a request: {at_once} were in flight at once")
    if idle_w is None:
        reasons.append("nothing above idle: what the GPUs draw when idle was not measured")
    if not tokens:
        reasons.append("no energy of a token: no request was completed")
    return LoadEnergy(
        total=total,
        per_token_j=_per(joules, tokens),
        above_idle_per_token_j=_per(above_j, tokens),
        per_request_j=_per(joules, len(done)) if at_once <= 1 else None,
        tokens=tokens,
        failed_tokens=sum(map(output_tokens, counted)) - tokens,
        reasons=tuple(reasons),
    )


def most_in_flight(records: Iterable[RequestRecord]) -> int:
    """Return how many requests were under way at once, at most."""
    changes = [
        change
        for record in records
        if record.sent_s is not None and record.end_s is not None
        for change in ((record.sent_s, 1), (record.end_s, -1))
    ]
    most = now = 0
    for _, step in sorted(changes):  # at equal moments an end counts before a start
        now += step
        most = max(most, now)
    return most


def _per(joules: float | None, count: int) -> float | None:
    return None if joules is None or not count else joules / count
