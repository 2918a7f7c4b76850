"""What one client may take of the gateway's HTTP server."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ollamalab.errors import OutOfRange


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Sizes, counts and patience of the HTTP server; times are checked about once a second."""

    max_body_bytes: int = 64 * 1024 * 1024  #: of one request, held in memory; more is answered 413
    max_header_bytes: int = 32 * 1024  #: target and headers, trailers too; more is answered 431
    max_headers: int = 100  #: more are answered 431
    max_connections: int = 4096  #: at once; one more is told so and closed
    idle_timeout_s: float = 120.0  #: of a connection without a request
    head_timeout_s: float = 30.0  #: from a request's first byte to the end of its headers
    body_timeout_s: float = 30.0  #: without a byte of a body that is on its way
    write_timeout_s: float = 60.0  #: in which a client that is behind takes less than 240 bytes/s
    linger_s: float = 5.0  #: a refused client may go on sending, so that it can read why

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise OutOfRange(field.name, f"must be > 0, got {value!r}")
