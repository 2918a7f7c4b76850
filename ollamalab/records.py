"""Frozen records that cross modules.

A record keeps *moments*, all on one monotonic clock (``time.perf_counter``) and in seconds;
durations are computed from them in ``metrics``. Absent is ``None``, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How one offered request ended; each ends in exactly one of these."""

    OK = "ok"  #: finished with ``done: true`` and at least one token of content
    EMPTY = "empty"  #: finished with ``done: true`` but without any content
    TRUNCATED = "truncated"  #: the stream ended without ``done: true``
    ERROR_LINE = "error_line"  #: HTTP 200, then an ``{"error": ...}`` line
    HTTP_ERROR = "http_error"  #: a status of 400 or more
    TIMEOUT = "timeout"  #: the deadline passed
    REFUSED = "refused"  #: no connection could be made
    CANCELLED = "cancelled"  #: we gave up on purpose (run stopped, Ctrl-C)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerTimings:
    """What Ollama's final line says of itself, nanoseconds turned into seconds.

    ``load_s`` includes the wait to be scheduled; ``prompt_tokens`` includes cached tokens while
    ``prompt_eval_s`` covers only those evaluated; a field that the server left out is None.
    """

    total_s: float | None = None
    load_s: float | None = None
    prompt_tokens: int | None = None
    prompt_eval_s: float | None = None
    eval_tokens: int | None = None
    eval_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestRecord:
    """One offered request, from its planned start to its end.

    Attributes:
        index: Position in the plan, from 0.
        arm: Name of the arm of a comparison; "" outside one.
        block: Block of the comparison's design, from 0; None outside one.
        visit: Position of the visit in the whole design, from 0; None outside one.
        target: URL of the server.
        model: Model as it was sent.
        outcome: How it ended.
        status: HTTP status; None if no reply began.
        error: What went wrong, in one line; None if nothing did.
        intended_s: When the plan wanted it sent. In a closed loop: when a client was free.
        sent_s: When the request was handed to the connection; None if it never was.
        connected_s: When a new connection stood; None on a reused connection.
        sent_end_s: When the last byte of the request had been written; None if not observed.
        headers_s: When the reply's status line and headers were complete.
        first_token_s: First chunk with non-empty content or thinking.
        last_token_s: Last chunk with non-empty content or thinking.
        end_s: When the final line (or the failure) was read.
        token_times_s: Arrival of every content chunk, in order; chunks, not tokens.
        shared_reads: Content chunks that arrived in the same read as an earlier one.
        output_tokens: ``eval_count``; the end token counts in it where the engine counts it.
        prompt_tokens: ``prompt_eval_count``; cached tokens included.
        requested_tokens: ``num_predict`` as sent; None if open-ended.
        done_reason: "stop", "length", "load" ...; None without a final line.
        server: Durations that the server reported; None without a final line.
        warmup: True if it belongs to the warm-up and is left out of every figure.
    """

    index: int
    target: str
    model: str
    outcome: Outcome
    intended_s: float
    arm: str = ""
    block: int | None = None
    visit: int | None = None
    status: int | None = None
    error: str | None = None
    sent_s: float | None = None
    connected_s: float | None = None
    sent_end_s: float | None = None
    headers_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    end_s: float | None = None
    token_times_s: tuple[float, ...] = ()
    shared_reads: int = 0
    output_tokens: int | None = None
    prompt_tokens: int | None = None
    requested_tokens: int | None = None
    done_reason: str | None = None
    server: ServerTimings | None = None
    warmup: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One reading of a sampler, on the clock of the tokens.

    Attributes:
        at_s: When it was read.
        source: What was read: "host", "gpu0", "process:1234", "slots".
        values: Name with unit suffix (``cpu_ratio``, ``rss_bytes``, ``power_w``) to value;
            None where this machine cannot tell.
    """

    at_s: float
    source: str
    values: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything needed to understand a run later; saved as ``manifest.json``.

    Attributes:
        schema: Version of the folder's format; a newer one is refused.
        run: Name of the run folder.
        started_utc: RFC 3339.
        finished_utc: None while it runs or if it was cut off.
        profile: "quick", "gpu", "cluster" or "interactive".
        experiments: Name to state ("waiting", "running", "done", "failed").
        parameters: Experiment to its parameters as they were used.
        commit: Git commit of the code; None outside a checkout.
        dirty: Whether the checkout had uncommitted changes.
        packages: Name to version of what can change a number.
        machine: CPU model and count, RAM, kernel, GPUs and driver; see ``host.describe``.
        server: Kind, version, models with digest of the measured servers.
        load_average: 1, 5 and 15 minutes at the start.
    """

    schema: int
    run: str
    started_utc: str
    finished_utc: str | None = None
    profile: str = "interactive"
    experiments: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    commit: str | None = None
    dirty: bool | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    load_average: tuple[float, float, float] | None = None
