"""What the gateway knows of a request once it is over: for logs and metrics, without what was said."""

from __future__ import annotations

from enum import StrEnum

import msgspec

#: Answered without a key, for whoever checks that the gateway lives.
HEALTH_PATH = "/healthz"
STATUS_PATH = "/lab/status"
METRICS_PATH = "/metrics"

#: Of the pages that the gateway makes itself.
OWN_PATHS = (HEALTH_PATH, STATUS_PATH, METRICS_PATH)


class Ending(StrEnum):
    """How a request ended, as its client saw it."""

    __hash__ = str.__hash__  # Enum's own is Python code, and endings are counted on every request

    WHOLE = "whole"  #: answered to the end, with whatever status
    BROKEN = "broken"  #: began well, then broke off
    CLIENT_GONE = "client_gone"  #: the client hung up or read too slowly


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """One request that is over.

    Attributes:
        method: HTTP method.
        path: The path of the endpoint or of a page of ours; "other" for paths that nobody knows.
        status: HTTP status; None if the client was gone before there was one.
        ending: How it ended.
        error: What went wrong, in one line; None if nothing did.
        client: For whom it counts.
        model: As the client spelled it; "" without a model.
        is_stream: Whether a stream was asked for.
        cache: "hit", "miss" ...; None for what is no inference.
        queue_s: Waited in our queue; None if it never came to that.
        first_byte_s: From arrival to the first byte of the answer; None without one.
        e2e_s: From arrival to the end.
        body_bytes: Bytes of the answer's body.
    """

    method: str
    path: str
    status: int | None
    ending: Ending
    error: str | None
    client: str
    model: str
    is_stream: bool
    cache: str | None
    queue_s: float | None
    first_byte_s: float | None
    e2e_s: float
    body_bytes: int
