"""What an answer, or its absence, says of the upstream and of the request. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

from ollamalab.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable

_NOT_FOUND, _TOO_MANY, _SERVER_ERROR, _UNAVAILABLE = 404, 429, 500, 503
_SECONDS = re.compile(r"\d{1,6}")


class Verdict(StrEnum):
    """How one upstream met one request before the first byte of an answer's body."""

    ANSWERED = "answered"  #: it works; also if the request was refused for its own faults
    MISSING = "missing"  #: 404: perhaps the model is elsewhere
    BUSY = "busy"  #: it says that it has too much to do
    FAILED = "status"  #: any other status of 500 or more
    LATE = "timeout"  #: connected, and then nothing for too long
    UNREACHED = "unavailable"  #: nothing was sent: nobody listens there
    LOST = "broken"  #: it hung up, or what came is not HTTP

    @property
    def is_good(self) -> bool:
        """Whether there is no better answer to be had elsewhere."""
        return self in (Verdict.ANSWERED, Verdict.MISSING)

    @property
    def costs_budget(self) -> bool:
        """Whether the upstream may have worked, or still works, on the request: a retry is work twice.

        Where the connection is gone the request only moves: the one that had it does nothing any more.
        """
        return self in (Verdict.BUSY, Verdict.FAILED, Verdict.LATE)


def verdict_of_status(status: int) -> Verdict:
    """Return what a status says."""
    if status == _NOT_FOUND:
        return Verdict.MISSING
    if status in (_TOO_MANY, _UNAVAILABLE):
        return Verdict.BUSY
    return Verdict.FAILED if status >= _SERVER_ERROR else Verdict.ANSWERED


def verdict_of_error(error: UpstreamError) -> Verdict:
    """Return what an error says."""
    if isinstance(error, UpstreamUnavailable):
        return Verdict.UNREACHED
    return Verdict.LATE if isinstance(error, UpstreamTimeout) else Verdict.LOST


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return what ``Retry-After`` asks for; None without one in seconds."""
    text = headers.get("retry-after", "").strip()
    return float(text) if _SECONDS.fullmatch(text) else None
