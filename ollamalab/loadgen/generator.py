"""Offers load and hands back what happened.

*Open loop*: every request leaves at its planned moment, however slow the server is; response times
count from the *plan*, so a server that falls behind cannot hide it (coordinated omission).
*Closed loop*: a fixed number of clients, each sending its next request when the last has ended.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from ollamalab.loadgen.health import HealthMonitor, InstrumentHealth
from ollamalab.loadgen.run import RequestOf, Run
from ollamalab.loadgen.settings import LoadSettings
from ollamalab.metrics import completed, measured, send_lag_s, streamed_tokens, ttft_s
from ollamalab.protocol.upstream import Request, Upstream
from ollamalab.records import Outcome, RequestRecord


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """What a run of load did.

    Attributes:
        settings: How it was offered.
        records: One per offered request, in the order of the plan; warm-up included.
        planned: Requests that the plan had, without warm-up; None when a duration decided.
        health: Whether the client was fit to measure.
        is_complete: False if the run was stopped before its plan was through.
    """

    settings: LoadSettings
    records: tuple[RequestRecord, ...]
    planned: int | None
    health: InstrumentHealth
    is_complete: bool

    @property
    def short_replies(self) -> int:
        """Measured replies that ended before the output length that was asked for."""
        return sum(
            record.requested_tokens is not None and streamed_tokens(record) < record.requested_tokens
            for record in completed(self.records)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadProgress:
    """How far a run is.

    Attributes:
        planned: Requests in all, warm-up included; None when a duration decides.
        offered: Sent so far.
        ended: Ended, in whatever way.
        failed: Ended otherwise than ``ok``.
        elapsed_s: Since the start.
    """

    planned: int | None
    offered: int
    ended: int
    failed: int
    elapsed_s: float


class LoadGenerator:
    """Offers requests to an Upstream; one run at a time.

    Args:
        upstream: Whatever answers requests.
        target: URL or name of it, for the records.
    """

    def __init__(self, upstream: Upstream, *, target: str) -> None:
        self._upstream = upstream
        self._target = target
        self._run: Run | None = None

    async def run(self, settings: LoadSettings, request_of: RequestOf) -> LoadResult:
        """Offer a load until its plan is through and everything sent has ended.

        ``stop`` hangs up on what is in flight and makes this return what there is; each offered
        request has its record then too. Cancelling this call hangs up as well.

        Args:
            settings: How.
            request_of: Request 0, 1, 2 ...; each prompt should begin with a nonce unless prompt caching
                is the subject (``workload``).

        Raises:
            SettingsError: The plan is impossible.
        """
        run = self._run = Run(self._upstream, settings, request_of, target=self._target)
        async with HealthMonitor() as monitor:
            await run.execute()
        records = tuple(sorted(run.records, key=lambda record: record.index))
        lags_s = [lag for lag in map(send_lag_s, measured(records)) if lag is not None]
        ttfts_s = [value for value in map(ttft_s, measured(records)) if value is not None]
        return LoadResult(
            settings=settings,
            records=records,
            planned=None if run.planned is None else run.planned - settings.warmup,
            health=monitor.health(
                send_lags_s=lags_s if settings.arrivals.is_open else [],
                median_ttft_s=statistics.median(ttfts_s) if ttfts_s else None,
            ),
            is_complete=not run.is_stopped,
        )

    async def sweep(self, levels: Iterable[LoadSettings], request_of: RequestOf) -> list[LoadResult]:
        """Run one load after the other; ``request_of`` sees no number twice. A ``stop`` ends the sweep."""
        results: list[LoadResult] = []
        used = 0
        for settings in levels:
            results.append(await self.run(settings, partial(_shifted, request_of, used)))
            used += len(results[-1].records)
            if not results[-1].is_complete:
                break
        return results

    def stop(self) -> None:
        """Offer nothing more and hang up on what is in flight; ``run`` then returns."""
        if self._run is not None:
            self._run.stop()

    @property
    def progress(self) -> LoadProgress | None:
        """How far the run is; None before the first."""
        if self._run is None:
            return None
        return LoadProgress(
            planned=self._run.planned,
            offered=self._run.offered,
            ended=len(self._run.records),
            failed=sum(record.outcome is not Outcome.OK for record in self._run.records),
            elapsed_s=time.perf_counter() - self._run.start_s,
        )


def _shifted(request_of: RequestOf, by: int, index: int) -> Request:
    return request_of(by + index)
