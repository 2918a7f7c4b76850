"""Whether the client itself was fit to measure.

A load generator that is out of breath puts its own delay into every number. So each run carries how
busy the client was, how late its event loop ran and how late it sent, and says *unfit* when a rule
says that the client, not the server, may have been the bottleneck.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ollamalab.metrics import percentile

#: One thread does the work, so near one core nothing is left; queueing in it explodes before 1.0.
MAX_CPU_RATIO = 0.9
#: Median of send - planned send; the limit inference-perf asks of itself.
MAX_SEND_LAG_S = 0.010
#: A stamp can be late by as much as the loop ran late. 6 ms at p99 is what the instrument is proven
#: to at 64 streams, so less is never held against a run ...
LOOP_LAG_FLOOR_S = 0.006
#: ... and more only when it is a visible part of what is measured: effects of a tenth are named.
MAX_LOOP_LAG_SHARE = 0.1

_INTERVAL_S = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Lag:
    """How late something happened, in seconds; a bound for errors, so shown for small n too.

    Attributes:
        p50: Median.
        p99: 99th percentile; with few values close to the maximum.
        max: Largest.
        n: How many values.
    """

    p50: float
    p99: float
    max: float
    n: int


def lag_of(values: Sequence[float]) -> Lag | None:
    """Return the lag's summary; None without values."""
    if not values:
        return None
    return Lag(p50=percentile(values, 0.5), p99=percentile(values, 0.99), max=max(values), n=len(values))


@dataclass(frozen=True, kw_only=True, slots=True)
class InstrumentHealth:
    """How the client fared during a run.

    Attributes:
        cpu_ratio: CPU time of this process / wall time; 1.0 is one core, more with threads.
        loop_lag_s: How late the event loop ran a timer that was due.
        send_lag_s: Send - planned send, of open-loop requests; None in a closed loop.
        load_average: 1, 5 and 15 minutes, at the end.
        reasons: Why the run is unfit, one sentence each; empty if it is fit.
    """

    cpu_ratio: float
    loop_lag_s: Lag | None
    send_lag_s: Lag | None
    load_average: tuple[float, float, float]
    reasons: tuple[str, ...]

    @property
    def fit(self) -> bool:
        """Whether nothing speaks against the run's numbers."""
        return not self.reasons


def reasons_unfit(
    *, cpu_ratio: float, loop_lag_s: Lag | None, send_lag_s: Lag | None, median_ttft_s: float | None
) -> tuple[str, ...]:
    """Return why the client was the bottleneck, one sentence per rule broken.

    Args:
        cpu_ratio: CPU time / wall time of the client.
        loop_lag_s: Lateness of the event loop.
        send_lag_s: Lateness of the sends; None in a closed loop.
        median_ttft_s: What the loop's lateness is set against; None if no token came.
    """
    reasons = []
    if cpu_ratio > MAX_CPU_RATIO:
        reasons.append(f"the client used {cpu_ratio:.0%} of one core (limit {MAX_CPU_RATIO:.0%})")
    if send_lag_s is not None and send_lag_s.p50 > MAX_SEND_LAG_S:
        reasons.append(
            f"half of the requests left more than {send_lag_s.p50 * 1e3:.0f} ms after their planned moment "
            f"(limit {MAX_SEND_LAG_S * 1e3:.0f} ms)"
        )
    if loop_lag_s is not None and median_ttft_s is not None:
        limit_s = max(LOOP_LAG_FLOOR_S, MAX_LOOP_LAG_SHARE * median_ttft_s)
        if loop_lag_s.p99 > limit_s:
            reasons.append(
                f"the client's event loop ran up to {loop_lag_s.p99 * 1e3:.0f} ms late at p99 "
                f"(limit {limit_s * 1e3:.0f} ms)"
            )
    return tuple(reasons)


class HealthMonitor:
    """Watches the running loop and this process; used with ``async with``."""

    def __init__(self) -> None:
        self._lags_s: list[float] = []
        self._cpu_s = self._wall_s = 0.0
        self._sampler: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()
        self._sampler = asyncio.create_task(self._sample())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cpu_s = time.process_time() - self._cpu_s
        self._wall_s = time.perf_counter() - self._wall_s
        if self._sampler is not None:
            self._sampler.cancel()
            await asyncio.gather(self._sampler, return_exceptions=True)

    def health(self, *, send_lags_s: Sequence[float], median_ttft_s: float | None) -> InstrumentHealth:
        """Return the verdict; called after the watch has ended.

        Args:
            send_lags_s: Of an open loop's requests; empty for a closed loop.
            median_ttft_s: Of the run; None if no token came.
        """
        cpu_ratio = self._cpu_s / self._wall_s
        loop_lag_s, send_lag_s = lag_of(self._lags_s), lag_of(send_lags_s)
        return InstrumentHealth(
            cpu_ratio=cpu_ratio,
            loop_lag_s=loop_lag_s,
            send_lag_s=send_lag_s,
            load_average=os.getloadavg(),
            reasons=reasons_unfit(
                cpu_ratio=cpu_ratio,
                loop_lag_s=loop_lag_s,
                send_lag_s=send_lag_s,
                median_ttft_s=median_ttft_s,
            ),
        )

    async def _sample(self) -> None:
        due_s = time.perf_counter() + _INTERVAL_S
        while True:
            await asyncio.sleep(due_s - time.perf_counter())
            now_s = time.perf_counter()
            self._lags_s.append(max(0.0, now_s - due_s))
            # After a long stall the missed beats would all count as late: one stall is one value.
            due_s = max(due_s + _INTERVAL_S, now_s)
