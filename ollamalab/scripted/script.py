"""What the scripted server will do, and what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ollamalab.errors import SettingsError


class Fault(StrEnum):
    """What goes wrong with one request; the faults of the middle concern streams."""

    BUSY = "busy"  #: 503 with Ollama's words
    RESET = "reset"  #: the connection is reset instead of an answer
    HANG = "hang"  #: no byte ever comes
    NOT_HTTP = "not_http"  #: bytes that are not HTTP
    EMPTY = "empty"  #: a proper end without any content
    STUCK = "stuck"  #: half of the tokens, then nothing more
    CUT = "cut"  #: half of the tokens, then the connection is reset
    SILENT_END = "silent_end"  #: half of the tokens, then the body's proper end, without ``done``
    ERROR_LINE = "error_line"  #: half of the tokens, then an error line and the body's end
    GARBAGE = "garbage"  #: a line in the middle that is not JSON; else as it should be


@dataclass(frozen=True, kw_only=True)
class Script:
    """The schedule, known beforehand; requests are numbered from 0 in order of arrival."""

    first_s: float = 0.1  #: from the begin of service to the first token
    gap_s: float = 0.01  #: between tokens
    tokens: int = 32  #: at most; ``num_predict`` may ask for fewer
    slots: int | None = None  #: served at once, the rest waits in order; None = all at once
    stalls: Mapping[int, float] = field(default_factory=dict)  #: request to seconds before its first token
    faults: Mapping[int, Fault] = field(default_factory=dict)  #: request to what goes wrong
    models: tuple[str, ...] = ("scripted:latest",)  #: names that are served; others get 404

    def __post_init__(self) -> None:
        for name in ("first_s", "gap_s"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} must be 0 or more, got {getattr(self, name)!r}")
        if self.tokens < 1:
            raise SettingsError(f"tokens must be 1 or more, got {self.tokens!r}")
        if self.slots is not None and self.slots < 1:
            raise SettingsError(f"slots must be 1 or more, got {self.slots!r}")

    def due_moments(self, index: int, start_s: float, tokens: int) -> list[float]:
        """Return when each token of a request is due, given the begin of its service."""
        first_s = start_s + self.stalls.get(index, 0.0) + self.first_s
        return [first_s + position * self.gap_s for position in range(tokens)]

    def service_s(self, index: int) -> float:
        """Return how long the whole service of a request takes."""
        return self.due_moments(index, 0.0, self.tokens)[-1]


@dataclass(kw_only=True, slots=True)
class ServedRequest:
    """What the server itself knows of one request; moments are ``time.perf_counter``.

    Attributes:
        index: Number of the request in order of arrival, from 0.
        prompt: First 80 characters of what was asked; tells requests apart.
        arrived_s: When its last byte was read.
        started_s: When its service began, by the schedule; None while it waits.
        written_s: Just before the write of each content line.
        ended_s: When the reply ended or the client hung up; None until then.
        is_complete: Whether everything was written.
    """

    index: int
    prompt: str
    arrived_s: float
    started_s: float | None = None
    written_s: list[float] = field(default_factory=list)
    ended_s: float | None = None
    is_complete: bool = False
