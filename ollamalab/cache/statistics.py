"""What the cache counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheStatistics:
    """Counts since the cache was made; once nothing is running, the four outcomes add up to ``lookups``.

    What the store cannot tell is None.
    """

    lookups: int  #: requests whose answer might have been there
    hits: int  #: answered with a fresh answer
    misses: int  #: asked the upstream, or would have had to (``only-if-cached``)
    coalesced: int  #: joined another's upstream call
    stale: int  #: answered with an old answer because the upstream failed
    bypassed: int  #: requests in which the cache had no part, or only kept the answer (``no-cache``)
    stored: int  #: answers handed to the store
    upstream_s_saved: float  #: seconds that the upstream took for answers which it then did not give again
    flights: int  #: upstream calls now running for the cache
    entries: int | None  #: answers in the store now
    bytes: int | None  #: taken by them
    evicted: int | None  #: removed to make room
    expired: int | None  #: removed because their time was over
    errors: int | None  #: calls that the store's backend failed
