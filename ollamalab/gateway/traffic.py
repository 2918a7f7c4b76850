"""What the gateway has answered: counts, times by bucket, and a log line for each inference request."""

from __future__ import annotations

import json
import logging
import re
from bisect import bisect_left
from collections import Counter, defaultdict

from ollamalab.gateway.served import Ending, Served

logger = logging.getLogger(__name__)

#: Upper bounds of the buckets, in seconds: from a cache hit to the load of a large model.
BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)

_PLAIN = re.compile(r"[\w.:/@+-]{1,200}", re.ASCII)
_SHOWN_CHARACTERS = 200
_REFUSALS = 400


class Histogram:
    """Counts seconds by bucket, as Prometheus wants them."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)  #: per bucket, not cumulative; the last has no upper bound
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds


class Traffic:
    """Sums up what was served.

    Attributes:
        body_bytes: Bytes of answers' bodies.
        first_byte: Until the first byte of inference answers, by what the cache had to do with them; without
            refusals, a flood of which takes no time and would hide how long answers take.
        e2e: Until their end.
        queue_wait: In our queue, of those that came into it.
    """

    def __init__(self, *, logs_requests: bool = False) -> None:
        self._requests: Counter[tuple[str, int | None, Ending]] = Counter()
        self.body_bytes = 0
        self.first_byte: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.e2e: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.queue_wait = Histogram()
        self._logs_requests = logs_requests

    @property
    def requests(self) -> Counter[tuple[str, str, str]]:
        """Count by path, status ("none" if the client was gone before there was one) and ending."""
        return Counter(
            {
                (path, "none" if status is None else str(status), ending.value): count
                for (path, status, ending), count in self._requests.items()
            }
        )

    def observe(self, served: Served) -> None:
        """Count a request that is over; log it if it was inference and that is wanted."""
        status, cache = served.status, served.cache
        self._requests[served.path, status, served.ending] += 1
        self.body_bytes += served.body_bytes
        if cache is None:
            return
        if status is None or status < _REFUSALS:
            if served.first_byte_s is not None:
                self.first_byte[cache].add(served.first_byte_s)
            self.e2e[cache].add(served.e2e_s)
        if served.queue_s is not None:
            self.queue_wait.add(served.queue_s)
        if self._logs_requests:
            logger.info("%s", log_line(served))


def log_line(served: Served) -> str:
    """Return ``event=request`` and what is known, as key=value; nothing of what was said."""
    fields = {
        "method": served.method,
        "path": served.path,
        "status": served.status,
        "ending": served.ending.value,
        "model": served.model or None,
        "client": served.client or None,
        "stream": str(served.is_stream).lower(),
        "cache": served.cache,
        "queue_ms": _ms(served.queue_s),
        "first_byte_ms": _ms(served.first_byte_s),
        "e2e_ms": _ms(served.e2e_s),
        "bytes": served.body_bytes,
        "error": served.error,
    }
    shown = (f"{name}={_shown(value)}" for name, value in fields.items() if value is not None)
    return " ".join(("event=request", *shown))


def _ms(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds * 1000:.1f}"


def _shown(value: object) -> str:
    """Return a value as it stands, or quoted: clients choose some, and must not forge lines or fields."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text[:_SHOWN_CHARACTERS])
